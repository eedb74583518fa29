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
from helpers import plots as model_plots


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title])


def photo(colour: str = "red", size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_a_grid_shows_every_photo_with_its_caption(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    photo().save(path)
    photos = [path, str(path), photo(size=(30, 300)), np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)]
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


def test_large_photos_are_stored_small() -> None:
    figure = plots.photo_grid([photo(size=(4000, 3000))] * 2, columns=2)
    assert max(image.get_array().shape[0] for axes in figure.axes for image in axes.images) <= 1000


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0%"), (0.123, "12%"), (0.05, "5.0%"), (0.0002, "1 in 5,000"), (1.234e-6, "1 in 810,000")]
)
def test_probabilities_in_words(value: float, text: str) -> None:
    assert plots._percent(value) == text


def test_candidates_and_words() -> None:
    figure = plots.candidates(photo(), ["a cat", "a dog"], [0.4, 0.1])
    assert [bar.get_width() for bar in figure.axes[1].patches] == [0.4, 0.1]
    assert "a cat" in texts(figure) and "40%" in texts(figure)
    bars = plots.word_bars(["a", "dog"], [0.9, 0.2]).axes[0]
    assert [bar.get_height() for bar in bars.patches] == [0.9, 0.2]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["a", "dog"]


def test_dataset_charts_have_labels_and_the_data() -> None:
    lengths = pd.DataFrame([("train", 2, 3), ("train", 4, 1), ("dev", 3, 2)], columns=["split", "words", "captions"])
    axes = plots.length_histogram(lengths).axes[0]
    assert dict(zip(*axes.lines[0].get_data(), strict=True))[2] == 0.75 and sum(axes.lines[0].get_ydata()) == 1
    growth = pd.DataFrame({"captions": [0, 10], "vocabulary": [0, 7], "vocabulary_4": [0, 2]})
    lines = plots.vocabulary_growth(growth).axes[0].lines
    assert [line.get_ydata()[-1] for line in lines] == [7, 2]
    curve = plots.zipf({"text": [1, 5, 2]}).axes[0]
    assert curve.lines[0].get_ydata() == pytest.approx([0.625, 0.25, 0.125]) and curve.get_xscale() == "log"
    for panel in (axes, curve):
        assert panel.get_xlabel() and panel.get_ylabel() and panel.get_legend()


def test_dots_are_coloured_by_split() -> None:
    rows = [("a", "x", "train"), ("a", "y", "dev"), ("b", "z", "train")]
    table = pd.DataFrame(rows, columns=["image", "caption", "split"])
    axes = plots.split_dots({"wrong": table}, images=1).axes[0]
    places = {dots.get_label(): dots.get_offsets().tolist() for dots in axes.collections}
    assert places == {"train": [[0, 1]], "dev": [[0, 2]], "test": []}


def test_tokens_and_scores() -> None:
    tables = {"inputs": [["<start>", "a"], ["<start>", "<pad>"]], "labels": [["a", "<end>"], ["<end>", "-100"]]}
    figure = plots.token_grid(tables)
    assert len(figure.axes) == 2 and [len(axes.patches) for axes in figure.axes] == [4, 4]
    assert figure.axes[1].patches[3].get_facecolor() == figure.axes[0].patches[3].get_facecolor() != (1, 1, 1, 1)
    scores = pd.DataFrame({"BLEU-4": [0.2, 0.3], "METEOR": [None, None]}, index=["one", "two"])
    axes = plots.score_bars(scores).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["BLEU-4"] and len(axes.patches) == 2


def test_pairs_stand_side_by_side() -> None:
    figure = plots.pair_grid([(photo("red"), photo("blue", (30, 80)), "same")])
    pixels = figure.axes[0].images[0].get_array()
    assert pixels[5, 5].tolist() == [255, 0, 0] and pixels[5, -5].tolist() == [0, 0, 255] and "same" in texts(figure)


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png"])
def test_show_stores_a_small_picture_and_its_words(monkeypatch, kind: str) -> None:
    seen = {}
    monkeypatch.setattr(IPython.display, "display", lambda data, **options: seen.update(data=data, **options))
    plots.use_style()
    figure = plots.photo_grid([photo()]) if kind == "image/jpeg" else plots.word_bars(["a"], [0.5])
    plots.show(figure, "A red photo.")
    assert set(seen["data"]) == {kind, "text/plain"} and "A red photo." in seen["data"]["text/plain"]
    assert seen["metadata"][kind]["alt"] == "A red photo."
    picture = Image.open(io.BytesIO(base64.b64decode(seen["data"][kind])))
    assert picture.format == kind[6:].upper() and picture.width == plots.WIDTH * plots.DPI


def test_light_falls_where_the_weights_are() -> None:
    white, weights = photo("white", (90, 90)), np.array([0.1, 0.1, 0.1, 0.7])
    from_zero = np.asarray(model_plots.lit(white, weights, brightest=0.7))
    stretched = np.asarray(model_plots.lit(white, weights, brightest=0.7, darkest=0.1))
    assert from_zero[-1, -1].min() >= 250 and stretched[-1, -1].min() >= 250
    assert 63 <= stretched[0, 0].max() <= 66  # a quarter of the light is left
    assert 80 <= from_zero[0, 0].max() <= 95  # and a seventh of the way up
    even = np.asarray(model_plots.lit(white, np.full(4, 0.25), brightest=0.25, darkest=0.25))
    assert even.min() == even.max()


def test_words_stand_above_what_was_looked_at_with_the_range_of_their_weights() -> None:
    attention = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    figure = model_plots.attention_words(photo("white"), ["dog", "runs"], attention, notes=["gate 0.5", "gate 0.9"])
    first, dog, runs = [axes.get_title() for axes in figure.axes][:3]
    assert first == "the photo\neven: 0.250"
    assert dog == "dog\n0.100 to 0.400\ngate 0.5" and runs == "runs\n0.250 to 0.250\ngate 0.9"
    picture = np.asarray(figure.axes[1].images[0].get_array())
    assert picture[-1, -1, 0] > 250 > 70 > picture[0, 0, 0]


def test_many_bars_have_small_numbers() -> None:
    few, many = (plots.score_bars(pd.DataFrame(np.full((3, n), 0.5), columns=map(str, range(n)))) for n in (5, 7))
    assert [figure.axes[0].texts[0].get_size() for figure in (few, many)] == [plots.TEXT - 1, plots.TEXT - 3]
