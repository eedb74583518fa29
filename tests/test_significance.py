"""Intervals and paired tests against definitions that are slower or older."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.files import CaptioningError
from helpers.metrics import bootstrap, compare, evaluate, score_images
from tests.toy_captions import FAST, GOOD, REFERENCES, WEAK


def test_an_interval_holds_the_score_and_narrows_with_more_images() -> None:
    scored = score_images(REFERENCES, WEAK, FAST)
    few = {image: REFERENCES[image] for image in list(REFERENCES)[::4]}
    wide = bootstrap(score_images(few, {image: WEAK[image] for image in few}, FAST))
    for metric, (low, high) in bootstrap(scored).items():
        assert low - 1e-12 <= scored.scores()[metric] <= high + 1e-12
        assert high - low < wide[metric][1] - wide[metric][0] + 1e-9, metric


def test_a_resample_is_scored_as_the_metric_scores_it() -> None:
    scored = score_images(REFERENCES, WEAK, ["BLEU", "ROUGE-L"])
    rng = np.random.default_rng(3)
    weights = rng.multinomial(len(REFERENCES), np.full(len(REFERENCES), 1 / len(REFERENCES)), size=2).astype(float)
    fast = scored.weighted(weights)
    for row in range(2):
        drawn = [image for image, count in zip(scored.images, weights[row], strict=True) for _ in range(int(count))]
        references = {f"{place} {image}": REFERENCES[image] for place, image in enumerate(drawn)}
        hypotheses = {f"{place} {image}": WEAK[image] for place, image in enumerate(drawn)}
        for metric, value in evaluate(references, hypotheses, ["BLEU", "ROUGE-L"]).items():
            assert fast[metric][row] == pytest.approx(value, abs=1e-9)


def test_a_real_difference_is_found_and_none_is_not() -> None:
    good, weak = score_images(REFERENCES, GOOD, FAST), score_images(REFERENCES, WEAK, FAST)
    for result in compare(weak, good).values():
        assert result["difference"] > 0 and result["low"] > 0 and result["p"] < 0.01
    mixed = {image: (GOOD if place % 2 else WEAK)[image] for place, image in enumerate(REFERENCES)}
    other = {image: (WEAK if place % 2 else GOOD)[image] for place, image in enumerate(REFERENCES)}
    for result in compare(score_images(REFERENCES, mixed, FAST), score_images(REFERENCES, other, FAST)).values():
        assert result["p"] > 0.05 and result["low"] <= 0 <= result["high"]
    assert {result["p"] for result in compare(good, good).values()} == {1.0}


def test_the_order_of_the_images_does_not_matter_to_a_paired_test() -> None:
    weak, good = score_images(REFERENCES, WEAK, FAST), score_images(REFERENCES, GOOD, FAST)
    turned = score_images(REFERENCES, {image: GOOD[image] for image in reversed(GOOD)}, FAST)
    assert compare(weak, turned) == compare(weak, good)


def test_a_paired_test_wants_the_same_images() -> None:
    half = {image: REFERENCES[image] for image in list(REFERENCES)[:20]}
    with pytest.raises(CaptioningError, match="different images"):
        compare(score_images(REFERENCES, WEAK, FAST), score_images(half, {i: WEAK[i] for i in half}, FAST))
    with pytest.raises(CaptioningError, match="at least two images"):
        bootstrap(score_images({"a": ["x"]}, {"a": "x"}, ["BLEU"]))
