"""Scores for captions: BLEU-1..4, METEOR, ROUGE-L, CIDEr, on plain dicts of captions, equal to coco-caption's.

    python -m helpers.metrics --hypotheses FILE --references FILE --json

Both files hold `image<TAB>caption` lines (the references repeat the image), or are COCO's JSON files.
Shapes: N images, S resamples.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.caption_files import expecting, lines_of, read_text
from helpers.files import CaptioningError, command, unknown_name
from helpers.ptb import ptb_tokenize

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU, "METEOR", "ROUGE-L", "CIDEr")
# CIDEr weighs an n-gram by log(images / images that have it): with one image every weight is log 1 = 0.
MIN_IMAGES_FOR_CIDER = 10
# METEOR 1.5's parameters for English (Denkowski and Lavie 2014, table 1): the weights of an exact, stem, synonym and
# paraphrase match; alpha weighs precision against recall, beta and gamma the word order, delta content words.
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
Captions, References = Mapping[str, str], Mapping[str, Sequence[str]]  # by the image's name
log = logging.getLogger(__name__)


def tokenize(captions: Iterable[str]) -> list[list[str]]:
    """Returns the words of each caption as coco-caption's PTB tokeniser gives them: lower case, no punctuation.

    Notebook 08, section 1.
    """
    if isinstance(captions, str):
        raise CaptioningError("tokenize() takes a list of captions, not one string. Write tokenize([caption]).")
    return [list(ptb_tokenize(caption)) for caption in captions]


@dataclass(frozen=True)
class Scored:
    """What each image brings to each score, so that any resample of the images is scored by adding rows.

    images: N names. rows: float64; "BLEU" [N, 10], "METEOR" [N, 23], the others [N, 1]; a metric that was skipped has
    none. Notebook 08, section 9.
    """

    images: list[str]
    metrics: tuple[str, ...]
    rows: dict[str, np.ndarray]

    def scores(self) -> dict[str, float | None]:
        """Returns metric -> score over all images, as a fraction; None for a metric that was skipped."""
        values = self._from({name: rows.sum(axis=0) for name, rows in self.rows.items()}, len(self.images))
        return {metric: float(values[metric]) if metric in values else None for metric in self.metrics}

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns metric -> S scores, where in sample s image i counts weights[s, i] times; weights: [S, N]."""
        return self._from({name: weights @ rows for name, rows in self.rows.items()}, weights.sum(axis=1))

    def per_image(self) -> dict[str, np.ndarray]:
        """Returns metric -> the score of each image alone, float64 [N]."""
        return self._from(self.rows, np.ones(len(self.images)))

    def _from(self, totals: dict[str, np.ndarray], count: np.ndarray | int) -> dict[str, np.ndarray]:
        values = {}
        for metric in self.metrics:
            if metric in BLEU:
                values[metric] = bleu_from_counts(totals["BLEU"])[..., BLEU.index(metric)]
            elif metric in totals:
                rows = totals[metric]
                values[metric] = meteor_from_counts(rows) if metric == "METEOR" else rows[..., 0] / count
        return values


def evaluate(references: References, hypotheses: Captions, metrics: Sequence[str] | None = None) -> dict:
    """Returns metric -> score as a fraction (0.21, not 21) or None, equal to coco-caption's.

    references: image -> its captions; hypotheses: image -> one caption; metrics: names of METRICS ("BLEU" for all
    four), None for all. A metric that cannot be had (METEOR without Java, CIDEr on too few images) is None, and the
    log says why. Raises CaptioningError on an unknown metric, on images without both kinds of captions, and on too few
    images where CIDEr was asked for by name. Notebook 08, section 2.
    """
    return score_images(references, hypotheses, metrics).scores()


