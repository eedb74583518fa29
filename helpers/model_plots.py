"""Figures of what a captioner does: how it learns, what its gates hold, where it looks. Each returns a Figure.

Shapes: R regions of a square grid, T words, H hidden units, S pixels a side.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from helpers.plots import COLOURS, CYCLE, TEXT, WIDTH, Photo, as_picture

BLUES = LinearSegmentedColormap.from_list("blues", ["white", COLOURS["blue"]])
SIDE = 224  # pixels a side at which a photo with a map over it is drawn


def training_curves(histories: Mapping[str, Sequence[Mapping]] | Sequence[Mapping], width: float = WIDTH) -> Figure:
    """Returns the teacher-forced loss beside the scores of freely decoded captions, by epoch.

    histories: the rows of one run (see `helpers.training.run_stage`), or name -> rows to compare several. Epochs of a
    second stage follow those of the first, behind a dotted line.
    """
    several = isinstance(histories, Mapping)
    named = histories if several else {"": histories}
    figure = Figure(figsize=(width, 3.2))
    left, right = figure.subplots(1, 2)
    for colour, (name, rows) in zip(CYCLE, named.items(), strict=False):
        epochs = np.arange(1, len(rows) + 1)
        curves = [
            (left, "train", [row["train_loss"] if "reward" not in row else np.nan for row in rows]),
            (left, "dev", [row["dev_loss"] for row in rows]),
            (right, "BLEU-4", [row.get("BLEU-4", np.nan) for row in rows]),
            (right, "CIDEr", [row.get("CIDEr", np.nan) for row in rows]),
        ]
        for number, (axes, what, values) in enumerate(curves):
            # One run: a colour a curve. Several: a colour a run, and the line's style tells its curves apart.
            style = {"color": colour, "linestyle": ("--", "-")[number % 2]} if several else {"color": CYCLE[number]}
            axes.plot(epochs, values, label=f"{name} {what}".strip(), **style)
        for epoch, (row, after) in enumerate(zip(rows, rows[1:], strict=False), 1):
            if row["stage"] != after["stage"]:
                for axes in (left, right):
                    axes.axvline(epoch + 0.5, color=COLOURS["grey"], linestyle=":", linewidth=1)
    left.set(title="reading the true words", ylabel="loss a word", xlabel="epoch")
    right.set(title="reading its own words", ylabel="score on dev", xlabel="epoch", ylim=(0, None))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend()
    right.legend(**({"loc": "upper left", "bbox_to_anchor": (1, 1)} if several else {}))  # many curves leave no room
    return figure


def captions_by_epoch(
    photos: Sequence[Photo],
    captions: Sequence[Sequence[str]],
    labels: Sequence[str] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Returns photos, each beside what a model said of it after every epoch; the newest darkest.

    captions[e][i] is what was said of photo i at time e. labels: names of the times, "epoch 1" … without.
    """
    labels = labels or [f"epoch {number}" for number in range(1, len(captions) + 1)]
    line, letters = TEXT * 1.5 / 72, int((width - 2.9) * 72 / (TEXT * 0.56))
    texts = [[textwrap.wrap(said[i], letters) or ["(nothing)"] for said in captions] for i in range(len(photos))]
    heights = [max(1.75, line * (sum(len(lines) for lines in column) + 1)) for column in texts]
    figure = Figure(figsize=(width, sum(heights)))
    panels = figure.subplots(len(photos), 2, width_ratios=(1.7, width - 1.7), height_ratios=heights, squeeze=False)
    for (left, right), photo, column, height in zip(panels, photos, texts, heights, strict=True):
        left.imshow(as_picture(photo).resize((SIDE, SIDE)))
        y = 0.5
        for number, (label, lines) in enumerate(zip(labels, column, strict=True)):
            shade = 0.35 + 0.65 * (number + 1) / len(column)
            style = {"size": TEXT, "va": "center", "color": COLOURS["ink"], "alpha": shade}
            right.text(0.0, y, label, **{**style, "color": COLOURS["blue"]})
            right.text(0.13, y + (len(lines) - 1) / 2, "\n".join(lines), linespacing=1.5, **style)
            y += len(lines)
        right.set(ylim=(height / line, 0), xlim=(0, 1))
        left.axis("off"), right.axis("off")
    return figure


