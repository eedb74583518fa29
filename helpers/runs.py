"""From a training configuration to everything that the loop needs.

A configuration is a JSON object:

    name         of the captioner
    dataset      {"name": "flickr8k", "data_dir": "..."}: arguments of `load_dataset`
    encoder      a name for `load_encoder`;  features: "grid", "pooled" or "embedding";  flip: also mirrored images
    crops        how many views by random windows of the training images to add, see `helpers.augment`; 0 by default
    tune_encoder   true, or {"drop_path": 0.1}: the second half of an EfficientNet-Lite or of pocket-clip learns with
                 the captioner, at the rate of each stage times its "encoder_rate"; see `helpers.tuned_encoder`
    inference_features   what the checkpoint reads later, such as "grid+mirror"; by default what it was trained on
    model        {"class": "ShowAttendTell", ...options of that class}
    vocabulary   {"min_count": 4}, for the CNN-LSTMs
    stages       list of stages, see `helpers.training.STAGE_DEFAULTS`
    mean_of_stages   numbers of stages, such as [2, 3], the mean of whose weights is kept instead of the last stage's
    start_from   a checkpoint (name or folder) to fine-tune instead of starting anew; with "vocabulary" a CNN-LSTM
                 learns the new words as well (see helpers/own_data.py)
    decoding     the options that the checkpoint will caption with
    seed, output (folder), mixed_precision ("no", "bf16", "fp16")
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from helpers import tuned_encoder
from helpers.devices import pick_device
from helpers.errors import CaptioningError, unknown_name
from helpers.files import cache_dir
from helpers.images import shown

KEYS = {
    "name", "dataset", "encoder", "features", "flip", "crops", "model", "vocabulary", "stages", "start_from",
    "decoding", "seed", "output", "mixed_precision", "inference_features", "mean_of_stages",
    "tune_encoder",
}  # fmt: skip


def prepare(config: dict):
    """Returns the `helpers.training.Run` that the configuration describes: data read, images encoded, model built."""
    from helpers.training import Run, seed_everything

    check(config)
    dataset = load_data(config["dataset"])
    train, dev = dataset.references("train"), dataset.references("dev")
    if not train or not dev:
        raise CaptioningError(
            f"Training needs images in the splits train and dev; {dataset.name} has {dataset.splits()}."
        )
    kind, flip, crops = config.get("features", "grid"), config.get("flip", False), config.get("crops", 0)
    tuning = tuned_encoder.tuning(config)
    views = image_views(dataset, config["encoder"], "stem" if tuning else kind, flip, crops)
    tell(dataset, getattr(views[0], "failed", {}))
    seed_everything(config.get("seed", 0))
    trunk = None
    if config.get("start_from"):
        from helpers.captioner import load_checkpoint
        from helpers.own_data import check_fit, grow_vocabulary

        model, known = load_checkpoint(config["start_from"])
        check_fit(config, known)
        if tuning:
            trunk = tuned_encoder.trunk_to_tune(config, known)
        if "vocabulary" in config and known["tokenizer"] == "vocabulary.json":
            grow_vocabulary(model, [c for captions in train.values() for c in captions], **config["vocabulary"])
    else:
        read = views[0]
        if tuning:
            trunk = tuned_encoder.trunk_to_tune(config)
            read = tuned_encoder.TailFeatures(trunk, read, kind)
        model = new_model(config, [caption for captions in train.values() for caption in captions], read, list(train))
        if tuning:
            tuned_encoder.steady(model)
    if tuning:
        model = tuned_encoder.TailAndCaptioner(trunk, model, kind, **tuning)
    folder = Path(config.get("output") or cache_dir() / "runs" / config["name"])
    return Run(model, train, dev, views, folder, config.get("seed", 0))


def tell(dataset, failed: dict[str, str]) -> None:
    """Prints to standard error what the reader mended or left out, and the images that could not be read."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    for line in (*dataset.notes, *(f"{shown(name)} is left out: {reason}" for name, reason in failed.items())):
        print(f"{dataset.name}: {line}", file=sys.stderr)


def check(config: dict) -> None:
    """Raises CaptioningError on a key that is missing or not known."""
    for key in config:
        if key not in KEYS:
            raise unknown_name("configuration key", key, KEYS)
    for key in ("name", "dataset", "encoder", "stages"):
        if key not in config:
            raise CaptioningError(f"The training configuration has no {key!r}; see the top of helpers/runs.py.")
    mean, last = config.get("mean_of_stages"), len(config["stages"])
    if mean is not None and not (isinstance(mean, list) and mean and all(n in range(1, last + 1) for n in mean)):
        raise CaptioningError(f"mean_of_stages should be a list of stages from 1 to {last}, not {mean!r}.")
    tuned_encoder.tuning(config)


def load_data(options: dict):
    """Returns the Dataset that `options` name, "shards" included. In a launched job the first process fetches it."""
    from accelerate import PartialState

    with PartialState().main_process_first():
        if options.get("name") == "shards":
            from helpers.shards import read_shards

            return read_shards(**{key: value for key, value in options.items() if key != "name"})
        from helpers.datasets import load_dataset

        return load_dataset(**options)


def features_of(encoder, dataset, kind: str, flip: bool = False):
    """Returns the cached features of all images with a train or dev split, from files or from tar shards."""
    if hasattr(dataset, "shards"):
        from helpers.shards import shard_features

        return shard_features(encoder, dataset, kind, flip=flip)
    from helpers.features import cache_features

    paths = {image: dataset.path(image) for split in ("train", "dev") for image in dataset.images(split)}
    return cache_features(encoder, paths, kind, flip=flip)


def image_views(dataset, encoder_name: str, kind: str, flip: bool, crops: int = 0) -> list:
    """Returns the cached features of all images with a train or dev split, plain ones first.

    With `flip` also those of their mirror images; then `crops` views of the training images by random windows.
    """
    from helpers.encoders import load_encoder

    encoder = load_encoder(encoder_name, pick_device())
    views = [features_of(encoder, dataset, kind, mirror) for mirror in ([False, True] if flip else [False])]
    if crops:
        from accelerate import PartialState

        from helpers.augment import crop_views

        if hasattr(dataset, "shards"):
            raise CaptioningError("Views by crops need a dataset of image files; set crops to 0 for shards.")
        paths = {image: dataset.path(image) for split in ("train", "dev") for image in dataset.images(split)}
        with PartialState().main_process_first():
            views += crop_views(encoder, paths, dataset.images("train"), kind, crops)
    return views


def new_model(config: dict, captions: list[str], features, images: list[str]):
    """Returns an untrained model with its tokenizer, and with the features' statistics measured on training images.

    `features[names]` is what the model will read, [len(names), R, D] or [len(names), D].
    """
    from helpers.models import build_model
    from helpers.text import Vocabulary

    options = {key: value for key, value in config["model"].items() if key != "class"}
    generator = torch.Generator().manual_seed(0)
    sample = features[[images[i] for i in torch.randperm(len(images), generator=generator)[:1000].tolist()]]
    width = sample.shape[-1]
    if config["model"]["class"] == "ClipCap":
        model = build_model("ClipCap", {"feature_width": width, **options})
    else:
        vocabulary = Vocabulary.build(captions, **config.get("vocabulary", {}))
        model = build_model(
            config["model"]["class"], {"vocabulary_size": len(vocabulary), "feature_width": width, **options}
        )
        model.tokenizer, model.end_id = vocabulary, vocabulary.end_id
    if model.config.get("standardise", True):
        model.standardise.fit(sample)
    return model
