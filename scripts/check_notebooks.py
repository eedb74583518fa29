"""Says which rules the stored notebooks break: `python scripts/check_notebooks.py [NOTEBOOK ...]` (default: all)."""

from __future__ import annotations

import sys
from pathlib import Path

from notebook_tools import MIN_COMPARED, faults, find_notebooks


def main(arguments: list[str]) -> int:
    """Prints a line a fault. Returns 1 when there is one."""
    found = 0
    for path in [Path(argument) for argument in arguments] or find_notebooks(solutions=True):
        for fault in faults(path, 0 if path.parent.name == "solutions" else MIN_COMPARED):
            print(f"{path.name}: {fault}")
            found += 1
    print(f"{found} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
