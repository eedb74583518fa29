"""Runs the whole course: every notebook in order, then captions for the sample photos, then one table of results.

`python scripts/run_all.py [--at_once N] [NOTEBOOK ...]` (default: all; two at once where cores and memory allow it,
which takes a third less time than one after the other, because small matrix products gain little from a second core).
Executed copies go to build/ as .ipynb and HTML. Exit status 1 when a notebook failed; the others still run.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import nbformat

from notebook_tools import ROOT, execute, find_notebooks

sys.path.insert(0, str(ROOT))  # so that `helpers` is found from any folder
BUILD = ROOT / "build"
REPORT_EVERY = 20  # seconds between progress lines where the last line cannot be rewritten
MEMORY_A_NOTEBOOK = 4e9  # bytes that have to be there for each, with room to spare


def clock(seconds: float) -> str:
    """Returns minutes and seconds, "1:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Board:
    """Shows how far each running notebook is: one line, rewritten on a terminal; elsewhere a line now and then."""

    def __init__(self, paths: list[Path], rewrite: bool | None = None):
        self.rewrite = sys.stdout.isatty() if rewrite is None else rewrite
        width = max((len(path.stem) for path in paths), default=0)
        self.labels = {path: f"[{n}/{len(paths)}] {path.stem:{width}}" for n, path in enumerate(paths, start=1)}
        self.running: dict[Path, tuple[float, int, int]] = {}  # since when, cells done, cells
        self.shown: dict[Path, float] = {}
        self.lock = Lock()  # several notebooks report from threads of their own

    def start(self, path: Path) -> None:
        with self.lock:
            self.running[path] = (time.time(), 0, 0)
            self.shown[path] = time.time()
            self._show(f"{self.labels[path]}  started")

    def cell(self, path: Path, done: int, total: int) -> None:
        with self.lock:
            since, *_ = self.running[path]
            self.running[path] = (since, done, total)
            if self.rewrite or time.time() - self.shown[path] > REPORT_EVERY:
                self.shown[path] = time.time()
                self._show(self._line(path))

    def end(self, path: Path, failure: str | None) -> None:
        with self.lock:
            line = self._line(path) + ("" if failure is None else "  FAILED")
            del self.running[path]
            text = "" if failure is None else f"\n{path.name} failed. Its cell and the traceback:\n{plain(failure)}\n"
            print((f"\r\x1b[K{line}" if self.rewrite else line) + text, flush=True)

    def _line(self, path: Path) -> str:
        since, done, total = self.running[path]
        return f"{self.labels[path]}  {done}/{total} cells  {clock(time.time() - since)}"

    def _show(self, line: str) -> None:
        if not self.rewrite:
            print(line, flush=True)
            return
        short = [f"{self.labels[path].rstrip()} {done}/{total}" for path, (_, done, total) in self.running.items()]
        print(f"\r\x1b[K{'   '.join(short)}", end="", flush=True)


def plain(text: str) -> str:
    """Returns text without terminal colours, which a log file shows as noise."""
    return text if sys.stdout.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", text)


def save(book: nbformat.NotebookNode, name: str) -> None:
    """Writes build/NAME.ipynb and build/NAME.html."""
    from nbconvert import HTMLExporter

    BUILD.mkdir(exist_ok=True)
    nbformat.write(book, BUILD / f"{name}.ipynb")
    page, _ = HTMLExporter().from_notebook_node(book, resources={"metadata": {"name": name}})
    (BUILD / f"{name}.html").write_text(page, encoding="utf-8")


def results_file(path: Path) -> Path:
    """Returns where a notebook writes what it trained: a file of its own, so that the table is in reading order."""
    return BUILD / f"results-{path.stem}.jsonl"


def how_many_at_once() -> int:
    """Returns 2 where two notebooks have a core and enough memory each, else 1."""
    from helpers.files import usable_cores

    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory = 0
    return 2 if usable_cores() >= 2 and memory >= 2 * MEMORY_A_NOTEBOOK else 1


