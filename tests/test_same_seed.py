"""One seed, one result: the command lines twice, each time in interpreters of their own, with two threads."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_several_processes import CONFIG

FIRST = {**CONFIG["stages"][0], "epochs": 2}
SECOND = {**FIRST, "objective": "self_critical", "epochs": 1, "samples": 2, "learning_rate": 1e-4, "average": 0.0}
MODEL = {**CONFIG["model"], "dropout": 0.3}


def run(root: Path, hashing: int, *command: object, **env: str) -> str:
    """Runs a command line with another order of sets and dictionaries than the next; returns what it printed."""
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # on busy cores a thread that waits must not spin
    settings = {**os.environ, **threads, "PYTHONHASHSEED": str(hashing), "TQDM_DISABLE": "1", **env}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=root, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def trained(root: Path, folder: Path, hashing: int, seed: int) -> tuple[bytes, list]:
    """Encodes and trains in an empty folder; returns the weights and the history, without the times."""
    config = {**CONFIG, "model": MODEL, "stages": [FIRST, SECOND], "output": str(folder / "run"), "seed": seed}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    cache = {"CAPTIONING_CACHE": str(folder / "cache")}
    run(root, hashing, "-m", "helpers.training", folder / "config.json", "--quiet", **cache)
    with open(folder / "run" / "history.csv", newline="") as file:
        history = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    assert len(history) == 3
    return (folder / "run" / "model.safetensors").read_bytes(), history


def test_training_twice_gives_the_same_weights_and_another_seed_gives_others(root, tmp_path) -> None:
    """Features anew each time; dropout, scheduled sampling, sampled captions and a mean of weights are switched on."""
    one, again = (trained(root, tmp_path / str(hashing), hashing, seed=3) for hashing in (1, 2))
    assert one == again
    other = trained(root, tmp_path / "other", 1, seed=4)
    assert other[0] != one[0] and other[1] != one[1]


@pytest.mark.parametrize("model", ["cnn-lstm", "clipcap-mlp"])
def test_sampling_twice_gives_the_same_captions_and_another_seed_gives_others(root, samples, model) -> None:
    """20 photos, so that a second batch goes on with the random numbers where the first ended."""
    photos = [*samples, *samples[:6]]
    command = ("generate_caption.py", "--model", model, "--json", "--temperature", "1", "--image_path", *photos)
    one, again = (run(root, hashing, *command, "--seed", 7) for hashing in (1, 2))
    assert one == again and len(one.splitlines()) == 20
    assert one != run(root, 1, *command, "--seed", 8)
    drawn = [json.loads(line)["caption"] for line in one.splitlines()]
    assert drawn[:6] != drawn[14:], "the same random numbers for each batch"
