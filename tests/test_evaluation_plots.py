"""Figures of scores: what is drawn are the numbers that were given."""

from __future__ import annotations

import pytest

from helpers.evaluation_plots import epochs_apart, interval_dots

ROWS = {"first": {"BLEU-4": 0.2, "METEOR": None}, "second": {"BLEU-4": 0.3, "METEOR": 0.25}}


def test_a_dot_is_a_score_and_a_bar_its_interval() -> None:
    figure = interval_dots(ROWS, {"first": {"BLEU-4": (0.15, 0.26)}}, ["BLEU-4", "METEOR"])
    bleu, meteor = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["BLEU-4", "METEOR"]
    bar, dot, *_ = bleu.lines
    assert list(bar.get_xdata()) == [0.15, 0.26] and list(bar.get_ydata()) == [0, 0]
    assert dot.get_xdata() == [0.2] and dot.get_marker() == "o"
    drawn = [(line.get_xdata()[0], line.get_ydata()[0]) for line in meteor.lines if line.get_marker() == "o"]
    assert drawn == [(0.25, 1)]  # no dot for the score that is missing
    assert [label.get_text() for label in bleu.get_yticklabels()] == ["first", "second"]
    assert bleu.lines[0].get_color() != bleu.lines[2].get_color()  # with an interval, and without


def test_lines_by_epoch_and_where_a_stage_begins() -> None:
    panels = {"loss": {"dev": [3.0, 2.0, 1.5]}, "CIDEr": {"free": [0.1, 0.2, 0.3], "forced": [0.2, 0.2, 0.2]}}
    figure = epochs_apart(panels, stages=[2])
    assert [axes.get_title() for axes in figure.axes] == ["loss", "CIDEr"]
    for axes, lines in zip(figure.axes, panels.values(), strict=True):
        *curves, boundary = axes.lines
        assert [list(curve.get_ydata()) for curve in curves] == list(lines.values())
        assert all(list(curve.get_xdata()) == [1, 2, 3] for curve in curves)
        assert list(boundary.get_xdata()) == pytest.approx([2.5, 2.5])
        assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
