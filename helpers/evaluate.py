"""A captioner on a dataset split: predictions, scores, speed, and what the scores are to be compared with.

    python -m helpers.evaluate --dataset flickr8k --data_dir DIR --split dev --model NAME --json

prints one JSON object: model, dataset, split, images, the scores, captions_per_second (of decoding, with the images
encoded before). Captions that a file holds are scored by `helpers.metrics`.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from helpers.captioner import Captioner
from helpers.datasets import Dataset, load_dataset
from helpers.encoders import Encoder, cache_features
from helpers.files import ROOT, CaptioningError, atomic_write, command, pick_device, read_json
from helpers.metrics import METRICS, bootstrap, evaluate, score_images, table, tokenize


class Predictions(dict[str, str]):
    """Image -> caption. `failed`: image -> why it has none; `seconds`: the time of decoding. Notebook 08, section 9."""

    failed: dict[str, str]
    seconds: float


def predict(
    captioner: Captioner, dataset: Dataset, split: str, *, batch_size: int = 64, progress: bool = True, **options: Any
) -> Predictions:
    """Returns the caption of each image of a split, in order; an image that cannot be read is in `.failed` instead.

    Images are encoded once and cached. `options` override the captioner's decoding settings, see
    `helpers.decoding.decode`. Raises CaptioningError on a split without images. Notebook 08, section 9.
    """
    paths = {image: dataset.path(image) for image in dataset.images(split)}
    features = cache_features(captioner.encoder, paths, captioner.feature_kind, progress=progress)
    readable = [image for image in paths if image in features]
    captions = Predictions()
    began = time.perf_counter()
    for start in range(0, len(readable), batch_size):
        batch = readable[start : start + batch_size]
        groups = captioner.decode(features[batch], **options)
        for image, group in zip(batch, groups, strict=True):
            captions[image] = captioner.model.tokenizer.decode(group[0].tokens)
    captions.failed, captions.seconds = dict(features.failed), time.perf_counter() - began
    return captions


def diversity(captions: Mapping[str, str], train_captions: Iterable[str] | None = None) -> dict[str, float]:
    """Returns how varied the captions of a model are (image -> caption), on the words of the tokeniser.

    - "length": mean words a caption; "vocabulary": how many different words are used at all;
    - "different": share of captions that are not the same as an earlier one;
    - "distinct-2": different pairs of neighbouring words over all pairs (Li et al. 2016, section 5);
    - "unseen": share of captions that no training caption equals word for word, if `train_captions` are given.

    Raises CaptioningError when there are no captions. Notebook 08, section 11.
    """
    if not captions:
        raise CaptioningError("There are no captions to measure.")
    said = tokenize(captions.values())
    pairs = [pair for words in said for pair in zip(words, words[1:], strict=False)]
    texts = [" ".join(words) for words in said]
    result = {
        "length": float(np.mean([len(words) for words in said])),
        "vocabulary": float(len({word for words in said for word in words})),
        "different": len(set(texts)) / len(texts),
        "distinct-2": len(set(pairs)) / max(1, len(pairs)),
    }
    if train_captions is not None:
        seen = {" ".join(words) for words in tokenize(train_captions)}
        result["unseen"] = sum(text not in seen for text in texts) / len(texts)
    return result


@cache
def _thing_words() -> tuple[dict[str, str], re.Pattern]:
    """Returns name -> thing of data/objects.json, and what finds the names in a caption, the longest first."""
    things = {word: words[0] for words in read_json(ROOT / "data" / "objects.json")["things"] for word in words}
    names = "|".join(sorted(things, key=len, reverse=True))  # a hot dog is no dog
    return things, re.compile(rf"(?<!\S)(?:{names})(?!\S)")


def things(caption: str) -> set[str]:
    """Returns which of the things in data/objects.json a caption names. Notebook 08, section 12."""
    of, names = _thing_words()
    return {of[word] for word in names.findall(" ".join(tokenize([caption])[0]))}


def objects(references: Mapping[str, Sequence[str]], hypotheses: Mapping[str, str]) -> dict[str, float]:
    """Returns whether captions name what is there, and only that (Rohrbach et al. 2018, section 3.1).

    "things": how many things at least two people named, an image and a thing each; "recall": which share of these the
    captions name; "CHAIR-i": of all things that captions name, the share that nobody named; "CHAIR-s": the share of
    captions with such a thing. Arguments as for `helpers.metrics.evaluate`. Notebook 08, section 12.
    """
    there = found = named = false = captions = 0
    for image, caption in hypotheses.items():
        people = Counter(thing for reference in references[image] for thing in things(reference))
        agreed, said = {thing for thing, count in people.items() if count > 1}, things(caption)
        there += len(agreed)
        found += len(agreed & said)
        named += len(said)
        false += len(said - people.keys())
        captions += bool(said - people.keys())
    rates = {"recall": found / max(1, there), "CHAIR-i": false / max(1, named), "CHAIR-s": captions / len(hypotheses)}
    return {"things": there, **rates}


def most_frequent_caption(train_captions: Sequence[str]) -> str:
    """Returns the training caption that occurs most often, by its words; the earliest of several.

    Notebook 01, section 10.
    """
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
    `images`. Of the neighbours' captions the one that shares most with the others is taken. Notebook 01, section 10.
    """
    names = list(train_references)
    shapes, width = (train_features.shape, features.shape), train_features.shape[-1]
    if shapes != ((len(names), width), (len(images), width)):
        raise CaptioningError(f"Features of {len(names)} and {len(images)} images should be [images, width] with one "
                              f"width, not {shapes}. Average a grid over its regions first.")
    known, asked = (F.normalize(torch.as_tensor(values).float()).numpy() for values in (train_features, features))
    out = {}
    for image, vector in zip(images, asked, strict=True):
        near = np.argsort(-(known @ vector), kind="stable")[:neighbours]
        out[image] = consensus([caption for row in near for caption in train_references[names[row]]])
    return out


