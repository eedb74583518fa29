"""Figures: what they show is read back from the axes, and what a notebook stores of them is small and has words."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import IPython.display
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from helpers import plots


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title])


def photo(colour: str = "red", size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_a_grid_shows_every_photo_with_its_caption(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    photo().save(path)
    photos = [path, str(path), photo(size=(30, 300)), photo(), photo()]
    captions = ["a red photo " * 6, ["one", "two"], "", "four", "five"]
    figure = plots.photo_grid(photos, captions, columns=3)
    assert len(figure.axes) == 5 and all(len(axes.images) == 1 for axes in figure.axes)
    shown = texts(figure)
    assert "one\ntwo" in shown and "a red photo a red photo" in shown.replace("\n", " ")
    boxes = [axes.get_position() for axes in figure.axes]
    for axes, box in zip(figure.axes, boxes, strict=True):  # nothing hangs over an edge
        assert box.x0 >= 0 and box.x1 <= 1.0001 and box.y0 >= 0 and box.y1 <= 1.0001
        for text in axes.texts:
            extent = text.get_window_extent().transformed(figure.transFigure.inverted())
            assert extent.x1 <= box.x1 + 0.02 and extent.y0 >= -0.001
    assert boxes[3].y1 < boxes[0].y0  # the second row is below the first


def test_tokens_and_scores() -> None:
    tables = {"inputs": [["<start>", "a"], ["<start>", "<pad>"]], "labels": [["a", "<end>"], ["<end>", "-100"]]}
    figure = plots.token_grid(tables)
    assert len(figure.axes) == 2 and [len(axes.patches) for axes in figure.axes] == [4, 4]
    assert figure.axes[1].patches[3].get_facecolor() == figure.axes[0].patches[3].get_facecolor() != (1, 1, 1, 1)
    scores = pd.DataFrame({"BLEU-4": [0.2, 0.3], "METEOR": [None, None]}, index=["one", "two"])
    axes = plots.score_bars(scores).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["BLEU-4"] and len(axes.patches) == 2


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png"])
def test_show_stores_a_small_picture_and_its_words(monkeypatch, kind: str) -> None:
    seen = {}
    monkeypatch.setattr(IPython.display, "display", lambda data, **options: seen.update(data=data, **options))
    figure = plots.photo_grid([photo()]) if kind == "image/jpeg" else plots.token_grid({"a": [["dog"]]})
    plots.show(figure, "A red photo.")
    assert set(seen["data"]) == {kind, "text/plain"} and "A red photo." in seen["data"]["text/plain"]
    assert seen["metadata"][kind]["alt"] == "A red photo."
    picture = Image.open(io.BytesIO(base64.b64decode(seen["data"][kind])))
    assert picture.format == kind[6:].upper() and picture.width == plots.WIDTH * plots.DPI


def test_light_falls_where_the_weights_are() -> None:
    white, weights = photo("white", (90, 90)), np.array([0.1, 0.1, 0.1, 0.7])
    from_zero = np.asarray(plots.lit(white, weights, brightest=0.7))
    stretched = np.asarray(plots.lit(white, weights, brightest=0.7, darkest=0.1))
    assert from_zero[-1, -1].min() >= 250 and stretched[-1, -1].min() >= 250
    assert 63 <= stretched[0, 0].max() <= 66  # a quarter of the light is left
    assert 80 <= from_zero[0, 0].max() <= 95  # and a seventh of the way up
    even = np.asarray(plots.lit(white, np.full(4, 0.25), brightest=0.25, darkest=0.25))
    assert even.min() == even.max()


def test_training_has_a_colour_a_run_and_a_line_between_stages() -> None:
    rows = [{"stage": 1, "train_loss": 3.0, "dev_loss": 4.0, "BLEU-4": 0.1, "CIDEr": 0.2},
            {"stage": 2, "train_loss": 9.0, "reward": 0.5, "dev_loss": 2.0, "CIDEr": 0.4}]  # fmt: skip
    left, right = plots.training_curves({"one": rows, "two": rows[:1]}).axes
    assert left.lines[1].get_label() == "one dev" and list(left.lines[1].get_ydata()) == [4.0, 2.0]
    assert left.lines[0].get_ydata()[0] == 3.0 and np.isnan(left.lines[0].get_ydata()[1])  # a reward is no loss
    assert list(right.lines[1].get_xdata()) == [1, 2] and list(right.lines[1].get_ydata()) == [0.2, 0.4]
    assert list(left.lines[2].get_xdata()) == [1.5, 1.5] and left.lines[3].get_color() != left.lines[0].get_color()
    alone = plots.training_curves(rows).axes[0]
    assert alone.lines[0].get_label() == "train"


def test_letters_that_no_font_has_are_one_line(capsys, monkeypatch) -> None:
    plots.use_style()
    monkeypatch.setitem(plots.mpl.rcParams, "font.family", ["DejaVu Sans"])
    plots.show(plots.token_grid({"a": [["कुत्ता", "घास"]]}), "Two words.")
    assert capsys.readouterr().out.count("No font here has all letters of this figure") == 1
    plots.show(plots.token_grid({"a": [["chien"]]}), "One word.")
    assert "No font" not in capsys.readouterr().out


def test_a_wider_font_is_used_where_it_is_installed(monkeypatch) -> None:
    monkeypatch.setattr(plots.font_manager, "get_font_names", lambda: ["DejaVu Sans", "Noto Sans Thai", "Comic Neue"])
    plots.use_style()
    assert plots.mpl.rcParams["font.family"] == ["DejaVu Sans", "Noto Sans Thai"]
    monkeypatch.undo()
    plots.use_style()