def run_notebooks(paths: list[Path], at_once: int) -> list[str]:
    """Executes the notebooks, started in order, `at_once` at a time. Returns the names of those that failed."""
    from helpers.files import usable_cores

    board = Board(paths)
    threads = {} if at_once == 1 else {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once))}

    def run(path: Path) -> bool:
        board.start(path)
        results_file(path).unlink(missing_ok=True)
        book, error = execute(
            path,
            lambda done, total: board.cell(path, done, total),
            **{**threads, **os.environ, "CAPTIONING_RESULTS": str(results_file(path))},
        )
        save(book, path.stem)
        board.end(path, None if error is None else str(error))
        return error is None

    with ThreadPoolExecutor(at_once) as pool:
        fine = list(pool.map(run, paths))
    return [path.name for path, good in zip(paths, fine, strict=True) if not good]


def caption_samples(folder: Path) -> None:
    """Prints a caption for each sample photo from each shipped captioner."""
    from helpers.captioner import Captioner, available
    from helpers.images import list_images

    photos = list_images(folder)
    names = available()
    print(f"\nCaptions for {folder.name}/" if names else "\nNo trained captioner in data/checkpoints/ yet.")
    for name in names:
        begin = time.time()
        captions = Captioner.load(name).caption(photos)
        print(f"\n{name} ({len(photos) / (time.time() - begin):.1f} photos a second, loading included)")
        for caption in captions:
            print(f"  {Path(caption.image).name:18} {caption.caption if caption.error is None else caption.error}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def result_rows(paths: list[Path]) -> list[list[str]]:
    """Returns the rows of the closing table: models trained in this run, then the shipped ones from their cards."""
    from helpers import results
    from helpers.captioner import available
    from helpers.files import CHECKPOINTS, read_json

    rows = []
    for row in (row for path in paths for row in results.read(results_file(path))):
        seconds = "-" if row["seconds"] is None else clock(row["seconds"])
        rows.append([row["model"], "Pocket Scenes test", _number(row["bleu4"], ".3f"), _number(row["cider"], ".3f"),
                     _number(row["captions_per_second"], ".0f"), seconds])  # fmt: skip
    for name in available():
        split, scores = card_scores(read_json(CHECKPOINTS / name / "config.json"))
        rows.append([name, split, _number(scores.get("BLEU-4"), ".3f"), _number(scores.get("CIDEr"), ".3f"),
                     _number(scores.get("captions_per_second"), ".0f"), "shipped"])  # fmt: skip
    return rows


def card_scores(config: dict) -> tuple[str, dict]:
    """Returns what to call the split that a shipped captioner was scored on, and its scores; test before dev."""
    entries = config.get("scores") or {}
    for split in ("test", "dev"):
        if f"flickr8k {split}" in entries:
            return f"Flickr8k {split} (card)", entries[f"flickr8k {split}"]
    return "Flickr8k (no scores in its card)", {}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns rows as aligned text, the first two columns to the left and the numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
                     for line in lines)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs everything. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--at_once", type=int, default=how_many_at_once(), help="notebooks at a time")
    options = parser.parse_args(arguments)
    begin = time.time()
    paths = options.notebooks or find_notebooks()
    BUILD.mkdir(exist_ok=True)
    failed = run_notebooks(paths, max(1, options.at_once))
    caption_samples(ROOT / "sample_images")
    print("\nResults")
    print(table(["model", "data", "BLEU-4", "CIDEr", "captions/s", "trained in"], result_rows(paths)))
    print(f"\n{len(paths) - len(failed)} of {len(paths)} notebooks ran in {clock(time.time() - begin)}.")
    print("Where to look next:")
    print("  build/*.html                the executed notebooks; start with 00")
    print("  make lab                    the notebooks themselves, to read and change")
    python = Path(sys.executable)
    python = python.relative_to(ROOT) if python.is_relative_to(ROOT) else python
    print(f"  {python} generate_caption.py --image_path YOUR_PHOTO.jpg")
    if failed:
        print(f"\nFailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
