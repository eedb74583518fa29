"""Figures of a prefix: which words lie nearest to its vectors, and which outputs of a language model are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers.plots import BLUES, COLOURS, TEXT, WIDTH


def nearest_words(panels: Mapping[str, Sequence[Sequence[tuple[str, float]]]], width: float = WIDTH) -> Figure:
    """Returns a panel a prefix: a column a vector, below each other the words nearest to it, darker when nearer.

    panels: title -> for each vector its (word, cosine) pairs, nearest first.
    """
    rows = [max(len(column) for column in columns) for columns in panels.values()]
    figure = Figure(figsize=(width, 0.3 * sum(rows) + 0.55 * len(rows)))
    axes_of = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0]
    widest = max(len(columns) for columns in panels.values())
    for axes, (title, columns), count in zip(axes_of, panels.items(), rows, strict=True):
        for x, column in enumerate(columns):
            for y, (word, cosine) in enumerate(column):
                colour = BLUES(max(0.0, min(1.0, cosine)))
                edge = {"edgecolor": COLOURS["pale"], "linewidth": 0.6}
                axes.add_patch(Rectangle((x, y), 0.97, 0.92, facecolor=colour, **edge))
                ink = "white" if cosine > 0.6 else COLOURS["ink"]
                size = min(TEXT, 1.5 * 72 * width / widest / max(6, len(word)))
                axes.text(x + 0.485, y + 0.46, word, ha="center", va="center", color=ink, size=size)
        axes.set(xlim=(0, widest), ylim=(count, 0), title=title, yticks=[])
        axes.set_xticks([x + 0.485 for x in range(len(columns))], range(1, len(columns) + 1), size=TEXT - 1)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    axes_of[-1].set_xlabel("vector of the prefix")
    return figure
