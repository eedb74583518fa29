"""The notebooks as stored: executed, in order, small, and with outputs that nbval really compares.

That their cells run is nbval's part, in the same pytest run. The first half tries the judge itself on notebooks with
one fault each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from notebook_tools import COMPARED, clean, compared_cells, faults, find_notebooks
from refresh_notebooks import refresh

CODE = ('print("one")', "1 + 1", 'import os\nos.environ.get("COLOUR", "three")')


def fresh() -> nbformat.NotebookNode:
    """A notebook that was not executed."""
    cells = [new_code_cell(code, id=f"cell-{n}", metadata={"tags": [COMPARED]}) for n, code in enumerate(CODE)]
    return clean(new_notebook(cells=[new_markdown_cell("# A small notebook", id="title"), *cells]))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A notebook without a fault, as if it had been executed."""
    book = fresh()
    for number, (cell, text) in enumerate(zip(book.cells[1:], ("one", "2", "'three'"), strict=True), start=1):
        cell.execution_count = number
        cell.outputs = [nbformat.v4.new_output("stream", text=text + "\n")]
    path = tmp_path / "good.ipynb"
    nbformat.write(book, path)
    return path


def spoil(path: Path, change) -> list[str]:
    """Returns the faults found after `change` was applied to the notebook."""
    book = nbformat.read(path, as_version=4)
    change(book)
    nbformat.write(book, path)
    return faults(path)


def test_a_good_notebook_has_no_fault(good: Path) -> None:
    assert faults(good) == []


def clear(book):
    for cell in book.cells[1:]:
        cell.outputs = []


def out_of_order(book):
    book.cells[1].execution_count, book.cells[2].execution_count = 2, 1


def error(book):
    book.cells[1].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="no", traceback=["no"]))


def warning(book):
    book.cells[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="DeprecationWarning"))


def long_cell(book):
    book.cells[1].source = "\n".join(f"x{i} = {i}" for i in range(41))


def private_path(book):
    book.cells[1].outputs[0].text = "saved to /home/ada/course/build"


def unmarked(book):
    book.cells[1].metadata.tags = []


def marked_in_sight(book):
    book.cells[1].source = "# NBVAL_CHECK_OUTPUT\nprint('one')"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (clear, "outputs were cleared"),
        (out_of_order, "in order"),
        (error, "an error is stored"),
        (warning, "standard error"),
        (long_cell, "cell 2 has 41 lines"),
        (private_path, "folder of one machine"),
        (unmarked, "2 cells is compared, fewer than 3"),
        (marked_in_sight, "cell 2: what nbval compares is said by the tag"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "message",
)
def test_each_fault_is_named(good: Path, change, message: str) -> None:
    assert message in "; ".join(spoil(good, change))


def test_refresh_stores_outputs_and_repeats_itself(tmp_path: Path) -> None:
    path = tmp_path / "fresh.ipynb"
    nbformat.write(fresh(), path)
    assert faults(path)
    assert refresh(path) == []
    first = path.read_bytes()
    assert compared_cells(nbformat.read(path, as_version=4)) == 3
    assert refresh(path) == []
    assert path.read_bytes() == first


def test_nbval_compares_what_is_marked_and_nothing_else(good: Path, root: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", root / "pyproject.toml", good]
    command.insert(-1, f"--nbval-sanitize-with={root / 'tests/nbval_sanitize.cfg'}")

    def run() -> str:
        return subprocess.run(command, capture_output=True, text=True, cwd=good.parent).stdout

    book = nbformat.read(good, as_version=4)
    book.cells[2].outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": "2"}, execution_count=2)]
    book.cells[3].outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": "'blue'"}, execution_count=3)]
    nbformat.write(book, good)
    output = run()
    assert "1 failed" in output and "2 passed" in output and "blue" in output  # the third cell says 'three'
    book.cells[3].metadata.tags = []
    nbformat.write(book, good)
    assert "3 passed" in run()


def test_the_notebooks_are_numbered_without_a_gap() -> None:
    numbers = [path.name[:2] for path in find_notebooks()]
    assert numbers, "notebooks/ holds no notebook"
    assert numbers == [f"{number:02d}" for number in range(len(numbers))]


@pytest.mark.parametrize("path", find_notebooks(solutions=True), ids=lambda path: path.stem)
def test_a_notebook_is_fit_to_be_read(path: Path) -> None:
    assert faults(path) == []
