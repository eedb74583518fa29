"""Makes the students' versions of the notebooks: `python scripts/student_versions.py [--to build/students] [--check]`.

A student's notebook is the full one without outputs, and behind it a sheet with the exercises: the question, an empty
cell for the answer, and the tests of the solution, which stay as they are. Both come from the full notebook and its
solutions each time, so they cannot drift apart; what could (questions and solutions that do not match, an exercise
without a test) is what `--check` reports. Nothing is written then.

What is emptied and what is kept, in a section `## N` of the solutions: a cell is a test when it begins with `# Check`,
or follows the answer and has two asserts or little else. Of any other cell the part from the first assert on is a test.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from bootstrap_cell import is_bootstrap
from notebook_tools import FOLDER, ROOT, clean, find_notebooks

_HEADING = re.compile(r"^## (\d+)\b[ .]*(.*)$", re.M)
_SOLUTIONS = re.compile(r"^Solutions[^\n]*`[^`\n]*solutions/[^`\n]*`[^\n]*\n+", re.M)
_MARKER = re.compile(r"^# NBVAL_\w+\n", re.M)  # nobody has stored an output of a student's cell
_BADGE = re.compile(r"^\[!\[Open in Colab\][^\n]*\n*", re.M)


@dataclass
class Part:
    """A run of code of one exercise: an answer, which is emptied, or a test, which is kept."""

    test: bool
    sources: list[str]


@dataclass
class Exercise:
    number: int
    title: str
    parts: list[Part] = field(default_factory=list)


def questions(book: nbformat.NotebookNode) -> dict[int, str]:
    """Returns number -> text of the exercises of a full notebook, from its numbered list under `## Exercises`."""
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    if "## Exercises" not in text:
        return {}
    section = re.split(r"^## (?!#)", text.split("## Exercises", 1)[1], maxsplit=1, flags=re.M)[0]
    items = re.split(r"^(\d+)\. ", section, flags=re.M)[1:]
    bodies = [re.sub(r"^   ", "", body.strip(), flags=re.M) for body in items[1::2]]
    return {int(number): body for number, body in zip(items[::2], bodies, strict=True)}


def exercises(book: nbformat.NotebookNode) -> tuple[list[nbformat.NotebookNode], list[Exercise]]:
    """Returns the code cells that set the solutions up, and the exercises with their code told apart."""
    setup: list[nbformat.NotebookNode] = []
    found: list[Exercise] = []
    first = True
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for number, title in _HEADING.findall(cell.source):
                found.append(Exercise(int(number), title.strip()))
                first = True
        elif cell.cell_type == "code" and not found:
            setup += [] if is_bootstrap(cell.source) else [cell]
        elif cell.cell_type == "code":
            for part in divide(cell.source, first):
                if found[-1].parts and found[-1].parts[-1].test == part.test:
                    found[-1].parts[-1].sources += part.sources
                else:
                    found[-1].parts.append(part)
            first = False
    return setup, found


def divide(source: str, first: bool) -> list[Part]:
    """Returns the answer and the test in a cell of a solution; `first`: nothing of its exercise stands before it."""
    source = _MARKER.sub("", source)
    tree = ast.parse(source)
    tests = [place for place, node in enumerate(tree.body) if _is_test(node)]
    only_tests = tree.body and all(_asserts(node) and not _prints(node) for node in tree.body)
    follows = not first and tests and (len(tests) > 1 or tests[0] <= 2)
    if source.startswith("# Check") or follows or (only_tests and not first):
        return [Part(True, [source])]
    if not tests or not tests[0]:
        return [Part(bool(tests), [source])]
    line = tree.body[tests[0]].lineno - 1
    lines = source.splitlines()
    return [Part(False, ["\n".join(lines[:line])]), Part(True, ["\n".join(lines[line:])])]


def _is_test(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return "assert" in ast.unparse(node.value.func)
    return isinstance(node, ast.Assert)


def _asserts(node: ast.AST) -> bool:
    return any(_is_test(inner) for inner in ast.walk(node) if isinstance(inner, ast.stmt))


def _prints(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Name) and inner.id == "print" for inner in ast.walk(node))


def made(source: str) -> set[str]:
    """Returns the names that code gives a value outside its functions and classes."""
    names, left = set(), list(ast.parse(source).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            left += ast.iter_child_nodes(node)
    return names


def read(source: str) -> set[str]:
    """Returns the names that code reads and does not itself give a value."""
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return {n.id for n in names if isinstance(n.ctx, ast.Load)} - {n.id for n in names if isinstance(n.ctx, ast.Store)}


def blank(answer: Part, later: list[str]) -> str:
    """Returns the cell in an answer's place: the names that later code reads from it, and tests from inside it."""
    code = "\n".join(answer.sources)
    names = sorted(made(code) & set().union(*(read(source) for source in later))) if later else []
    lines = ["# Your answer." + (f" The code below reads: {', '.join(names)}" if names else "")]
    inside = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]
    lines += [f"# It should pass: {ast.unparse(node)}" for node in inside]
    return "\n".join(lines)


