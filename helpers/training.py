"""The one training loop: teacher forcing, then self-critical training, for every captioner.

    python -m helpers.training CONFIG.json
    accelerate launch -m helpers.training CONFIG.json        # several processes or machines

A stage goes epoch by epoch. After each, everything needed to go on is written, so a killed run resumes with the same
losses as one that was never killed.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from helpers import encoders as tuned_encoder
from helpers.decoding import decode
from helpers.files import (
    CaptioningError,
    atomic_write,
    cache_dir,
    command,
    only_one,
    pick_device,
    read_json,
    unknown_name,
    write_json,
)
from helpers.images import shown
from helpers.loop import (
    STAGE_DEFAULTS,
    Average,
    Watch,
    _merit,
    _schedule,
    load_mean,
    load_state,
    make_accelerator,
    make_optimizer,
    parameter_groups,
    save_state,
    seed_everything,
    stage_settings,
    write_history,
)
from helpers.losses import CrossEntropy, make_objective
from helpers.text import SPECIALS, CaptionBatches, Vocabulary, normalise

__all__ = ["STAGE_DEFAULTS", "Run", "make_accelerator", "parameter_groups", "run_stage", "seed_everything",
           "stage_settings", "train", "validate", "write_history"]


@dataclass
class Run:
    """What training needs from its surroundings, already built: see `helpers.runs.prepare`."""

    model: nn.Module
    train: dict[str, list[str]]  # references of the training split
    dev: dict[str, list[str]]
    views: list  # Features of the training (and dev) images; the first is the plain one
    folder: Path
    seed: int = 0
    history: list[dict] = field(default_factory=list)


def run_stage(
    run: Run,
    stage: dict,
    number: int = 1,
    accelerator=None,
    callback: Callable[[dict], None] | None = None,
    progress: bool | None = None,
) -> list[dict]:
    """Trains `run.model` through one stage and leaves the best weights in it. Returns the history, a row an epoch.

    Columns: stage, epoch, step, learning_rate, train_loss (per token), dev_loss (teacher-forced), and on dev BLEU-4 and
    CIDEr of captions decoded freely; reward in a self-critical stage; seconds. Also written as `history.csv`.
    Raises CaptioningError when the loss stops being a number or explodes, see `helpers.stability`.
    """
    settings = stage_settings(stage)
    accelerator = accelerator or make_accelerator()
    # a second run in this folder waits and then finds the epochs done
    with only_one(run.folder) if accelerator.is_main_process else contextlib.nullcontext():
        return _run_stage(run, settings, number, accelerator, callback, progress)


def _run_stage(run: Run, settings: dict, number: int, accelerator, callback, progress: bool | None) -> list[dict]:
    from tqdm import tqdm

    last, best = (run.folder / f"stage{number}-{kind}.safetensors" for kind in ("last", "best"))
    data = _batches(run, settings, accelerator)
    objective = make_objective(run, settings)
    if hasattr(run.model, "tune"):
        run.model.tune(settings["encoder_rate"] > 0)
    groups = parameter_groups(run.model, settings["weight_decay"], settings["encoder_rate"])
    optimizer = make_optimizer(groups, settings["learning_rate"], accelerator.device)
    model, optimizer = accelerator.prepare(run.model, optimizer)
    average = Average(run.model, settings["average"])
    state = (
        load_state(last, run.model, optimizer, average)
        if last.exists()
        else {"epoch": 0, "step": 0, "history": [], "scale": 1.0}
    )
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    watch = Watch(settings["objective"], len(run.model.tokenizer), accelerator.scaler is not None, last)
    total = settings["epochs"] * len(data)
    for epoch in range(state["epoch"], settings["epochs"]):
        if state.get("stopped"):
            break
        began, losses, tokens, logged = time.perf_counter(), 0.0, 0, []
        seed_everything(run.seed * 1000 + number * 100 + epoch + 10_000_000 * accelerator.process_index)
        bar = tqdm(
            data.epoch(epoch),
            total=len(data),
            desc=f"stage {number} epoch {epoch + 1}",
            leave=False,
            disable=_hidden(progress, accelerator),
        )
        run.model.train()
        for batch in bar:
            batch = batch.to(accelerator.device)
            rate = settings["learning_rate"] * state["scale"] * _schedule(settings, state["step"], total)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            with accelerator.autocast():
                loss, count, figures = objective(model, batch)
            mean = loss / count.clamp(min=1)
            watch.loss(mean, state["step"], epoch, batch.images)
            optimizer.zero_grad()
            accelerator.backward(mean * batch.share)  # shares make several processes' mean that of the whole batch
            norm = accelerator.clip_grad_norm_(model.parameters(), settings["clip"])
            watch.gradients(norm, state["step"], epoch, batch.images)
            optimizer.step()
            state["step"] += 1
            average.update(state["step"])
            losses, tokens = losses + float(loss.detach()), tokens + int(count)
            logged.append(figures)
            bar.set_postfix_str(f"loss {float(mean.detach()):.3f}")
        row = {
            "stage": number, "epoch": epoch + 1, "step": state["step"], "learning_rate": rate,
            "train_loss": _global_mean(accelerator, losses, tokens),
            **{name: float(np.mean([f[name] for f in logged])) for name in (logged[0] if logged else {})},
        }  # fmt: skip
        with average.applied():
            row |= validate(run, settings, accelerator)
            row["seconds"] = time.perf_counter() - began
            state["history"].append(row)
            values = [_merit(r, settings["choose_by"]) for r in state["history"]]
            if values[-1] >= max(values) and accelerator.is_main_process:
                save_state(best, run.model)
        since_best = len(values) - 1 - int(np.argmax(values))
        if settings["schedule"] == "plateau" and since_best and since_best % 2 == 0:
            state["scale"] *= 0.5
        state["epoch"], state["stopped"] = epoch + 1, bool(settings["patience"] and since_best >= settings["patience"])
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        if accelerator.is_main_process:
            save_state(last, run.model, optimizer, average, state)
            write_history(run.folder / "history.csv", run.history + state["history"])
        accelerator.wait_for_everyone()
        if callback and accelerator.is_main_process:
            callback(row)
    load_state(best, run.model)
    run.history += state["history"]
    if accelerator.is_main_process:  # once more, for a run that was killed between its last state and its history
        write_history(run.folder / "history.csv", run.history)
    return state["history"]


def validate(run: Run, settings: dict, accelerator) -> dict[str, float]:
    """Returns the teacher-forced loss on dev, and BLEU-4 and CIDEr of freely decoded captions, side by side.

    With too few dev images for CIDEr there is only BLEU-4 beside the loss. Several processes share the images; each
    returns the same, so that they agree on when to stop.
    """
    from accelerate.utils import gather_object

    from helpers.metrics import MIN_IMAGES_FOR_CIDER, evaluate

    model = run.model.eval()
    chosen = list(run.dev)[: settings["validate_images"] or None]
    references = {image: run.dev[image] for image in chosen}
    data = CaptionBatches(
        references, run.views[:1], model.tokenizer, start_id=model.start_id, end_id=model.end_id, images_per_batch=64,
        process=(accelerator.process_index, accelerator.num_processes),
    )  # fmt: skip
    plain, losses, tokens, captions = CrossEntropy(), 0.0, 0, {}
    with torch.inference_mode(), accelerator.autocast():
        for batch in data.in_order():
            batch = batch.to(accelerator.device)
            loss, count, _ = plain(model, batch)
            losses, tokens = losses + float(loss), tokens + int(count)
            groups = decode(model, batch.features, **settings["decoding"])
            captions |= {
                image: model.tokenizer.decode(group[0].tokens)
                for image, group in zip(batch.images, groups, strict=True)
            }
    everybodys = dict(gather_object(list(captions.items())))
    captions = {image: everybodys[image] for image in data.images}
    metrics = ("BLEU", "CIDEr") if len(captions) >= MIN_IMAGES_FOR_CIDER else ("BLEU",)
    scores = evaluate({image: references[image] for image in captions}, captions, metrics=metrics)
    row = {"dev_loss": _global_mean(accelerator, losses, tokens), "BLEU-4": scores["BLEU-4"]}
    return row | ({"CIDEr": scores["CIDEr"]} if "CIDEr" in scores else {})


def _batches(run: Run, settings: dict, accelerator) -> CaptionBatches:
    return CaptionBatches(
        run.train, run.views, run.model.tokenizer, start_id=run.model.start_id, end_id=run.model.end_id,
        images_per_batch=settings["images_per_batch"], captions_per_image=settings["captions_per_image"],
        seed=run.seed, process=(accelerator.process_index, accelerator.num_processes),
    )  # fmt: skip


def _hidden(progress: bool | None, accelerator) -> bool | None:
    """tqdm's `disable`: None hides the bar where nobody watches; another process than the first never shows one."""
    return True if not accelerator.is_main_process else (None if progress is None else not progress)


