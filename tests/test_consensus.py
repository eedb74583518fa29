"""What people said of similar photos ranks candidates: worked out by hand, saved whole or refused, nothing rare."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.decoding import Hypothesis
from helpers.encoders import load_encoder
from helpers.files import CHECKPOINTS, CaptioningError
from helpers.images import open_image
from ranking import consensus
from ranking.consensus import FILE, Consensus, build, find_anchors, grams, whitening
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


def test_n_grams_of_each_order() -> None:
    one, two, three, four = grams("A dog, a DOG!")
    assert one == {("a",): 2, ("dog",): 2} and two == {("a", "dog"): 2, ("dog", "a"): 1}
    assert set(three) == {("a", "dog", "a"), ("dog", "a", "dog")} and set(four) == {("a", "dog", "a", "dog")}


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


def test_only_the_heaviest_n_grams_of_an_anchor_are_kept(small) -> None:
    short = build(VECTORS, SAID, anchors=2, neighbours=3, keep=2, min_photos=2)
    assert short.rows.shape == (2, 2) and (short.weights >= small.weights.topk(2).values.min() - 1e-6).all()


def test_anchors_are_the_means_of_groups() -> None:
    around = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]), dim=-1)
    found = find_anchors(around, 2, seed=1)
    assert torch.allclose(found.sort(0).values, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), atol=1e-3)


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


def test_a_changed_a_missing_or_an_impossible_file_is_refused(folder) -> None:
    file, config = folder / FILE, folder / "config.json"
    tensors = load_file(file)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(CaptioningError, match="not the file"):
        Consensus.load(folder)
    changes = ({"rows": tensors["rows"].int() + 100_000}, {"rows": tensors["rows"].int() - 100_000},
               {"seen": tensors["seen"] * 0}, {"photos": torch.tensor([1])},
               {"weights": tensors["weights"][:1]}, {"words": torch.zeros(0, dtype=torch.uint8)},
               {"anchors": tensors["anchors"][:1]})  # fmt: skip
    for change in changes:
        save_file({**tensors, **change}, file)
        config.write_text(json.dumps({"sha256": {FILE: consensus.sha256_file(file)}}))
        with pytest.raises(CaptioningError, match="cannot be used"):
            Consensus.load(folder)
    save_file({"anchors": tensors["anchors"]}, file)
    config.write_text(json.dumps({"sha256": {FILE: consensus.sha256_file(file)}}))
    with pytest.raises(CaptioningError, match="cannot be used"):
        Consensus.load(folder)
    file.unlink()
    with pytest.raises(CaptioningError, match="Set consensus_weight to 0"):
        Consensus.load(folder)


def test_whitening_makes_components_equal_by_half() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(500, 3, generator=generator) @ torch.tensor([[9.0, 0, 0], [9.0, 1, 0], [0, 0, 1.0]]) + 5
    projection, offset = whitening(vectors, 2)
    placed = vectors @ projection + offset
    assert placed.shape == (500, 2) and placed.mean(0).abs().max() < 1e-3
    scaled = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-4)
    deviations = torch.linalg.eigvalsh(scaled.T @ scaled / 500)[-2:].sqrt()
    assert torch.allclose(placed.std(0), deviations.sqrt(), rtol=0.01)  # the root of what it was: half-way to 1


def test_a_projection_places_photos(small, folder) -> None:
    small.projection, small.offset = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), torch.zeros(2)
    small.save(folder)
    again = Consensus.load(folder)
    [[dog, car]] = again.score(torch.tensor([[0.0, 2.0, 7.0]]), [["a dog runs", "a car waits"]])  # EAST once projected
    assert dog > 1 and car == pytest.approx(0.0, abs=1e-4)
    tensors = load_file(folder / FILE)
    save_file({**tensors, "offset": torch.zeros(3)}, folder / FILE)
    (folder / "config.json").write_text(json.dumps({"sha256": {FILE: consensus.sha256_file(folder / FILE)}}))
    with pytest.raises(CaptioningError, match="cannot be used"):
        Consensus.load(folder)


def test_the_shipped_one_knows_what_is_said_of_dogs(samples) -> None:
    shipped = Consensus.load(CHECKPOINTS / "pocket-clip")
    assert shipped.photos == 6000 and shipped.seen.min() >= 5  # no n-gram of fewer photos: no caption can be read in it
    photos = [open_image(path) for path in samples if path.stem in ("dog", "orchestra")]
    vectors = load_encoder(FROZEN).encode(photos, FROZEN_KIND)
    captions = ["a dog is running in the grass", "a group of people are standing on a stage"]
    [[dog, wrong], [also_wrong, people]] = shipped.score(vectors, [captions, captions])
    assert dog > 2 * wrong and people > 2 * also_wrong
