"""How sure a score is: bootstrap intervals over images, and paired tests between two models.

The images are resampled, never the scores: BLEU of a resample comes from the summed counts of its images. CIDEr keeps
the document frequencies of the whole set. One matrix product scores every resample at once.

Shapes: N images, S resamples.
"""

from __future__ import annotations

import numpy as np

from helpers.errors import CaptioningError
from helpers.metrics import Scored

CHUNK = 500  # resamples at once, so that memory stays small: 500 x 5,000 images x 8 bytes = 20 MB


def bootstrap(
    scored: Scored, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Returns metric -> (low, high): the percentile interval of its score over resampled images.

    Efron and Tibshirani 1993, chapter 13; for BLEU, Koehn 2004, section 3. Raises CaptioningError on fewer than two
    images, or samples and level out of range.
    """
    _check(scored, samples, level)
    values = _collect(scored, _resamples(len(scored.images), samples, seed))
    tail = 100 * (1 - level) / 2
    return {name: tuple(np.percentile(v, [tail, 100 - tail]).tolist()) for name, v in values.items()}


def compare(
    first: Scored, second: Scored, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Returns metric -> {"difference", "low", "high", "p"} of `second` minus `first` on the same images.

    low, high: the paired bootstrap interval of the difference (Koehn 2004, section 4). p: approximate randomisation,
    two-sided: how often swapping the two models' captions on a random half of the images gives a difference as large
    (Riezler and Maxwell 2005, section 4). Raises CaptioningError when the images differ.
    """
    _check(first, samples, level)
    if sorted(first.images) != sorted(second.images):
        raise CaptioningError("The two models captioned different images; a paired test needs the same ones.")
    place = {image: row for row, image in enumerate(second.images)}
    order = [place[image] for image in first.images]
    both = Scored(
        [*first.images, *first.images],
        tuple(metric for metric in first.metrics if metric in second.metrics),
        {name: np.concatenate([first.rows[name], second.rows[name][order]])
         for name in first.rows if name in second.rows},
    )  # fmt: skip
    N = len(first.images)
    zeros = np.zeros((1, N))
    one = np.ones((1, N))
    observed = _difference(both, np.concatenate([one, zeros], 1), np.concatenate([zeros, one], 1))
    tail = 100 * (1 - level) / 2
    moved: dict[str, list] = {name: [] for name in observed}
    swapped: dict[str, list] = {name: [] for name in observed}
    for weights in _resamples(N, samples, seed):  # [S, N]
        empty = np.zeros_like(weights)
        for name, value in _difference(both, np.hstack([weights, empty]), np.hstack([empty, weights])).items():
            moved[name].append(value)
    for keep in _coins(N, samples, seed + 1):  # [S, N] of 0 and 1
        for name, value in _difference(both, np.hstack([keep, 1 - keep]), np.hstack([1 - keep, keep])).items():
            swapped[name].append(value)
    result = {}
    for name, value in observed.items():
        low, high = np.percentile(np.concatenate(moved[name]), [tail, 100 - tail])
        as_large = np.abs(np.concatenate(swapped[name])) >= abs(value[0]) - 1e-12
        result[name] = {
            "difference": float(value[0]),
            "low": float(low),
            "high": float(high),
            "p": float((as_large.sum() + 1) / (samples + 1)),  # +1: the captions as they are count as one swap
        }
    return result


def _difference(both: Scored, first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    a, b = both.weighted(first), both.weighted(second)
    return {name: b[name] - a[name] for name in a}


def _collect(scored: Scored, batches) -> dict[str, np.ndarray]:
    parts = [scored.weighted(weights) for weights in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _resamples(images: int, samples: int, seed: int):
    """Yields [S, N] arrays: how often each image is drawn when N are drawn with replacement."""
    rng = np.random.default_rng(seed)
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float64)


def _coins(images: int, samples: int, seed: int):
    rng = np.random.default_rng(seed)
    for start in range(0, samples, CHUNK):
        yield rng.integers(0, 2, (min(CHUNK, samples - start), images)).astype(np.float64)


def _check(scored: Scored, samples: int, level: float) -> None:
    if len(scored.images) < 2:
        raise CaptioningError("An interval over images needs at least two images.")
    if samples < 1 or not 0 < level < 1:
        raise CaptioningError(f"samples must be at least 1 and level between 0 and 1, not {samples} and {level}.")
