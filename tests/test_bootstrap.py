"""The first cell of every notebook: the same everywhere, idle at home, and able to fetch the course elsewhere."""

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

import bootstrap_cell
from bootstrap_cell import CELL, COURSE, RELEASE, badge, stamp
from build_notebook import build
from helpers import bootstrap
from helpers.files import CaptioningError
from notebook_tools import execute, find_notebooks
from tests.test_requirements import modules_of

SHOW = """
import json, helpers
print(json.dumps([str(Path.cwd()), helpers.__file__, sys.path.count(str(root)), installed]))"""


def run(folder: Path, code: str = CELL, **env: str) -> list:
    """Executes the cell in a fresh Python in `folder`. Returns the folder it ended in, helpers' file, and so on."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | env
    command = [sys.executable, "-c", code + SHOW]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("path", find_notebooks(solutions=True), ids=lambda path: path.stem)
def test_every_notebook_begins_with_it(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    assert first.source == CELL, "run `python scripts/bootstrap_cell.py`"
    assert badge(path) in book.cells[0].source, "run `python scripts/bootstrap_cell.py`"
    assert sum("helpers/bootstrap" in cell.source or "bootstrap.prepare" in cell.source for cell in book.cells) == 1


def test_the_cell_is_short_and_names_one_release() -> None:
    assert len(CELL.splitlines()) <= 20
    assert CELL.count(RELEASE) == 1 and CELL.count(COURSE) == 1
    compile(CELL, "cell", "exec")


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/solutions"])
def test_at_home_it_only_finds_the_root(root: Path, place: str) -> None:
    folder, helpers, times, installed = run(root / place, CELL + "\n" + CELL)
    assert Path(folder) == root and Path(helpers).parent == root / "helpers"
    assert times == 1 and installed == []


def git(folder: Path, *arguments: str) -> None:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def origin(tmp_path: Path, root: Path) -> Path:
    """A repository with the files that the cell needs, tagged with the release, and a later commit."""
    folder = tmp_path / "origin"
    (folder / "helpers").mkdir(parents=True)
    for path in (root / "helpers").glob("*.py"):
        (folder / "helpers" / path.name).write_bytes(path.read_bytes())
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "release")
    git(folder, "tag", RELEASE)
    (folder / "later.txt").write_text("after the release")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "later")
    return folder


def test_elsewhere_it_fetches_the_release_once(tmp_path: Path, origin: Path) -> None:
    empty = tmp_path / "content"
    empty.mkdir()
    clone = empty / "image-captioning-course"
    first = run(empty, CELL + "\n" + CELL, CAPTIONING_COURSE=origin.as_uri(), COLAB_RELEASE_TAG="release")
    assert Path(first[0]) == clone.resolve() and Path(first[1]).is_relative_to(clone.resolve()) and first[2] == 1
    assert not (clone / "later.txt").exists()  # the tag, not the newest commit
    (clone / "mine.txt").write_text("kept")
    again = run(empty, CAPTIONING_COURSE=str(tmp_path / "gone"), COLAB_RELEASE_TAG="release")  # a restarted kernel
    assert again == first and (clone / "mine.txt").read_text() == "kept"


def test_a_notebook_in_an_empty_folder_finds_the_course(tmp_path: Path, origin: Path) -> None:
    """As an upload to Colab: nothing beside it. `python scripts/simulate_colab.py` does it with real notebooks."""
    empty = tmp_path / "content"
    empty.mkdir()
    source = "# %% [markdown]\n# # A title\n# BADGE\n\n# %%\nBOOTSTRAP\n\n# %%\nfrom helpers.files import ROOT\n"
    book = build(source + "print(ROOT.name, (ROOT / 'later.txt').exists(), installed)")
    path = empty / "00_title.ipynb"
    nbformat.write(stamp(book, path), path)
    variables = {"CAPTIONING_COURSE": origin.as_uri(), "COLAB_RELEASE_TAG": "release", "PYTHONPATH": ""}
    for _ in range(2):
        done, error = execute(path, **variables)
        assert error is None
        assert done.cells[-1].outputs[0].text == "image-captioning-course False []\n"


@pytest.mark.parametrize("path", find_notebooks(solutions=True), ids=lambda path: path.stem)
def test_colab_gets_all_that_a_notebook_imports(path: Path) -> None:
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    plain = "\n".join(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.M) for source in code)
    there = {"helpers", "IPython", *sys.stdlib_module_names, *bootstrap.MODULES}
    assert modules_of(ast.parse(plain)) <= there, "add the module to helpers/bootstrap.py"


def test_without_the_course_and_without_a_line_git_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"CAPTIONING_COURSE": str(tmp_path / "gone")}
    result = subprocess.run([sys.executable, "-c", CELL], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "gone" in result.stderr and "CalledProcessError" in result.stderr


@pytest.fixture
def without(monkeypatch):
    """Makes modules look as if they were not installed."""

    def hide(*names: str) -> None:
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else real(name))

    return hide


def test_at_home_a_missing_package_is_named_and_not_installed(monkeypatch, without) -> None:
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was installed"))
    without("nltk", "clip")
    with pytest.raises(CaptioningError, match="lacks rf-clip, nltk.*make lab"):
        bootstrap.prepare()


def test_colab_gets_what_it_lacks_and_keeps_its_torch(monkeypatch, without) -> None:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    without("efficientnet_lite_pytorch", "pycocoevalcap")
    calls = []

    def pip(command, **options):
        constraints = Path(command[command.index("--constraint") + 1]).read_text().splitlines()
        calls.append((command[command.index("--constraint") + 2 :], constraints))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert bootstrap.prepare() == ["efficientnet-lite-pytorch", "pycocoevalcap"]
    (wanted, constraints), = calls
    assert wanted == ["efficientnet-lite-pytorch>=0.1,<1", "pycocoevalcap>=1.2,<2"]
    assert [line.split("==")[0] for line in constraints] == ["torch", "torchvision", "numpy"]


def test_torch_itself_is_never_installed(monkeypatch, without) -> None:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was installed"))
    without("torch", "nltk")
    with pytest.raises(CaptioningError, match="Colab should bring torch"):
        bootstrap.prepare()


def test_a_failed_install_shows_pips_reason(monkeypatch, without) -> None:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    without("nltk")
    monkeypatch.setattr(subprocess, "run", lambda c, **k: subprocess.CompletedProcess(c, 1, "", "no connection"))
    with pytest.raises(CaptioningError, match="could not install nltk:\nno connection"):
        bootstrap.prepare()


def test_every_package_it_may_install_is_in_the_requirements(root: Path) -> None:
    bounds = bootstrap._bounds(root / "requirements.txt")
    assert set(bootstrap.MODULES.values()) <= set(bounds)
    assert bootstrap.lacking() == []


def test_an_archive_on_drive_is_copied_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_DRIVE", str(tmp_path / "drive"))
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    with pytest.raises(CaptioningError, match="no file flickr8k.zip in My Drive"):
        bootstrap.from_drive("flickr8k.zip", tmp_path / "data")
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "drive" / "MyDrive" / "flickr8k.zip", "w") as packed:
        packed.writestr("flickr8k/captions.txt", "image,caption\n")
    folder = bootstrap.from_drive("flickr8k.zip", tmp_path / "data")
    assert (folder / "flickr8k" / "captions.txt").read_text() == "image,caption\n"
    (tmp_path / "drive" / "MyDrive" / "flickr8k.zip").unlink()
    assert bootstrap.from_drive("flickr8k.zip", tmp_path / "data") == folder  # not read again


def test_building_fills_in_cell_and_badge(tmp_path: Path) -> None:
    book = build("# %% [markdown]\n# # A title\n# BADGE\n#\n# Text.\n\n# %%\nBOOTSTRAP\n\n# %%\nx = 1")
    path = bootstrap_cell.ROOT / "notebooks" / "02_cnn_lstm.ipynb"
    stamp(book, path)
    assert book.cells[1].source == CELL and f"/blob/{RELEASE}/notebooks/02_cnn_lstm.ipynb)" in book.cells[0].source
    book.cells[1].source = CELL.replace(RELEASE, "v0.9")
    book.cells[0].source = book.cells[0].source.replace(RELEASE, "v0.9")
    stamp(book, path)  # an earlier release's notebook is brought up to date
    assert book.cells[1].source == CELL and "v0.9" not in book.cells[0].source
    with pytest.raises(ValueError, match="not the bootstrap cell"):
        stamp(build("# %% [markdown]\n# BADGE\n\n# %%\nx = 1"), path)