def consensus(captions: Sequence[str]) -> str:
    """Returns the caption that shares most words and word pairs with the others (mean F1); the first of equals.

    Notebook 01, section 10.
    """
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
    Raises CaptioningError when no image has two captions. Notebook 08, section 8.
    """
    several = {image: list(captions) for image, captions in references.items() if len(captions) > 1}
    if not several:
        raise CaptioningError("One person against the others needs images with at least two captions.")
    rounds = []
    for person in range(min(map(len, several.values()))):
        others = {image: captions[:person] + captions[person + 1 :] for image, captions in several.items()}
        rounds.append(evaluate(others, {image: captions[person] for image, captions in several.items()}, metrics))
    every = {metric: [scores[metric] for scores in rounds] for metric in rounds[0]}
    return {metric: None if None in scores else float(np.mean(scores)) for metric, scores in every.items()}


def baselines(dataset: Dataset, split: str, encoder: Encoder, metrics: Sequence[str] | None = None) -> dict[str, dict]:
    """Returns the rows that stand in every table: baseline -> metric -> score on a split. Notebook 01, section 10.

    Raises CaptioningError when the dataset has no training split.
    """
    references, vectors = {}, {}
    for name in ("train", split):
        captions = dataset.references(name)
        features = cache_features(encoder, {image: dataset.path(image) for image in captions}, "pooled")
        references[name] = {image: captions[image] for image in features.names}
        vectors[name] = features[features.names].numpy()
    answers, usual = references[split], most_frequent_caption(dataset.captions("train"))
    near = nearest_captions(vectors["train"], references["train"], vectors[split], list(answers))
    return {
        "most frequent caption": evaluate(answers, dict.fromkeys(answers, usual), metrics),
        "nearest neighbour's caption": evaluate(answers, near, metrics),
        "one person against the others": leave_one_out(answers, metrics),
    }


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks and prints the result. Returns 0, or 1 when images could not be read.

    Notebook 08, section 9.
    """
    p = argparse.ArgumentParser(prog="python -m helpers.evaluate", description="Score a captioner on a dataset split.")
    p.add_argument("--dataset", default="pocket", help="pocket (default), flickr8k, flickr30k, coco or folder")
    p.add_argument("--data_dir", metavar="DIR", help="where the dataset is; a folder may hold only some splits")
    p.add_argument("--allow_missing", action="store_true", help="leave out images that are not there")
    p.add_argument("--split", default="dev", help="train, dev (default) or test")
    p.add_argument("--model", metavar="NAME", help="a captioner in data/checkpoints/, or its folder")
    p.add_argument("--metrics", nargs="+", metavar="NAME", help=f"of {', '.join(METRICS)}")
    p.add_argument("--predictions", metavar="FILE", help="save the captions as image<TAB>caption lines")
    p.add_argument("--intervals", action="store_true", help="add 95 %% bootstrap intervals over images")
    p.add_argument("--diversity", action="store_true", help="add how varied the captions are")
    p.add_argument("--objects", action="store_true", help="add whether they name what is there, and only that")
    p.add_argument("--baselines", action="store_true", help="add the baselines' rows (needs the training split)")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    p.add_argument("--batch_size", type=int, default=64, help="images decoded at once")
    p.add_argument("--seed", type=int, default=0, help="makes sampling repeatable")
    p.add_argument("--decoding", type=json.loads, default={}, metavar="JSON",
                   help="""decoding settings other than the checkpoint's, such as '{"beam_size": 3}'""")  # fmt: skip
    arguments = p.parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    missing, split = "skip" if arguments.allow_missing else "raise", arguments.split
    dataset = load_dataset(arguments.dataset, arguments.data_dir, missing=missing)
    references = dataset.references(split)
    for note in dataset.notes:
        print(f"{dataset.name}: {note}", file=sys.stderr)
    captioner = Captioner.load(arguments.model, device=pick_device(arguments.device))
    options = {"generator": torch.Generator().manual_seed(arguments.seed), **arguments.decoding}
    shown = json.dumps({**captioner.decoding, **arguments.decoding})
    print(f"settings: split {split}, seed {arguments.seed}, decoding {shown}", file=sys.stderr)
    captions = predict(captioner, dataset, split, batch_size=arguments.batch_size, **options)
    references = {image: references[image] for image in captions}
    if arguments.predictions:
        lines = (f"{' '.join(image.split())}\t{' '.join(text.split())}\n" for image, text in captions.items())
        with atomic_write(arguments.predictions) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
    scored = score_images(references, captions, arguments.metrics)
    speed = round(len(captions) / max(captions.seconds, 1e-9), 2)
    result: dict[str, Any] = {"model": captioner.name, "dataset": dataset.name, "split": split, "images": len(captions)}
    result |= {**scored.scores(), "captions_per_second": speed}
    if arguments.intervals:
        result["intervals"] = bootstrap(scored, seed=arguments.seed)
    if arguments.diversity:
        result["diversity"] = diversity(captions, dataset.captions("train") if "train" in dataset.splits() else None)
    if arguments.objects:
        result["objects"] = objects(references, captions)
    if arguments.baselines:
        result["baselines"] = baselines(dataset, split, captioner.encoder, arguments.metrics)
    if arguments.json:
        print(json.dumps(result))
    else:
        rows = {captioner.name: scored.scores(), **result.get("baselines", {})}
        print(table(rows, {captioner.name: result.get("intervals", {})}).to_string())
        for name in ("diversity", "objects"):
            if name in result:
                print(table({name: result[name]}).to_string())
    for image, reason in captions.failed.items():
        print(reason if image in reason else f"{image}: {reason}", file=sys.stderr)
    if captions.failed:
        count = len(captions.failed)
        print(f"{count} of {count + len(captions)} images could not be read.", file=sys.stderr)
    return 1 if captions.failed else 0


if __name__ == "__main__":
    sys.exit(main())
