"""One seed, one result: the command lines twice, each time in interpreters of their own, with two threads."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_several_processes import CONFIG

FIRST = {**CONFIG["stages"][0], "epochs": 2}
SECOND = {**FIRST, "objective": "self_critical", "epochs": 1, "samples": 2, "learning_rate": 1e-4, "average": 0.0}
BOTH = CONFIG | {"model": {**CONFIG["model"], "dropout": 0.3}, "stages": [FIRST, SECOND]}


def run(root: Path, hashing: int, *command: object, **env: str) -> str:
    """Runs a command line with another order of sets and dictionaries than the next; returns what it printed."""
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # on busy cores a thread that waits must not spin
    settings = {**os.environ, **threads, "PYTHONHASHSEED": str(hashing), "TQDM_DISABLE": "1", **env}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=root, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def trained(root: Path, folder: Path, hashing: int, *seeds: int) -> Iterator[tuple[bytes, list]]:
    """Encodes once and trains each seed, in one interpreter; yields weights and histories, without the times."""
    folder.mkdir()
    for seed in seeds:
        (folder / f"{seed}.json").write_text(json.dumps(BOTH | {"output": str(folder / str(seed)), "seed": seed}))
    each = "import sys; from helpers.training import main; [main([file, '--quiet']) for file in sys.argv[1:]]"
    run(root, hashing, "-c", each, *(folder / f"{s}.json" for s in seeds), CAPTIONING_CACHE=str(folder / "cache"))
    for seed in seeds:
        rows = csv.DictReader((folder / str(seed) / "history.csv").read_text().splitlines())
        history = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        assert len(history) == 3
        yield (folder / str(seed) / "model.safetensors").read_bytes(), history


def test_training_twice_gives_the_same_weights_and_another_seed_gives_others(root, tmp_path) -> None:
    """Features anew each time; dropout, scheduled sampling, sampled captions and a mean of weights are switched on."""
    (one,) = trained(root, tmp_path / "one", 1, 3)
    other, again = trained(root, tmp_path / "again", 2, 4, 3)  # what came before in the interpreter does not matter
    assert one == again
    assert other[0] != one[0] and other[1] != one[1]


@pytest.mark.parametrize("model", ["cnn-lstm", "clipcap-mlp"])
def test_sampling_twice_gives_the_same_captions_and_another_seed_gives_others(root, samples, model) -> None:
    """20 photos, so that a second batch goes on with the random numbers where the first ended."""
    options = ("--model", model, "--json", "--temperature", "1", "--image_path", *samples, *samples[:6], "--seed")
    again = "import sys; from generate_caption import main; [main([*sys.argv[1:], seed]) for seed in ('8', '7')]"
    one = run(root, 1, "generate_caption.py", *options, 7).splitlines()
    both = run(root, 2, "-c", again, *options).splitlines()
    assert len(one) == 20 and one == both[20:] and one != both[:20]
    drawn = [json.loads(line)["caption"] for line in one]
    assert drawn[:6] != drawn[14:], "the same random numbers for each batch"