def student_version(full: nbformat.NotebookNode, solutions: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns the students' notebook."""
    cells = []
    for cell in full.cells:
        if cell.cell_type == "markdown":
            cells.append(nbformat.v4.new_markdown_cell(_SOLUTIONS.sub("", _BADGE.sub("", cell.source)).rstrip()))
        else:
            cells.append(nbformat.v4.new_code_cell(_MARKER.sub("", cell.source)))
    asked = questions(full)
    setup, found = exercises(solutions)
    start = "# Sheet\n\nRun this first, then answer in order: later exercises may read names of earlier ones."
    cells.append(nbformat.v4.new_markdown_cell(start))
    cells += [nbformat.v4.new_code_cell(cell.source) for cell in setup]
    codes = [source for exercise in found for part in exercise.parts for source in part.sources]
    for exercise in found:
        text = f"## {exercise.number} {exercise.title}".rstrip() + f"\n\n{asked.get(exercise.number, '')}"
        cells.append(nbformat.v4.new_markdown_cell(text.strip()))
        for part in exercise.parts:
            place = codes.index(part.sources[-1]) + 1
            if part.test:
                cells += [nbformat.v4.new_code_cell(source) for source in part.sources]
            else:
                cells.append(nbformat.v4.new_code_cell(blank(part, codes[place:])))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:02d}"
    return clean(nbformat.v4.new_notebook(cells=cells))


def faults(full: nbformat.NotebookNode, solutions: nbformat.NotebookNode) -> list[str]:
    """Returns where a notebook and its solutions are out of step; an empty list when students can work with them."""
    asked, (_, found) = questions(full), exercises(solutions)
    numbers = [exercise.number for exercise in found]
    out = []
    if not asked:
        out.append("there is no numbered list under '## Exercises'")
    if numbers != sorted(asked):
        out.append(f"it asks exercises {sorted(asked)}, and the solutions answer {numbers}")
    for exercise in found:
        answers = [source for part in exercise.parts if not part.test for source in part.sources]
        tests = [source for part in exercise.parts if part.test for source in part.sources]
        inside = any(isinstance(node, ast.Assert) for source in answers for node in ast.walk(ast.parse(source)))
        if not answers:
            out.append(f"exercise {exercise.number}: nothing is left for students to write")
        if not tests and not inside:
            out.append(f"exercise {exercise.number}: no test")
        elif tests and not inside and not set().union(*map(made, answers), set()) & set().union(*map(read, tests)):
            out.append(f"exercise {exercise.number}: its tests do not look at the answer")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Writes the notebooks, or with --check says what is out of step. Returns 1 when something is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "students", help="the folder to write to")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    status = 0
    for path in find_notebooks():
        answers = FOLDER / "solutions" / path.name
        if not answers.is_file():
            print(f"{path.name}: there are no solutions in {answers.relative_to(ROOT)}")
            status = 1
            continue
        full, solutions = (nbformat.read(file, as_version=4) for file in (path, answers))
        for fault in faults(full, solutions):
            print(f"{path.name}: {fault}")
            status = 1
        if not options.check:
            options.to.mkdir(parents=True, exist_ok=True)
            nbformat.write(student_version(full, solutions), options.to / path.name)
            print(options.to / path.name)
    return status


if __name__ == "__main__":
    sys.exit(main())
