"""Students' notebooks: answers emptied, tests kept, in step with the full notebooks and their solutions."""

from __future__ import annotations

import ast
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest

from build_notebook import build
from notebook_tools import FOLDER, find_notebooks
from student_versions import divide, exercises, faults, made, main, questions, read, student_version

FULL = build('''
# %% [markdown]
# # 09 A title
#
# [![Open in Colab](https://a/b.svg)](https://a/b)

# %%
# NBVAL_CHECK_OUTPUT
print("taught")

# %% [markdown]
# ## Exercises
#
# Solutions, with checks: `notebooks/solutions/09_a_title.ipynb`.
#
# 1. **Double.** Write `double`, which
#    doubles.
# 2. Halve it.
#
# ## References
#
# 1. Somebody (2020).
''')
SOLUTIONS = build('''
# %% [markdown]
# # Solutions

# %%
import math

# %% [markdown]
# ## 1 Double
#
# Adding does it.

# %%
# NBVAL_CHECK_OUTPUT
def double(x):
    return x + x

# %%
print(double(1))

# %%
four = double(2)
assert four == 4
assert double(0) == 0

# %% [markdown]
# It does.
#
# ## 2. Halve

# %%
halves = []
for number in (1, 2):
    half = number / 2
    assert half < number
    halves.append(half)
total = sum(halves)
assert math.isclose(total, 1.5)
''')
SOLVED = [path for path in find_notebooks() if (FOLDER / "solutions" / path.name).exists()]
pairs = pytest.mark.parametrize("path", SOLVED, ids=lambda path: path.stem)


def read_pair(path: Path) -> tuple[nbformat.NotebookNode, nbformat.NotebookNode]:
    return tuple(nbformat.read(place, as_version=4) for place in (path, FOLDER / "solutions" / path.name))


def test_answers_are_emptied_and_tests_kept() -> None:
    book = student_version(FULL, SOLUTIONS)
    sources = [cell.source for cell in book.cells]
    assert sources[0] == "# 09 A title" and "Solutions" not in sources[2]
    sheet = sources[sources.index("import math") + 1 :]
    assert sheet == [
        "## 1 Double\n\n**Double.** Write `double`, which\ndoubles.",
        "# Your answer. The code below reads: double",
        "four = double(2)\nassert four == 4\nassert double(0) == 0",
        "## 2 Halve\n\nHalve it.",
        "# Your answer. The code below reads: total\n# It should pass: assert half < number",
        "assert math.isclose(total, 1.5)",
    ]
    assert not any(cell.get("outputs") for cell in book.cells)
    nbformat.validate(book)


def test_a_right_answer_passes_and_an_empty_cell_does_not() -> None:
    book = student_version(FULL, SOLUTIONS)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    with pytest.raises(NameError, match="double"):
        exec("\n".join(code), {})
    answers = {1: "double = lambda x: 2 * x", 2: "total = 0.5 + 1"}
    blanks = [place for place, source in enumerate(code) if source.startswith("# Your answer")]
    for number, place in enumerate(blanks, 1):
        code[place] = answers[number]
    exec("\n".join(code), {})


def change(book: nbformat.NotebookNode, old: str, new: str) -> nbformat.NotebookNode:
    book = deepcopy(book)
    (cell,) = (cell for cell in book.cells if old in cell.source)
    cell.source = cell.source.replace(old, new)
    return book


def test_what_is_out_of_step_is_named() -> None:
    assert faults(FULL, SOLUTIONS) == []
    one = change(FULL, "2. Halve it.", "")
    assert faults(one, SOLUTIONS) == ["it asks exercises [1], and the solutions answer [1, 2]"]
    assert "numbered list" in faults(change(FULL, "## Exercises", "## Tasks"), SOLUTIONS)[0]
    untested = change(SOLUTIONS, "assert four == 4\nassert double(0) == 0", "print(four)")
    assert faults(FULL, untested) == ["exercise 1: no test"]
    elsewhere = change(SOLUTIONS, "four = double(2)\nassert four == 4\nassert double(0) == 0", "assert 1\nassert 2")
    assert faults(FULL, elsewhere) == ["exercise 1: its tests do not look at the answer"]


def test_names_made_and_read() -> None:
    code = "a, (b, *c) = x\nfor d in y:\n    e = [f for f in d]\ndef g(h):\n    i = 1\n    return z(i)\n"
    code += "with k as m: pass"
    assert made(code) == {"a", "b", "c", "d", "e", "g", "m"}
    assert read(code) == {"x", "y", "z", "k"}


def test_a_cell_is_divided_where_its_tests_begin() -> None:
    parts = divide("x = 1\ny = 2\nz = 3\nassert x\nassert y", first=True)
    assert [(part.test, part.sources) for part in parts] == [
        (False, ["x = 1\ny = 2\nz = 3"]), (True, ["assert x\nassert y"])
    ]  # fmt: skip
    assert [part.test for part in divide("# Check 1\nx = 1\nassert x", first=False)] == [True]
    assert [part.test for part in divide("for x in y:\n    print(x)\n    assert x", first=False)] == [False]


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: path.stem)
def test_every_notebook_has_solutions(path: Path) -> None:
    assert (FOLDER / "solutions" / path.name).is_file()


@pairs
def test_the_notebooks_are_in_step(path: Path) -> None:
    assert faults(*read_pair(path)) == []


@pairs
def test_nothing_of_an_answer_is_left(path: Path) -> None:
    full, solutions = read_pair(path)
    book = student_version(full, solutions)
    _, found = exercises(solutions)
    blanks = [cell.source for cell in book.cells if cell.source.startswith("# Your answer")]
    assert len(blanks) == sum(not part.test for exercise in found for part in exercise.parts)
    assert all(ast.parse(source).body == [] for source in blanks)
    sources = [cell.source for cell in book.cells]
    sheet = sources[next(place for place, source in enumerate(sources) if source.startswith("# Sheet")) :]
    kept = [source for exercise in found for part in exercise.parts if part.test for source in part.sources]
    assert [source for source in sheet if source in kept] == kept
    for number, text in questions(full).items():
        assert any(source.startswith(f"## {number} ") and text in source for source in sheet)


def test_the_command_writes_or_checks(tmp_path: Path, capsys) -> None:
    status = main(["--to", str(tmp_path / "students")])
    written = sorted(path.name for path in (tmp_path / "students").iterdir())
    assert written == [path.name for path in SOLVED]
    capsys.readouterr()
    assert main(["--check", "--to", str(tmp_path / "none")]) == status and not (tmp_path / "none").exists()
