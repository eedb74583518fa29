"""Figures of scores: intervals, and what two ways of measuring say of one training. Each returns a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers.plots import COLOURS, CYCLE, TEXT, WIDTH


def interval_dots(
    rows: Mapping[str, Mapping[str, float | None]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    metrics: Sequence[str],
    width: float = WIDTH,
) -> Figure:
    """Returns a panel a metric, a line a system: its score as a dot and its interval as a bar.

    rows: system -> metric -> score; intervals: system -> metric -> (low, high). A system without an interval, or
    without the score, has the dot alone, or nothing.
    """
    figure = Figure(figsize=(width, 0.28 * len(rows) + 0.9))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    places = np.arange(len(rows))
    for axes, metric in zip(panels, metrics, strict=True):
        for place, (name, scores) in zip(places, rows.items(), strict=True):
            if scores.get(metric) is None:
                continue
            low, high = intervals.get(name, {}).get(metric, (scores[metric],) * 2)
            colour = CYCLE[0] if name in intervals else COLOURS["grey"]
            axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round")
            axes.plot(scores[metric], place, "o", color=colour, markersize=5)
        axes.set(title=metric, ylim=(len(rows) - 0.5, -0.5))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=TEXT)
    panels[0].set_yticks(places, rows)
    return figure


def epochs_apart(
    panels: Mapping[str, Mapping[str, Sequence[float]]], stages: Sequence[int] = (), width: float = WIDTH
) -> Figure:
    """Returns a panel a quantity, a line a way of measuring it, by epoch.

    panels: title -> name of the line -> a value an epoch. stages: epochs after which another stage of training begins,
    drawn as dotted lines.
    """
    figure = Figure(figsize=(width, 3.0))
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, values in lines.items():
            axes.plot(np.arange(1, len(values) + 1), values, label=name)
        for epoch in stages:
            axes.axvline(epoch + 0.5, color=COLOURS["grey"], linestyle=":", linewidth=1)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return figure
