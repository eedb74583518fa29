"""The corpus of broken and nasty images at the doors of the command line and of the datasets."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.datasets import dataset_report, read_folder
from helpers.encoders import cache_features
from tests import nasty_images as nasty
from tests.test_captioner import write
from tests.test_features import Tiny

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="FIFOs, links and names of POSIX"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # pytest undoes what helpers.images has set
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[Path, str]:
    return nasty.make_corpus(tmp_path_factory.mktemp("corpus"))


def test_the_command_line_captions_the_good_and_names_the_bad(corpus, tmp_path) -> None:
    checkpoint = write(tmp_path / "toy", "ShowAndTell")
    command = [sys.executable, "generate_caption.py", "--checkpoint", checkpoint, "--json", "--device", "cpu",
               "--beam_size", "1", "--max_length", "4", "--image_path", *corpus]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment)
    assert run.returncode == 1, run.stderr[-2000:]
    said = {record["image"]: record["caption"] for record in map(json.loads, run.stdout.decode().splitlines())}
    lines = run.stderr.decode().splitlines()
    assert lines[-1] == f"{len(corpus) - len(said)} of {len(corpus)} images got no caption."
    assert len(lines) == len(corpus) - len(said) + 1  # one message each, and none beside
    assert all(line.isprintable() and "Traceback" not in line and len(line) < 900 for line in lines)
    for path, outcome in corpus.items():
        assert outcome == "either" or (str(path) in said) == (outcome == "image"), path


def test_a_dataset_of_nasty_files_is_read_reported_and_encoded(corpus, tmp_path) -> None:
    folder = next(iter(corpus)).parent
    names = [path.name for path in corpus if path.name.isprintable() and path.name != "no_such_file.jpg"]
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(name, f"A dog runs, {number} .") for number, name in enumerate(names)]
        csv.writer(file).writerows([("image", "caption"), *rows])
    try:
        dataset = read_folder(folder)
    finally:
        (folder / "captions.csv").unlink()
    assert sorted(dataset.images()) == sorted(names)
    outcomes = {path.name: outcome for path, outcome in corpus.items()}
    findings = dataset_report(dataset).findings
    unreadable = set(findings[findings.kind == "unreadable"].image)
    features = cache_features(Tiny(), dataset, folder=tmp_path / "features")
    assert set(features.failed) == unreadable and len(features) == len(names) - len(unreadable)
    assert all(reason.isprintable() and len(reason) < 900 for reason in features.failed.values())
    for name in names:
        assert outcomes[name] == "either" or (name in unreadable) == (outcomes[name] == "error"), name
