"""Figures of decoding: trees of words, one distribution in several shapes, what settings do, the time of a step.

Each function returns a matplotlib Figure; `plots.show` puts it into a notebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers.beam import BeamTrace
from helpers.plots import COLOURS, CYCLE, TEXT, WIDTH

KINDS = {"kept": COLOURS["sky"], "finished": COLOURS["orange"], "dropped": COLOURS["pale"]}


def word_tree(
    edges: Mapping[tuple[str, ...], float], paths: Mapping[str, Sequence[str]] | None = None, width: float = WIDTH
) -> Figure:
    """Returns a tree of all texts: a column a word, on each edge its probability, behind each leaf that of its text.

    edges: words so far -> the probability of the last of them after the others. paths: name -> a text to be coloured.
    """
    nodes = sorted(edges)
    leaves = [
        node for node in nodes if not any(other[: len(node)] == node for other in nodes if len(other) > len(node))
    ]
    depth = max(map(len, leaves))
    places = {leaf: (len(leaf), row) for row, leaf in enumerate(leaves)}
    for length in range(depth - 1, -1, -1):  # a parent stands at the middle of its children
        for node in {n[:length] for n in nodes if len(n) > length}:
            rows = [places[n][1] for n in places if len(n) == length + 1 and n[:length] == node]
            places[node] = (length, sum(rows) / len(rows))
    figure = Figure(figsize=(width, 0.36 * len(leaves) + 0.4))
    axes = figure.subplots()
    coloured = {
        tuple(path): (name, colour) for (name, path), colour in zip((paths or {}).items(), CYCLE[1:], strict=False)
    }
    for node in nodes:
        (x0, y0), (x1, y1) = places[node[:-1]], places[node]
        on = [colour for path, (_, colour) in coloured.items() if path[: len(node)] == node]
        axes.plot([x0 + 0.18, x1 - 0.18], [y0, y1], color=on[0] if on else COLOURS["grey"], linewidth=3 if on else 1)
        label = {"ha": "center", "va": "center", "size": TEXT - 1, "bbox": {"fc": "white", "ec": "none", "pad": 0.8}}
        axes.text((x0 + x1) / 2, (y0 + y1) / 2, f"{edges[node]:.2g}", **label)
    for node, (x, y) in places.items():
        axes.text(x, y, node[-1] if node else "start", ha="center", va="center", size=TEXT, weight="bold")
    for leaf in leaves:
        total = math.prod(edges[leaf[: n + 1]] for n in range(len(leaf)))
        name, colour = coloured.get(leaf, ("", COLOURS["ink"]))
        axes.text(depth + 0.3, places[leaf][1], f"{total:.3f}  {name}", va="center", size=TEXT, color=colour)
    axes.set(xlim=(-0.25, depth + 1.0), ylim=(len(leaves) - 0.5, -0.5))
    axes.axis("off")
    return figure


def beam_tree(
    trace: BeamTrace, text: Callable[[int], str], best: Sequence[int] | None = None, width: float = WIDTH
) -> Figure:
    """Returns the tree that a beam search looked at: a column a step, the likeliest candidate on top.

    Blue candidates are kept and go on, orange ones end a caption, pale ones are dropped. Below each word stands the
    log-probability of the text up to it. text: token -> what to write. best: places in `trace.nodes`, joined in red
    (such as `trace.find(tokens)`); without, the finished path with the highest total.
    """
    nodes = trace.nodes
    finished = [place for place, node in enumerate(nodes) if node.kind == "finished"]
    if best is None and finished:
        best = trace.path(max(finished, key=lambda place: nodes[place].total))
    steps = max(node.step for node in nodes) + 1
    rows: dict[int, tuple[int, int]] = {}  # place -> (column, row)
    for step in range(steps):
        column = [place for place, node in enumerate(nodes) if node.step == step]
        column.sort(key=lambda place: (nodes[place].group, -nodes[place].total))
        rows |= {place: (step, row) for row, place in enumerate(column)}
    tallest = max(row for _, row in rows.values()) + 1
    figure = Figure(figsize=(width, 0.46 * tallest + 0.5))
    axes = figure.subplots()
    size = min(TEXT, 1.35 * 72 * width / steps / 9)
    joined = set(best or ())
    for place, (x, y) in rows.items():
        node = nodes[place]
        red = place in joined
        if node.parent is not None:
            x0, y0 = rows[node.parent]
            line = {"color": COLOURS["red"] if red else COLOURS["grey"], "linewidth": 2.2 if red else 0.7}
            axes.plot([x0, x], [y0, y], zorder=2 if red else 1, **line)  # the boxes stand in front of its ends
        edge = {"ec": COLOURS["red"] if red else "none", "lw": 1.6, "boxstyle": "round,pad=0.18"}
        box = {"fc": KINDS[node.kind], "alpha": 1.0, **edge}
        ink = COLOURS["grey"] if node.kind == "dropped" and not red else COLOURS["ink"]
        label = f"{text(node.token) or '<end>'}\n{node.total:.1f}"
        axes.text(x, y, label, ha="center", va="center", size=size, color=ink, bbox=box, zorder=3, linespacing=1.0)
    axes.set(xlim=(-0.5, steps - 0.5), ylim=(tallest - 0.4, -0.6), xlabel="step", yticks=[])
    axes.set_xticks(range(steps), range(1, steps + 1))
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def distributions(
    words: Sequence[str],
    before: Sequence[float],
    after: Mapping[str, Sequence[float]],
    columns: int = 3,
    width: float = WIDTH,
) -> Figure:
    """Returns a panel a setting: what may be drawn (blue bars) over the model's own distribution (grey outlines).

    before: a probability (0 to 1) a word. after: title -> the probabilities that the draw uses; 0 where a word is cut.
    """
    lines = -(-len(after) // columns)
    figure = Figure(figsize=(width, 2.0 * lines + 1.0))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
    places = np.arange(len(words))
    for axes, (title, values) in zip(panels, after.items(), strict=False):
        axes.bar(places, values, width=0.8, color=CYCLE[0])
        axes.bar(places, before, width=0.8, facecolor="none", edgecolor=COLOURS["grey"], linewidth=1)
        if cut := [place for place, value in enumerate(values) if value == 0]:  # an empty line upsets the layout
            cross = {"linestyle": "none", "marker": "x", "color": COLOURS["red"], "markersize": 4, "clip_on": False}
            axes.plot(cut, [0.0] * len(cut), **cross)
        axes.set_title(title, size=TEXT + 1)
        axes.grid(axis="x", visible=False)
    for axes in panels[len(after) :]:
        axes.axis("off")
    for number, axes in enumerate(panels[: len(after)]):
        if number + columns >= len(after):  # nothing stands below
            axes.tick_params(labelbottom=True)
            axes.set_xticks(places, words, rotation=60, ha="right", rotation_mode="anchor", size=TEXT - 1)
        if number % columns == 0:
            axes.set_ylabel("probability")
    return figure


def settings_lines(
    table: pd.DataFrame, x: str, panels: Sequence[str], by: str, levels: Mapping[str, tuple[str, float]] | None = None,
    width: float = WIDTH,
) -> Figure:  # fmt: skip
    """Returns a panel a column of `panels` over `x`, a line for every value of `by`.

    levels: panel -> (name, value) of a level to compare with, dashed, such as the length of people's captions.
    """
    figure = Figure(figsize=(width, 3.1))
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, column in zip(all_axes, panels, strict=True):
        for (value, rows), colour in zip(table.groupby(by, sort=False), CYCLE, strict=False):
            axes.plot(rows[x], rows[column], marker="o", markersize=4, color=colour, label=f"{value:g}")
        if levels and column in levels:
            name, level = levels[column]
            axes.axhline(level, color=COLOURS["grey"], linestyle="--", linewidth=1.2)
            axes.annotate(name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", size=TEXT - 1)
        axes.set(xlabel=x, title=column)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    all_axes[-1].legend(title=by, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def step_times(seconds: Mapping[str, Sequence[float]], width: float = WIDTH) -> Figure:
    """Returns the time that each next token took, in milliseconds, a line a way. seconds: name -> one value a token."""
    figure = Figure(figsize=(width, 2.9))
    axes: Axes = figure.subplots()
    for name, values in seconds.items():
        axes.plot(range(1, len(values) + 1), 1000 * np.asarray(values), label=name)
    axes.set(xlabel="token of the caption", ylabel="milliseconds", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure
