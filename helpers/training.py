"""Training a captioner: what a configuration names is loaded, built, and taken through its stages by `loop.fit`.

    python -m helpers.training CONFIG.json
    accelerate launch -m helpers.training CONFIG.json        # several processes or machines
    python -m helpers.training --start_from cnn-lstm --data_dir my_photos --output data/runs/mine     # fine-tuning

The configurations of the shipped captioners are data/checkpoints/*/training.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers import loop
from helpers.captioner import build_model, checkpoint_folder, load_checkpoint, save_checkpoint
from helpers.cnn_lstm import grow_vocabulary
from helpers.datasets import Dataset, load_dataset
from helpers.decoding import decode
from helpers.encoders import cache_features, load_encoder
from helpers.files import CaptioningError, atomic_write, cache_dir, command, pick_device, read_json, unknown_name
from helpers.images import shown
from helpers.losses import CrossEntropy, SelfCritical
from helpers.metrics import MIN_IMAGES_FOR_CIDER, evaluate
from helpers.plots import training_curves
from helpers.text import CaptionBatches, Vocabulary
from helpers.trunks import MIRROR

STAGE = {
    **loop.SETTINGS,
    "choose_by": "CIDEr",
    "objective": "cross_entropy",  # or "self_critical"
    "images_per_batch": 32,
    "captions_per_image": 5,
    "label_smoothing": 0.0,
    "samples": 5,  # an image, in a self-critical stage
    "temperature": 1.0,  # of the policy in a self-critical stage; below 1 it samples nearer to what beam search finds
    "decoding": {"method": "beam", "beam_size": 3, "length_penalty": 0.7},
    "validate_images": 0,  # how many dev images are captioned each epoch; 0 is all
}
KEYS = {
    "name": "of the new checkpoint",
    "dataset": "arguments of load_dataset",
    "encoder": "a name for load_encoder",
    "features": "their kind: grid (the default), pooled or embedding",
    "flip": "whether mirror images are shown as well",
    "model": "its class and options",
    "vocabulary": "arguments of Vocabulary.build or, with start_from, of grow_vocabulary",
    "stages": "a list of settings over STAGE",
    "start_from": "a checkpoint to go on from",
    "decoding": "what the checkpoint does by default",
    "inference_features": "the kind that the checkpoint asks for, such as grid+mirror",
    "seed": "a number; 0 by default",
    "output": "the folder; by default runs/NAME in the cache",
    "mixed_precision": "no, bf16 or fp16; by default what the hardware does well",
}
# What a few hundred captions can bear: small steps, a short warm-up, and an end when dev stops improving.
FINE_TUNING: dict[str, Any] = {
    "epochs": 12, "images_per_batch": 16, "learning_rate": 3e-4, "warmup_steps": 10, "patience": 3,
    "decoding": {"method": "greedy", "max_length": 24},
}  # fmt: skip


def stage_settings(stage: dict) -> dict:
    """Returns the stage's settings over STAGE. Raises CaptioningError on another setting. Notebook 02, section 9."""
    for name in stage:
        if name not in STAGE:
            raise unknown_name("training setting", name, STAGE)
    return {**STAGE, **stage}


@dataclass
class Run:
    """What training needs, already built. `prepare` makes it of a configuration. Notebook 02, section 9."""

    model: nn.Module
    train: dict[str, list[str]]  # references of the training split
    dev: dict[str, list[str]]
    views: list  # Features of the training (and dev) images; the first is the plain one
    folder: Path
    seed: int = 0
    made_from: dict = field(default_factory=dict)  # what else the result depends on
    history: list[dict] = field(default_factory=list)


def run_stage(
    run: Run,
    stage: dict,
    number: int = 1,
    accelerator=None,
    callback: Callable[[dict], None] | None = None,
    progress: bool | None = None,
    objective: Callable | None = None,
) -> list[dict]:
    """Trains `run.model` through one stage by `loop.fit` and leaves the best weights in it. Returns its history.

    `objective`: a loss of your own in place of the one that the stage names; see `losses.CrossEntropy` for its form.

    Columns: stage, epoch, step, learning_rate, train_loss (per token), dev_loss (teacher-forced), and on dev BLEU-4 and
    CIDEr of captions decoded freely; reward in a self-critical stage; seconds. Notebook 02, section 9.
    """
    settings, accelerator = stage_settings(stage), accelerator or loop.make_accelerator()
    batches = _batches(run, run.train, run.views, settings, (accelerator.process_index, accelerator.num_processes))
    if objective is not None:
        settings["objective"] = type(objective).__name__  # a state knows what it was made with
    elif settings["objective"] == "cross_entropy":
        objective = CrossEntropy(settings["label_smoothing"])
    elif settings["objective"] == "self_critical":
        objective = SelfCritical(run.train, settings["samples"], settings["temperature"])
    else:
        raise unknown_name("objective", settings["objective"], ["cross_entropy", "self_critical"])
    history = loop.fit(
        run.model,
        objective,
        batches,
        lambda: validate(run, settings, accelerator),
        settings,
        run.folder,
        stage=number,
        seed=run.seed,
        made_from={"train": _summary(run.train), "dev": _summary(run.dev), "model": run.model.config, **run.made_from},
        earlier=run.history,
        accelerator=accelerator,
        callback=callback,
        progress=progress,
    )
    run.history += history
    return history