def _global_mean(accelerator, losses: float, tokens: int) -> float:
    pair = torch.tensor([losses, float(tokens)], device=accelerator.device, dtype=torch.float64)
    pair = accelerator.reduce(pair, "sum")
    return float(pair[0] / pair[1].clamp(min=1))


def train(
    config: dict | str | Path, callback: Callable[[dict], None] | None = None, progress: bool | None = None
) -> Run:
    """Trains what a configuration (a dict, or a JSON file) describes, stage by stage, and writes the checkpoint.

    Returns the Run, with the best model of the last stage (or the mean of some) and the history of all. The keys:
    see `helpers.runs`.
    """
    from helpers.captioner import save_checkpoint

    config = dict(read_json(config)) if isinstance(config, (str, Path)) else dict(config)
    accelerator = make_accelerator(config.get("mixed_precision"))
    run = prepare(config)
    for number, stage in enumerate(config["stages"], 1):
        run_stage(run, stage, number, accelerator, callback, progress)
    if config.get("mean_of_stages"):
        load_mean([run.folder / f"stage{number}-best.safetensors" for number in config["mean_of_stages"]], run.model)
    if accelerator.is_main_process:
        save_checkpoint(run.folder, run.model, config)
        from helpers.plots import training_curves

        with atomic_write(run.folder / "history.png") as temporary:
            training_curves(run.history).savefig(temporary, format="png", bbox_inches="tight")
    return run


