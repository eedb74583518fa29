"""The one training loop: teacher forcing, then self-critical training, for every captioner.

    python -m helpers.training CONFIG.json
    accelerate launch -m helpers.training CONFIG.json        # several processes or machines

A stage goes epoch by epoch. After each, everything needed to go on is written, so a killed run resumes with the same
losses as one that was never killed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.batches import CaptionBatches
from helpers.decoding import decode
from helpers.errors import command
from helpers.files import atomic_write, read_json
from helpers.locks import only_one
from helpers.objectives import CrossEntropy
from helpers.stability import Watch
from helpers.stages import (
    STAGE_DEFAULTS,
    _merit,
    _schedule,
    make_accelerator,
    make_objective,
    make_optimizer,
    parameter_groups,
    seed_everything,
    stage_settings,
    write_history,
)
from helpers.training_state import Average, load_mean, load_state, save_state

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
    from helpers.runs import prepare

    config = dict(read_json(config)) if isinstance(config, (str, Path)) else dict(config)
    accelerator = make_accelerator(config.get("mixed_precision"))
    run = prepare(config)
    for number, stage in enumerate(config["stages"], 1):
        run_stage(run, stage, number, accelerator, callback, progress)
    if config.get("mean_of_stages"):
        load_mean([run.folder / f"stage{number}-best.safetensors" for number in config["mean_of_stages"]], run.model)
    if accelerator.is_main_process:
        save_checkpoint(run.folder, run.model, config)
        from helpers.model_plots import training_curves

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


if __name__ == "__main__":
    raise SystemExit(main())