def validate(run: Run, settings: dict, accelerator) -> dict[str, float]:
    """Returns the teacher-forced loss on dev, and BLEU-4 and CIDEr of freely decoded captions, side by side.

    With too few dev images for CIDEr there is only BLEU-4 beside the loss. Each of several processes works it all out,
    so that they agree on when to stop. Notebook 02, section 10.
    """
    model = run.model.eval()
    references = {image: run.dev[image] for image in list(run.dev)[: settings["validate_images"] or None]}
    data = _batches(run, references, run.views[:1], {**settings, "images_per_batch": 64}, (0, 1))
    objective, losses, tokens, captions = CrossEntropy(), 0.0, 0, {}
    with torch.inference_mode(), accelerator.autocast():
        for batch in data.in_order():
            batch = batch.to(accelerator.device)
            loss, count, _ = objective(model, batch)
            losses, tokens = losses + float(loss), tokens + int(count)
            groups = decode(model, batch.features, **settings["decoding"])
            for image, group in zip(batch.images, groups, strict=True):
                captions[image] = model.tokenizer.decode(group[0].tokens)
    metrics = ("BLEU", "CIDEr") if len(captions) >= MIN_IMAGES_FOR_CIDER else ("BLEU",)
    scores = evaluate({image: references[image] for image in captions}, captions, metrics=metrics)
    row = {"dev_loss": losses / max(tokens, 1)}
    return row | {name: scores[name] for name in ("BLEU-4", "CIDEr") if name in scores}


def _batches(run: Run, references: dict, views: list, settings: dict, share: tuple[int, int]) -> CaptionBatches:
    return CaptionBatches(
        references, views, run.model.tokenizer, start_id=run.model.start_id, end_id=run.model.end_id,
        images_per_batch=settings["images_per_batch"], captions_per_image=settings["captions_per_image"],
        seed=run.seed, process=share,
    )  # fmt: skip


def _summary(references: dict[str, list[str]]) -> str:
    digest = hashlib.sha256(json.dumps(references).encode()).hexdigest()[:12]
    return f"{len(references)} images, {sum(map(len, references.values()))} captions, {digest}"


def train(
    config: dict | str | Path,
    callback: Callable[[dict], None] | None = None,
    progress: bool | None = None,
    restart: bool = False,
    **prepared: Any,
) -> Run:
    """Trains what a configuration (a dict with KEYS, or a JSON file) describes, and writes the checkpoint.

    Returns the Run, with the best model of the last stage and the history of all. A run that was killed goes on;
    `restart` begins anew. `prepared`: see `prepare`. Notebook 09, section 7.
    """
    config = dict(read_json(config)) if isinstance(config, (str, Path)) else dict(config)
    accelerator = loop.make_accelerator(config.get("mixed_precision"))
    run = prepare(config, **prepared)
    if restart and accelerator.is_main_process:
        for state in run.folder.glob("stage*-*.safetensors"):
            state.unlink()
    accelerator.wait_for_everyone()
    for number, stage in enumerate(config["stages"], 1):
        run_stage(run, stage, number, accelerator, callback, progress)
    if accelerator.is_main_process:
        save_checkpoint(run.folder, run.model, config)
        with atomic_write(run.folder / "history.png") as temporary:
            training_curves(run.history).savefig(temporary, format="png", bbox_inches="tight")
    return run


def check(config: dict) -> None:
    """Raises CaptioningError on a key that is missing or not known, and where a checkpoint would be fed other features
    than it knows. Notebook 09, section 7."""
    for key in config:
        if key not in KEYS:
            raise unknown_name("configuration key", key, KEYS)
    for key in ("name", "dataset", "encoder", "stages"):
        if key not in config:
            raise CaptioningError(f"The training configuration has no {key!r}: {KEYS[key]}.")
    if config.get("start_from"):
        known = read_json(checkpoint_folder(config["start_from"]) / "config.json")["encoder"]
        wanted = known["name"], known["kind"].removesuffix(MIRROR)
        given = config["encoder"], config.get("features", "grid")
        if wanted != given:
            raise CaptioningError(f"{config['start_from']} was trained with encoder and features {wanted}, and the "
                                  f"configuration asks for {given}. Keep what the checkpoint knows.")


