"""A captioner on a dataset split: predictions, scores, speed.

    python -m helpers.evaluate --dataset flickr8k --data_dir DIR --split dev --model NAME --json
    python -m helpers.evaluate --dataset flickr8k --data_dir DIR --split dev --hypotheses FILE --json

prints one JSON object: model, dataset, split, images, the scores, captions_per_second (of decoding, with the images
encoded before; null for a hypotheses file). The settings go to standard error, so that a score can be repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from helpers.decoding import CLASH, add_options, clash, decoding_options
from helpers.files import CaptioningError, pick_device
from helpers.metrics import METRICS, MIN_IMAGES_FOR_CIDER, ON_REQUEST, evaluate, score_images, tokenize
from ranking.rerank import FROZEN_KIND, WEIGHTS


class Predictions(dict[str, str]):
    """Image -> caption. `failed`: image -> why it has none; `seconds`: the time of decoding."""

    failed: dict[str, str]
    seconds: float


def predict(
    captioner: Any, dataset: Any, split: str, *, batch_size: int = 64, progress: bool = True, **options: Any
) -> Predictions:
    """Returns the caption of each image of a split, in order; an image that cannot be read is in `.failed` instead.

    Images are encoded once and cached. `options` override the captioner's decoding settings, see
    `helpers.decoding.decode`. Raises CaptioningError on an empty split or when no image can be read.
    """
    from helpers.features import cache_features

    images = dataset.images(split)
    if not images:
        raise CaptioningError(f"{dataset.name} has no images in the split {split!r}; it has {dataset.splits()}.")
    paths = {image: dataset.path(image) for image in images}
    features = cache_features(captioner.encoder, paths, captioner.feature_kind, progress=progress)
    readable = [image for image in images if image in features]
    frozen = None
    if captioner.asks_frozen(options):
        frozen = cache_features(captioner.frozen, paths, FROZEN_KIND, progress=progress)
    captions = Predictions()
    began = time.perf_counter()
    for start in range(0, len(readable), batch_size):
        batch = readable[start : start + batch_size]
        groups = captioner.decode(features[batch], None if frozen is None else frozen[batch], **options)
        for image, group in zip(batch, groups, strict=True):
            captions[image] = captioner.model.tokenizer.decode(group[0].tokens)
    captions.failed, captions.seconds = dict(features.failed), time.perf_counter() - began
    return captions


def pooled_features(encoder: Any, dataset: Any, split: str, progress: bool = True):
    """Returns (images, float32 array [N, D]): the pooled vector of each image of a split that can be read."""
    from helpers.features import cache_features

    paths = {image: dataset.path(image) for image in dataset.images(split)}
    features = cache_features(encoder, paths, "pooled", progress=progress)
    return features.names, features[features.names].numpy()


def baselines(dataset: Any, split: str, encoder: Any = None, metrics: Sequence[str] | None = None) -> dict[str, dict]:
    """Returns the baseline rows for a split, from the training split of the same dataset; with the neighbour's caption
    when there is an `encoder`. Raises CaptioningError when the dataset has no training split."""

    if "train" not in dataset.splits():
        raise CaptioningError(f"The baselines need the split 'train'; {dataset.name} has {dataset.splits()} here.")
    train, references = dataset.references("train"), dataset.references(split)
    if encoder is None:
        return baseline_rows(train, references, metrics=metrics)
    known, known_vectors = pooled_features(encoder, dataset, "train")
    asked, vectors = pooled_features(encoder, dataset, split)
    return baseline_rows(
        {image: train[image] for image in known},
        {image: references[image] for image in asked},
        known_vectors,
        vectors,
        metrics,
    )


def clip_means(name: str, dataset: Any, references: dict, captions: dict[str, str]) -> dict[str, float]:
    """Returns the mean CLIPScore and RefCLIPScore by the CLIP called `name`; the images' vectors are cached."""
    from helpers.clipscore import clip_scores
    from helpers.encoders import load_encoder
    from helpers.features import cache_features

    encoder = load_encoder(name)
    if not hasattr(encoder, "encode_text"):
        raise CaptioningError(f"{name} has no text side and cannot judge captions. Use pocket-clip or clip:ViT-B/32.")
    vectors = cache_features(encoder, {image: dataset.path(image) for image in captions}, "embedding")
    scores = clip_scores(encoder, {image: vectors[image] for image in captions}, captions, references)
    return {metric: float(values.mean()) for metric, values in scores.items()}


