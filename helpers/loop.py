"""The one training loop, `fit`, and what it is made of: settings, schedule, running mean, saved state.

Captioners (`helpers.training`), PocketCLIP and PocketGPT2 (`configs.pocket.pretraining`) all go through it.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers.files import CaptioningError, atomic_write, fast_bf16, only_one, pick_device, save_tensors

SETTINGS = {
    "epochs": 10,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "beta2": 0.999,  # of AdamW
    "warmup_steps": 200,
    "clip": 1.0,
    "average": 0.0,  # decay of the running mean of the weights that is measured and kept; 0 is off
    "patience": 0,  # epochs without improvement before the stage ends; 0 is off
    "choose_by": "dev_loss",  # the column whose best epoch is kept; "" keeps the last epoch
}


def fit(
    model: nn.Module,
    loss: Callable,
    batches,
    validate: Callable[[], dict[str, float]],
    settings: dict,
    folder: Path,
    *,
    stage: int = 1,
    seed: int = 0,
    groups: list[dict] | None = None,
    made_from: dict | None = None,
    earlier: Sequence[dict] = (),
    accelerator=None,
    callback: Callable[[dict], None] | None = None,
    progress: bool | None = None,
) -> list[dict]:
    """Trains `model` and leaves the weights of its best epoch in it. Returns the history, a row an epoch.

    loss(model, batch) -> (loss summed over tokens, number of tokens, {column: number}). batches: `epoch(n)` yields the
    batches of an epoch, each with `to(device)`, `images` and `share`; `len` counts them. validate() -> {column: number}
    of the model as it is then. settings: over SETTINGS. groups: see `parameter_groups`. earlier: the
    history's rows of the stages before.

    After each epoch everything needed to go on is written to `folder`, so a killed run resumes with the same losses as
    one that was never killed, and `history.csv`. made_from: what else, beside settings and seed, the result depends on.
    Raises CaptioningError when the folder holds a state that was made from something else, or when the loss stops being
    a number. Notebook 02, section 9.
    """
    import pandas as pd  # not at the top: whoever only captions need not wait for it

    settings, accelerator = {**SETTINGS, **settings}, accelerator or make_accelerator()
    made_from = json.loads(json.dumps({**settings, "seed": seed, **(made_from or {})}))
    last, best = (Path(folder) / f"stage{stage}-{kind}.safetensors" for kind in ("last", "best"))
    # a second run in this folder waits and then finds the epochs done
    with only_one(Path(folder)) if accelerator.is_main_process else contextlib.nullcontext():
        optimizer = torch.optim.AdamW(
            groups or parameter_groups(model, settings["weight_decay"]),
            lr=settings["learning_rate"],
            betas=(0.9, settings["beta2"]),
            fused=accelerator.device.type == "cpu",  # a third of the time; on a GPU it would hide a skipped fp16 step
        )
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        mean = Average(model, settings["average"])
        state = {"epoch": 0, "step": 0, "stopped": False, "history": [], "made_from": made_from}
        if last.exists():
            state = load_state(last, model, optimizer, mean, made_from)
        if accelerator.scaler is not None and "scaler" in state:
            accelerator.scaler.load_state_dict(state["scaler"])
        total = settings["epochs"] * len(batches)
        # one process shows a bar, and only where somebody watches
        hidden = True if not accelerator.is_main_process else None if progress is None else not progress
        if state["epoch"] >= settings["epochs"] or state["stopped"]:
            done = f"{state['epoch']} of {settings['epochs']} epochs"
            accelerator.print(f"{last}: already trained, {done}.", file=sys.stderr)
        while state["epoch"] < settings["epochs"] and not state["stopped"]:
            began, epoch, losses, tokens, logged = time.perf_counter(), state["epoch"], 0.0, 0, []
            seed_everything(seed * 1000 + stage * 100 + epoch + 10_000_000 * accelerator.process_index)
            model.train()
            label = f"stage {stage} epoch {epoch + 1}"
            for batch in tqdm(batches.epoch(epoch), label, len(batches), leave=False, disable=hidden):
                batch = batch.to(accelerator.device)
                rate = settings["learning_rate"] * schedule(settings, state["step"], total)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("factor", 1.0)
                with accelerator.autocast():
                    summed, count, figures = loss(wrapped, batch)
                each = summed / count.clamp(min=1)
                value = each.item()
                if not math.isfinite(value):
                    _stop(f"The loss is {value}", state, batch.images, last)
                optimizer.zero_grad()
                accelerator.backward(each * batch.share)  # shares make several processes' mean that of the whole batch
                norm = accelerator.clip_grad_norm_(wrapped.parameters(), settings["clip"])
                # In fp16 an overflow is no fault: the step is left out and the loss scaled down (Micikevicius et al.
                # 2018, section 3.2), unless that has gone on and on.
                scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 0.0
                if norm is not None and not math.isfinite(norm) and scale < 1:
                    _stop(f"The loss is a number, but its gradient is {float(norm)}", state, batch.images, last)
                optimizer.step()
                state["step"] += 1
                mean.update(state["step"])
                losses, tokens = losses + float(summed.detach()), tokens + int(count)
                logged.append(figures)
            row = {"stage": stage, "epoch": epoch + 1, "step": state["step"], "learning_rate": rate}
            sums = accelerator.reduce(torch.tensor([losses, tokens], dtype=torch.float64, device=accelerator.device))
            row["train_loss"] = float(sums[0] / sums[1].clamp(min=1))
            row |= {name: float(np.mean([figures[name] for figures in logged])) for name in logged[0]}
            mean.swap()
            row |= validate()
            row["seconds"] = time.perf_counter() - began
            state["history"].append(row)
            merits = [merit(row, settings["choose_by"]) for row in state["history"]]
            if merits[-1] >= max(merits) and accelerator.is_main_process:
                save_state(best, model)
            mean.swap()
            since_best = len(merits) - 1 - int(np.argmax(merits))
            state["epoch"] = epoch + 1
            state["stopped"] = bool(settings["patience"] and since_best >= settings["patience"])
            if accelerator.scaler is not None:
                state["scaler"] = accelerator.scaler.state_dict()
            if accelerator.is_main_process:
                with atomic_write(last.parent / "history.csv") as temporary:
                    pd.DataFrame([*earlier, *state["history"]]).to_csv(temporary, index=False)
                save_state(last, model, optimizer, mean, state)
            accelerator.wait_for_everyone()
            if callback and accelerator.is_main_process:
                callback(row)
        load_state(best, model)
    return state["history"]


def make_accelerator(mixed_precision: str | None = None):
    """Returns accelerate's Accelerator; bf16 where the hardware multiplies it, unless asked otherwise.

    Raises CaptioningError on a precision that cannot be used here. Notebook 09, section 13.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import AutocastKwargs

    device = pick_device()
    mixed_precision = mixed_precision or ("bf16" if fast_bf16(device) else "no")
    if mixed_precision == "fp16" and device == "cpu":
        raise CaptioningError("mixed_precision 'fp16' cannot be used here: it needs a GPU. Use 'no'.")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # accelerate keeps one precision a process; a notebook may ask for another
    # Autocast keeps what it cast. Before PyTorch 2.14 training then goes on with weights of the step before, or with
    # those that were cast for decoding, without gradients.
    fresh = AutocastKwargs(cache_enabled=False)
    try:
        return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[fresh])
    except ValueError as error:  # a precision that does not exist, or not on this hardware
        AcceleratorState._reset_state()
        raise CaptioningError(f"mixed_precision {mixed_precision!r} cannot be used here: {error} Use 'no'.") from error


