"""What the notebook scripts and tests share: finding, executing, cleaning and judging notebooks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"

MAX_LINES = 40  # of code in a cell, without blank lines and comments
MAX_BYTES = 1_000_000  # more is slow to show on GitHub and heavy to keep in git
MIN_COMPARED = 3  # cells a notebook whose output is compared when it is tested
COMPARED = "nbval-check-output"  # the tag of cells whose output nbval compares with what is stored

# Bars that redraw themselves cannot be stored or compared, and models come from this repository or not at all.
QUIET = {"TQDM_DISABLE": "1", "CAPTIONING_PROGRESS": "0"}
# A folder of one person's machine in an output: it differs on every other machine.
_PRIVATE_PATH = re.compile(r"(?<![\w.])/(?:home|Users|root|work|tmp|private)/\w")


def find_notebooks(folder: Path = FOLDER, solutions: bool = False) -> list[Path]:
    """Returns the notebooks in reading order, those of `solutions/` after them when asked for."""
    found = sorted(folder.glob("*.ipynb"))
    return found + sorted(folder.glob("solutions/*.ipynb")) if solutions else found


def execute(
    path: Path, on_cell: Callable[[int, int], None] = lambda done, total: None, timeout: int = 900, **env: str
) -> tuple[nbformat.NotebookNode, Exception | None]:
    """Returns the executed notebook and the error that stopped it, or None.

    Runs in a fresh kernel of this Python, in the notebook's folder, with `env` added to the environment. `on_cell` is
    told the number of code cells done and their total. The notebook file is not changed.
    """
    book = nbformat.read(path, as_version=4)
    total = sum(cell.cell_type == "code" for cell in book.cells)
    done = 0

    def count(cell: nbformat.NotebookNode, **_: object) -> None:
        nonlocal done
        done += cell.cell_type == "code"
        on_cell(done, total)

    client = NotebookClient(
        book,
        timeout=timeout,
        kernel_name="python3",
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors only: warnings about local sockets are noise
        resources={"metadata": {"path": str(path.resolve().parent)}},
        on_cell_executed=count,
    )
    try:
        client.execute(env={**os.environ, **QUIET, **env})
    except Exception as error:  # a failed cell, a dead kernel or a time-out: the caller reports it with the name
        return book, error
    return book, None


def clean(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns the notebook without what differs from run to run: times, versions of the machine, widget state."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    book.nbformat, book.nbformat_minor = 4, 5
    for number, cell in enumerate(book.cells):
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")})
        cell.setdefault("id", f"cell-{number:02d}")
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # its kernel is gone
            if "metadata" in output:
                words = {kind: of.get("alt") for kind, of in output.metadata.items() if isinstance(of, dict)}
                # of all that stands there, the words for those who cannot see a figure are worth keeping
                output.metadata = nbformat.from_dict({kind: {"alt": alt} for kind, alt in words.items() if alt})
    return book


def _text(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    return "".join(map(str, (output.get("text", ""), data.get("text/plain", ""), data.get("text/html", ""))))


def compared_cells(book: nbformat.NotebookNode) -> int:
    """Returns how many cells nbval compares: those with the tag COMPARED, and with some text stored to compare."""
    marked = [cell for cell in book.cells if COMPARED in cell.metadata.get("tags", ())]
    return sum(any(_text(output).strip() for output in cell.outputs) for cell in marked)


def faults(path: Path) -> list[str]:
    """Returns what is wrong with a stored notebook, a line each; an empty list when it may be committed.

    Solutions check themselves with assert, so they need compare no output.
    """
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    found = []
    counts = [cell.execution_count for cell in code]
    if None in counts:
        found.append(f"{counts.count(None)} of {len(counts)} code cells were never executed")
    elif counts != list(range(1, len(counts) + 1)):
        found.append("cells were not executed once each, in order")
    if not outputs:
        found.append("outputs were cleared")
    if any(output.output_type == "error" for output in outputs):
        found.append("an error is stored")
    if any(output.get("name") == "stderr" for output in outputs):
        found.append("a warning or a progress bar is stored (standard error)")
    if any(_PRIVATE_PATH.search(_text(output)) for output in outputs):
        found.append("an output names a folder of one machine")
    if "widgets" in book.metadata or any("widget-view" in kind for o in outputs for kind in o.get("data", {})):
        found.append("widget state is stored, which GitHub shows as 'Invalid Notebook'")
    for number, cell in enumerate(book.cells, start=1):
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
        if cell.cell_type == "code" and len(lines) > MAX_LINES:
            found.append(f"cell {number} has {len(lines)} lines of code, more than {MAX_LINES}")
        if "NBVAL_" in cell.source:
            found.append(f"cell {number}: what nbval compares is said by the tag {COMPARED}, out of the reader's sight")
    size = path.stat().st_size
    if size > MAX_BYTES:
        found.append(f"{size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB")
    compared = compared_cells(book)
    if compared < MIN_COMPARED and path.parent.name != "solutions":
        found.append(f"the output of {compared} cells is compared, fewer than {MIN_COMPARED}")
    return found