def prepare(config: dict, dataset: Dataset | None = None, encode: Callable = cache_features) -> Run:
    """Returns the Run that the configuration describes: data read, images encoded, model built.

    `dataset` and `encode` stand in for the dataset that is named and for `cache_features`, as configs/cluster/shards.py
    does. Prints to standard error what the reader mended or left out. Notebook 09, section 7.
    """
    from accelerate import PartialState

    check(config)
    if dataset is None:
        with PartialState().main_process_first():  # which fetches what the others then find
            dataset = load_dataset(**config["dataset"])
    train, dev = dataset.references("train"), dataset.references("dev")
    if not train or not dev:
        raise CaptioningError(f"Training needs the splits train and dev; {dataset.name} has {dataset.splits()}.")
    encoder, kind = load_encoder(config["encoder"], pick_device()), config.get("features", "grid")
    paths = {image: dataset.path(image) for image in (*train, *dev)}
    views = [encode(encoder, paths, kind)]
    if config.get("flip"):
        views.append(encode(encoder, paths, kind, flip=True))
    if PartialState().is_main_process:
        failed = getattr(views[0], "failed", {}).items()
        for line in (*dataset.notes, *(f"{shown(name)} is left out: {reason}" for name, reason in failed)):
            print(f"{dataset.name}: {line}", file=sys.stderr)
    loop.seed_everything(config.get("seed", 0))
    captions = [caption for group in train.values() for caption in group]
    made_from = {"dataset": dataset.fingerprint(), "encoder": f"{config['encoder']} {encoder.fingerprint}"}
    made_from |= {name: config.get(name) for name in ("features", "flip", "vocabulary", "start_from")}
    if config.get("start_from"):
        model, known = load_checkpoint(config["start_from"])
        made_from["start_from"] = known["sha256"]["model.safetensors"]
        if "vocabulary" in config and known["tokenizer"] == "vocabulary.json":
            grow_vocabulary(model, captions, **config["vocabulary"])
    else:
        model = new_model(config, captions, views[0], list(train))
    folder = Path(config.get("output") or cache_dir() / "runs" / config["name"])
    return Run(model, train, dev, views, folder, config.get("seed", 0), made_from)


def new_model(config: dict, captions: list[str], features, images: list[str]) -> nn.Module:
    """Returns an untrained model with its tokenizer, and with the features' statistics measured on training images.

    `features[names]` is what the model will read, [len(names), R, D] or [len(names), D]. Notebook 02, section 4.
    """
    options = {key: value for key, value in config["model"].items() if key != "class"}
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    sample = features[[images[i] for i in order[:1000].tolist()]]
    if config["model"]["class"] == "ClipCap":
        model = build_model("ClipCap", {"feature_width": sample.shape[-1], **options})
    else:
        vocabulary = Vocabulary.build(captions, **config.get("vocabulary", {}))
        options = {"vocabulary_size": len(vocabulary), "feature_width": sample.shape[-1], **options}
        model = build_model(config["model"]["class"], options)
        model.tokenizer, model.end_id = vocabulary, vocabulary.end_id
    if model.config.get("standardise", True):
        model.standardise.fit(sample[:, :-1] if model.config.get("tags") else sample)  # the last row is no region
    return model


def fine_tuning(
    checkpoint: str | Path, dataset: dict, output: str | Path, *, min_count: int = 2, **stage: Any
) -> dict[str, Any]:
    """Returns the configuration for `train` that goes on from `checkpoint` on another dataset.

    checkpoint: a shipped name or a folder; encoder, kind of features and decoding are taken from it. dataset: arguments
    of `load_dataset`, such as {"name": "folder", "data_dir": "my_photos"}. output: the folder of the new checkpoint,
    whose name it takes. min_count: how often a new word has to occur before a CNN-LSTM learns it. `stage` overrides
    FINE_TUNING. Raises CaptioningError when there is no such checkpoint. Notebook 09, section 7.
    """
    known = read_json(checkpoint_folder(checkpoint) / "config.json")
    kind = known["encoder"]["kind"]
    config = {
        "name": Path(output).name,
        "start_from": str(checkpoint),
        "dataset": dataset,
        "encoder": known["encoder"]["name"],
        "features": kind.removesuffix(MIRROR),
        "inference_features": kind,
        "decoding": known.get("decoding", {}),
        "stages": [{**FINE_TUNING, **stage}],
        "output": str(output),
    }
    return config | ({"vocabulary": {"min_count": min_count}} if known["tokenizer"] == "vocabulary.json" else {})


@command
def main(arguments: list[str] | None = None) -> None:
    """Trains a captioner, or fine-tunes one on a folder of photos. Notebook 09, section 11."""
    parser = argparse.ArgumentParser(prog="python -m helpers.training", description="Train a captioner.")
    parser.add_argument("config", nargs="?", help="a JSON configuration; or fine-tune with the next three options")
    parser.add_argument("--start_from", help="a captioner in data/checkpoints/, or its folder")
    parser.add_argument("--data_dir", help="photos, and a CSV with the columns image, caption")
    parser.add_argument("--output", help="the folder of the new checkpoint")
    parser.add_argument("--restart", action="store_true", help="begin anew where an earlier run would go on")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    own = (options.start_from, options.data_dir, options.output)
    if bool(options.config) == any(own) or any(own) != all(own):
        parser.error("give a configuration, or --start_from, --data_dir and --output together")
    own = {"name": "folder", "data_dir": options.data_dir}
    config = options.config or fine_tuning(options.start_from, own, options.output)
    show = lambda row: print(json.dumps(row), flush=True)  # noqa: E731
    train(config, show, progress=not options.quiet or None, restart=options.restart)


if __name__ == "__main__":
    raise SystemExit(main())
