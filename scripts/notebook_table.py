"""Writes the table of notebooks into notebooks/README.md: `python scripts/notebook_table.py [--check]`.

Times, memory and disk are those that each notebook states in its first cell, the badge is bootstrap_cell.py's. With
--check nothing is written; exit status 1 when the table is not that of the notebooks.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

from bootstrap_cell import badge
from notebook_tools import FOLDER, find_notebooks

README = FOLDER / "README.md"
BEGIN, END = "<!-- made by scripts/notebook_table.py -->", "<!-- end of the table -->"


def needs(first: str) -> dict[str, dict[str, str]]:
    """Returns of a notebook's first cell: dataset -> {"cpu", "gpu", "memory", "disk"}, as the cell states them.

    Raises ValueError when it states no time.
    """
    text = first.partition("needs**")[2]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[part.strip() for part in line.strip("| ").split("|")] for line in lines]
    found = {}
    if rows:
        head = [name.lower() for name in rows[0]]
        cpu = next(place for place, name in enumerate(head) if "time" in name and "gpu" not in name)
        gpu = next((place for place, name in enumerate(head) if "time" in name and "gpu" in name), None)
        for row in rows[2:]:
            dataset = re.match(r'`"(\w+)"`', row[0])
            if dataset:
                found[dataset[1]] = {
                    "cpu": row[cpu], "gpu": row[gpu] if gpu is not None else "the same",
                    "memory": row[head.index("memory")], "disk": row[head.index("disk")],
                }  # fmt: skip
    elif said := re.search(r":\s*(.+?) on two CPU cores,\s*(.+?) on a\s+GPU;\s*(.+?) of\s+memory", text, re.S):
        found[""] = {"cpu": said[1], "gpu": said[2], "memory": said[3], "disk": ""}
    if not found:
        raise ValueError("the first cell states no time: a table below '**What it needs**' with a row for each dataset")
    return found


def table(paths: list[Path]) -> str:
    """Returns the Markdown table of the notebooks at `paths`."""
    lines = ["| notebook | | CPU, two cores | GPU | memory, disk | with Flickr8k: CPU; GPU; memory, disk |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    join = lambda row: ", ".join(filter(None, (row["memory"], row["disk"])))  # noqa: E731
    for path in paths:
        first = nbformat.read(path, as_version=4).cells[0].source
        stated = needs(first)
        title = first.splitlines()[0].lstrip("# ").split(":")[0]
        small, large = stated.get("pocket") or next(iter(stated.values())), stated.get("flickr8k")
        own = stated.get("folder")
        full = "; ".join((large["cpu"], large["gpu"], join(large))) if large else "no dataset is needed"
        full = "your own photos: " + "; ".join((own["cpu"], own["gpu"], join(own))) if own else full
        link = f"[{title}]({path.name})"
        lines.append(f"| {link} | {badge(path)} | {small['cpu']} | {small['gpu']} | {join(small)} | {full} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """Returns the README's text with the table of today's notebooks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(find_notebooks())}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str]) -> int:
    """Writes or checks. Returns the exit status."""
    text = README.read_text(encoding="utf-8")
    new = filled(text)
    if new == text:
        return 0
    if "--check" in arguments:
        print("notebooks/README.md: the table is not that of the notebooks; run `python scripts/notebook_table.py`")
        return 1
    README.write_text(new, encoding="utf-8")
    print(f"{README}: rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
