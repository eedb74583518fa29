"""What every captioner should be seen beside: a caption that fits most photos, a neighbour's caption, and a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from helpers.errors import CaptioningError
from helpers.metrics import evaluate, tokenize


def most_frequent_caption(train_captions: Sequence[str]) -> str:
    """Returns the training caption that occurs most often, by its words; the earliest of several."""
    counts = Counter(" ".join(words) for words in tokenize(train_captions) if words)
    if not counts:
        raise CaptioningError("There are no training captions to choose from.")
    return counts.most_common(1)[0][0]


def nearest_captions(
    train_features: np.ndarray,
    train_references: Mapping[str, Sequence[str]],
    features: np.ndarray,
    images: Sequence[str],
    neighbours: int = 1,
) -> dict[str, str]:
    """Returns image -> a caption of its nearest training images by cosine (Devlin et al. 2015, sections 2 and 3).

    train_features: float [M, D], rows in the order of `train_references`; features: float [N, D], rows in the order of
    `images`. Of all the captions of the `neighbours`, the one that shares most with the others is taken.
    """
    names = list(train_references)
    if train_features.ndim != 2 or features.ndim != 2 or train_features.shape[1] != features.shape[1]:
        raise CaptioningError(
            f"Features should be [images, width] with one width, not {train_features.shape} and {features.shape}. "
            "Average a grid over its regions first."
        )
    if len(names) != len(train_features) or len(images) != len(features) or not names:
        raise CaptioningError(
            f"{len(train_features)} and {len(features)} rows of features for {len(names)} and {len(images)} images."
        )
    known, asked = _unit(train_features), _unit(features)
    out = {}
    for start in range(0, len(images), 256):
        near = np.argsort(-(asked[start : start + 256] @ known.T), axis=1, kind="stable")[:, :neighbours]
        for image, rows in zip(images[start : start + 256], near, strict=True):
            out[image] = consensus([caption for row in rows for caption in train_references[names[row]]])
    return out


def consensus(captions: Sequence[str]) -> str:
    """Returns the caption that shares most words and word pairs with the others (mean F1); the first of equals."""
    grams = [Counter([*words, *zip(words, words[1:], strict=False)]) for words in tokenize(captions)]

    def shared(a: Counter, b: Counter) -> float:
        total = a.total() + b.total()
        return 2 * (a & b).total() / total if total else 0.0

    means = [sum(shared(a, b) for b in grams) for a in grams]  # with itself 1 for every caption
    return captions[int(np.argmax(means))]


def leave_one_out(
    references: Mapping[str, Sequence[str]], metrics: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Returns metric -> the score of one person's captions against the others', the mean over who is left out.

    Scored against one reference fewer than a model is, so it is a little low. Images with one caption are left out.
    Raises CaptioningError when no image has two captions.
    """
    several = {image: list(captions) for image, captions in references.items() if len(captions) > 1}
    if not several:
        raise CaptioningError("One person against the others needs images with at least two captions.")
    people = min(map(len, several.values()))
    rounds = []
    for person in range(people):
        others = {image: captions[:person] + captions[person + 1 :] for image, captions in several.items()}
        rounds.append(evaluate(others, {image: captions[person] for image, captions in several.items()}, metrics))
    return {
        metric: None
        if any(scores[metric] is None for scores in rounds)
        else float(np.mean([s[metric] for s in rounds]))
        for metric in rounds[0]
    }


def baseline_rows(
    train_references: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    train_features: np.ndarray | None = None,
    features: np.ndarray | None = None,
    metrics: Sequence[str] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Returns the rows that stand in every table: baseline -> metric -> score on `references`.

    "nearest neighbour's caption" is there when the features are given, in the order of the two dicts' images.
    """
    usual = most_frequent_caption([caption for captions in train_references.values() for caption in captions])
    rows = {"most frequent caption": evaluate(references, dict.fromkeys(references, usual), metrics)}
    if train_features is not None and features is not None:
        near = nearest_captions(train_features, train_references, features, list(references))
        rows["nearest neighbour's caption"] = evaluate(references, near, metrics)
    rows["one person against the others"] = leave_one_out(references, metrics)
    return rows


def _unit(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
