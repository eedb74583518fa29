"""The first cell of every notebook and what it calls: idle at home, and able to fetch the course elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

import bootstrap_cell
import course
from bootstrap_cell import cell, facts, normal, stamp
from notebook_tools import find_notebooks
from tests.test_requirements import OURS, imported

ADDRESS, RELEASE = facts()
CELL = cell(ADDRESS, RELEASE)
SHOW = """
import json
file, path = Path(course.__file__).resolve(), sys.path
print(json.dumps([str(Path.cwd()), str(file), path[0], path.count(path[0]), ".." in path]))"""
notebooks = pytest.mark.parametrize("path", find_notebooks(solutions=True), ids=lambda path: path.stem)


def run(folder: Path, code: str, **env: str) -> subprocess.CompletedProcess:
    """Executes the code twice in a fresh Python in `folder`, then shows where it ended."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | env
    command = [sys.executable, "-c", f"{code}\n{code}\n{SHOW}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@notebooks
def test_every_notebook_begins_with_it(path: Path) -> None:
    assert stamp(path) == path.read_text(encoding="utf-8"), "run `make address`"


@notebooks
def test_colab_gets_all_that_a_notebook_imports(path: Path) -> None:
    assert imported(path) <= OURS | {"IPython", *sys.stdlib_module_names, *course.MODULES}, "add it to course.py"


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/solutions"])
def test_at_home_it_only_finds_the_root(root: Path, place: str) -> None:
    result = run(root / place, CELL)
    assert json.loads(result.stdout) == [str(root), str(root / "course.py"), str(root), 1, False], result.stderr


def git(folder: Path, *arguments: object) -> None:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def copy(root: Path, tmp_path_factory) -> Path:
    """A clone of a bare repository that holds what names the address, after `make address` and a push of the tag."""
    folder = tmp_path_factory.mktemp("hosted")
    git(folder, "init", "--quiet", "--bare", "course.git")
    git(folder, "clone", "--quiet", "course.git", "copy")
    names = ["*.md", "Makefile", "pyproject.toml", "CITATION.cff", "course.py", "notebooks", "*/*.md"]
    for path in [path for name in [*names, "scripts/bootstrap_cell.py"] for path in root.glob(name)]:
        target = folder / "copy" / path.relative_to(root)
        target.parent.mkdir(exist_ok=True, parents=True)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
    subprocess.run(["make", "address"], cwd=folder / "copy", check=True, capture_output=True)
    git(folder / "copy", "add", ".")
    git(folder / "copy", "commit", "--quiet", "-m", "release")
    git(folder / "copy", "tag", RELEASE)
    git(folder / "copy", "push", "--quiet", "--tags", "origin", "HEAD")
    return folder / "copy"


def test_one_command_writes_the_address_everywhere(root: Path, copy: Path) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in copy.rglob("*.*") if path.suffix in (".md", ".ipynb")}
    texts |= {copy / name: (copy / name).read_text() for name in ("pyproject.toml", "CITATION.cff")}
    assert not [path for path, text in texts.items() if bootstrap_cell.slug(ADDRESS) in text]
    named = {path.name for path, text in texts.items() if f"{copy.parent.name}/course" in text}
    assert {"README.md", "CITATION.cff", "pyproject.toml", find_notebooks()[0].name} <= named
    for path in (path for path in texts if path.suffix != ".ipynb"):  # and what stands here agrees already
        text = (root / path.relative_to(copy)).read_text(encoding="utf-8")
        assert bootstrap_cell.rewrite(text, ADDRESS, ADDRESS, RELEASE) == text, "run `make address`"


def test_alone_in_a_folder_it_fetches_the_release_once(copy: Path, tmp_path: Path) -> None:
    book = copy / "notebooks" / find_notebooks()[0].name
    code = next(cell for cell in nbformat.read(book, as_version=4).cells if cell.cell_type == "code").source
    there = str(tmp_path.resolve() / "captioning")
    first = run(tmp_path, code)
    assert json.loads(first.stdout) == [there, f"{there}/course.py", there, 1, False], first.stderr
    again = run(tmp_path, code, CAPTIONING_COURSE=str(tmp_path / "gone"))  # a restarted kernel
    assert again.stdout == first.stdout


def test_where_nobody_said_where_the_course_is_one_line_does(tmp_path: Path) -> None:
    code = cell(bootstrap_cell.UNSET, RELEASE)
    result = run(tmp_path, code, CAPTIONING_COURSE="")
    assert re.fullmatch(r"The course is not here: upload .*CAPTIONING_COURSE.*\n", result.stderr)
    result = run(tmp_path, code, CAPTIONING_COURSE=str(tmp_path / "gone"))
    assert result.returncode == 1 and "Traceback" not in result.stderr and "upload its folder" in result.stderr


@pytest.mark.parametrize("origin", [
    "ada/course", "https://github.com/ada/course.git", "https://github.com/ada/course/\n",
    "git@github.com:ada/course.git", "ssh://git@github.com/ada/course", "ssh://git@github.com:22/ada/course.git",
    "https://x:key@github.com/ada/course",
])  # fmt: skip
def test_every_form_of_an_address_is_one_address(origin: str) -> None:
    assert normal(origin) == "https://github.com/ada/course"


@pytest.fixture
def without(monkeypatch, tmp_path):
    """Makes modules look as if they were not installed, and calls of pip as if they did what `result` says."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def hide(*names: str, result: tuple = (0, "", "")) -> list:
        def pip(command, **options):
            place = command.index("--constraint") + 1
            calls.append((command[place + 1 :], Path(command[place]).read_text().splitlines()))
            return subprocess.CompletedProcess(command, *result)

        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else real(name))
        monkeypatch.setattr(subprocess, "run", pip)
        return calls

    return hide


def test_what_is_lacking_is_installed_and_torch_is_kept(without, capsys) -> None:
    calls = without("efficientnet_lite_pytorch", "pycocoevalcap")
    course.prepare()
    ((wanted, constraints),) = calls
    assert wanted == ["efficientnet-lite-pytorch>=0.1,<1", "pycocoevalcap>=1.2,<2"]
    assert [line.split("==")[0] for line in constraints] == ["torch", "torchvision", "numpy"]
    assert "Installing efficientnet-lite-pytorch, pycocoevalcap" in capsys.readouterr().out
    without(result=(1, "", "much\nERROR: no connection"))
    with pytest.raises(course.NotReady, match="could not install .*: ERROR: no connection Type `make lab`"):
        course.prepare()


@pytest.mark.parametrize("place", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "HOME"])
def test_each_place_without_torch_has_its_line(without, monkeypatch, place: str) -> None:
    monkeypatch.setenv(place, "x")
    without("torch", "nltk")
    with pytest.raises(course.NotReady, match=r"lacks torch\. " + course.PLACES.get(place, "Type `make lab`")[:12]):
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
