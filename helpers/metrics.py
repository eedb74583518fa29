"""Scores for captions: BLEU-1..4, METEOR, ROUGE-L, CIDEr, on plain dicts of captions, equal to coco-caption's.

    python -m helpers.metrics --hypotheses FILE --references FILE --json

Both files hold `image<TAB>caption` lines; the references repeat the image.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from helpers.errors import CaptioningError, unknown_name
from helpers.ptb import ptb_tokenize

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU, "METEOR", "ROUGE-L", "CIDEr")
ON_REQUEST = ("SPICE",)  # minutes of work and a large download: never without being asked for by name
# CIDEr weighs an n-gram by log(images / images that have it): with one image every weight is log 1 = 0.
MIN_IMAGES_FOR_CIDER = 10

log = logging.getLogger(__name__)


def tokenize(captions: Iterable[str]) -> list[list[str]]:
    """Returns the words of each caption as coco-caption's PTB tokeniser gives them: lower case, no punctuation."""
    if isinstance(captions, str):
        raise CaptioningError("tokenize() takes a list of captions, not one string. Write tokenize([caption]).")
    return [list(ptb_tokenize(caption)) for caption in captions]


@dataclass(frozen=True)
class Scored:
    """What each image brings to each score, so that any resample of the images is scored by adding rows.

    images: names, N of them. rows: float64 arrays; "BLEU" [N, 10] (see `bleu_counts`), "METEOR" [N, 23], the others
    [N, 1]. skipped: metric -> why it has no score.
    """

    images: list[str]
    metrics: tuple[str, ...]
    rows: dict[str, np.ndarray]
    skipped: dict[str, str] = field(default_factory=dict)

    def scores(self) -> dict[str, float | None]:
        """Returns metric -> score over all images, as a fraction; None for a metric that was skipped."""
        values = self.weighted(np.ones((1, len(self.images))))
        return {metric: float(values[metric][0]) if metric in values else None for metric in self.metrics}

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns metric -> S scores, where in sample s image i counts weights[s, i] times; weights: [S, N]."""
        totals = {name: weights @ rows for name, rows in self.rows.items()}
        return self._from(totals, weights.sum(axis=1))

    def per_image(self) -> dict[str, np.ndarray]:
        """Returns metric -> the score of each image alone, float64 [N]."""
        return self._from(self.rows, np.ones(len(self.images)))

    def _from(self, totals: dict[str, np.ndarray], count: np.ndarray) -> dict[str, np.ndarray]:
        from helpers.java_metrics import meteor_from_counts

        values = {}
        for metric in self.metrics:
            if metric in BLEU:
                values[metric] = bleu_from_counts(totals["BLEU"])[..., BLEU.index(metric)]
            elif metric == "METEOR" and metric in totals:
                values[metric] = meteor_from_counts(totals[metric])
            elif metric in totals:
                values[metric] = totals[metric][..., 0] / count
        return values


def evaluate(
    references: Mapping[str, Sequence[str]],
    hypotheses: Mapping[str, str],
    metrics: Sequence[str] | None = None,
) -> dict[str, float | None]:
    """Returns metric -> score as a fraction (0.21, not 21), equal to coco-caption's.

    references: image -> its captions; hypotheses: image -> one caption. metrics: names of METRICS ("BLEU" for all
    four), or "SPICE"; None for all of METRICS. A metric that cannot be had (METEOR without Java, CIDEr on too few
    images) is None, and the log says why in one line; CIDEr on too few images raises when it was asked for by name.
    Raises CaptioningError as well on an unknown metric and when the images of the two dicts differ.
    """
    return score_images(references, hypotheses, metrics).scores()


def score_images(
    references: Mapping[str, Sequence[str]],
    hypotheses: Mapping[str, str],
    metrics: Sequence[str] | None = None,
) -> Scored:
    """Returns what each image brings to each score; arguments and errors as for `evaluate`."""
    wanted = _metric_names(metrics)
    images = _same_images(references, hypotheses)
    refs = {image: tokenize(references[image]) for image in images}
    hyps = {image: list(ptb_tokenize(_single(hypotheses[image]))) for image in images}
    rows: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    if set(wanted) & set(BLEU):
        rows["BLEU"] = bleu_counts(refs, hyps)
    gts = {image: [" ".join(words) for words in refs[image]] for image in images}
    res = {image: [" ".join(hyps[image])] for image in images}
    if "ROUGE-L" in wanted:
        from pycocoevalcap.rouge.rouge import Rouge

        rows["ROUGE-L"] = Rouge().compute_score(gts, res)[1][:, None]
    if "CIDEr" in wanted:
        try:
            rows["CIDEr"] = _cider(gts, res)[:, None]
        except CaptioningError as error:
            if metrics is not None:
                raise
            skipped["CIDEr"] = str(error)
    for metric in {"METEOR", "SPICE"} & set(wanted):
        from helpers.java_metrics import meteor_counts, spice

        captions = {image: caption for image, (caption,) in res.items()}
        try:
            rows[metric] = meteor_counts(gts, captions) if metric == "METEOR" else spice(gts, captions)[:, None]
        except CaptioningError as error:
            skipped[metric] = str(error)
    for reason in skipped.values():
        log.warning("%s", reason)
    return Scored(images, wanted, rows, skipped)


def bleu_counts(refs: Mapping[str, list[list[str]]], hyps: Mapping[str, list[str]]) -> np.ndarray:
    """Returns float64 [N, 10]: n-grams of the caption that the references have (n = 1..4), n-grams of the caption
    (n = 1..4), its length, and the reference length closest to it (the shorter one of two as close).

    Papineni et al. 2002, sections 2.1 and 2.2. The clipped counts and the closest length are nltk's; nltk counts one
    n-gram where a caption has fewer than n words and coco-caption none, so the number of n-grams is ours.
    """
    from nltk.translate.bleu_score import closest_ref_length, modified_precision

    rows = []
    for image, words in hyps.items():
        matches = [modified_precision(refs[image], words, n).numerator for n in (1, 2, 3, 4)]
        grams = [max(0, len(words) - n + 1) for n in (1, 2, 3, 4)]
        rows.append([*matches, *grams, len(words), closest_ref_length(refs[image], len(words))])
    return np.array(rows, dtype=np.float64).reshape(-1, 10)


def bleu_from_counts(counts: np.ndarray) -> np.ndarray:
    """Returns BLEU-1..4 [..., 4] from counts [..., 10], summed over images (Papineni et al. 2002, section 2.3)."""
    matches, grams, length, reference = counts[..., 0:4], counts[..., 4:8], counts[..., 8], counts[..., 9]
    # coco-caption's guards against division by zero; its scores of a few short captions are not equal without them
    precision = (matches + 1e-15) / (grams + 1e-9)
    ratio = (length + 1e-15) / (reference + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.cumprod(precision, axis=-1) ** (1.0 / np.arange(1, 5)) * brevity[..., None]


def _cider(gts: dict[str, list[str]], res: dict[str, list[str]]) -> np.ndarray:
    if len(res) < MIN_IMAGES_FOR_CIDER:
        raise CaptioningError(
            f"CIDEr skipped: it needs at least {MIN_IMAGES_FOR_CIDER} images, and there are {len(res)}. It weighs "
            "words by how few images have them, which means nothing over so few (with one image it is always 0)."
        )
    from pycocoevalcap.cider.cider import Cider

    return Cider().compute_score(gts, res)[1]


def _metric_names(metrics: Sequence[str] | None) -> tuple[str, ...]:
    names: list[str] = []
    for metric in METRICS if metrics is None else [metrics] if isinstance(metrics, str) else metrics:
        if metric not in (*METRICS, *ON_REQUEST, "BLEU"):
            raise unknown_name("metric", metric, [*METRICS, *ON_REQUEST, "BLEU"])
        names += BLEU if metric == "BLEU" else [metric]
    return tuple(dict.fromkeys(names))


def _same_images(references: Mapping, hypotheses: Mapping) -> list[str]:
    if not hypotheses:
        raise CaptioningError("There are no captions to score: hypotheses is empty. Give a dict of image -> caption.")
    bare = [image for image in hypotheses if not references.get(image)]
    if bare:
        raise CaptioningError(f"{len(bare)} captioned images have no reference captions, the first is {bare[0]!r}.")
    absent = [image for image in references if image not in hypotheses]
    if absent:
        raise CaptioningError(
            f"{len(absent)} images with references have no caption to score, the first is {absent[0]!r}. Caption them "
            "too, or leave them out of the references: scores over different images cannot be compared."
        )
    for image, captions in references.items():
        if isinstance(captions, str):
            raise CaptioningError(f"The references of {image!r} are one string; they should be a list of captions.")
    return list(hypotheses)


def _single(caption: str | Sequence[str]) -> str:
    if isinstance(caption, str):
        return caption
    if len(caption) == 1:  # coco-caption's own layout wraps each caption in a list
        return caption[0]
    raise CaptioningError(f"Each image needs exactly one caption to score, got {len(caption)}: {caption!r:.80}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores existing captions and prints a table, or one JSON object with --json. Returns the exit status."""
    from helpers.score_tables import markdown, read_hypotheses, read_references
    from helpers.significance import bootstrap

    parser = argparse.ArgumentParser(prog="python -m helpers.metrics", description="Score existing captions.")
    parser.add_argument("--hypotheses", required=True, metavar="FILE", help="image<TAB>caption lines, one an image")
    parser.add_argument("--references", required=True, metavar="FILE", help="image<TAB>caption lines, several an image")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help=f"of {', '.join(METRICS)}; SPICE on request")
    parser.add_argument("--intervals", action="store_true", help="add 95 %% bootstrap intervals over images")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        scored = score_images(read_references(options.references), read_hypotheses(options.hypotheses), options.metrics)
        intervals = bootstrap(scored) if options.intervals else {}
    except CaptioningError as error:
        print(f"helpers.metrics: error: {error}", file=sys.stderr)
        return 2
    result: dict = {"images": len(scored.images), **scored.scores()} | ({"intervals": intervals} if intervals else {})
    table = markdown({options.hypotheses: scored.scores()}, {options.hypotheses: intervals})
    print(json.dumps(result) if options.json else table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