@command
def main(arguments: list[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m helpers.training", description="Train a captioner from a JSON configuration."
    )
    parser.add_argument(
        "config",
        help="the configuration file; those of the shipped checkpoints are in data/checkpoints/*/training.json",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    train(
        options.config, callback=lambda row: print(json.dumps(row), flush=True), progress=not options.quiet or None
    )
KEYS = {
    "name", "dataset", "encoder", "features", "flip", "crops", "model", "vocabulary", "stages", "start_from",
    "decoding", "seed", "output", "mixed_precision", "inference_features", "mean_of_stages",
    "tune_encoder",
}  # fmt: skip


def prepare(config: dict):
    """Returns the `helpers.training.Run` that the configuration describes: data read, images encoded, model built."""
    from helpers.loop import seed_everything

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
            from configs.cluster.shards import read_shards

            return read_shards(**{key: value for key, value in options.items() if key != "name"})
        from helpers.datasets import load_dataset

        return load_dataset(**options)


def features_of(encoder, dataset, kind: str, flip: bool = False):
    """Returns the cached features of all images with a train or dev split, from files or from tar shards."""
    if hasattr(dataset, "shards"):
        from configs.cluster.shards import shard_features

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

        from helpers.features import crop_views

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
    from helpers.captioner import build_model
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
# What a few hundred captions can bear: small steps, a short warm-up, and an end when dev stops improving.
STAGE: dict[str, Any] = {
    "epochs": 12, "images_per_batch": 16, "learning_rate": 3e-4, "warmup_steps": 10, "patience": 3,
    "decoding": {"method": "greedy", "max_length": 24},
}  # fmt: skip


def fine_tuning(
    checkpoint: str | Path, dataset: dict, output: str | Path, *, min_count: int = 2, **stage: Any
) -> dict[str, Any]:
    """Returns the configuration for `helpers.training.train` that goes on from `checkpoint` on another dataset.

    checkpoint: a shipped name or a folder; encoder, kind of features and decoding are taken from it. dataset: arguments
    of `load_dataset`, such as {"name": "folder", "data_dir": "my_photos"}. output: the folder of the new checkpoint,
    whose name it takes. min_count: how often a new word has to occur before a CNN-LSTM learns it. `stage` overrides
    STAGE. Raises CaptioningError when there is no such checkpoint.
    """
    from helpers import encoders as tuned_encoder
    from helpers.captioner import checkpoint_folder
    from helpers.trunks import MIRROR

    known = read_json(checkpoint_folder(checkpoint) / "config.json")
    kind = known["encoder"]["kind"]
    config = {
        "name": Path(output).name,
        "start_from": str(checkpoint),
        "dataset": dataset,
        "encoder": known["encoder"]["name"],
        "features": kind.removesuffix(MIRROR),
        "inference_features": kind,
        # what people say of the photos of the first training tells nothing of these
        "decoding": {name: value for name, value in known.get("decoding", {}).items() if name != "consensus_weight"},
        "stages": [{**STAGE, **stage}],
        "output": str(output),
    }
    if tuned_encoder.FILE in known["sha256"]:
        config["tune_encoder"] = True
    return config | ({"vocabulary": {"min_count": min_count}} if known["tokenizer"] == "vocabulary.json" else {})


def check_fit(config: dict, known: dict) -> None:
    """Raises CaptioningError when a training configuration would feed a checkpoint other features than it knows."""
    from helpers import encoders as tuned_encoder
    from helpers.trunks import MIRROR

    if tuned_encoder.FILE in known.get("sha256", {}) and not config.get("tune_encoder"):
        raise CaptioningError(
            f"{config['start_from']} was trained with an encoder of its own. Set tune_encoder to true; in a stage with "
            "an encoder_rate of 0 it stays as it is."
        )
    kind = known["encoder"]["kind"].removesuffix(MIRROR)
    for what, wanted, given in (
        ("the encoder", known["encoder"]["name"], config["encoder"]),
        ("features of kind", kind, config.get("features", "grid")),
    ):
        if wanted != given:
            raise CaptioningError(
                f"{config['start_from']} was trained with {what} {wanted!r}, and the configuration asks for {given!r}. "
                "Keep what the checkpoint knows; helpers.own_data.fine_tuning writes such a configuration."
            )


@torch.no_grad()
def grow_vocabulary(model: nn.Module, captions: Iterable[str], min_count: int = 2, seed: int = 0) -> list[str]:
    """Adds the words of `captions` that a CNN-LSTM lacks to its vocabulary and weights; returns them.

    Words seen at least `min_count` times, most frequent first. A new word begins as a vector like the others, drawn
    from their mean and deviation, and as likely as the average word. Known words keep their numbers, so everything that
    the model has learned stays. Give it training captions alone.
    """
    known: Vocabulary = model.tokenizer
    counts = Counter(word for caption in captions for word in normalise(caption) if word not in known)
    new = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    if not new:
        return []
    old_embed, old_output = model.embed, model.output
    words = len(known) + len(new)
    embed = nn.Embedding(words, old_embed.embedding_dim)
    output = nn.Linear(old_output.in_features, words)
    generator = torch.Generator().manual_seed(seed)
    for grown, old in ((embed.weight, old_embed.weight), (output.weight, old_output.weight)):
        old = old.cpu()
        drawn = torch.randn((len(new), old.shape[1]), generator=generator)
        grown.copy_(torch.cat([old, old[len(SPECIALS) :].mean(0) + drawn * old[len(SPECIALS) :].std(0)]))
    bias = old_output.bias.cpu()
    output.bias.copy_(torch.cat([bias, bias[len(SPECIALS) :].mean().expand(len(new))]))
    model.embed, model.output = embed.to(old_embed.weight.device), output.to(old_output.weight.device)
    model.config["vocabulary_size"] = words
    model.tokenizer = Vocabulary([*known.words[len(SPECIALS) :], *new])
    return new


def fine_tuning_main(arguments: list[str] | None = None) -> int:
    """Prints the report of a folder and writes the configuration. Returns 1 when the folder cannot be used."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(prog="python -m helpers.own_data", description="Prepare fine-tuning on a folder.")
    parser.add_argument("folder", help="photos, and a CSV with the columns image, caption")
    parser.add_argument("--start_from", default="cnn-lstm", help="a captioner in data/checkpoints/, or its folder")
    parser.add_argument("--output", required=True, help="the folder of the new checkpoint")
    options = parser.parse_args(arguments)
    from helpers.datasets import dataset_report, load_dataset

    try:
        data = {"name": "folder", "data_dir": options.folder}
        print(dataset_report(load_dataset(**data)))
        config = fine_tuning(options.start_from, data, options.output)
    except CaptioningError as error:
        print(error, file=sys.stderr)
        return 1
    path = Path(options.output).with_suffix(".json")
    write_json(path, config)
    print(f"\nWritten: {path}. Train with: python -m helpers.training {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