def gate_picture(
    words: Sequence[str], gates: Mapping[str, np.ndarray], units: int = 24, width: float = WIDTH
) -> Figure:
    """Returns a panel a gate: a column a word, a row a unit, the colour how far the gate is open (0 to 1).

    gates: name -> [T, H]. Units are the `units` that change most over the caption, sorted by when they are most open.
    """
    values = {name: np.asarray(value, dtype=float) for name, value in gates.items()}  # [T, H] each
    figure = Figure(figsize=(width, 3.6))
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (name, value) in zip(panels, values.items(), strict=True):
        liveliest = np.argsort(value.std(0))[::-1][:units]
        order = liveliest[np.argsort(value[:, liveliest].argmax(0), kind="stable")]
        drawn = axes.imshow(value[:, order].T, cmap=BLUES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor", size=TEXT - 1)
        axes.set(title=name, yticks=[])
        axes.grid(visible=False)
    panels[0].set_ylabel(f"{min(units, value.shape[1])} units")
    figure.colorbar(drawn, ax=list(panels), label="0 shut, 1 open", shrink=0.8)
    return figure


def grid_side(regions: int) -> int:
    """Returns the side of a square grid of `regions`. Raises ValueError when it is not square."""
    side = round(regions**0.5)
    if side * side != regions:
        raise ValueError(f"{regions} regions are no square grid.")
    return side


def lit(photo: Photo, weights: np.ndarray, brightest: float, darkest: float = 0.0, dark: float = 0.25) -> Image.Image:
    """Returns the photo, SIDE pixels square, lit by `weights` [R]: full light at `brightest` and above, the share
    `dark` of it at `darkest` and below."""
    side = grid_side(len(weights))
    light = (np.asarray(weights, dtype=np.float32) - darkest) / max(brightest - darkest, 1e-9)
    light = np.clip(light, 0, 1).reshape(side, side)
    smooth = Image.fromarray(light).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mask = dark + (1 - dark) * np.clip(np.asarray(smooth), 0, 1)[..., None]  # [S, S, 1]
    picture = np.asarray(as_picture(photo).resize((SIDE, SIDE)), dtype=np.float32)
    return Image.fromarray((picture * mask).astype(np.uint8))


def attention_words(
    photo: Photo,
    words: Sequence[str],
    attention: np.ndarray,
    notes: Sequence[str] | None = None,
    columns: int = 6,
    boxes: Mapping[int, Sequence[float]] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Returns the photo once as it is and once a word, lit where the model looked when it chose that word.

    attention: [T, R], rows sum to 1. Each word has a scale of its own, from its smallest to its largest weight; both
    stand above it, since what is easy to see may be a small difference from 1 / R, which stands above the photo.
    notes: a line below each word. boxes: word number -> [left, top, right, bottom] as fractions of the photo.
    """
    attention = np.asarray(attention, dtype=float)[: len(words)]  # [T, R]
    rows = -(-(len(words) + 1) // columns)
    cell = width / columns
    figure = Figure(figsize=(width, rows * (cell + (0.4 if notes is None else 0.56))))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    _picture(panels[0], as_picture(photo).resize((SIDE, SIDE)), f"the photo\neven: {1 / attention.shape[1]:.3f}")
    for number, (axes, word, weights) in enumerate(zip(panels[1:], words, attention, strict=False)):
        lines = [word, f"{weights.min():.3f} to {weights.max():.3f}", *([] if notes is None else [notes[number]])]
        _picture(axes, lit(photo, weights, weights.max(), weights.min()), "\n".join(lines))
        if boxes and number in boxes:
            left, top, right, bottom = (SIDE * value for value in boxes[number])
            frame = {"fill": False, "edgecolor": COLOURS["orange"], "linewidth": 1.5}
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, **frame))
    return figure


def channel_maps(photo: Photo, grid: np.ndarray, channels: Sequence[int], width: float = WIDTH) -> Figure:
    """Returns the photo beside itself lit by single channels of its features `grid` [R, D], each on its own scale."""
    grid = np.asarray(grid, dtype=float)
    figure = Figure(figsize=(width, width / (len(channels) + 1) + 0.3))
    panels = figure.subplots(1, len(channels) + 1)
    _picture(panels[0], as_picture(photo).resize((SIDE, SIDE)), "the photo")
    for axes, channel in zip(panels[1:], channels, strict=True):
        _picture(axes, lit(photo, grid[:, channel], grid[:, channel].max()), f"channel {channel}")
    return figure


def weight_grids(weights: Mapping[str, np.ndarray], regions: Sequence[str] = (), width: float = WIDTH) -> Figure:
    """Returns small square grids of numbers side by side, a panel each. weights: title -> [R], 0 to 1.

    regions: what each region holds, written above its number.
    """
    figure = Figure(figsize=(width, width / max(3, len(weights)) + 0.3))
    panels = figure.subplots(1, max(3, len(weights)), squeeze=False)[0]
    for axes in panels[len(weights) :]:
        axes.axis("off")
    for axes, (title, values) in zip(panels, weights.items(), strict=False):
        side = grid_side(len(values))
        square = np.asarray(values, dtype=float).reshape(side, side)
        axes.imshow(square, cmap=BLUES, vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(square):
            colour = "white" if value > 0.6 else COLOURS["ink"]
            text = f"{regions[row * side + column]}\n{value:.2f}" if regions else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, size=TEXT if side < 5 else 6)
        axes.set(title=title, xticks=[], yticks=[])
        axes.grid(visible=False)
    return figure


def two_bars(words: Sequence[str], values: Mapping[str, Sequence[float]], width: float = WIDTH) -> Figure:
    """Returns bars side by side for every word, a colour a name. values: name -> a probability (0 to 1) a word."""
    figure = Figure(figsize=(width, 2.8))
    axes = figure.subplots()
    thick = 0.84 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        places = np.arange(len(words)) + (number - (len(values) - 1) / 2) * thick
        axes.bar(places, heights, width=thick * 0.94, label=name)
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(words) > 10 else {}
    axes.set_xticks(range(len(words)), words, **turned)
    axes.set(ylabel="probability", ylim=(0, 1.05))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(values), borderpad=0)
    return figure


def _picture(axes: Axes, picture: Image.Image, title: str) -> None:
    axes.imshow(np.asarray(picture), interpolation="antialiased")
    axes.set_title(title, size=TEXT, loc="center")
    axes.axis("off")
