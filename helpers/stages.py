"""What a stage of training is made of: its settings, objective, parameters, schedule and history."""

from __future__ import annotations

import csv
import math
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.devices import pick_device
from helpers.errors import CaptioningError, unknown_name
from helpers.files import atomic_write
from helpers.objectives import CrossEntropy

STAGE_DEFAULTS = {
    "objective": "cross_entropy",  # or "self_critical"
    "epochs": 10,
    "images_per_batch": 32,
    "captions_per_image": 5,
    "learning_rate": 1e-3,
    "encoder_rate": 0.1,  # factor on the learning rate of a tuned encoder's tail; 0 leaves the tail as it is
    "weight_decay": 0.01,
    "warmup_steps": 200,
    "schedule": "cosine",  # to 0 over all epochs; "plateau" halves it when dev stops improving; or "constant"
    "clip": 1.0,
    "label_smoothing": 0.0,
    "word_dropout": 0.0,
    "scheduled_sampling": 0.0,
    "average": 0.0,  # decay of the running mean of the weights that is measured and kept; 0 is off
    "patience": 0,  # epochs without improvement before the stage ends; 0 is off
    "choose_by": "CIDEr",
    "samples": 5,
    "temperature": 1.0,  # of the policy in a self-critical stage; below 1 it samples nearer to what beam search finds
    "bleu_weight": 0.0,
    "decoding": {"method": "beam", "beam_size": 3, "length_penalty": 0.7},
    "validate_images": 0,  # how many dev images are captioned each epoch; 0 is all
}


def stage_settings(stage: dict) -> dict:
    """Returns the stage's settings over the defaults. Raises CaptioningError on a setting that is not known."""
    for name in stage:
        if name not in STAGE_DEFAULTS:
            raise unknown_name("training setting", name, STAGE_DEFAULTS)
    return {**STAGE_DEFAULTS, **stage}


def make_accelerator(mixed_precision: str | None = None):
    """Returns accelerate's Accelerator; bf16 where the hardware multiplies it, unless asked otherwise."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import AutocastKwargs

    from helpers.encoders import fast_bf16

    device = pick_device()
    mixed_precision = mixed_precision or ("bf16" if fast_bf16(device) else "no")
    if mixed_precision == "fp16" and device == "cpu":
        print("fp16 needs a GPU: this run is in fp32.", file=sys.stderr)
        mixed_precision = "no"
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


def make_objective(run, settings: dict):
    """Returns the objective that the stage names, for a `helpers.training.Run`."""
    if settings["objective"] == "cross_entropy":
        names = ("label_smoothing", "word_dropout", "scheduled_sampling")
        unknown = getattr(run.model.tokenizer, "unknown_id", None)
        return CrossEntropy(**{name: settings[name] for name in names}, unknown_id=unknown)
    if settings["objective"] == "self_critical":
        from helpers.self_critical import SelfCritical

        names = ("samples", "temperature", "bleu_weight")
        return SelfCritical(run.train, **{name: settings[name] for name in names})
    raise unknown_name("objective", settings["objective"], ["cross_entropy", "self_critical"])


def parameter_groups(model: nn.Module, weight_decay: float, encoder_rate: float = 0.1) -> list[dict]:
    """Returns AdamW's groups: matrices decay; biases, norms and whatever is one-dimensional do not.

    Two groups, and two more for an encoder's tail that is tuned (`helpers.tuned_encoder`). Each has as "factor" what
    the learning rate is multiplied by.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise CaptioningError("Every parameter of this model is frozen; there is nothing to train.")
    in_tail = {id(p) for p in getattr(model, "tail_parameters", list)()}
    tail, rest = ([p for p in trained if (id(p) in in_tail) == inside] for inside in (True, False))
    return [
        {"params": params, "weight_decay": decay, "factor": factor}
        for part, factor in ((rest, 1.0), (tail, encoder_rate))
        for params, decay in (([p for p in part if p.ndim > 1], weight_decay), ([p for p in part if p.ndim <= 1], 0.0))
        if part
    ]


def make_optimizer(
    groups: list[dict], learning_rate: float, device: torch.device, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Returns AdamW. On a CPU its step is fused and takes a third of the time; with fp16 on a GPU a fused step would
    hide that it was skipped."""
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=device.type == "cpu")


def _merit(row: dict, choose_by: str) -> float:
    """Returns what epochs are chosen by: higher is better. Without CIDEr (too few dev images) it is BLEU-4."""
    if choose_by == "dev_loss":
        return -row["dev_loss"]
    return row[choose_by] if choose_by in row else row["BLEU-4"]


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch, so that an epoch does the same whether or not the run was killed before it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def write_history(path: Path, rows: list[dict]) -> None:
    """Writes the rows as CSV, whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _schedule(settings: dict, step: int, total: int) -> float:
    """Returns the factor on the learning rate: a linear warm-up, then the schedule."""
    warm = min(1.0, (step + 1) / max(1, settings["warmup_steps"]))
    if settings["schedule"] == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))
    if settings["schedule"] in ("constant", "plateau"):
        return warm
    raise unknown_name("schedule", settings["schedule"], ["cosine", "plateau", "constant"])
