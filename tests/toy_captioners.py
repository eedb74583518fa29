"""A toy world for the tests of models and training: three colours, animals and deeds, seen as a few noisy numbers."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch

from helpers.cnn_lstm import ShowAndTell, ShowAttendTell
from helpers.encoders import Features
from helpers.text import Vocabulary
from helpers.training import Run

COLOURS, ANIMALS, DEEDS = ("red", "blue", "green"), ("dog", "cat", "bird"), ("runs", "sits", "sleeps")
MEANINGS = list(product(range(3), range(3), range(3)))
WIDTH, REGIONS = 9, 4
MODELS = {"ShowAndTell": ShowAndTell, "ShowAttendTell": ShowAttendTell}
SMALL = {"embedding": 12, "hidden": 16, "dropout": 0.0}


def captions(meaning: tuple[int, int, int]) -> list[str]:
    """Two captions of one meaning, in different words and of different lengths."""
    colour, animal, deed = COLOURS[meaning[0]], ANIMALS[meaning[1]], DEEDS[meaning[2]]
    return [f"A {colour} {animal} {deed}.", f"The {animal} that {deed} is {colour}."]


def world(prefix: str, meanings=MEANINGS) -> dict[str, list[str]]:
    """References of one image a meaning."""
    return {f"{prefix}{number}.jpg": captions(meaning) for number, meaning in enumerate(meanings)}


def features(prefix: str, meanings=MEANINGS, grid: bool = True, seed: int = 0) -> Features:
    """Features of the same images: each part of the meaning in one region, with a little noise."""
    values = np.random.default_rng(seed).normal(0, 0.05, (len(meanings), REGIONS, WIDTH))
    for number, meaning in enumerate(meanings):
        for part, value in enumerate(meaning):
            values[number, part, 3 * part + value] += 1
    array = values.astype(np.float32)
    return Features([f"{prefix}{n}.jpg" for n in range(len(meanings))], array if grid else array.mean(1))


def vocabulary() -> Vocabulary:
    return Vocabulary.build([c for group in world("t").values() for c in group], min_count=1)


def small_model(name: str = "ShowAndTell", seed: int = 0, **options) -> ShowAndTell | ShowAttendTell:
    """A small model of the toy world, the same for the same seed, in evaluation mode."""
    torch.manual_seed(seed)
    words = vocabulary()
    if name == "ShowAttendTell":
        options = {"attention": 8, "value": 10, **options}
    model = MODELS[name](len(words), WIDTH, **{**SMALL, **options})
    model.tokenizer, model.end_id = words, words.end_id
    model.standardise.fit(torch.from_numpy(features("t").array))
    return model.eval()


def small_run(folder: Path, name: str = "ShowAndTell", seed: int = 0, **options) -> Run:
    """A training run on the toy world, with other noise on the dev images; nothing is trained yet."""
    both = {**world("t"), **world("d", MEANINGS[:12])}
    arrays = np.concatenate([features("t").array, features("d", MEANINGS[:12], seed=1).array])
    views = [Features(list(both), arrays)]
    return Run(small_model(name, seed, **options), world("t"), world("d", MEANINGS[:12]), views, folder, seed)


QUICK = {
    "epochs": 3, "images_per_batch": 9, "captions_per_image": 2, "learning_rate": 0.01, "warmup_steps": 1,
    "decoding": {"method": "greedy", "max_length": 10},
}  # fmt: skip
