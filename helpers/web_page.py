"""Pieces of the web page that need no browser: text made safe, tables, the CSV, where a model looked, in words.

Shapes: R regions of a square grid, T words.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.files import ROOT
from helpers.images import open_image

SAMPLES = ROOT / "sample_images"
SAMPLE_SIDE = 208  # pixels; shown at half of it, sharp on a phone
STYLE = """<style>
[class*="st-key-caption"] pre { background: transparent; padding: 0 3rem 0 0; border: 0; overflow: visible }
[class*="st-key-caption"] :is(pre, pre *) { font-family: inherit }
[class*="st-key-caption"] code { font-size: 1.5rem; font-weight: 600; line-height: 1.3; white-space: pre-wrap }
[class*="st-key-caption"] [data-testid="stCode"] > div:last-child,
[class*="st-key-caption"] [data-testid="stCode"] > div:last-child * { opacity: 1; visibility: visible }
:is([class*="st-key-sample-"], [class*="st-key-gaze"]) [data-testid="stElementToolbar"] { display: none }
[class*="st-key-sample-"] { position: relative }
[class*="st-key-sample-"] img { aspect-ratio: 1; object-fit: cover; border-radius: .5rem .5rem 0 0 }
[class*="st-key-sample-"] button { border-radius: 0 0 .5rem .5rem; padding: .2rem; min-height: 0 }
[class*="st-key-sample-"] button p { font-size: .875rem; white-space: nowrap }
[class*="st-key-sample-"] button::after { content: ""; position: absolute; inset: 0; top: -7rem; cursor: pointer }
table.candidates { width: 100%; border-collapse: collapse; border: 0; margin: 0 }
table.candidates caption { text-align: left; opacity: .8; font-size: .875rem; padding-bottom: .2rem }
table.candidates :is(td, th, tr) { border: 0 }
table.candidates :is(td, th) { padding: .3rem .4rem; text-align: left; font-weight: 400; vertical-align: top }
table.candidates :is(td, th):last-child { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
table.candidates thead th { font-size: .8rem; opacity: .8 }
@media (max-width: 640px) {
  [class*="st-key-caption"] code { font-size: 1.3rem }
  [class*="st-key-card-"] [data-testid="stColumn"] img { max-height: 13rem; width: auto !important; max-width: 100% }
}
@media (pointer: coarse) { .st-key-pasting { display: none } }  /* a phone has no Ctrl+V */
</style>"""


def plain(text: str) -> str:
    """Returns text that Markdown shows as it stands: a file name may hold links, pictures or colours."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:^=@&\"'])", r"\\\1", " ".join(text.split()))


def percent(probability: float) -> str:
    """Returns a probability as people read it: 12%, 0.4%, 1 in 5,000 or 1 in 3.4 million."""
    if probability >= 0.1 or probability <= 0:
        return f"{probability:.0%}"
    if probability >= 0.001:
        return f"{probability:.1%}"
    odds = float(f"{1 / probability:.2g}")
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if odds >= size:
            return f"1 in {odds / size:,.3g} {name}"
    return f"1 in {odds:,.0f}"


def candidates_table(candidates: Sequence[tuple[str, float]]) -> str:
    """Returns captions with their log-probabilities as an HTML table; the bar behind each is as long as its share of
    the likeliest one's probability."""
    best = max(log_prob for _, log_prob in candidates)
    rows = []
    for caption, log_prob in candidates:
        length = 100 * math.exp(log_prob - best)
        bar = f"linear-gradient(to right, rgba(86, 180, 233, .35) {length:.1f}%, transparent {length:.1f}%)"
        number = percent(math.exp(log_prob))
        rows.append(f'<tr style="background: {bar}"><td>{escape(caption)}</td><td>{number}</td></tr>')
    return (
        '<table class="candidates"><caption>What else it might have said</caption><thead><tr><th scope="col">caption'
        f'</th><th scope="col">probability</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def as_csv(captions: Iterable) -> str:
    """Returns `helpers.captioner.Caption` objects as CSV: image, caption, log_prob, model, error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "caption", "log_prob", "model", "error"))
    for c in captions:
        log_prob = "" if c.log_prob is None else f"{c.log_prob:.4f}"
        writer.writerow((c.image, c.caption or "", log_prob, c.model, c.error or ""))
    return text.getvalue()


def samples(folder: Path = SAMPLES) -> list[tuple[Path, str, Image.Image]]:
    """Returns the sample photos: file, what it shows (from the folder's README.md), a small square picture."""
    table = re.findall(r"^\| ([\w.-]+) \| ([^|]+?) \|", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    out = []
    for name, text in table:
        if (folder / name).is_file():
            image = open_image(folder / name)
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.resize((SAMPLE_SIDE, SAMPLE_SIDE), box=(left, top, left + side, top + side))
            out.append((folder / name, text, square))
    return out


def where(weights: np.ndarray) -> str:
    """Returns in words where most of the attention [R] lies: "upper left", "middle", ... or "all over"."""
    weights = np.asarray(weights, dtype=float)
    side = round(len(weights) ** 0.5)
    grid = weights.reshape(side, side) / max(weights.sum(), 1e-12)
    edges = [round(side * third / 3) for third in range(4)]
    ninths = [[grid[edges[r] : edges[r + 1], edges[c] : edges[c + 1]].sum() for c in range(3)] for r in range(3)]
    row, column = np.unravel_index(int(np.argmax(ninths)), (3, 3))
    if ninths[row][column] < 0.2:  # an even gaze gives each ninth about 0.11
        return "all over"
    names = [("upper", "", "lower")[row], ("left", "", "right")[column]]
    return " ".join(name for name in names if name) or "middle"


def gaze(photo: Image.Image, words: Sequence[str], attention: np.ndarray) -> list[tuple[Image.Image, str, str]]:
    """Returns for each word: the photo lit where the model looked when it chose it, the word, and a description.

    attention: [T, R], rows sum to 1. Each word has its own scale, from its smallest to its largest weight.
    """
    from helpers.plots import lit

    attention = np.asarray(attention, dtype=float)
    shown = [(word, row) for word, row in zip(words, attention, strict=False) if word.strip()]  # not the end token
    return [
        (lit(photo, row, row.max(), row.min()), word, f"For the word {word} it looked {_place(row)}.")
        for word, row in shown
    ]


def _place(weights: np.ndarray) -> str:
    place = where(weights)
    return place if place == "all over" else f"at the {place}"
