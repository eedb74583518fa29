"""The first cell of every notebook and what it imports: idle at home, and able to fetch the course elsewhere."""

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

import pytest

import course
from bootstrap_cell import UNSET, cell, facts, normal, rewrite, slug, stamp
from notebook_tools import find_notebooks
from tests.test_requirements import OURS, imported

ADDRESS, RELEASE = facts()
CELL = cell(ADDRESS, RELEASE)
SHOW = "import json, os, sys; print(json.dumps([os.getcwd(), course.__file__, sys.path.index(os.getcwd())]))"
notebooks = pytest.mark.parametrize("path", find_notebooks(solutions=True), ids=lambda path: path.stem)


def run(folder: Path, code: str, **env: str) -> subprocess.CompletedProcess:
    """Executes the code twice in a fresh IPython in `folder`, as a notebook would, then shows where it ended."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | env
    command = [sys.executable, "-m", "IPython", "--HistoryManager.enabled=False", "-c", f"{code}\n{code}\n{SHOW}"]
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
    assert json.loads(result.stdout) == [str(root), str(root / "course.py"), 0], result.stderr


def git(folder: Path, *arguments: object) -> None:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def copy(root: Path, tmp_path_factory) -> Path:
    """A clone of a hosted course that holds what names the address, after `make address` and a push of the tag."""
    folder = tmp_path_factory.mktemp("hosted")
    git(folder, "init", "--quiet", "--bare", "course.git")
    git(folder, "clone", "--quiet", (folder / "course.git").as_uri(), "copy")
    names = "notebooks *.md */*.md *.py Makefile pyproject.toml CITATION.cff scripts/boot*.py helpers/captioner.py"
    for path in [path for name in names.split() for path in root.glob(name)]:
        target = folder / "copy" / path.relative_to(root)
        target.parent.mkdir(exist_ok=True, parents=True)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
    subprocess.run(["make", "address"], cwd=folder / "copy", check=True, capture_output=True)
    git(folder / "copy", "add", ".")
    git(folder / "copy", "commit", "--quiet", "-m", "release")
    git(folder / "copy", "tag", RELEASE)
    git(folder / "copy", "push", "--quiet", "--tags", "origin", "HEAD")
    shutil.copytree(folder / "copy", folder / "course.git" / "raw" / RELEASE)  # where GitHub gives single files
    return folder / "copy"


def test_one_command_writes_the_address_everywhere(root: Path, copy: Path) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in copy.rglob("*.*") if path.suffix in (".md", ".ipynb")}
    texts |= {copy / name: (copy / name).read_text() for name in ("pyproject.toml", "CITATION.cff", "course.py")}
    assert not [path for path, text in texts.items() if slug(ADDRESS) in text]
    named = {path.name for path, text in texts.items() if f"{copy.parent.name}/course" in text}
    assert {"README.md", "CITATION.cff", "pyproject.toml", "course.py", find_notebooks()[0].name} <= named
    for path in (root / path.relative_to(copy) for path in texts if path.suffix != ".ipynb"):  # and here all agree
        text = path.read_text(encoding="utf-8")
        assert rewrite(text, ADDRESS, ADDRESS, RELEASE) == text, "run `make address`"


def test_alone_in_a_folder_it_fetches_the_release_once(copy: Path, tmp_path: Path) -> None:
    cells = json.loads((copy / "notebooks" / find_notebooks()[0].name).read_text(encoding="utf-8"))["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    gone, there = {"CAPTIONING_COURSE": (tmp_path / "gone").as_uri()}, str(tmp_path / "captioning")
    for advice in ("The course is not here: switch", "could not be fetched: fatal: .* Is the network on"):
        result = run(tmp_path, code, **gone)
        assert re.search(advice, result.stdout) and "Traceback" not in result.stdout + result.stderr
        shutil.copy(copy / "course.py", tmp_path)
    (tmp_path / "course.py").write_text("raise SystemExit('The course is not here')")
    first = run(tmp_path, code)
    assert json.loads(first.stdout) == [there, str(tmp_path / "course.py"), 0], first.stdout
    assert run(tmp_path, code, **gone).stdout == first.stdout  # a restarted kernel
    assert not list(tmp_path.glob("captioning-*"))


def test_where_nobody_said_where_the_course_is_one_line_does(tmp_path: Path, monkeypatch) -> None:
    result = run(tmp_path, cell(UNSET, RELEASE), CAPTIONING_COURSE="")
    assert re.search(r"\n.*The course is not here: .*CAPTIONING_COURSE.*\n", result.stdout)
    monkeypatch.setattr(course, "HERE", tmp_path)
    monkeypatch.setattr(course, "ADDRESS", UNSET)
    for advice in ("Nobody has said yet where .*CAPTIONING_COURSE", "captioning does not hold the course. Rename or"):
        with pytest.raises(course.NotReady, match=advice):
            course.prepare()
        (tmp_path / "captioning").mkdir(exist_ok=True)  # of an upload that broke off


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
