"""Scores for captions: BLEU-1..4, METEOR, ROUGE-L, CIDEr, on plain dicts of captions, equal to coco-caption's.

    python -m helpers.metrics --hypotheses FILE --references FILE --json

Both files hold `image<TAB>caption` lines; the references repeat the image.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers.files import CaptioningError, atomic_write, unknown_name, write_json
from helpers.ptb import ptb_tokenize
from helpers.text import ngrams

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
# METEOR 1.5's parameters for English (Denkowski and Lavie 2014, table 1): the weights of an exact, stem, synonym and
# paraphrase match; alpha weighs precision against recall, beta and gamma the word order, delta content words.
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
GET_JAVA = (
    "install a Java runtime, 8 or later (Debian, Ubuntu, Colab: `apt-get install default-jre-headless`; conda: "
    "`conda install openjdk`; macOS: `brew install openjdk`), and `pip install pycocoevalcap`"
)


@functools.lru_cache(maxsize=1)
def no_java() -> str | None:
    """Returns why Java cannot be used here, or None when it runs. macOS has a `java` that only says there is none."""
    java = shutil.which("java")
    if not java:
        return f"there is no Java here; {GET_JAVA}"
    try:
        probe = subprocess.run([java, "-version"], capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{java} does not start ({error}); {GET_JAVA}"
    return None if probe.returncode == 0 else f"{java} does not run; {GET_JAVA}"


def meteor_counts(
    references: Mapping[str, list[str]], hypotheses: Mapping[str, str], timeout: float | None = None
) -> np.ndarray:
    """Returns METEOR's 23 counts an image, float64 [N, 23], from the program that pycocoevalcap carries.

    Captions are tokenised, words apart by a space. All lines go in at once and come back at once, so a program that
    dies or stands still (`timeout` in seconds) ends in a CaptioningError and never in a wait.
    """
    if reason := no_java():
        raise CaptioningError(f"METEOR skipped: {reason}.")
    jar = _package_folder() / "meteor" / "meteor-1.5.jar"
    lines = [
        " ||| ".join(("SCORE", *references[image], caption.replace("|||", "").replace("  ", " ")))
        for image, caption in hypotheses.items()
    ]
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    try:
        done = subprocess.run(
            command,
            input="\n".join(lines) + "\n",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=jar.parent,
            timeout=timeout or 300 + 0.5 * len(lines),
        )
    except subprocess.TimeoutExpired as error:
        raise CaptioningError(f"METEOR skipped: it gave no answer in {error.timeout:.0f} seconds.") from error
    except OSError as error:
        raise CaptioningError(f"METEOR skipped: Java did not start ({error}).") from error
    try:
        counts = np.array([[float(value) for value in line.split()] for line in done.stdout.splitlines()])
    except ValueError:
        counts = np.empty(0)
    if counts.shape != (len(lines), 23):
        said = next((line for line in done.stderr.splitlines() if line.strip()), "no reason given")
        raise CaptioningError(f"METEOR skipped: its program failed (exit status {done.returncode}: {said[:200]}).")
    whole = (counts[:, 20] == 1) & (counts[:, 21:23] == counts[:, 0:2]).all(axis=1)
    counts[whole, 20] = 0  # a caption matched in one piece is in no pieces: it pays no penalty, alone or in a sum
    return counts


def meteor_from_counts(counts: np.ndarray) -> np.ndarray:
    """Returns METEOR [...] from counts [..., 23], of one image or summed over images (Denkowski and Lavie 2014)."""
    lengths, functions = counts[..., 0:2], counts[..., 2:4]  # [..., 2]: of the caption, of the reference
    matches = counts[..., 4:20].reshape(
        *counts.shape[:-1], 4, 2, 2
    )  # [..., match, content or function, caption or ref.]
    chunks, matched = counts[..., 20], counts[..., 21:23]
    delta = np.array([DELTA, 1 - DELTA])
    weighted = np.einsum("...mfs,m,f->...s", matches, WEIGHTS, delta)
    words = DELTA * (lengths - functions) + (1 - DELTA) * functions
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(np.nan_to_num(weighted / words), -1, 0)
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        fragments = chunks / matched.mean(axis=-1)
        return np.nan_to_num(mean * (1 - GAMMA * fragments**BETA))


def spice(references: Mapping[str, list[str]], hypotheses: Mapping[str, str]) -> np.ndarray:
    """Returns SPICE an image, float64 [N] (Anderson et al. 2016); minutes of work and 8 GB of memory.

    Nothing is downloaded: raises CaptioningError, with the command, when Java or its language models are missing.
    """
    if reason := no_java():
        raise CaptioningError(f"SPICE skipped: {reason}.")
    if not (_package_folder() / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").exists():
        raise CaptioningError(
            "SPICE skipped: its language models (400 MB) are not here. Fetch them once with `python -c 'from "
            "pycocoevalcap.spice.get_stanford_models import *; get_stanford_models()'`; it wants Java 8."
        )
    from pycocoevalcap.spice.spice import Spice

    numbered = dict(enumerate(hypotheses))  # its program needs names that sort
    try:
        _, scores = Spice().compute_score(
            {number: references[image] for number, image in numbered.items()},
            {number: [hypotheses[image]] for number, image in numbered.items()},
        )
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise CaptioningError(f"SPICE skipped: its program failed ({error}).") from error
    return np.nan_to_num(np.array([score["All"]["f"] for score in scores], dtype=np.float64))


def _package_folder() -> Path:
    try:
        import pycocoevalcap.meteor.meteor as meteor
    except ImportError as error:
        raise CaptioningError("METEOR skipped: `pip install pycocoevalcap` first.") from error
    return Path(meteor.__file__).parent.parent


def diversity(
    captions: Mapping[str, str | Sequence[str]], train_captions: Iterable[str] | None = None
) -> dict[str, float]:
    """Returns how varied the captions of a model are, on the words of the tokeniser.

    captions: image -> one caption, or several. Keys of the result:
    - "length": mean words a caption; "vocabulary": how many different words are used at all;
    - "different": share of captions that are not the same as an earlier one;
    - "distinct-1", "distinct-2": different n-grams over all n-grams (Li et al. 2016, section 5);
    - "mBLEU-4": BLEU-4 of each caption against the others of its image (Shetty et al. 2017, section 4.2), or, with one
      caption an image, against those of all other images; lower is more varied;
    - "unseen": share of captions that no training caption equals word for word, if `train_captions` are given.
    Raises CaptioningError when there are no captions.
    """
    groups = [tokenize([texts] if isinstance(texts, str) else texts) for texts in captions.values()]
    flat = [words for group in groups for words in group]
    if not flat:
        raise CaptioningError("There are no captions to measure.")
    if max(map(len, groups)) == 1:
        groups = [flat]
    keys, counts = [" ".join(words) for words in flat], [ngrams(words) for words in flat]
    result = {
        "length": float(np.mean([len(words) for words in flat])),
        "vocabulary": float(len({word for words in flat for word in words})),
        "different": len(set(keys)) / len(keys),
        "distinct-1": _distinct(counts, 1),
        "distinct-2": _distinct(counts, 2),
        "mBLEU-4": mutual_bleu(groups),
    }
    if train_captions is not None:
        seen = {" ".join(words) for words in tokenize(train_captions)}
        result["unseen"] = sum(key not in seen for key in keys) / len(keys)
    return result


def mutual_bleu(groups: Sequence[Sequence[Sequence[str]]]) -> float:
    """Returns corpus BLEU-4 of each caption (a list of words) against the other captions of its group.

    Groups of one have no others and are left out; 0.0 when nothing is left. Linear in the number of n-grams: each
    n-gram's two largest counts in the group say what it is clipped to without the caption itself.
    """
    rows = [row for group in groups if len(group) > 1 for row in _group_rows(group)]
    return float(bleu_from_counts(np.array(rows, dtype=np.float64).sum(axis=0))[3]) if rows else 0.0


def _group_rows(group: Sequence[Sequence[str]]) -> list[list[int]]:
    counts = [ngrams(words) for words in group]
    largest: dict[tuple, list[int]] = {}
    for of_caption in counts:
        for counter in of_caption:
            for gram, count in counter.items():
                top = largest.setdefault(gram, [0, 0])
                if count > top[0]:
                    top[:] = [count, top[0]]
                elif count > top[1]:
                    top[1] = count
    lengths = Counter(map(len, group))
    rows = []
    for words, of_caption in zip(group, counts, strict=True):
        matches = [
            # the largest count is the caption's own exactly when the second is what the others have
            sum(min(count, largest[gram][1] if largest[gram][0] == count else largest[gram][0])
                for gram, count in counter.items())
            for counter in of_caption
        ]  # fmt: skip
        size = len(words)
        others = (length for length, many in lengths.items() if many > 1 or length != size)
        closest = min(others, key=lambda length: (abs(length - size), length))
        rows.append([*matches, *(max(0, size - n + 1) for n in (1, 2, 3, 4)), size, closest])
    return rows


def _distinct(counts: Sequence[Sequence[Counter]], n: int) -> float:
    of_captions = [orders[n - 1] for orders in counts]
    total = sum(counter.total() for counter in of_captions)
    return len(set().union(*of_captions)) / total if total else 0.0
_NUMBERED = re.compile(
    r"(\.\w{2,5})#\d+$"
)  # Flickr8k.token.txt calls an image's captions photo.jpg#0, photo.jpg#1, ...


def read_hypotheses(path: str | Path) -> dict[str, str]:
    """Returns image -> caption from `image<TAB>caption` lines. A caption may be empty: a model may say nothing.

    Raises CaptioningError naming the file and line: no tab, or a second caption for an image.
    """
    captions: dict[str, str] = {}
    for number, image, caption in _lines(path):
        if image in captions:
            raise CaptioningError(f"{path}, line {number}: a second caption for {image!r}; give one an image.")
        captions[image] = caption
    return captions


def read_references(path: str | Path) -> dict[str, list[str]]:
    """Returns image -> its captions from `image<TAB>caption` lines that repeat the image (`image#0` is understood).

    Raises CaptioningError naming the file and line: no tab, or an empty caption.
    """
    references: dict[str, list[str]] = {}
    for number, image, caption in _lines(path):
        if not caption:
            raise CaptioningError(
                f"{path}, line {number}: the reference caption of {image!r} is empty. Remove the line."
            )
        references.setdefault(_NUMBERED.sub(r"\1", image), []).append(caption)
    return references


def write_hypotheses(path: str | Path, captions: Mapping[str, str]) -> None:
    """Writes `image<TAB>caption` lines, whole or not at all. Raises CaptioningError on a name with a tab or newline."""
    for image in captions:
        if re.search(r"[\t\n\r]", image):
            raise CaptioningError(f"The image name {image!r} has a tab or a line break; rename the file.")
    with atomic_write(path) as temporary:
        lines = (f"{image}\t{' '.join(caption.split())}\n" for image, caption in captions.items())
        temporary.write_text("".join(lines), encoding="utf-8")


def _lines(path: str | Path):
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CaptioningError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise CaptioningError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    found = False
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip():
            continue
        image, tab, caption = line.partition("\t")
        if not tab or not image.strip():
            raise CaptioningError(f"{path}, line {number}: expected image<TAB>caption, got {line[:80]!r}.")
        found = True
        yield number, image.strip(), caption.strip()
    if not found:
        raise CaptioningError(f"{path} has no captions. Expected image<TAB>caption lines.")


def table(rows: Mapping[str, Mapping], intervals: Mapping[str, Mapping] | None = None):
    """Returns a pandas DataFrame, a row a model: the scores of `rows` (model -> metric -> score) in their order.

    `intervals` (model -> metric -> (low, high)) adds the columns "METRIC low" and "METRIC high" beside each score.
    """
    import pandas as pd

    metrics = list(dict.fromkeys(metric for scores in rows.values() for metric in scores))
    data = []
    for model, scores in rows.items():
        row: dict = {"model": model}
        for metric in metrics:
            row[metric] = scores.get(metric)
            if intervals and any(metric in of_model for of_model in intervals.values()):
                low, high = intervals.get(model, {}).get(metric, (None, None))
                row |= {f"{metric} low": low, f"{metric} high": high}
        data.append(row)
    return pd.DataFrame(data)


def markdown(rows: Mapping[str, Mapping], intervals: Mapping[str, Mapping] | None = None, digits: int = 3) -> str:
    """Returns the same table as Markdown; an interval stands behind its score in brackets, a dash for no score."""
    metrics = list(dict.fromkeys(metric for scores in rows.values() for metric in scores))

    def cell(model: str, metric: str) -> str:
        value = rows[model].get(metric)
        if value is None:
            return "–"
        if not isinstance(value, float):
            return str(value).replace("|", "\\|")
        low_high = (intervals or {}).get(model, {}).get(metric)
        behind = f" [{low_high[0]:.{digits}f}, {low_high[1]:.{digits}f}]" if low_high else ""
        return f"{value:.{digits}f}{behind}"

    lines = [f"| model | {' | '.join(metrics)} |", f"| --- |{' ---: |' * len(metrics)}"]
    lines += [
        f"| {str(model).replace('|', chr(92) + '|')} | {' | '.join(cell(model, metric) for metric in metrics)} |"
        for model in rows
    ]
    return "\n".join(lines)


def save_table(path: str | Path, rows: Mapping[str, Mapping], intervals: Mapping[str, Mapping] | None = None) -> Path:
    """Writes the table as its suffix says: .csv, .json or .md. Raises CaptioningError on another suffix."""
    path = Path(path)
    if path.suffix == ".json":
        scores = {model: dict(scores) for model, scores in rows.items()}
        write_json(path, {"scores": scores, **({"intervals": intervals} if intervals else {})})
    elif path.suffix == ".csv":
        with atomic_write(path) as temporary:
            table(rows, intervals).to_csv(temporary, index=False)
    elif path.suffix == ".md":
        with atomic_write(path) as temporary:
            temporary.write_text(markdown(rows, intervals) + "\n", encoding="utf-8")
    else:
        raise unknown_name("kind of table", path.suffix, [".csv", ".json", ".md"])
    return path
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


if __name__ == "__main__":
    sys.exit(main())
