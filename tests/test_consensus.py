"""What people said of similar photos ranks candidates: worked out by hand, saved whole or refused, nothing rare."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from helpers.decoding import Hypothesis
from helpers.encoders import load_encoder
from helpers.files import CHECKPOINTS, CaptioningError
from helpers.images import open_image
from ranking.consensus import Consensus, build
from ranking.rerank import FROZEN, FROZEN_KIND, rerank

EAST, NORTH = (1.0, 0.0), (0.0, 1.0)
VECTORS = torch.tensor([EAST, EAST, EAST, NORTH, NORTH, NORTH])
DOGS = ["a dog runs", "a brown dog"]
CARS = ["a car waits", "a red car"]
SAID = [DOGS, DOGS, DOGS, CARS, CARS, CARS]


@pytest.fixture
def small() -> Consensus:
    return build(VECTORS, SAID, anchors=2, neighbours=3, keep=50, min_photos=2)


@pytest.fixture
def folder(small, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"sha256": {}}))
    small.save(tmp_path)
    return tmp_path


def test_the_score_is_ten_times_the_mean_cosine_with_the_neighbours_captions(small) -> None:
    """By hand: "dog" is said of three photos of six, "a" of all, so that "a" weighs nothing."""
    candidate, idf = "a dog runs", math.log(2)
    # the candidate's unigrams: a 0, dog and runs 1/sqrt(2) each; "a brown dog" shares dog alone: 1/2
    cosines = [(1 + 1 / 2) / 2, (1 + 0) / 2, (1 + 0) / 2, 0.0]  # of 1-grams to 4-grams, the mean of both captions
    [[score, other]] = small.score(torch.tensor([EAST]), [[candidate, "a car waits"]])
    assert idf > 0 and score == pytest.approx(10 * sum(cosines) / 4, abs=1e-4)
    assert other == pytest.approx(0.0, abs=1e-4)
    [[turned]] = small.score(torch.tensor([NORTH]), [["a car waits"]])
    assert turned == pytest.approx(score, abs=1e-4)


def test_a_photo_between_two_anchors_reads_both(small) -> None:
    [[dog, car]] = small.score(torch.tensor([[3.0, 3.0]]), [["a dog runs", "a car waits"]])
    [[alone]] = small.score(torch.tensor([EAST]), [["a dog runs"]])
    assert dog == pytest.approx(alone / 2, abs=1e-4) and car == pytest.approx(dog, abs=1e-4)


def test_rare_n_grams_are_left_out() -> None:
    said = [[*captions] for captions in SAID]
    said[0] = ["my neighbour Fritz and a dog", "a brown dog"]
    kept = build(VECTORS, said, anchors=2, neighbours=3, keep=50, min_photos=2).grams
    assert ("dog",) in kept and not any("fritz" in gram for gram in kept)
    with pytest.raises(CaptioningError, match="5 photos"):
        build(VECTORS[:3], SAID[:3], min_photos=5)


def test_candidates_are_ranked_by_it(small, monkeypatch) -> None:
    monkeypatch.setattr("ranking.rerank._consensus", lambda folder: small)
    encoder = type("Knowing", (), {"name": "knowing", "folder": Path("knowing")})()
    group = [Hypothesis([0], -1.0, [-1.0], -1.0, True), Hypothesis([1], -2.0, [-2.0], -1.5, True)]
    captions = [["a car waits", "a dog runs"]]
    [ranked] = rerank([group], captions, None, encoder, torch.tensor([EAST]), consensus_weight=1.0)
    [[car, dog]] = small.score(torch.tensor([EAST]), captions)
    assert [h.tokens for h in ranked] == [[1], [0]]
    assert [h.score for h in ranked] == pytest.approx([-1.5 + dog, -1.0 + car])
    with pytest.raises(CaptioningError, match="Set consensus_weight to 0"):
        plain = type("Plain", (), {"name": "plain"})()
        rerank([group], captions, None, plain, torch.tensor([EAST]), consensus_weight=1.0)


def test_it_comes_back_from_its_file(small, folder) -> None:
    again = Consensus.load(folder)
    assert again.grams == small.grams and again.photos == 6 and torch.equal(again.rows, small.rows)
    photos, captions = torch.tensor([EAST, NORTH]), [["a dog", "a car"], ["red car", "dog runs"]]
    for a, b in zip(again.score(photos, captions), small.score(photos, captions), strict=True):
        assert a == pytest.approx(b, abs=0.01)  # kept in fp16


def test_the_shipped_one_knows_what_is_said_of_dogs(samples) -> None:
    shipped = Consensus.load(CHECKPOINTS / "pocket-clip")
    assert shipped.photos == 6000 and shipped.seen.min() >= 5  # no n-gram of fewer photos: no caption can be read in it
    photos = [open_image(path) for path in samples if path.stem in ("dog", "orchestra")]
    vectors = load_encoder(FROZEN).encode(photos, FROZEN_KIND)
    captions = ["a dog is running in the grass", "a group of people are standing on a stage"]
    [[dog, wrong], [also_wrong, people]] = shipped.score(vectors, [captions, captions])
    assert dog > 2 * wrong and people > 2 * also_wrong
