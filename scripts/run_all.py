"""Runs the whole course: every notebook in order, then captions for the sample photos, then one table of results.

`python scripts/run_all.py [NOTEBOOK ...]` (default: all). Executed copies go to build/ as .ipynb and HTML.
Exit status 1 when a notebook failed; the others still run.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat

from notebook_tools import ROOT, execute, find_notebooks

sys.path.insert(0, str(ROOT))  # so that `helpers` is found from any folder
BUILD = ROOT / "build"
RESULTS = BUILD / "results.jsonl"
REPORT_EVERY = 20  # seconds between progress lines where the last line cannot be rewritten


def clock(seconds: float) -> str:
    """Returns minutes and seconds, "1:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def progress(label: str) -> Callable[[int, int], None]:
    """Returns a function (done, total) that shows how far a notebook is: one line rewritten, or one now and then."""
    begin = shown = time.time()

    def show(done: int, total: int) -> None:
        nonlocal shown
        line = f"{label}  {done}/{total} cells  {clock(time.time() - begin)}"
        if sys.stdout.isatty():
            print(f"\r{line}", end="\n" if done == total else "", flush=True)
        elif done == total or time.time() - shown > REPORT_EVERY:
            shown = time.time()
            print(line, flush=True)

    return show


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


def run_notebooks(paths: list[Path]) -> list[str]:
    """Executes the notebooks in order. Returns the names of those that failed, after showing each failure."""
    failed = []
    width = max((len(path.stem) for path in paths), default=0)
    for number, path in enumerate(paths, start=1):
        label = f"[{number}/{len(paths)}] {path.stem:{width}}"
        print(label, end="" if sys.stdout.isatty() else "\n", flush=True)
        book, error = execute(path, progress(label), CAPTIONING_RESULTS=str(RESULTS))
        save(book, path.stem)
        if error is not None:
            failed.append(path.name)
            print(f"\n{path.name} failed. Its cell and the traceback:\n{plain(str(error))}\n", flush=True)
    return failed


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


def result_rows() -> list[list[str]]:
    """Returns the rows of the closing table: models trained in this run, then the shipped ones from their cards."""
    from helpers import results
    from helpers.captioner import CHECKPOINTS, available
    from helpers.files import read_json

    rows = []
    for row in results.read(RESULTS):
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


def main(arguments: list[str]) -> int:
    """Runs everything. Returns the exit status."""
    begin = time.time()
    paths = [Path(argument) for argument in arguments] or find_notebooks()
    BUILD.mkdir(exist_ok=True)
    RESULTS.unlink(missing_ok=True)
    failed = run_notebooks(paths)
    caption_samples(ROOT / "sample_images")
    print("\nResults")
    print(table(["model", "data", "BLEU-4", "CIDEr", "captions/s", "trained in"], result_rows()))
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
    sys.exit(main(sys.argv[1:]))
