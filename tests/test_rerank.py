"""Candidates of a beam search ranked by what fits the photo, too."""

from __future__ import annotations

import pytest
import torch

from helpers.decoding import Hypothesis
from helpers.files import CaptioningError
from ranking.rerank import flaws, image_vectors, rerank

MEANINGS = {"a dog": (1.0, 0.0), "a cat": (0.0, 1.0), "a pet": (0.6, 0.8)}


class Judge:
    """A dual encoder with two axes: dogs and cats."""

    name, regions = "judge", 2

    def encode_text(self, captions):
        return torch.tensor([MEANINGS[caption] for caption in captions])

    def embed_grid(self, grid):
        return grid.mean(1)


def candidates(*scores: float) -> list[Hypothesis]:
    return [Hypothesis([number], -5.0, [-5.0], score, True) for number, score in enumerate(scores)]


def test_the_score_is_the_models_plus_the_weighted_cosine() -> None:
    groups = [candidates(-1.0, -1.5, -1.9), candidates(-1.0, -1.1)]
    captions = [["a cat", "a pet", "a dog"], ["a cat", "a dog"]]
    photos = torch.tensor([[2.0, 0.0], [0.0, 3.0]])  # a dog, a cat; their length does not matter
    one, other = rerank(groups, captions, photos, Judge(), clip_weight=1.0)
    assert [h.tokens for h in one] == [[1], [2], [0]]
    assert [h.score for h in one] == pytest.approx([-0.9, -0.9, -1.0])
    assert [h.tokens for h in other] == [[0], [1]] and [h.score for h in other] == pytest.approx([0.0, -1.1])
    assert [h.log_prob for h in one] == [-5.0] * 3
    assert groups[0][0].score == -1.0  # the search's own answer is left as it was


def test_a_weight_of_nothing_changes_nothing() -> None:
    groups = [candidates(-1.0, -2.0)]
    assert rerank(groups, [["a cat", "a dog"]], torch.tensor([[1.0, 0.0]]), Judge(), clip_weight=0.0) == groups
    assert rerank([], [], torch.empty(0, 2), Judge(), clip_weight=1.0) == []


@pytest.mark.parametrize(
    ("caption", "count"),
    [("a cat is on a cat", 1), ("a brown and brown dog", 1), ("A man on the back of the boat in the water", 0), ("", 0),
     ("a dog and two dogs", 0), ("a cat is on a", 1), ("a cat and a cat are in front", 2), ("a boy jumps up", 0)],
)  # fmt: skip
def test_flaws_cost(caption, count) -> None:
    assert flaws(caption) == count
    [ranked] = rerank([candidates(-1.0, -2.5)], [[caption, "a dog"]], None, None, flaw_weight=2.0)
    assert [h.tokens for h in ranked] == ([[1], [0]] if count else [[0], [1]])
    assert {h.tokens[0]: h.score for h in ranked} == pytest.approx({0: -1.0 - 2 * count, 1: -2.5})


def test_an_encoder_that_cannot_compare_is_named() -> None:
    assert image_vectors(Judge(), torch.ones(3, 2, 2)).shape == (3, 2)
    with pytest.raises(CaptioningError, match="1 vectors an image from judge"):
        image_vectors(Judge(), torch.ones(3, 1, 2))
    with pytest.raises(CaptioningError, match="Set clip_weight to 0"):
        image_vectors(type("Plain", (), {"name": "plain", "regions": 2})(), torch.ones(3, 2, 2))
