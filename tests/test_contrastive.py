"""The contrastive objective against its definition, recall against a slow count, and fine-tuning."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from configs.pocket.pretraining import fine_tune, measure, recall
from helpers.losses import contrastive_loss


def by_hand(images, texts, owner, scale) -> float:
    """The loss as a sum over pairs, with nothing but exp and log."""

    def unit(v):
        length = math.sqrt(sum(x * x for x in v))
        return [x / length for x in v]

    images, texts = [unit(v) for v in images.tolist()], [unit(v) for v in texts.tolist()]
    logits = [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in texts] for i in images]
    to_image = 0.0
    for n, right in enumerate(owner.tolist()):
        column = [math.exp(row[n]) for row in logits]
        to_image -= math.log(column[right] / sum(column)) / len(texts)
    to_text = 0.0
    for b, row in enumerate(logits):
        total, own = sum(map(math.exp, row)), [n for n, o in enumerate(owner.tolist()) if o == b]
        to_text -= sum(math.log(math.exp(row[n]) / total) for n in own) / len(own) / len(images)
    return (to_image + to_text) / 2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6), st.floats(0.5, 30))
def test_the_loss_is_what_the_paper_says(images, captions, seed, scale) -> None:
    torch.manual_seed(seed)
    owner = torch.arange(images).repeat_interleave(captions)[torch.randperm(images * captions)]
    vectors, words = torch.randn(images, 6), torch.randn(len(owner), 6)
    loss = contrastive_loss(vectors, words, owner, scale)
    assert float(loss) == pytest.approx(by_hand(vectors, words, owner, scale), rel=1e-4, abs=1e-5)


def test_with_one_caption_an_image_it_is_clips_loss() -> None:
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(8, 16), dim=-1), F.normalize(torch.randn(8, 16), dim=-1)
    logits, target = 14.3 * images @ texts.T, torch.arange(8)
    clip = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(contrastive_loss(images, texts, target, 14.3), clip)


def test_captions_of_one_image_are_not_each_others_wrong_answers() -> None:
    images = torch.eye(3)
    owner = torch.tensor([0, 0, 1, 1, 2, 2])
    perfect = contrastive_loss(images, images[owner], owner, 100.0)
    assert float(perfect) == pytest.approx(math.log(2) / 2, abs=1e-3)  # an image shares itself among its two captions
    naive = F.cross_entropy(100.0 * images[owner] @ images[owner].T, torch.arange(6))  # a row a caption, as CLIP would
    assert float(naive) > 0.69
    torch.manual_seed(0)
    texts = images[owner].clone().requires_grad_()
    contrastive_loss(images, texts, owner, 100.0).backward()
    assert texts.grad.abs().max() < 1e-3  # nothing pulls a right caption away


def slow_recall(similarity: list[list[float]], owner: list[int], k: int) -> tuple[float, float]:
    """Recall at k by sorting, for similarities [captions][images] without ties."""
    captions, images = len(similarity), len(similarity[0])
    found = sum(owner[n] in sorted(range(images), key=lambda b: -similarity[n][b])[:k] for n in range(captions))
    other = sum(
        any(owner[n] == b for n in sorted(range(captions), key=lambda n: -similarity[n][b])[:k]) for b in range(images)
    )
    return found / captions, other / images


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 10**6))
def test_recall_is_what_sorting_says(images, captions, seed) -> None:
    torch.manual_seed(seed)
    owner = torch.arange(images).repeat_interleave(captions)
    vectors, words = torch.randn(images, 5, dtype=torch.double).float(), torch.randn(len(owner), 5)
    similarity = (F.normalize(words, dim=-1) @ F.normalize(vectors, dim=-1).T).tolist()
    scores = recall(vectors, words, owner, at=(1, 3))
    for k in (1, 3):
        expected = slow_recall(similarity, owner.tolist(), k)
        assert (scores[f"text-to-image R@{k}"], scores[f"image-to-text R@{k}"]) == pytest.approx(expected)


def test_a_model_that_says_the_same_of_everything_scores_nothing() -> None:
    owner = torch.arange(30).repeat_interleave(5)
    same = recall(torch.ones(30, 4), torch.ones(150, 4), owner)
    assert set(same.values()) == {0.0}
    broken = recall(torch.full((30, 4), torch.nan), torch.ones(150, 4), owner)
    assert set(broken.values()) == {0.0}


class Toy(nn.Module):
    """Pictures are one-hot rows, captions words; both towers are one layer each."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.words = nn.Linear(12, 12), nn.Linear(12, 8), nn.Embedding(12, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def image_side(self, inputs):
        return self.head(self.trunk(inputs)), None

    def text_side(self, captions):
        return self.words(torch.tensor([int(caption.split()[-1]) for caption in captions]))


TRAIN = {f"image {i}": [f"picture {i}", f"number {i}"] for i in range(12)}
OPTIONS = {"epochs": 6, "images_per_batch": 5, "warmup_steps": 2, "learning_rate": 0.05, "trunk_learning_rate": 0.01}


def inputs(names: list[str], chance: random.Random | None) -> torch.Tensor:
    rows = torch.eye(12)[[int(name.split()[1]) for name in names]]
    return rows if chance is None else rows + 0.01 * chance.random()


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def test_fine_tuning_finds_the_pairs() -> None:
    model = toy()
    before = measure(model, lambda names: inputs(names, None), TRAIN)
    history = fine_tune(model, inputs, TRAIN, TRAIN, **{**OPTIONS, "epochs": 25}, average=0.5)
    assert before["text-to-image R@1"] < 0.5 and history[-1]["text-to-image R@1"] == 1
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert [row["epoch"] for row in history] == list(range(1, 26))
    after = measure(model, lambda names: inputs(names, None), TRAIN)  # what was measured last is what is kept
    assert after == {name: history[-1][name] for name in after}


def test_a_killed_run_ends_as_one_that_was_not(tmp_path) -> None:
    whole = toy()
    history = fine_tune(whole, inputs, TRAIN, TRAIN, **OPTIONS, average=0.9, folder=tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(row: dict) -> None:
        if row["epoch"] in (1, 4):
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            fine_tune(toy(), inputs, TRAIN, TRAIN, **OPTIONS, average=0.9, folder=tmp_path / "cut", callback=kill)
    again = toy()
    resumed = fine_tune(again, inputs, TRAIN, TRAIN, **OPTIONS, average=0.9, folder=tmp_path / "cut")
    for row in (*history, *resumed):
        del row["seconds"]
    assert resumed == history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
