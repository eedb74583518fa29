"""The corpus of broken and nasty images at the doors of the command line and of the datasets."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.caption_files import Faults, parse_csv
from helpers.captioner import save_checkpoint
from helpers.cnn_lstm import ShowAndTell
from helpers.datasets import dataset_report, read_folder
from helpers.features import cache_features
from helpers.files import CaptioningError
from helpers.text import Vocabulary
from tests import nasty_images as nasty
from tests.test_features import Tiny
from tests.usage import bounded

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="FIFOs, links and names of POSIX"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # pytest undoes what helpers.images has set
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[Path, str]:
    return nasty.make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained captioner over the real encoder: what it says means nothing."""
    torch.manual_seed(0)
    model = ShowAndTell(12, 1280, embedding=8, hidden=16).eval()
    model.tokenizer = Vocabulary(["a", "dog", "cat", "runs", "sits", "the", "red", "blue"])
    config = {"name": "toy", "encoder": "efficientnet-lite0", "features": "pooled", "decoding": {"max_length": 4}}
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "toy", model, config)


# A child is born with the memory of its parent on its account, and the tests before have filled this process: a small
# one in between starts the command and keeps the account.
WATCH = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
"""


def limited(command: list, folder: Path) -> tuple[int, bytes, bytes, float, float]:
    """Runs a command; returns (exit status, output, errors, seconds of computing, most memory in MB)."""
    with open(folder / "out", "wb") as out, open(folder / "errors", "wb") as errors:
        subprocess.run([sys.executable, "-S", "-c", WATCH, folder / "usage", *command], stdout=out, stderr=errors,
                       cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"})  # fmt: skip
    status, seconds, most = json.loads((folder / "usage").read_text())
    per_unit = 1024 if sys.platform.startswith("linux") else 1024 * 1024
    return status, (folder / "out").read_bytes(), (folder / "errors").read_bytes(), seconds, most / per_unit


def test_the_command_line_captions_the_good_and_names_the_bad(corpus, checkpoint, tmp_path) -> None:
    assert len(corpus) >= 300
    command = [sys.executable, "generate_caption.py", "--checkpoint", checkpoint, "--json", "--device", "cpu",
               "--beam_size", "1", "--image_path", *corpus]
    status, out, errors, seconds, megabytes = limited(command, tmp_path)
    assert status == 1, errors[-2000:]
    said = {record["image"]: record["caption"] for record in map(json.loads, out.decode().splitlines())}
    lines = errors.decode().splitlines()
    assert lines[-1] == f"{len(corpus) - len(said)} of {len(corpus)} images got no caption."
    assert len(lines) == len(corpus) - len(said) + 1  # one message each, and none beside
    assert all(line.isprintable() and "Traceback" not in line and len(line) < 900 for line in lines)
    for path, outcome in corpus.items():
        assert outcome == "either" or (str(path) in said) == (outcome == "image"), path
    assert seconds < 200 and megabytes < 2500
    assert not any((ROOT / name).exists() for name in ("out.eps", "core"))


def written(folder: Path, corpus: dict[Path, str], tmp_path: Path) -> list[str]:
    """Writes captions.csv for every file of the corpus whose name a line can hold; returns the names."""
    names = [path.name for path in corpus if path.name.isprintable() and path.name != "no_such_file.jpg"]
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "caption"))
        rows.writerows((name, f"A dog runs, {n} .") for n, name in enumerate(names))
    return names


def test_a_dataset_of_nasty_files_is_read_reported_and_encoded(corpus, tmp_path) -> None:
    folder = next(iter(corpus)).parent
    names = written(folder, corpus, tmp_path)
    assert len(names) >= 300
    try:
        with bounded(seconds=10, megabytes=50):  # its images are looked for, not opened
            dataset = read_folder(folder)
    finally:
        (folder / "captions.csv").unlink()
    assert sorted(dataset.images()) == sorted(names)
    outcomes = {path.name: outcome for path, outcome in corpus.items()}
    with bounded(seconds=60, megabytes=700):
        findings = dataset_report(dataset).findings
    unreadable = set(findings[findings.kind.isin(["unreadable", "missing"])].image)
    with bounded(seconds=60, megabytes=700):
        features = cache_features(Tiny(), dataset, folder=tmp_path / "features")
    assert set(features.failed) == unreadable and len(features) == len(names) - len(unreadable)
    assert all(reason.isprintable() and len(reason) < 900 for reason in features.failed.values())
    for name in names:
        assert outcomes[name] == "either" or (name in unreadable) == (outcomes[name] == "error"), name


@pytest.mark.parametrize(("name", "words"), [
    ("line\nbreak.jpg", "runs over several lines"), ("no_such_file.jpg", "captions for an image that is not in"),
    ("../plain.jpg", "leads out of the image folder"), ("/etc/passwd", "leads out of the image folder"),
])  # fmt: skip
def test_names_that_no_caption_file_may_hold(name, words, tmp_path) -> None:
    (tmp_path / "plain.jpg").write_bytes(nasty.encode(nasty.noise(8, 8), "JPEG"))
    with open(tmp_path / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), ("plain.jpg", "A dog ."), (name, "A cat .")])
    with pytest.raises(CaptioningError, match=words) as caught:
        read_folder(tmp_path)
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_name_that_is_not_utf8_is_said_with_its_line(tmp_path) -> None:
    (tmp_path / "captions.csv").write_bytes(b"image,caption\ncaf\xe9.jpg,A dog .\n")
    with pytest.raises(CaptioningError, match=r"not UTF-8 \(line 2\)"):
        parse_csv(tmp_path / "captions.csv", Faults(tmp_path))
