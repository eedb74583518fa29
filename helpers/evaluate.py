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
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from helpers.decoding_options import CLASH, add_options, clash, decoding_options
from helpers.devices import pick_device
from helpers.errors import CaptioningError
from helpers.metrics import METRICS, MIN_IMAGES_FOR_CIDER, ON_REQUEST, score_images
from helpers.rerank import FROZEN_KIND, WEIGHTS


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
    from helpers.baselines import baseline_rows

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
    from helpers.score_tables import markdown, read_hypotheses, save_table, write_hypotheses

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
        from helpers.significance import bootstrap

        intervals = {name: bootstrap(scored, seed=arguments.seed)}
        result["intervals"] = intervals[name]
    if arguments.diversity:
        from helpers.diversity import diversity

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
        from helpers.significance import compare

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


if __name__ == "__main__":
    sys.exit(main())
