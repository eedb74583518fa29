"""Runs the whole course: every notebook, two at a time, then captions for the sample photos, then a table of results.

`python scripts/run_all.py [--at_once 2] [NOTEBOOK ...]`. Two at once take a third less time than one after the other,
because small matrix products gain little from a second core. Executed copies go to build/ as .ipynb and HTML. Exit
status 1 when a notebook failed; the others still run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from notebook_tools import ROOT, execute, find_notebooks

sys.path.insert(0, str(ROOT))  # so that `helpers` is found from any folder
from helpers.captioner import Captioner, available  # noqa: E402
from helpers.files import CHECKPOINTS, read_json  # noqa: E402
from helpers.images import list_images  # noqa: E402

BUILD = ROOT / "build"
# These begin, the longest first, so that none is left to run alone at the end. 02 encodes what 03 and 10 read.
FIRST = ("06_clipcap", "02_cnn_lstm", "03_attention", "10_where_the_field_went", "08_evaluation")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def results_file(path: Path) -> Path:
    """Returns where a notebook writes what it trained: a file of its own, so that the table is in reading order."""
    return BUILD / f"results-{path.stem}.jsonl"


def run_notebook(path: Path, threads: int) -> bool:
    """Executes a notebook, stores the copies, and prints how it went. Returns whether all its cells ran."""
    begin = time.time()
    print(f"{path.stem} …", flush=True)
    results_file(path).unlink(missing_ok=True)
    settings = {"OMP_NUM_THREADS": str(threads), **os.environ, "CAPTIONING_RESULTS": str(results_file(path))}
    book, error = execute(path, **settings)
    nbformat.write(book, BUILD / path.name)
    page, _ = HTMLExporter().from_notebook_node(book, resources={"metadata": {"name": path.stem}})
    (BUILD / f"{path.stem}.html").write_text(page, encoding="utf-8")
    failure = "" if error is None else re.sub(r"\x1b\[[0-9;]*m", "", f" FAILED. Its cell and the traceback:\n{error}")
    print(f"{path.stem}: {time.time() - begin:.0f} s{failure}", flush=True)
    return error is None


def caption_samples(folder: Path) -> None:
    """Prints a caption for each sample photo from each shipped captioner."""
    photos = list_images(folder)
    for name in available():
        print(f"\nCaptions of {name} for {folder.name}/")
        for caption in Captioner.load(name).caption(photos):
            print(f"  {Path(caption.image).name:18} {caption.caption if caption.error is None else caption.error}")


def results(paths: list[Path]) -> pd.DataFrame:
    """Returns the closing table: models trained in this run, then the shipped ones with the scores of their cards."""
    rows = []
    for file in map(results_file, paths):
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        for row in map(json.loads, lines):
            rows.append((row["model"], "Pocket Scenes test", row["bleu4"], row["cider"], row["seconds"]))
    for name in available():
        scores = read_json(CHECKPOINTS / name / "config.json").get("scores") or {}
        split = "flickr8k test" if "flickr8k test" in scores else "flickr8k dev"
        shipped = scores.get(split, {})
        rows.append((name, f"{split} (card)", shipped.get("BLEU-4"), shipped.get("CIDEr"), None))
    return pd.DataFrame(rows, columns=["model", "data", "BLEU-4", "CIDEr", "seconds of training"])


def main(arguments: list[str] | None = None) -> int:
    """Runs everything. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--at_once", type=int, default=min(2, CORES), help="notebooks at a time")
    options = parser.parse_args(arguments)
    begin = time.time()
    paths = options.notebooks or find_notebooks()
    BUILD.mkdir(exist_ok=True)
    threads = max(1, CORES // options.at_once)
    with ThreadPoolExecutor(options.at_once) as pool:
        order = sorted(paths, key=lambda path: FIRST.index(path.stem) if path.stem in FIRST else len(FIRST))
        fine = list(pool.map(lambda path: run_notebook(path, threads), order))
    caption_samples(ROOT / "sample_images")
    print("\nResults", results(paths).to_string(index=False, na_rep="-", float_format="{:.3f}".format), sep="\n")
    print(f"\n{sum(fine)} of {len(paths)} notebooks ran in {time.time() - begin:.0f} s. Where to look next:")
    print("  build/*.html                the executed notebooks; start with 00")
    print("  make lab                    the notebooks themselves, to read and change")
    print("  .venv/bin/python generate_caption.py --image_path YOUR_PHOTO.jpg")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
