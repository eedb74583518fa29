"""Executes notebooks in place, ready to commit: `python scripts/refresh_notebooks.py [--check] [NOTEBOOK ...]`.

Outputs are stored, and whatever differs from run to run is stripped, so that running again gives a small diff.
A notebook in which a cell fails is left as it was. With --check nothing is executed: only the rules of the tests are
looked at. Exit status 1 when a notebook failed or breaks a rule.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

from notebook_tools import clean, execute, faults, find_notebooks


def refresh(path: Path) -> list[str]:
    """Executes and rewrites one notebook. Returns what is wrong: the failed cell, or rules that it breaks."""
    book, error = execute(path)
    if error is not None:
        return [f"not written, a cell failed:\n{error}"]
    temporary = path.with_suffix(".ipynb.part")
    nbformat.write(clean(book), temporary)
    temporary.replace(path)
    return faults(path)


def main(arguments: list[str]) -> int:
    """Refreshes or checks the named notebooks, or all. Returns the exit status."""
    check = "--check" in arguments
    failed = False
    for path in [Path(name) for name in arguments if name != "--check"] or find_notebooks(solutions=True):
        for problem in (faults if check else refresh)(path):
            print(f"{path.name}: {problem}", flush=True)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