def score_images(references: References, hypotheses: Captions, metrics: Sequence[str] | None = None) -> Scored:
    """Returns what each image brings to each score; arguments and errors as for `evaluate`. Notebook 08, section 3."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    wanted = _metric_names(metrics)
    _check_images(references, hypotheses)
    refs = {image: tokenize(references[image]) for image in hypotheses}
    hyps = {image: list(ptb_tokenize(caption)) for image, caption in hypotheses.items()}
    gts = {image: [" ".join(words) for words in refs[image]] for image in hypotheses}
    res = {image: [" ".join(words)] for image, words in hyps.items()}
    rows = {}
    if set(wanted) & set(BLEU):
        rows["BLEU"] = bleu_counts(refs, hyps)
    if "ROUGE-L" in wanted:
        rows["ROUGE-L"] = Rouge().compute_score(gts, res)[1][:, None]
    if "CIDEr" in wanted and len(hyps) >= MIN_IMAGES_FOR_CIDER:
        rows["CIDEr"] = Cider().compute_score(gts, res)[1][:, None]
    elif "CIDEr" in wanted:
        reason = f"CIDEr skipped: it weighs words by at least {MIN_IMAGES_FOR_CIDER} images, and there are {len(hyps)}."
        if metrics is not None:
            raise CaptioningError(reason)
        log.warning("%s", reason)
    if "METEOR" in wanted:
        try:
            rows["METEOR"] = meteor_counts(gts, {image: caption for image, (caption,) in res.items()})
        except CaptioningError as error:
            log.warning("%s", error)
    return Scored(list(hypotheses), wanted, rows)


def bleu_counts(refs: Mapping[str, list[list[str]]], hyps: Mapping[str, list[str]]) -> np.ndarray:
    """Returns float64 [N, 10]: n-grams of the caption that the references have (n = 1..4), all its n-grams, its length,
    and the reference length closest to it (Papineni et al. 2002, section 2). Notebook 08, section 2."""
    from nltk.translate.bleu_score import closest_ref_length, modified_precision

    rows = []
    for image, words in hyps.items():
        matches = [modified_precision(refs[image], words, n).numerator for n in (1, 2, 3, 4)]
        grams = [max(0, len(words) - n + 1) for n in (1, 2, 3, 4)]  # nltk counts one where there is none
        rows.append([*matches, *grams, len(words), closest_ref_length(refs[image], len(words))])
    return np.array(rows, dtype=np.float64)


def bleu_from_counts(counts: np.ndarray) -> np.ndarray:
    """Returns BLEU-1..4 [..., 4] from counts [..., 10], of one image or summed over images. Notebook 08, section 2."""
    matches, grams, length, reference = counts[..., 0:4], counts[..., 4:8], counts[..., 8], counts[..., 9]
    # coco-caption's guards against division by zero; its scores of a few short captions are not equal without them
    precision = (matches + 1e-15) / (grams + 1e-9)
    ratio = (length + 1e-15) / (reference + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.cumprod(precision, axis=-1) ** (1.0 / np.arange(1, 5)) * brevity[..., None]


def meteor_counts(references: Mapping[str, list[str]], hypotheses: Mapping[str, str]) -> np.ndarray:
    """Returns METEOR's 23 counts an image, float64 [N, 23], from the program that pycocoevalcap carries.

    Captions are tokenised. Raises CaptioningError where there is no Java, or the program dies. Notebook 08, section 4.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    if not shutil.which("java"):
        raise CaptioningError("METEOR skipped: there is no Java (`apt-get install default-jre-headless`).")
    try:
        program = Meteor()
        lines = [program._stat(caption, references[image]).split() for image, caption in hypotheses.items()]
        counts = np.array(lines, dtype=np.float64).reshape(-1, 23)
    except (OSError, ValueError) as error:
        raise CaptioningError(f"METEOR skipped: its program failed ({error}).") from error
    whole = (counts[:, 20] == 1) & (counts[:, 21:23] == counts[:, 0:2]).all(axis=1)
    counts[whole, 20] = 0  # a caption matched in one piece is in no pieces: it pays no penalty, alone or in a sum
    return counts


def meteor_from_counts(counts: np.ndarray) -> np.ndarray:
    """Returns METEOR [...] from counts [..., 23], of one image or summed over images. Notebook 08, section 4."""
    lengths, functions = counts[..., 0:2], counts[..., 2:4]  # [..., 2]: of the caption, of the reference
    matches = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)  # match, content or function, caption or reference
    chunks, matched = counts[..., 20], counts[..., 21:23]
    weighted = np.einsum("...mfs,m,f->...s", matches, WEIGHTS, np.array([DELTA, 1 - DELTA]))
    words = DELTA * (lengths - functions) + (1 - DELTA) * functions
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(np.nan_to_num(weighted / words), -1, 0)
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        return np.nan_to_num(mean * (1 - GAMMA * (chunks / matched.mean(axis=-1)) ** BETA))


def _metric_names(metrics: Sequence[str] | None) -> tuple[str, ...]:
    names: list[str] = []
    for metric in METRICS if metrics is None else metrics:
        if metric not in (*METRICS, "BLEU"):
            raise unknown_name("metric", metric, [*METRICS, "BLEU"])
        names += BLEU if metric == "BLEU" else [metric]
    return tuple(dict.fromkeys(names))


def _check_images(references: References, hypotheses: Captions) -> None:
    if not hypotheses:
        raise CaptioningError("There are no captions to score: hypotheses is empty. Give a dict of image -> caption.")
    for image in {**hypotheses, **references}:
        captions, caption = references.get(image), hypotheses.get(image)
        if not captions or isinstance(captions, str) or not isinstance(caption, str):
            raise CaptioningError(
                f"{image!r} should have a list of reference captions, and one caption to score, a string; it has "
                f"{captions!r} and {caption!r}."
            )