def parameter_groups(model: nn.Module, weight_decay: float, factors: dict[nn.Parameter, float] | None = None) -> list:
    """Returns AdamW's groups: matrices decay; biases, norms and whatever is one-dimensional do not.

    factors: parameter -> what the learning rate is multiplied by for it, where that is not 1. Raises CaptioningError
    when every parameter is frozen. Notebook 02, section 9.
    """
    groups: dict[tuple[float, float], list] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = ((factors or {}).get(parameter, 1.0), weight_decay if parameter.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise CaptioningError("Every parameter of this model is frozen; there is nothing to train.")
    return [{"params": groups[key], "factor": key[0], "weight_decay": key[1]} for key in sorted(groups, reverse=True)]


def schedule(settings: dict, step: int, total: int) -> float:
    """Returns the factor on the learning rate: a linear warm-up, and a cosine to 0. Notebook 02, section 9."""
    warm = min(1.0, (step + 1) / max(1, settings["warmup_steps"]))
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))


def merit(row: dict, choose_by: str) -> float:
    """Returns what epochs are chosen by, higher is better. Without CIDEr (too few dev images) it is BLEU-4.

    Notebook 02, section 9.
    """
    if not choose_by:
        return row["epoch"]
    if choose_by == "dev_loss":
        return -row["dev_loss"]
    return row[choose_by] if choose_by in row else row["BLEU-4"]


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch, so that an epoch does the same whether or not the run was killed before it.

    Notebook 02, section 4.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Average:
    """A running mean of the weights (Polyak and Juditsky 1992; exponential, with the warm-up of Tan and Le 2019).

    What is measured and kept is the mean; what is trained is not touched by it. With decay 0 it does nothing.
    Notebook 02, section 9.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.values = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.model.named_parameters():
            if name in self.values:
                self.values[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Puts the mean into the model and keeps what was there, or puts that back."""
        for name, parameter in self.model.named_parameters():
            if name in self.values:
                kept = parameter.detach().clone()
                parameter.copy_(self.values[name])
                self.values[name] = kept


