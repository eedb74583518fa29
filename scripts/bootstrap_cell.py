"""The first cell of every notebook, and the badge above it: `python scripts/bootstrap_cell.py [NOTEBOOK ...]`.

Writes both into the named notebooks (default: all), so that a new release or another home is one change here. A test
compares every notebook with this file. In a new notebook, write BADGE on a line of the first text cell and BOOTSTRAP
as the first code cell: both are filled in.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

from notebook_tools import FOLDER, ROOT, find_notebooks

COURSE = "https://github.com/OWNER/image-captioning-course"  # OWNER: the account that hosts the course
RELEASE = "v1.0.0"  # the tag whose files a notebook fetches when it is opened without the course, as in Colab

CELL = f'''\
# Finds the course's folder, or fetches it where there is none, as in Colab. Safe to run twice.
import os
import subprocess
import sys
from pathlib import Path

COURSE, RELEASE = "{COURSE}", "{RELEASE}"
places = [Path.cwd(), *Path.cwd().parents, Path.cwd() / Path(COURSE).name]
root = next((place for place in places if (place / "course.py").is_file()), None)
if root is None:
    root, source = places[-1], os.environ.get("CAPTIONING_COURSE", COURSE)
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"--branch={{RELEASE}}", source, root], check=True)
os.chdir(root)
sys.path[:0] = [] if str(root) in sys.path else [str(root)]
import course

installed = course.prepare()  # names what Colab lacked; empty everywhere else'''

FIRST_LINE = CELL.split("\n", 1)[0]  # also of earlier releases
_BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)|^BADGE$", re.M)


def badge(path: Path) -> str:
    """Returns the Markdown of the badge that opens the notebook at `path` in Colab."""
    address = COURSE.removeprefix("https://github.com/")
    path = path.resolve()
    place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else f"notebooks/{path.name}"
    link = f"https://colab.research.google.com/github/{address}/blob/{RELEASE}/{place}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def stamp(book: nbformat.NotebookNode, path: Path) -> nbformat.NotebookNode:
    """Returns the notebook with this release's cell and badge. Raises ValueError when it has no place for either."""
    cell = next((cell for cell in book.cells if cell.cell_type == "code"), None)
    if cell is None or not (cell.source.startswith(FIRST_LINE) or cell.source.strip() == "BOOTSTRAP"):
        raise ValueError(f"{path}: the first code cell is not the bootstrap cell")
    if not _BADGE.search(book.cells[0].source):
        raise ValueError(f"{path}: the first cell has no Colab badge; write a line BADGE below the title")
    cell.source = CELL
    book.cells[0].source = _BADGE.sub(lambda _: badge(path), book.cells[0].source)
    return book


def main(arguments: list[str]) -> None:
    for path in [Path(argument) for argument in arguments] or find_notebooks(solutions=True):
        text = path.read_text(encoding="utf-8")
        new = nbformat.writes(stamp(nbformat.reads(text, as_version=4), path)) + "\n"
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{path}: rewritten")
    readme = FOLDER / "README.md"
    place = f"/github/{COURSE.removeprefix('https://github.com/')}/blob/{RELEASE}/notebooks"
    text = re.sub(r"/github/[^/]+/[^/]+/blob/[^/]+/notebooks", place, readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
