"""Killed anywhere, nothing lost: 12 runs killed, and each piece of work ends as if it had not been."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.job_server import Jobs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
AT_RANDOM, AMID = 2, 2  # kills of each of the three kinds of work


def killed_runs(
    jobs: Jobs, job: dict, whole: float, folder: Path, after: Callable[[], None], amid: str
) -> int:
    """Starts the job and kills it, first at moments within `whole` seconds, then in new folders soon after a file
    `amid` appeared beside `folder` or below: something is done then, and something left. Returns how often the work was
    begun anew, as also happens when a run ends before it is killed. `after` looks at what was left.
    """
    chance, anew = random.Random(str(job["work"])), 0

    def clear() -> None:
        for path in folder.parent.glob(f"*{folder.name}*"):
            if path.is_dir():  # a lock is a file, and stays
                shutil.rmtree(path)

    for number in range(AT_RANDOM + AMID):
        while True:
            if number < AT_RANDOM:
                moment = {"kill_after": chance.uniform(0.05, 0.95) * whole}
            else:
                clear()
                anew += 1
                moment = {"kill_after": chance.uniform(0, 0.05) * whole, "kill_when": [str(folder.parent), amid]}
            answer = jobs.run({**job, **moment})
            if answer["status"] == "killed":
                break
            assert answer["status"] == "done", answer
            clear()
            anew += 1
            assert anew < 60, "it always ends before it is killed"
        after()
    return anew


def age_what_was_left(folder: Path) -> list[Path]:
    """Makes temporary files and folders older than the grace that a living process has; returns them."""
    import os

    left = list(folder.rglob(".*.part"))
    for path in left:
        os.utime(path, (1, 1))
    return left


def test_encoding(jobs, photos, tmp_path) -> None:
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    expected = jobs.run({"work": "encode", "folder": str(whole), "photos": str(photos), "log": str(tmp_path / "l")})
    assert expected["status"] == "done" and len(expected["names"]) == 64
    job = {"work": "encode", "folder": str(broken), "photos": str(photos), "log": str(log)}
    anew = killed_runs(jobs, job, expected["seconds"], broken, lambda: age_what_was_left(broken), "**/rows.json")
    answer = jobs.run(job)
    assert (answer["names"], answer["hash"]) == (expected["names"], expected["hash"])
    encoded = sum(map(int, log.read_text().split()))
    assert encoded <= 64 * (anew + 1) + 4 * (AT_RANDOM + AMID)  # at each kill one batch of 4 is lost and no more


def test_training(jobs, tmp_path) -> None:
    """Two stages, with dropout, averaging and draws: bit-identical weights and history."""
    expected = jobs.run({"work": "train", "folder": str(tmp_path / "whole"), "log": str(tmp_path / "l")})
    assert expected["status"] == "done" and len(expected["history"]) == 6, expected
    broken, log = tmp_path / "broken", tmp_path / "log"
    job = {"work": "train", "folder": str(broken), "log": str(log)}
    after_an_epoch = "broken/stage1-last.safetensors"  # with moments of the optimiser and the mean of the weights
    anew = killed_runs(jobs, job, expected["seconds"], broken, lambda: age_what_was_left(broken), after_an_epoch)
    answer = jobs.run(job)
    assert answer["history"] == expected["history"] and answer["table"] == 7
    assert answer["weights"] == expected["weights"]
    epochs = log.read_text().split()
    assert max(map(epochs.count, epochs)) <= anew + 1  # an epoch that was complete is never done again
    assert age_what_was_left(broken) == []


def test_saving_checkpoints(jobs, tmp_path) -> None:
    """What is there after a kill is one checkpoint whole, or is refused by its hash; never a mixture."""
    folder, seen = tmp_path / "checkpoint", []
    timed = jobs.run({"work": "save", "folder": str(folder), "first": 1, "count": 30})
    assert timed["status"] == "done", timed

    def look() -> None:
        answer = jobs.run({"work": "load", "folder": str(folder)})
        if answer["status"] == "done":
            numbers = set(answer["found"]) - {0.0}  # frozen parts and padding
            assert numbers <= {float(answer["number"])}
        else:
            assert answer["status"] == "refused" and "SHA-256 differs" in answer["message"], answer
        seen.append(answer["status"])

    job = {"work": "save", "folder": str(folder), "first": 31, "count": 900}
    killed_runs(jobs, job, timed["seconds"], folder, look, "*/config.json")
    left = age_what_was_left(folder)
    jobs.run({"work": "save", "folder": str(folder), "first": 7, "count": 1})
    answer = jobs.run({"work": "load", "folder": str(folder)})
    assert answer["status"] == "done" and answer["number"] == 7 and 7.0 in answer["found"]
    assert len(seen) == AT_RANDOM + AMID and not any(path.exists() for path in left)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "vocabulary.json", "config.json", "training.json",
    }  # fmt: skip