def _stop(what: str, state: dict, images: Sequence[str], last: Path) -> None:
    good = f"The last good checkpoint is {last}." if last.exists() else "No epoch had been completed before."
    raise CaptioningError(
        f"{what} at step {state['step'] + 1} (epoch {state['epoch'] + 1}), in the batch of {', '.join(images[:4])}, … "
        f"Training stopped before the weights were changed. {good} Lower the learning rate or clip, or switch mixed "
        "precision off."
    )


def save_state(path: Path, model: nn.Module, optimizer=None, average=None, state: dict | None = None) -> None:
    """Writes a model, and for resuming its optimiser, average and counters, whole or not at all.

    Notebook 02, section 9.
    """
    tensors: dict[str, Tensor] = {f"model.{n}": v for n, v in model.state_dict().items()}
    if optimizer is not None:
        for number, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{n}": v for n, v in values.items() if isinstance(v, Tensor)}
    if average is not None:
        tensors |= {f"average.{n}": v for n, v in average.values.items()}
    save_tensors(path, tensors, {"state": json.dumps(state or {})})


def load_state(path: Path, model: nn.Module, optimizer=None, average=None, made_from: dict | None = None) -> dict:
    """Reads what `save_state` wrote into the model (and the rest, where given). Returns the counters.

    Raises CaptioningError when the file cannot be read, or was not made from `made_from`.
    Notebook 02, section 9.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise CaptioningError(f"Cannot read the training state {path}: {error}. Delete it to start anew.") from error
    old = state.get("made_from", {})
    names = [name for name in {**made_from, **old} if old.get(name) != made_from.get(name)] if made_from else []
    if names:
        what = "; ".join(f"{name} was {old.get(name)!r} and is {made_from.get(name)!r}" for name in names)
        raise CaptioningError(
            f"{path} was made from something else: {what}. Change it back, choose another output folder, or begin anew "
            "with --restart."
        )
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CaptioningError(f"{path} belongs to another model. Choose another output folder. ({error})") from error
    if optimizer is not None:
        saved = optimizer.state_dict()
        saved["state"] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                saved["state"].setdefault(int(number), {})[key] = value
        optimizer.load_state_dict(saved)
    if average is not None:
        average.values = {n: tensors[f"average.{n}"].clone().to(v.device) for n, v in average.values.items()}
    return state
