"""Baselines and diversity on sets small enough to see the answer."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.evaluate import (
    consensus,
    diversity,
    leave_one_out,
    most_frequent_caption,
    nearest_captions,
    objects,
    things,
)
from helpers.files import CaptioningError
from helpers.metrics import evaluate
from tests.toy_captions import FAST, REFERENCES


def test_the_most_frequent_caption_is_counted_on_words() -> None:
    assert most_frequent_caption(["Two men", "A dog .", "a dog", "A DOG!", "two men"]) == "a dog"
    with pytest.raises(CaptioningError, match="no training captions"):
        most_frequent_caption([" . "])


def test_the_nearest_neighbour_is_the_nearest_direction() -> None:
    train = {"east": ["a red dog", "a red dog runs"], "north": ["two blue cats"]}
    known, asked = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[100.0, 1.0], [0.1, 0.2]])
    captions = nearest_captions(known, train, asked, ["far", "near"])
    assert captions == {"far": "a red dog", "near": "two blue cats"}
    with pytest.raises(CaptioningError, match="one width"):
        nearest_captions(known[:, None], train, asked, ["far", "near"])
    with pytest.raises(CaptioningError, match="of 2 and 1 images"):
        nearest_captions(known, train, asked, ["far"])


def test_the_consensus_is_the_caption_most_like_the_others() -> None:
    assert consensus(["many cats", "a dog runs fast", "the dog runs", "a dog runs"]) == "a dog runs"


def test_one_person_against_the_others_is_the_mean_over_people() -> None:
    scores = leave_one_out(REFERENCES, FAST)
    first = evaluate({i: c[1:] for i, c in REFERENCES.items()}, {i: c[0] for i, c in REFERENCES.items()}, FAST)
    second = evaluate({i: c[:1] for i, c in REFERENCES.items()}, {i: c[1] for i, c in REFERENCES.items()}, FAST)
    assert scores == pytest.approx({metric: (first[metric] + second[metric]) / 2 for metric in first})
    with pytest.raises(CaptioningError, match="at least two captions"):
        leave_one_out({"a": ["x"]})


def test_diversity_by_hand() -> None:
    values = diversity({"1": "A dog runs.", "2": "a dog runs", "3": "a cat"}, train_captions=["a dog runs", "two men"])
    assert values["length"] == pytest.approx(8 / 3) and values["vocabulary"] == 4
    assert values["different"] == pytest.approx(2 / 3)
    assert values["distinct-2"] == pytest.approx(3 / 5)
    assert values["unseen"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("Two puppies chase a BALL.", {"dog", "ball"}),
        ("a man eats a hot dog", {"hot dog"}),
        ("hot dogs, dogs and a teddy bear", {"hot dog", "dog", "teddy bear"}),
        ("a girl's bike beside the buses", {"bicycle", "bus"}),
        ("a doghouse, a hot-dog-like dogma and a carpet", set()),
        ("", set()),
    ],
)
def test_the_things_that_a_caption_names(caption: str, named: set[str]) -> None:
    assert things(caption) == named


def test_object_truth_by_hand() -> None:
    references = {
        "1": ["a dog on a bench", "the puppy sits", "an animal"],  # two say dog, one says bench
        "2": ["two cats and a ball", "a cat with a ball", "kittens"],  # three say cat, two ball
        "3": ["a man", "a person"],
    }
    captions = {"1": "a cat on a bench", "2": "cats play", "3": "a man on a horse with a dog"}
    # named: cat, bench; cat; horse, dog. Nobody named the first cat, the horse and the last dog.
    assert objects(references, captions) == pytest.approx(
        {"things": 3, "recall": 1 / 3, "CHAIR-i": 3 / 5, "CHAIR-s": 2 / 3}
    )
    nothing = objects({"3": ["a man"]}, {"3": "a man"})
    assert nothing == {"things": 0, "recall": 0.0, "CHAIR-i": 0.0, "CHAIR-s": 0.0}
