"""Several processes: one loss curve, one feature cache, whoever is killed and whoever goes on."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.training import train

CONFIG = {
    "name": "several",
    "dataset": {"name": "pocket", "images": 48, "size": 64},
    "encoder": "efficientnet-lite0",
    "vocabulary": {"min_count": 1},
    "mixed_precision": "no",
    "model": {
        "class": "ShowAttendTell", "embedding": 16, "hidden": 24, "attention": 8, "value": 16, "dropout": 0.0,
        "doubly_stochastic": 0.5,
    },
    "stages": [
        {
            "epochs": 3, "images_per_batch": 7, "captions_per_image": 2, "learning_rate": 0.01, "warmup_steps": 2,
            "average": 0.9, "decoding": {"method": "greedy", "max_length": 8},
        }
    ],
}  # fmt: skip


def launch(processes: int, *module: str, **env: str) -> subprocess.CompletedProcess:
    """Runs `accelerate launch` as on a machine with several devices; without one each process takes the CPU (gloo)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(port), "-m", *module]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | env
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_two_processes_train_as_one_does(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "one"))
    rows = {}
    train({**CONFIG, "output": str(tmp_path / "one-run")})
    second = {**CONFIG["stages"][0], "objective": "self_critical", "epochs": 1, "samples": 2, "learning_rate": 1e-4}
    config = {**CONFIG, "stages": [*CONFIG["stages"], second], "output": str(tmp_path / "two-run")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = launch(2, "helpers.training", str(tmp_path / "config.json"), CAPTIONING_CACHE=str(tmp_path / "two"))
    assert result.returncode == 0, result.stderr[-3000:]
    said = [line for line in result.stdout.splitlines() if not line.startswith("[Gloo]")]  # PyTorch's own, to 2.10
    assert len(said) == 4  # one process speaks
    for name in ("one", "two"):
        with open(tmp_path / f"{name}-run" / "history.csv", encoding="utf-8") as file:
            rows[name] = list(csv.DictReader(file))
    assert len(rows["one"]) == 3 and len(rows["two"]) == 4
    assert float(rows["two"][3]["reward"]) >= 0  # samples differ with the processes: nothing to compare
    for one, two in zip(rows["one"], rows["two"][:3], strict=True):
        for column in ("train_loss", "dev_loss", "BLEU-4"):
            assert float(one[column]) == pytest.approx(float(two[column]), abs=1e-4)
        assert one["step"] == two["step"] and one["learning_rate"] == two["learning_rate"]
    losses = [float(row["train_loss"]) for row in rows["one"]]
    assert losses[0] > losses[1] > losses[2]
    (shared,) = (tmp_path / "two").rglob("rows.json")  # the processes shared the work, and one array came out
    (alone,) = (tmp_path / "one" / "features").rglob("features.npy")
    assert np.allclose(np.load(alone), np.load(shared.parent / "features.npy"), atol=1e-2)
    saved = {path.name for path in (tmp_path / "two-run").iterdir()}
    assert {"model.safetensors", "config.json", "vocabulary.json"} <= saved
