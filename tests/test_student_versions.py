"""Students' notebooks: answers emptied, tests kept, in step with the full notebooks and their solutions."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from notebook_tools import find_notebooks
from student_versions import ANSWER, main, student_version

ASK = "## Exercises\n\nSolutions: `notebooks/solutions/09.ipynb`.\n\n1. Write `double`.\n2. Halve it.\n\n## End"
FULL = new_notebook(cells=[
    new_markdown_cell("# 09 A title\n[![Open in Colab](https://a/b.svg)](https://a/b)"),
    new_code_cell("print(1)"), new_markdown_cell(ASK),
])  # fmt: skip
SOLUTIONS = new_notebook(cells=[
    new_markdown_cell("# Solutions"), new_code_cell("import math"), new_markdown_cell("## 1 Double"),
    new_code_cell("def double(x):\n    return x + x"), new_code_cell("print(double(1))"),
    new_code_cell("four = double(2)\nassert four == 4\nassert double(0) == 0"), new_markdown_cell("## 2 Halve"),
    new_code_cell("total = 1.5\nx = 1\ny = 2\nassert math.isclose(total, 1.5)"),
])  # fmt: skip


def test_answers_are_emptied_and_tests_kept() -> None:
    book = student_version(FULL, SOLUTIONS)
    sources = [cell.source for cell in book.cells]
    assert sources[:2] == ["# 09 A title", "print(1)"] and "Solutions" not in sources[2]
    assert sources[sources.index("import math") + 1 :] == [
        "## 1\n\nWrite `double`.", ANSWER, "four = double(2)\nassert four == 4\nassert double(0) == 0",
        "## 2\n\nHalve it.", ANSWER, "assert math.isclose(total, 1.5)",
    ]  # fmt: skip
    nbformat.validate(book)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    with pytest.raises(NameError, match="double"):
        exec("\n".join(code), {})
    answers = iter(["double = lambda x: 2 * x", "total = 0.5 + 1"])
    exec("\n".join(next(answers) if source == ANSWER else source for source in code), {})


def test_hidden_checks_stay_with_the_teacher() -> None:
    hidden = {"tags": ["hide-input"]}
    drawing = new_code_cell("def draw(): ...", metadata=hidden)
    check = new_code_cell("x = 1\nif x:\n    assert x", metadata=hidden)
    cells = student_version(new_notebook(cells=[drawing, check, *FULL.cells]), SOLUTIONS).cells
    assert cells[0].source == drawing.source and cells[0].metadata.tags == ["hide-input"]
    assert check.source not in [cell.source for cell in cells]


def test_what_is_out_of_step_is_named() -> None:
    with pytest.raises(ValueError, match=r"asks exercises \[1, 2\], and the solutions answer \[1\]"):
        student_version(FULL, new_notebook(cells=SOLUTIONS.cells[:6]))


def test_every_notebook_is_in_step_with_its_solutions(tmp_path: Path) -> None:
    assert main(str(tmp_path)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(path.name for path in find_notebooks()), "course.py"]
    for path in tmp_path.glob("*.ipynb"):
        sources = [cell.source for cell in nbformat.read(path, as_version=4).cells]
        sheet = sources[next(place for place, source in enumerate(sources) if source.startswith("# Sheet")) :]
        assert ANSWER in sheet and sum("assert" in source for source in sheet) >= 3
