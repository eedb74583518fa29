"""Executes notebooks in place, ready to commit: `python scripts/refresh_notebooks.py [NOTEBOOK ...]` (default: all).

Outputs are stored, and whatever differs from run to run is stripped, so that running again gives a small diff.
A notebook in which a cell fails is left as it was. Exit status 1 when one failed or breaks a rule of the tests.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat

from notebook_tools import MIN_COMPARED, clean, execute, faults, find_notebooks


def refresh(path: Path) -> list[str]:
    """Executes and rewrites one notebook. Returns what is wrong: the failed cell, or rules that it breaks."""
    book, error = execute(path)
    if error is not None:
        return [f"not written, a cell failed:\n{error}"]
    temporary = path.with_suffix(".ipynb.part")
    nbformat.write(clean(book), temporary)
    temporary.replace(path)
    return faults(path, 0 if path.parent.name == "solutions" else MIN_COMPARED)


def main(arguments: list[str]) -> int:
    """Refreshes the named notebooks, or all. Returns the exit status."""
    paths = [Path(argument) for argument in arguments] or find_notebooks(solutions=True)
    failed = 0
    for path in paths:
        begin = time.time()
        print(f"{path} …", flush=True)
        problems = refresh(path)
        print(f"  {time.time() - begin:.0f} s, {path.stat().st_size / 1000:.0f} kB")
        for problem in problems:
            print(f"  {problem}")
        failed += bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