def settings(**more: Any) -> dict[str, Any]:
    """Returns what a score depends on: `more`, the tokeniser, and the versions of Python and of the packages in use."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "nltk", "pycocoevalcap"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {**more, "tokeniser": "helpers.ptb (equal to coco-caption's PTBTokenizer 3.4.1)", "versions": versions}


def parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    p = argparse.ArgumentParser(prog="python -m helpers.evaluate", description="Score a captioner on a dataset split.")
    p.add_argument("--dataset", default="pocket", help="pocket (default), flickr8k, flickr30k, coco or folder")
    p.add_argument("--data_dir", metavar="DIR", help="where the dataset is; a folder may hold only some splits")
    p.add_argument("--split", default="dev", help="train, dev (default) or test")
    p.add_argument("--model", metavar="NAME", help="a captioner in data/checkpoints/, or its folder")
    p.add_argument("--hypotheses", metavar="FILE", help="score these image<TAB>caption lines; no model is loaded")
    p.add_argument("--metrics", nargs="+", metavar="NAME", help=f"of {', '.join([*METRICS, *ON_REQUEST])}")
    p.add_argument("--predictions", metavar="FILE", help="save the captions as image<TAB>caption lines")
    p.add_argument("--table", metavar="FILE", help="save the table, as the suffix says: .csv, .json or .md")
    p.add_argument("--intervals", action="store_true", help="add 95 %% bootstrap intervals over images")
    p.add_argument("--diversity", action="store_true", help="add how varied the captions are")
    p.add_argument("--baselines", action="store_true", help="add the baselines' rows (needs the training split)")
    p.add_argument("--clipscore", nargs="?", const="pocket-clip", metavar="ENCODER",
                   help="add CLIPScore and RefCLIPScore by this CLIP (pocket-clip)")
    p.add_argument("--against", metavar="FILE", help="another model's image<TAB>caption lines, for a paired test")
    p.add_argument("--page", metavar="FILE", help="save the best, the worst and the most different photos as HTML")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    p.add_argument("--batch_size", type=int, default=64, help="images decoded at once")
    p.add_argument("--seed", type=int, default=0, help="makes sampling repeatable")
    add_options(p, "What is not given is as the checkpoint says.")
    return p


def run(arguments: argparse.Namespace) -> int:
    """Does what the command line asks and prints the result. Returns 0, or 1 when images could not be read."""
    from helpers.datasets import load_dataset
    from helpers.metrics import markdown, read_hypotheses, save_table, write_hypotheses

    dataset = load_dataset(arguments.dataset, arguments.data_dir)
    references, failed, captioner = dataset.references(arguments.split), {}, None
    for note in dataset.notes:
        print(f"{dataset.name}: {note}", file=sys.stderr)
    about: dict[str, Any] = {"split": arguments.split, "seed": arguments.seed}
    if arguments.hypotheses:
        name = arguments.model or Path(arguments.hypotheses).stem
        captions, speed = read_hypotheses(arguments.hypotheses), None
    else:
        captioner, options = load_captioner(arguments)
        name = captioner.name
        search = {**captioner.decoding, **{k: v for k, v in options.items() if k != "generator"}}
        unused = () if search.get("method", "beam") == "beam" else ("beam_size", *WEIGHTS)
        about["decoding"] = {name: value for name, value in search.items() if name not in unused}
        captions = predict(captioner, dataset, arguments.split, batch_size=arguments.batch_size, **options)
        failed, speed = captions.failed, round(len(captions) / max(captions.seconds, 1e-9), 2)
        references = {image: references[image] for image in captions}
    if arguments.predictions:
        write_hypotheses(arguments.predictions, captions)
    print(f"settings: {json.dumps(settings(**about))}", file=sys.stderr)
    scored = score_images(references, captions, arguments.metrics)
    result: dict[str, Any] = {"model": name, "dataset": dataset.name, "split": arguments.split, "images": len(captions)}
    result |= {**scored.scores(), "captions_per_second": speed}
    rows, intervals = {name: scored.scores()}, {}
    if arguments.intervals:
        from helpers.metrics import bootstrap

        intervals = {name: bootstrap(scored, seed=arguments.seed)}
        result["intervals"] = intervals[name]
    if arguments.diversity:
        from helpers.metrics import diversity

        seen = dataset.captions("train") if "train" in dataset.splits() else None
        result["diversity"] = diversity(captions, seen)
    if arguments.baselines:
        more = baselines(dataset, arguments.split, captioner and captioner.encoder, arguments.metrics)
        result["baselines"] = more
        rows |= more
    sets = {name: dict(captions)}
    if arguments.clipscore:
        seen = clip_means(arguments.clipscore, dataset, references, captions)
        result |= seen
        rows[name] |= seen
    if arguments.against:
        from helpers.metrics import compare

        other, theirs = Path(arguments.against).stem, read_hypotheses(arguments.against)
        other = f"{other} (other)" if other in rows else other
        sets[other] = {image: theirs[image] for image in captions if image in theirs}
        second = score_images(references, sets[other], arguments.metrics)
        rows[other] = second.scores()
        result["against"] = {"model": other, **compare(second, scored, seed=arguments.seed)}
    if arguments.page:
        from helpers.error_browser import browse, browser_page

        metric = "CIDEr" if len(captions) >= MIN_IMAGES_FOR_CIDER else "ROUGE-L"
        paths = {image: dataset.path(image) for image in captions}
        browser_page(arguments.page, browse(references, sets, metric), paths, metric)
    if arguments.table:
        save_table(arguments.table, rows, intervals)
    print(json.dumps(result) if arguments.json else markdown(rows, intervals))
    for metric, test in result.get("against", {}).items() if not arguments.json else ():
        if metric != "model":
            change = f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]"
            print(f"{metric}: {name} less {result['against']['model']} {change}, p = {test['p']:.3f}")
    for image, reason in failed.items():
        print(reason if image in reason else f"{image}: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(failed) + len(captions)} images could not be read.", file=sys.stderr)
    return 1 if failed else 0


def load_captioner(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Returns the captioner and its decoding options, with everything random seeded."""
    import torch

    from helpers.captioner import Captioner

    device = pick_device(arguments.device)
    torch.manual_seed(arguments.seed)
    return Captioner.load(arguments.model, device=device), decoding_options(vars(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and runs it. Returns the exit status, 2 when the model or the data cannot be used."""
    p = parser()
    arguments = p.parse_args(argv)
    if clash(vars(arguments)):
        p.error(CLASH)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        return run(arguments)
    except CaptioningError as error:
        print(f"helpers.evaluate: error: {error}", file=sys.stderr)
        return 2


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


if __name__ == "__main__":
    sys.exit(main())
