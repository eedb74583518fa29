"""Makes the students' versions of the notebooks: `python scripts/student_versions.py [FOLDER]` (build/students).

A student's notebook is the full one without outputs, and behind it a sheet with the exercises: the question, an empty
cell for each answer, and the tests of the solution. Where a notebook and its solutions are out of step, the command
says so and returns 1. In a section `## N` of the solutions a cell is a test when it begins with `# Check`, or follows
the answer and has two asserts or little else. Of any other cell the part from the first assert on is a test.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from notebook_tools import FOLDER, ROOT, clean, find_notebooks

ANSWER = "# Your answer."
_HEADING = re.compile(r"^## (\d+)\b", re.M)
_TEACHERS = re.compile(r"^(Solutions[^\n]*`[^`\n]*solutions/[^`\n]*`|\[!\[Open in Colab\])[^\n]*\n*", re.M)


def questions(book: nbformat.NotebookNode) -> dict[int, str]:
    """Returns number -> text of the exercises of a full notebook, from its numbered list under `## Exercises`."""
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    section = re.split(r"^## (?!#)", text.partition("## Exercises")[2], maxsplit=1, flags=re.M)[0]
    items = re.split(r"^(\d+)\. ", section, flags=re.M)[1:]
    return {int(number): body.strip() for number, body in zip(items[::2], items[1::2], strict=True)}


def divide(source: str, first: bool) -> tuple[str, str]:
    """Returns the answer and the test in a cell of a solution; `first`: nothing of its exercise stands before it."""
    body = ast.parse(source).body
    tests = [place for place, node in enumerate(body) if "assert" in ast.unparse(node).split("(")[0].split(" ")[0]]
    if source.startswith("# Check") or (tests and not first and (len(tests) > 1 or tests[0] <= 2)):
        return "", source
    if not tests:
        return source, ""
    lines, line = source.splitlines(), body[tests[0]].lineno - 1
    return "\n".join(lines[:line]), "\n".join(lines[line:])


def student_version(full: nbformat.NotebookNode, solutions: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns the students' notebook. Raises ValueError when the two do not ask and answer the same exercises."""
    asked = questions(full)
    cells = []
    for cell in full.cells:
        hidden = "hide-input" in cell.metadata.get("tags", ())
        if hidden and re.search(r"^ *assert ", cell.source, re.M):
            continue  # it checks the text around it, and says what the reader is asked to find out
        new = new_code_cell if cell.cell_type == "code" else new_markdown_cell
        cells.append(new(_TEACHERS.sub("", cell.source).rstrip()))
        cells[-1].metadata.tags = ["hide-input"] if hidden else []
    cells.append(new_markdown_cell("# Sheet\n\nAnswer in order: later exercises use earlier ones."))
    answered, first = [], False
    for cell in solutions.cells:
        if cell.cell_type == "markdown":
            for number in map(int, _HEADING.findall(cell.source)):
                cells.append(new_markdown_cell(f"## {number}\n\n{asked.get(number, '')}"))
                answered.append(number)
                first = True
        elif not answered:
            cells.append(new_code_cell(cell.source, metadata={"tags": cell.metadata.get("tags", [])}))
        else:
            answer, test = divide(cell.source, first)
            cells += [new_code_cell(ANSWER)] if answer and cells[-1].source != ANSWER else []
            cells += [new_code_cell(test)] if test else []
            first = False
    if answered != sorted(asked) or not asked:
        raise ValueError(f"it asks exercises {sorted(asked)}, and the solutions answer {answered}")
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:02d}"
    return clean(new_notebook(cells=cells))


def main(folder: str = str(ROOT / "build" / "students")) -> int:
    """Writes the notebooks. Returns 1 when some are out of step with their solutions."""
    status = 0
    Path(folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "course.py", folder)  # what their first cell imports
    for path in find_notebooks():
        pair = [nbformat.read(place, as_version=4) for place in (path, FOLDER / "solutions" / path.name)]
        try:
            nbformat.write(student_version(*pair), Path(folder) / path.name)
        except ValueError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
