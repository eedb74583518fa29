"""Figures that several notebooks draw; what one alone draws is written there.

Each function returns a matplotlib Figure, and `show` puts it into a notebook.
"""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from helpers.images import open_image

# Okabe and Ito 2008: told apart with every common kind of colour blindness, and in grey print.
COLOURS = {"blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "purple": "#CC79A7",
           "sky": "#56B4E9", "grey": "#8C8C8C", "ink": "#262626", "pale": "#E8E8E8"}  # fmt: skip
CYCLE = [COLOURS[name] for name in ("blue", "orange", "green", "red", "purple", "sky", "grey")]
WIDTH = 9.0  # inches, of every figure that has no reason to be narrower
DPI = 100
TEXT = 9.0  # points, of captions below photos
# Fonts for letters that DejaVu Sans lacks, the first installed one that has them: Devanagari, Thai, Chinese ...
WIDER = ("Noto Sans", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai",
         "Noto Sans Arabic", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei")  # fmt: skip
SIDE = 224  # pixels a side at which a photo with a map over it is drawn
Photo = Image.Image | str | Path


def use_style() -> None:
    """Sets the one look of all figures: sizes, colours, light grid lines, no frame. Call it once in a notebook.

    Text is drawn as typed: a caption may hold two $, which matplotlib would read as a formula. Notebook 00, section 1.
    """
    fonts = ["DejaVu Sans", *(name for name in WIDER if name in font_manager.get_font_names())]
    mpl.rcParams.update({
        "figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white", "figure.constrained_layout.use": True,
        "font.size": 10, "font.family": fonts, "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["ink"],
        "axes.titlesize": 11, "axes.titlelocation": "left", "axes.prop_cycle": mpl.cycler(color=CYCLE),
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.color": COLOURS["pale"], "grid.linewidth": 0.8, "legend.frameon": False, "lines.linewidth": 2,
        "image.cmap": "viridis", "text.parse_math": False,
    })  # fmt: skip


def show(figure: Figure, alt: str) -> None:
    """Displays a figure in a notebook with `alt`, the sentence that stands for it where it cannot be seen.

    Photos are stored as JPEG, charts as PNG of 256 colours: a notebook stays small. Notebook 00, section 1.
    """
    from IPython.display import display

    raw = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(raw, format="png", dpi=DPI)
    if any("missing from font" in str(warning.message) for warning in caught):  # matplotlib warns once a letter
        print("No font here has all letters of this figure: install Noto Sans (fonts-noto) and begin anew.")
    picture, packed = Image.open(raw).convert("RGB"), io.BytesIO()
    photos = any(axes.images for axes in figure.axes)
    if photos:
        picture.save(packed, "JPEG", quality=82, optimize=True)
    else:
        picture.quantize(256, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    kind = "image/jpeg" if photos else "image/png"
    data = {kind: base64.b64encode(packed.getvalue()).decode(), "text/plain": f"[figure: {alt}]"}
    display(data, metadata={kind: {"alt": alt}}, raw=True)


def photo_grid(
    photos: Sequence[Photo], captions: Sequence[str | Sequence[str]] = (), columns: int = 4, width: float = WIDTH
) -> Figure:
    """Returns photos side by side, `columns` in a row, each with its caption (or several, one below the other).

    width: of the figure, in inches; its height follows from the photos. Notebook 00, section 2.
    """
    pictures = [open_image(photo) for photo in photos]
    columns = min(columns, len(pictures))
    gap, line = 0.15, TEXT * 1.35 / 72  # inches, as all lengths here
    cell = (width - gap * (columns - 1)) / columns
    letters = max(8, int(cell * 72 / (TEXT * 0.56)))  # that fit below a photo
    texts = [_wrap(captions[i] if i < len(captions) else "", letters) for i in range(len(pictures))]
    high = [min(picture.height / picture.width, 1.25) * cell for picture in pictures]
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    tall = [max(high[i] for i in row) for row in rows]
    below = [max(texts[i].count("\n") + 1 if texts[i] else 0 for i in row) * line + gap for row in rows]
    height = sum(tall) + sum(below)
    figure, top = Figure(figsize=(width, height), layout="none"), height
    for row, tallest, under in zip(rows, tall, below, strict=True):
        for place, i in enumerate(row):
            left = place * (cell + gap)
            axes = figure.add_axes((left / width, (top - high[i]) / height, cell / width, high[i] / height))
            small = pictures[i].copy()
            small.thumbnail((2 * cell * DPI, 2 * cell * DPI))  # a notebook need not store what nobody sees
            axes.imshow(np.asarray(small), aspect="auto", interpolation="bicubic")
            axes.axis("off")
            axes.text(0, -0.04 / high[i], texts[i], size=TEXT, va="top", transform=axes.transAxes)
        top -= tallest + under
    return figure


def token_grid(tables: Mapping[str, Sequence[Sequence[str]]]) -> Figure:
    """Returns tables of tokens, one panel each: start and end coloured, padding and ignored places grey.

    tables: title -> rows of tokens as written. Notebook 01, section 7.
    """
    roles = {"<start>": COLOURS["sky"], "<end>": COLOURS["orange"], "<pad>": COLOURS["pale"], "-100": COLOURS["pale"]}
    rows = [len(table) for table in tables.values()]
    figure = Figure(figsize=(WIDTH, 0.34 * sum(rows) + 0.5 * len(rows)))
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=rows)[:, 0]
    columns = max(len(row) for table in tables.values() for row in table)
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        for y, row in enumerate(table):
            for x, token in enumerate(row):
                colour = roles.get(token, "white")
                axes.add_patch(Rectangle((x, y), 0.96, 0.9, facecolor=colour, edgecolor=COLOURS["grey"], linewidth=0.6))
                axes.text(x + 0.48, y + 0.47, token, ha="center", va="center", size=min(TEXT, 88 / columns))
        axes.set(xlim=(0, columns), ylim=(len(table), 0), title=title)
        axes.axis("off")
    return figure


def score_bars(scores: pd.DataFrame, label: str = "{:.2f}") -> Figure:
    """Returns bars: a group a column, a colour a row, values written by the format `label`. Notebook 02, section 11."""
    scores = scores.dropna(axis="columns", how="all").astype(float)
    figure = Figure(figsize=(WIDTH, 3.0))
    axes = scores.T.plot.bar(ax=figure.subplots(), width=0.8, rot=0, xlabel="metric", ylabel="score")
    for bars in axes.containers:
        axes.bar_label(bars, fmt=label, size=TEXT - (1 if scores.size <= 15 else 3))  # little room above narrow bars
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def training_curves(histories: Mapping[str, Sequence[Mapping]] | Sequence[Mapping]) -> Figure:
    """Returns the teacher-forced loss beside the scores of freely decoded captions, by epoch, a colour a run.

    histories: the rows of one run (see `helpers.training`), or name -> rows to compare several. Epochs of a second
    stage follow those of the first, behind a dotted line. Notebook 02, section 9.
    """
    figure = Figure(figsize=(WIDTH, 3.2))
    left, right = figure.subplots(1, 2)
    named = histories if isinstance(histories, Mapping) else {"": histories}
    for colour, (name, rows) in zip(CYCLE, named.items(), strict=False):
        table = pd.DataFrame(rows).reindex(columns=["stage", "reward", "train_loss", "dev_loss", "BLEU-4", "CIDEr"])
        table.index += 1  # epochs
        table.loc[table["reward"].notna(), "train_loss"] = np.nan  # rewards are no loss
        for axes, shown in ((left, ["train_loss", "dev_loss"]), (right, ["BLEU-4", "CIDEr"])):
            for column, style in zip(shown, ("--", "-"), strict=True):
                axes.plot(table[column], style, color=colour, label=f"{name} {column.removesuffix('_loss')}".strip())
            for epoch in table.index[table["stage"].diff() > 0]:
                axes.axvline(epoch - 0.5, color=COLOURS["grey"], linestyle=":", linewidth=1)
    left.set(title="reading the true words", ylabel="loss per word", xlabel="epoch")
    right.set(title="reading its own words", ylabel="score on dev", xlabel="epoch", ylim=(0, None))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend()
    right.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def lit(photo: Photo, weights: np.ndarray, brightest: float, darkest: float = 0.0) -> Image.Image:
    """Returns the photo, SIDE pixels square, lit by `weights` [R] of a square grid of regions: full light at
    `brightest` and above, a quarter of it at `darkest` and below.

    Raises ValueError when R is no square. Notebook 03, section 5.
    """
    side = round(len(weights) ** 0.5)
    light = (np.asarray(weights, dtype=np.float32) - darkest) / max(brightest - darkest, 1e-9)
    smooth = Image.fromarray(light.clip(0, 1).reshape(side, side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mask = 0.25 + 0.75 * np.asarray(smooth).clip(0, 1)[..., None]  # [S, S, 1]
    picture = np.asarray(open_image(photo).resize((SIDE, SIDE)), dtype=np.float32)  # [S, S, 3]
    return Image.fromarray((picture * mask).astype(np.uint8))


def _wrap(caption: str | Sequence[str], letters: int) -> str:
    lines = [caption] if isinstance(caption, str) else caption
    lines = [line.replace(" .", "\N{NO-BREAK SPACE}.").replace(" ,", "\N{NO-BREAK SPACE},") for line in lines]
    return "\n".join("\n".join(textwrap.wrap(line, letters)) for line in lines if line)
