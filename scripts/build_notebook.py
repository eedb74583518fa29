"""Turns a Python file in percent format into a notebook: `python scripts/build_notebook.py SOURCE.py OUT.ipynb`.

A line `# %%` starts a code cell, `# %% [markdown]` a text cell, whose lines are comments; what stands before the first
is left out. A code cell BOOTSTRAP and a line BADGE become what bootstrap_cell.py says. From then on the notebook is the
source: execute it with refresh_notebooks.py and commit it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

from bootstrap_cell import stamp
from notebook_tools import clean


def build(source: str) -> nbformat.NotebookNode:
    """Returns the notebook, not executed, that a percent-format source describes."""
    cells = []
    for kind, body in re.findall(r"^# %%[ ]*(\[markdown\])?[^\n]*\n(.*?)(?=^# %%|\Z)", source, re.M | re.S):
        body = body.strip("\n")
        if kind:
            cells.append(nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", body, flags=re.M)))
        else:
            cells.append(nbformat.v4.new_code_cell(body))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:02d}"  # stable, so that building again changes only what changed
    return clean(nbformat.v4.new_notebook(cells=cells))


def main(arguments: list[str]) -> int:
    """Writes the notebook. Returns the exit status."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    source, target = map(Path, arguments)
    book = build(source.read_text(encoding="utf-8"))
    if any(cell.source.strip() == "BOOTSTRAP" for cell in book.cells):
        stamp(book, target)
    nbformat.validate(book)
    nbformat.write(book, target)
    print(f"{target}: {len(book.cells)} cells")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
