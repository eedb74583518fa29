"""The figures of decoding hold what they are given."""

import io
import warnings

import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from helpers import decoding_plots
from helpers.beam import BeamNode, BeamTrace
from helpers.plots import COLOURS


def drawn(figure) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a layout that does not fit
        figure.savefig(io.BytesIO(), format="png")


def test_a_word_tree_has_every_edge_and_the_product_at_every_leaf() -> None:
    edges = {("a",): 0.6, ("two",): 0.4, ("a", "dog"): 0.5, ("a", "cat"): 0.5, ("two", "dogs"): 1.0}
    figure = decoding_plots.word_tree(edges, {"greedy": ("a", "cat"), "best": ("two", "dogs")})
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert [texts.count(text) for text in ("0.6", "0.4", "0.5", "1")] == [1, 1, 2, 1]
    assert {"0.300  greedy", "0.300  ", "0.400  best"} <= set(texts) and "start" in texts
    thick = [line for line in axes.lines if line.get_linewidth() == 3]
    assert len(axes.lines) == 5 and len(thick) == 4 and len({line.get_color() for line in thick}) == 2
    drawn(figure)


def small_trace() -> BeamTrace:
    return BeamTrace(
        [
            BeamNode(0, None, 7, -0.5, -0.5, "kept"), BeamNode(0, None, 8, -1.0, -1.0, "kept"),
            BeamNode(0, None, 9, -3.0, -3.0, "dropped"), BeamNode(1, 1, 0, -0.1, -1.1, "finished"),
            BeamNode(1, 0, 0, -2.0, -2.5, "finished"),
        ]
    )  # fmt: skip


@pytest.mark.parametrize(("best", "joined"), [(None, {"b\n-1.0", "<end>\n-1.1"}), ([0, 4], {"a\n-0.5", "<end>\n-2.5"})])
def test_a_beam_tree_colours_what_became_of_each_candidate(best, joined) -> None:
    figure = decoding_plots.beam_tree(small_trace(), {7: "a", 8: "b", 9: "c", 0: ""}.get, best)
    (axes,) = figure.axes
    boxes = {text.get_text(): text.get_bbox_patch() for text in axes.texts}
    fill = {label: box.get_facecolor() for label, box in boxes.items()}
    assert fill["a\n-0.5"] == to_rgba(COLOURS["sky"]) and fill["c\n-3.0"] == to_rgba(COLOURS["pale"])
    assert fill["<end>\n-1.1"] == to_rgba(COLOURS["orange"])
    assert {label for label, box in boxes.items() if box.get_edgecolor() == to_rgba(COLOURS["red"])} == joined
    assert sum(line.get_color() == COLOURS["red"] for line in axes.lines) == 1 and len(axes.lines) == 2
    drawn(figure)


def test_distributions_mark_what_was_cut() -> None:
    figure = decoding_plots.distributions(
        ["a", "b", "c"], [0.5, 0.3, 0.2], {"all": [0.5, 0.3, 0.2], "two": [0.6, 0.4, 0]}
    )
    first, second, empty = figure.axes
    assert [bar.get_height() for bar in second.patches] == [0.6, 0.4, 0, 0.5, 0.3, 0.2]
    assert not first.lines and list(second.lines[0].get_xdata()) == [2]
    assert not empty.axison
    drawn(figure)


def test_settings_are_lines_over_a_setting() -> None:
    table = pd.DataFrame(
        {"beams": [1, 3, 1, 3], "penalty": [0.0, 0.0, 1.0, 1.0], "BLEU-4": [0.1, 0.2, 0.15, 0.3], "words": 8}
    )
    levels = {"words": ("people", 10.5)}
    figure = decoding_plots.settings_lines(table, "beams", ["BLEU-4", "words"], "penalty", levels)
    bleu, words = figure.axes
    assert [list(line.get_ydata()) for line in bleu.lines] == [[0.1, 0.2], [0.15, 0.3]]
    assert list(words.lines[-1].get_ydata()) == [10.5, 10.5] and words.texts[0].get_text() == "people"
    assert [text.get_text() for text in words.get_legend().get_texts()] == ["0", "1"]
    drawn(figure)


def test_step_times_are_in_milliseconds() -> None:
    figure = decoding_plots.step_times({"cache": [0.002, 0.002], "anew": [0.002, 0.004]})
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[2.0, 2.0], [2.0, 4.0]]
    drawn(figure)
