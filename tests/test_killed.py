"""Killed anywhere, nothing lost: at least 24 runs killed at random moments, and each ends as if it had not been."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_server import Page, serving
from tests.job_server import Jobs, digest
from tests.small_archives import flickr8k_zip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
KILLS = 4  # of each of the six kinds of work


def killed_runs(
    jobs: Jobs, job: dict, whole: float, folder: Path, after: Callable[[], None] = lambda: None,
    amid: Callable[[], bool] = lambda: True,
) -> tuple[int, int, int]:  # fmt: skip
    """Starts the job and kills it, at least KILLS times, at moments within `whole` seconds, until two of the kills came
    `amid` the work, with something done and something left; returns how often it was killed, how often amid the work,
    and how often it was begun anew.

    When a run ends before it is killed, the work begins anew in an empty folder. `after` looks at what was left.
    """
    chance, kills, met, anew = random.Random(str(job["work"])), 0, 0, 0
    while kills < KILLS or met < 2:
        (answer,) = jobs.run({**job, "kill_after": chance.uniform(0.05, 0.95) * whole})
        assert answer["status"] in ("killed", "done"), answer
        if answer["status"] == "killed":
            kills, met = kills + 1, met + amid()
            after()
        else:
            anew += 1
            for path in folder.parent.glob(f"*{folder.name}*"):
                shutil.rmtree(path)
        assert kills < 40 and anew < 20, f"{kills} kills, {met} of them amid the work; {anew} runs ended before one"
    return kills, met, anew


def age_what_was_left(folder: Path) -> list[Path]:
    """Makes temporary files and folders older than the grace that a living process has; returns them."""
    import os

    left = list(folder.rglob(".*.part"))
    for path in left:
        os.utime(path, (1, 1))
    return left


def test_encoding(jobs, photos, tmp_path) -> None:
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    (expected,) = jobs.run({"work": "encode", "folder": str(whole), "photos": str(photos), "log": str(tmp_path / "l")})
    assert expected["status"] == "done" and len(expected["names"]) == 64
    job = {"work": "encode", "folder": str(broken), "photos": str(photos), "log": str(log)}
    kills, _, anew = killed_runs(jobs, job, expected["seconds"], broken, lambda: age_what_was_left(broken),
                                 lambda: bool(list(broken.rglob("progress.json"))))
    (answer,) = jobs.run(job)
    assert (answer["names"], answer["hash"]) == (expected["names"], expected["hash"])
    encoded = sum(map(int, log.read_text().split()))
    assert encoded <= 64 * (anew + 1) + 8 * kills  # at each kill one block of 8 is lost and no more


def test_a_cache_whose_array_was_lost_is_not_taken_for_whole(jobs, photos, tmp_path) -> None:
    job = {"work": "encode", "folder": str(tmp_path / "cache"), "photos": str(photos), "log": str(tmp_path / "log")}
    (expected,) = jobs.run(job)
    (array,) = (tmp_path / "cache").rglob("features.npy")
    array.unlink()
    (killed,) = jobs.run({**job, "kill_after": 0.5 * expected["seconds"]})
    (answer,) = jobs.run(job)
    assert answer["hash"] == expected["hash"], "half an array was read"


def test_a_mark_without_its_array_is_not_believed(jobs, photos, tmp_path) -> None:
    job = {"work": "encode", "folder": str(tmp_path / "cache"), "photos": str(photos), "log": str(tmp_path / "log")}
    (expected,) = jobs.run({**job, "folder": str(tmp_path / "whole")})
    killed_runs(jobs, job, expected["seconds"], tmp_path / "cache",
                amid=lambda: bool(list((tmp_path / "cache").rglob("progress.json"))))
    while not list((tmp_path / "cache").rglob("progress.json")):  # the last of the kills came before the first block
        jobs.run({**job, "kill_after": 0.5 * expected["seconds"]})
    for array in (tmp_path / "cache").rglob("features.npy"):
        array.unlink()
    (answer,) = jobs.run(job)
    assert (answer["names"], answer["hash"]) == (expected["names"], expected["hash"])


def test_training(jobs, tmp_path) -> None:
    """Two stages, with dropout, averaging, scheduled sampling and draws: bit-identical weights and history."""
    (expected,) = jobs.run({"work": "train", "folder": str(tmp_path / "whole"), "log": str(tmp_path / "l")})
    assert expected["status"] == "done" and len(expected["history"]) == 6, expected
    broken, log = tmp_path / "broken", tmp_path / "log"
    job = {"work": "train", "folder": str(broken), "log": str(log)}

    def amid() -> bool:  # a stage, whose moments of the optimiser and mean of the weights have to be kept
        table = broken / "history.csv"
        return table.exists() and table.read_text().count("\n") - 1 in (1, 2, 3, 5)

    kills, _, anew = killed_runs(jobs, job, expected["seconds"], broken, lambda: age_what_was_left(broken), amid)
    (answer,) = jobs.run(job)
    assert answer["history"] == expected["history"] and answer["table"] == 7
    assert answer["weights"] == expected["weights"]
    epochs = log.read_text().split()
    assert max(map(epochs.count, epochs)) <= anew + 1  # an epoch that was complete is never done again
    assert age_what_was_left(broken) == []


def test_two_runs_with_one_seed_and_other_hashing_are_equal(tmp_path, monkeypatch) -> None:
    """Each in an interpreter of its own, where sets and dictionaries of strings have another order."""
    answers = []
    for hashing in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hashing)
        with Jobs() as jobs:
            answers += jobs.run({"work": "train", "folder": str(tmp_path / hashing), "log": str(tmp_path / "log")})
    assert answers[0]["weights"] == answers[1]["weights"] and answers[0]["history"] == answers[1]["history"]


def test_drawing(jobs, tmp_path) -> None:
    (expected,) = jobs.run({"work": "draw", "folder": str(tmp_path / "whole" / "pocket")})
    folder = tmp_path / "broken" / "pocket"

    def look() -> None:
        assert not folder.exists() or digest(folder) == expected["files"]  # all of it or nothing
        assert len(age_what_was_left(folder.parent)) <= 1  # the next run clears away what the one before had left

    killed_runs(jobs, {"work": "draw", "folder": str(folder)}, expected["seconds"], folder, look,
                lambda: any(folder.parent.glob(".*/Images/*.jpg")))
    (answer,) = jobs.run({"work": "draw", "folder": str(folder)})
    assert answer["files"] == expected["files"]
    assert [path.name for path in folder.parent.iterdir()] == ["pocket"]


def test_what_a_notebook_begins_with(jobs, tmp_path) -> None:
    """Pocket Scenes drawn into the cache, then its photos encoded there by two threads."""
    (expected,) = jobs.run({"work": "notebook", "folder": str(tmp_path / "whole"), "log": str(tmp_path / "l")})
    assert expected["status"] == "done" and len(expected["names"]) == 40, expected
    broken, log = tmp_path / "broken" / "cache", tmp_path / "log"
    job = {"work": "notebook", "folder": str(broken), "log": str(log)}
    kills, _, anew = killed_runs(jobs, job, expected["seconds"], broken, lambda: age_what_was_left(broken),
                                 lambda: bool(list(broken.rglob("progress.json"))))
    (answer,) = jobs.run(job)
    assert [answer[part] for part in ("fingerprint", "names", "hash")] == [
        expected[part] for part in ("fingerprint", "names", "hash")
    ]  # fmt: skip
    encoded = sum(map(int, log.read_text().split()))
    assert encoded <= 40 * (anew + 1) + 16 * kills  # at each kill one block of 8 for either thread
    assert not list(broken.rglob(".*.part"))


def test_downloading(jobs, tmp_path) -> None:
    folder = tmp_path / "broken" / "flickr8k"

    def look() -> None:
        assert not folder.exists() or digest(folder) == expected["files"]  # all of it or nothing

    with serving() as server:
        server.pages["/f.zip"] = Page(data := flickr8k_zip(images=200), delay=0.02)
        job = {"work": "fetch", "url": server.url("/f.zip"), "images": 200}
        (expected,) = jobs.run({**job, "folder": str(tmp_path / "whole" / "flickr8k")})
        assert expected["status"] == "done", expected
        server.asked.clear()
        kills, met, anew = killed_runs(
            jobs, {**job, "folder": str(folder)}, expected["seconds"], folder, look,
            amid=lambda: any(path.stat().st_size for path in folder.parent.rglob("*.part") if path.is_file()),
        )  # fmt: skip
        (answer,) = jobs.run({**job, "folder": str(folder)})
        asked = [int(wanted[6:-1]) if wanted else 0 for _, wanted in server.asked]
    assert answer["files"] == expected["files"]
    assert 0 < max(asked) < len(data)  # they go on where the one before was killed, unless nothing had come by then
    assert asked.count(0) <= 1 + anew + kills - met
    assert sorted(path.name for path in folder.parent.iterdir()) == ["flickr8k", "flickr8k.download"]


def test_saving_checkpoints(jobs, tmp_path) -> None:
    """What is there after a kill is one checkpoint whole, or is refused by its hash; never a mixture."""
    folder, seen = tmp_path / "checkpoint", []
    (timed,) = jobs.run({"work": "save", "folder": str(folder), "first": 1, "count": 30})
    assert timed["status"] == "done", timed

    def look() -> None:
        (answer,) = jobs.run({"work": "load", "folder": str(folder)})
        if answer["status"] == "done":
            numbers = set(answer["found"]) - {0.0}  # frozen parts and padding
            assert numbers <= {float(answer["number"])}
        else:
            assert answer["status"] == "refused" and "SHA-256 differs" in answer["message"], answer
        seen.append(answer["status"])

    job = {"work": "save", "folder": str(folder), "first": 31, "count": 900}
    killed_runs(jobs, job, timed["seconds"], folder, look)
    left = age_what_was_left(folder)
    jobs.run({"work": "save", "folder": str(folder), "first": 7, "count": 1})
    (answer,) = jobs.run({"work": "load", "folder": str(folder)})
    assert answer["status"] == "done" and answer["number"] == 7 and 7.0 in answer["found"]
    assert len(seen) >= KILLS and not any(path.exists() for path in left)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "vocabulary.json", "config.json", "training.json",
    }  # fmt: skip
