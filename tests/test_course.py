"""The first cell of every notebook and what it calls: idle at home, and able to fetch the course elsewhere."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

import course
from bootstrap_cell import CELL, RELEASE, badge
from notebook_tools import find_notebooks
from tests.test_requirements import modules_of

SHOW = """
import json
print(json.dumps([str(Path.cwd()), course.__file__, sys.path.count(str(root)), installed]))"""
notebooks = pytest.mark.parametrize("path", find_notebooks(solutions=True), ids=lambda path: path.stem)


def run(folder: Path, code: str = CELL, **env: str) -> list:
    """Executes the cell in a fresh Python in `folder`. Returns the folder it ended in, course's file, and so on."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | env
    command = [sys.executable, "-c", code + SHOW]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@notebooks
def test_every_notebook_begins_with_it(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    assert first.source == CELL, "run `python scripts/bootstrap_cell.py`"
    assert badge(path) in book.cells[0].source, "run `python scripts/bootstrap_cell.py`"


@notebooks
def test_colab_gets_all_that_a_notebook_imports(path: Path) -> None:
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    plain = "\n".join(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.M) for source in code)
    ours = {"course", "helpers", "pocket_scenes", "ranking", "IPython"}
    assert modules_of(ast.parse(plain)) <= ours | {*sys.stdlib_module_names, *course.MODULES}, "add it to course.py"


@pytest.mark.parametrize("place", [".", "notebooks/solutions"])
def test_at_home_it_only_finds_the_root(root: Path, place: str) -> None:
    folder, file, times, installed = run(root / place, CELL + "\n" + CELL)
    assert Path(folder) == root and Path(file) == root / "course.py"
    assert times == 1 and installed == []


def git(folder: Path, *arguments: str) -> None:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True)


def test_elsewhere_it_fetches_the_release_once(tmp_path: Path, root: Path) -> None:
    origin, empty = tmp_path / "origin", tmp_path / "content"
    origin.mkdir()
    empty.mkdir()
    (origin / "course.py").write_bytes((root / "course.py").read_bytes())
    git(origin, "init", "--quiet")
    git(origin, "add", ".")
    git(origin, "commit", "--quiet", "-m", "release")
    git(origin, "tag", RELEASE)
    (origin / "later.txt").write_text("after the release")
    git(origin, "add", ".")
    git(origin, "commit", "--quiet", "-m", "later")
    clone = empty / "image-captioning-course"
    first = run(empty, CELL + "\n" + CELL, CAPTIONING_COURSE=origin.as_uri(), COLAB_RELEASE_TAG="release")
    assert Path(first[0]) == clone.resolve() and Path(first[1]).is_relative_to(clone.resolve()) and first[2] == 1
    assert not (clone / "later.txt").exists()  # the tag, not the newest commit
    again = run(empty, CAPTIONING_COURSE=str(tmp_path / "gone"), COLAB_RELEASE_TAG="release")  # a restarted kernel
    assert again == first


@pytest.fixture
def without(monkeypatch):
    """Makes modules look as if they were not installed."""

    def hide(*names: str) -> None:
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else real(name))

    return hide


def test_colab_gets_what_it_lacks_and_keeps_its_torch(monkeypatch, without) -> None:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    without("efficientnet_lite_pytorch", "pycocoevalcap")
    calls = []

    def pip(command, **options):
        place = command.index("--constraint") + 1
        calls.append((command[place + 1 :], Path(command[place]).read_text().splitlines()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert course.prepare() == ["efficientnet-lite-pytorch", "pycocoevalcap"]
    ((wanted, constraints),) = calls
    assert wanted == ["efficientnet-lite-pytorch>=0.1,<1", "pycocoevalcap>=1.2,<2"]
    assert [line.split("==")[0] for line in constraints] == ["torch", "torchvision", "numpy"]
    failed = subprocess.CompletedProcess([], 1, "", "no connection")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(RuntimeError, match="could not install .*:\nno connection"):
        course.prepare()
    without("torch", "nltk")
    with pytest.raises(RuntimeError, match="Colab should bring torch"):
        course.prepare()


def test_an_archive_on_drive_is_unpacked_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_DRIVE", str(tmp_path / "drive"))
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    with pytest.raises(FileNotFoundError, match="no file flickr8k.zip in My Drive"):
        course.from_drive("flickr8k.zip", tmp_path / "data")
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "drive" / "MyDrive" / "flickr8k.zip", "w") as packed:
        packed.writestr("flickr8k/captions.txt", "image,caption\n")
    folder = course.from_drive("flickr8k.zip", tmp_path / "data")
    assert (folder / "flickr8k" / "captions.txt").read_text() == "image,caption\n"
    (tmp_path / "drive" / "MyDrive" / "flickr8k.zip").unlink()
    assert course.from_drive("flickr8k.zip", tmp_path / "data") == folder  # not read again
