"""The second stage: its reward against pycocoevalcap and by hand, its gradient by hand, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import losses as self_critical
from helpers.losses import END_WORD, CiderD, SelfCritical
from helpers.text import START, normalise
from helpers.training import run_stage
from tests.toy_captioners import QUICK, features, small_model, small_run, world

REFERENCES = {
    "a": ["A dog runs on the grass", "The brown dog is running"],
    "b": ["Two men ride bikes", "Men on bikes", "Two people ride their bikes on the road"],
    "c": ["A girl sits on a bench"],
    "d": ["A dog and a girl play in the grass"],
}


WORDS = "a dog girl the grass bikes two on runs men brown is"


def split(text: str) -> list[str]:
    return text.split()


def coco_cider(references: dict[str, list[str]], captions: dict[str, list[str]]) -> dict[str, float]:
    """coco-caption's score of each caption; what it calls CIDEr clips and penalises lengths, so it is CIDEr-D."""
    from pycocoevalcap.cider.cider import Cider

    gts = {image: [" ".join([*normalise(c), END_WORD]) for c in group] for image, group in references.items()}
    res = {image: [" ".join(words)] for image, words in captions.items()}
    return dict(zip(gts, Cider().compute_score(gts, res)[1], strict=True))


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({image: st.lists(st.sampled_from(split(WORDS)), max_size=9) for image in REFERENCES})
)
def test_the_reward_is_coco_captions_cider(captions: dict[str, list[str]]) -> None:
    captions = {image: [*words, END_WORD] for image, words in captions.items()}
    cider, expected = CiderD(REFERENCES), coco_cider(REFERENCES, captions)
    for image, words in captions.items():
        assert cider.score(image, words) == pytest.approx(expected[image], abs=1e-9)


def test_the_reward_by_hand() -> None:
    cider = CiderD({"a": ["dog runs"], "b": ["cat runs"], "c": ["cat sits"]})
    # with the end: dog runs <end>; 1-grams weigh log(3 / images that have them): dog 1, runs 2, <end> 3 of 3 images
    dog, runs, cat = math.log(3), math.log(3 / 2), math.log(3 / 2)
    pair = math.log(3)  # "dog runs", "cat runs"; "runs <end>" is in two images
    one = (runs * runs) / (math.hypot(cat, runs) * math.hypot(dog, runs))
    two = runs * runs / (math.hypot(pair, runs) ** 2)
    assert cider.score("a", ["cat", "runs", END_WORD]) == pytest.approx(10 * (one + two) / 4)


class Pictures:
    """What the objective needs of a batch."""

    def __init__(self, images: list[str]):
        self.images, self.features = images, features("t")[images]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_is_reward_minus_the_others_mean_times_log_probability(temperature: float, monkeypatch) -> None:
    model, batch = small_model("ShowAttendTell", dropout=0.5), Pictures(["t0.jpg", "t4.jpg"])
    seen, decode = [], self_critical.decode

    def watched(*arguments, **options):
        assert options["temperature"] == temperature  # drawn from the policy whose probabilities the loss raises
        seen.append(decode(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(self_critical, "decode", watched)
    objective = SelfCritical(world("t"), samples=3, max_length=6, temperature=temperature)
    torch.manual_seed(4)
    loss, tokens, figures = objective(model.train(), batch)
    expected, rewards = 0.0, []
    for image, samples in zip(batch.images, seen[0], strict=True):
        earned = [objective.cider.score(image, objective.words(model, sample)) for sample in samples]
        rewards += earned
        for number, sample in enumerate(samples):
            others = [reward for place, reward in enumerate(earned) if place != number]
            words = torch.tensor([[START, *sample.tokens[:-1]]])
            with torch.no_grad():
                logits = model(features("t")[[image]], words)[0][0]
            policy = (logits / temperature).log_softmax(-1)[range(len(sample.tokens)), sample.tokens].sum()
            expected -= (earned[number] - sum(others) / 2) * policy.item()
            if temperature == 1:
                assert policy.item() == pytest.approx(sample.log_prob, abs=1e-4)
    assert not model.training  # no dropout: the log-probabilities are those that the samples were drawn with
    assert len(set(rewards)) > 1 and loss.item() == pytest.approx(expected, abs=1e-4)
    assert tokens == sum(len(sample.tokens) for samples in seen[0] for sample in samples)
    assert figures["reward"] == pytest.approx(sum(rewards) / 6)
    assert loss.requires_grad


def test_the_second_stage_raises_the_reward_and_the_score(tmp_path) -> None:
    run = small_run(tmp_path)
    quick = {**QUICK, "images_per_batch": 3}
    first = run_stage(run, {**quick, "epochs": 4, "learning_rate": 0.05}, 1)
    second = {"objective": "self_critical", "epochs": 12, "samples": 5}
    rows = run_stage(run, {**quick, **second}, 2)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.4
    assert max(row["CIDEr"] for row in rows) > max(row["CIDEr"] for row in first)