def bootstrap(scored: Scored, samples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Returns metric -> (low, high): the 95 % percentile interval of its score over resampled images.

    Efron and Tibshirani 1993, chapter 13. Raises CaptioningError on fewer than two images. Notebook 08, section 9.
    """
    values = scored.weighted(_resamples(len(scored.images), samples, seed))
    return {name: tuple(np.percentile(v, [2.5, 97.5]).tolist()) for name, v in values.items()}


def compare(first: Scored, second: Scored, samples: int = 1000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Returns metric -> {"difference", "low", "high", "p"} of `second` minus `first`, of the same metrics and images.

    low, high: the paired 95 % bootstrap interval of the difference (Koehn 2004, section 4). p, two-sided: how often
    swapping the models' captions on a random half of the images gives a difference as large (approximate
    randomisation, Riezler and Maxwell 2005, section 4). Raises CaptioningError when the images differ.
    Notebook 08, section 9.
    """
    if sorted(first.images) != sorted(second.images):
        raise CaptioningError("The two models captioned different images; a paired test needs the same ones.")
    N, place = len(first.images), {image: row for row, image in enumerate(second.images)}
    order = [place[image] for image in first.images]
    rows = {name: np.concatenate([first.rows[name], second.rows[name][order]]) for name in first.rows}
    both = Scored([*first.images, *first.images], first.metrics, rows)

    def difference(keep: np.ndarray, swap: np.ndarray) -> dict[str, np.ndarray]:
        """The second model less the first, where image i has its own caption keep[i] times and the other's swap[i]."""
        a, b = both.weighted(np.hstack([keep, swap])), both.weighted(np.hstack([swap, keep]))
        return {name: b[name] - a[name] for name in a}

    weights = _resamples(N, samples, seed)  # [S, N]
    coins = np.random.default_rng(seed + 1).integers(0, 2, (samples, N)).astype(np.float64)
    moved, swapped = difference(weights, np.zeros_like(weights)), difference(coins, 1 - coins)
    result = {}
    for name, (value,) in difference(np.ones((1, N)), np.zeros((1, N))).items():
        low, high = np.percentile(moved[name], [2.5, 97.5]).tolist()
        as_large = int((np.abs(swapped[name]) >= abs(value) - 1e-12).sum())
        p = (as_large + 1) / (samples + 1)  # +1: the captions as they are count as one swap
        result[name] = {"difference": float(value), "low": low, "high": high, "p": p}
    return result


def _resamples(images: int, samples: int, seed: int) -> np.ndarray:
    """Returns [S, N]: how often each image is drawn when N are drawn with replacement."""
    if images < 2:
        raise CaptioningError("An interval over images needs at least two images.")
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples).astype(np.float64)


def read_hypotheses(path: str | Path) -> dict[str, str]:
    """Returns image -> caption, which may be empty, from `image<TAB>caption` lines or COCO's result JSON.

    Raises CaptioningError on another format, or a second caption for an image. Notebook 08, section 9.
    """
    found = read_references(path)
    for image, captions in found.items():
        if len(captions) > 1:
            raise CaptioningError(f"{path} has a second caption for {image!r}; give one an image.")
    return {image: caption for image, (caption,) in found.items()}


def read_references(path: str | Path) -> dict[str, list[str]]:
    """Returns image -> its captions from `image<TAB>caption` lines that repeat the image, or COCO's annotations.

    Flickr8k's `photo.jpg#0` is understood. Raises CaptioningError on another format. Notebook 08, section 9.
    """
    references: dict[str, list[str]] = {}
    if Path(path).suffix == ".json":
        with expecting(path, "JSON of image_id and caption"):
            content = json.loads(read_text(path)[0])
            for entry in content["annotations"] if isinstance(content, dict) else content:
                references.setdefault(str(entry["image_id"]), []).append(str(entry["caption"]))
        return references
    for number, line in lines_of(path):
        image, tab, caption = line.partition("\t")
        if not (tab and image.strip()):
            raise CaptioningError(f"{path}, line {number}: expected image<TAB>caption, got {line[:80]!r}.")
        image = re.sub(r"(\.\w{2,5})#\d+$", r"\1", image.strip())
        references.setdefault(image, []).append(caption.strip())
    return references


def table(rows: Mapping[str, Mapping], intervals: Mapping[str, Mapping] | None = None, digits: int = 3):
    """Returns a pandas DataFrame of text: a line a model, a column a metric, an interval in brackets behind its score.

    rows: model -> metric -> score or None; intervals: model -> metric -> (low, high). Notebook 08, section 9.
    """
    import pandas as pd

    text = pd.DataFrame(rows).T.map(lambda value: "–" if pd.isna(value) else f"{value:.{digits}f}")
    for model, of_model in (intervals or {}).items():
        for metric, (low, high) in of_model.items():
            text.loc[model, metric] += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Scores captions, and prints a table or one JSON object. Notebook 08, section 9."""
    parser = argparse.ArgumentParser(prog="python -m helpers.metrics", description="Score existing captions.")
    parser.add_argument("--hypotheses", required=True, metavar="FILE", help="image<TAB>caption lines or COCO results")
    parser.add_argument("--references", required=True, metavar="FILE", help="the same, several captions an image")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help=f"of {', '.join(METRICS)}")
    parser.add_argument("--intervals", action="store_true", help="add 95 %% bootstrap intervals over images")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    scored = score_images(read_references(options.references), read_hypotheses(options.hypotheses), options.metrics)
    intervals = {"intervals": bootstrap(scored)} if options.intervals else {}
    if options.json:
        print(json.dumps({"images": len(scored.images), **scored.scores(), **intervals}))
    else:
        name = options.hypotheses
        print(table({name: scored.scores()}, {name: intervals.get("intervals", {})}).to_string())


if __name__ == "__main__":
    sys.exit(main())
