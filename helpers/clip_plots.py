"""Figures of a joint space of pictures and captions: who is near whom, what a temperature does, what training brings.

Each function returns a matplotlib Figure; `plots.show` puts it into a notebook.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.plots import BLUES, COLOURS, CYCLE, TEXT, WIDTH, Photo, as_picture, grouped_bars


def similarity_matrix(
    photos: Sequence[Photo], captions: Sequence[str], values: np.ndarray, width: float = WIDTH
) -> Figure:
    """Returns a table of cosines: a row a caption, a column a photo, the pairs that belong together framed.

    values: [captions, photos]; the pair (i, i) belongs together.
    """
    values = np.asarray(values)
    rows, columns = values.shape
    text = 0.36 * width  # inches for the captions
    cell = (width - text) / columns
    high = max(0.42, 0.55 * cell)
    height = cell + rows * high
    figure = Figure(figsize=(width, height), layout="none")
    for column, photo in enumerate(photos):
        place = ((text + column * cell + 0.03) / width, 1 - (cell - 0.03) / height)
        axes = figure.add_axes((*place, (cell - 0.06) / width, (cell - 0.06) / height))
        axes.imshow(np.asarray(as_picture(photo).resize((128, 128))), interpolation="bicubic")
        axes.axis("off")
    axes = figure.add_axes((text / width, 0, columns * cell / width, rows * high / height))
    axes.imshow(values, cmap=BLUES, aspect="auto")
    middle = values.min() + 0.6 * (values.max() - values.min())
    for row in range(rows):
        for column in range(columns):
            colour = "white" if values[row, column] > middle else COLOURS["ink"]
            axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", size=TEXT, color=colour)
        if row < columns:
            frame = {"fill": False, "edgecolor": COLOURS["red"], "linewidth": 2}
            axes.add_patch(Rectangle((row - 0.47, row - 0.46), 0.94, 0.92, **frame))
    letters = int(text * 72 / (TEXT * 0.56))
    lines = ["\n".join(textwrap.wrap(caption.removesuffix(" ."), letters)[:3]) for caption in captions]
    axes.set_yticks(range(rows), lines, size=TEXT)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def temperatures(shares: Mapping[str, Sequence[float]], labels: Sequence[str], width: float = WIDTH) -> Figure:
    """Returns a panel of bars a temperature: the probability of each candidate. shares: title -> probabilities."""
    figure = Figure(figsize=(width, 0.3 * len(labels) + 0.9))
    panels = figure.subplots(1, len(shares), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (title, values) in zip(panels, shares.items(), strict=True):
        colours = [CYCLE[0]] + [COLOURS["sky"]] * (len(labels) - 1)
        bars = axes.barh(range(len(labels)), values, color=colours, height=0.7)
        axes.bar_label(bars, fmt="{:.0%}", padding=3, size=TEXT - 1)
        axes.set(title=title, xlim=(0, 1.25), xlabel="probability", xticks=(0, 0.5, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(labels)), [textwrap.shorten(label, 34, placeholder="…") for label in labels])
    panels[0].invert_yaxis()
    return figure


def recall_curves(history: Sequence[Mapping], width: float = WIDTH) -> Figure:
    """Returns the contrastive loss beside the recalls on dev, by epoch. A row without a loss is from before."""
    figure = Figure(figsize=(width, 3.2))
    left, right = figure.subplots(1, 2)
    trained = [row for row in history if "loss" in row]
    left.plot([row["epoch"] for row in trained], [row["loss"] for row in trained], marker="o", markersize=4)
    left.set(xlabel="epoch", ylabel="contrastive loss, train", ylim=(0, None))
    for colour, way in zip(CYCLE, ("text-to-image", "image-to-text"), strict=False):
        for k, style in ((1, ":"), (5, "--"), (10, "-")):
            values = [row[f"{way} R@{k}"] for row in history]
            right.plot([row["epoch"] for row in history], values, style, color=colour, label=f"{way} R@{k}")
    right.set(xlabel="epoch (0: before training)", ylabel="recall on dev", ylim=(0, 1))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(fontsize=TEXT - 1, ncols=2, handlelength=2.6)
    return figure


def against_chance(scores: pd.DataFrame, chance: float = 0.5, width: float = WIDTH) -> Figure:
    """Returns grouped bars of accuracies, a group a question (columns), a colour a model (rows), chance as a line."""
    figure = Figure(figsize=(width, 3.2))
    axes = figure.subplots()
    grouped_bars(axes, scores, "{:.0%}")
    axes.axhline(chance, color=COLOURS["red"], linestyle="--", linewidth=1.4, label=f"guessing ({chance:.0%})")
    axes.set(ylabel="right answers", ylim=(0, 1.08))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
