"""What a stage of training is made of: its settings, objective, parameters, schedule and history."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helpers.files import CaptioningError, atomic_write, pick_device, save_tensors, unknown_name

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

    from helpers.trunks import fast_bf16

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


class Average:
    """A running mean of the weights (Polyak and Juditsky 1992; exponential, with the warm-up of Tan and Le 2019).

    What is measured and kept is the mean; what is trained is not touched by it. With decay 0 it does nothing.
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

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the mean into the model for the length of a block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.values:
                kept = parameter.detach().clone()
                parameter.copy_(self.values[name])
                self.values[name] = kept


def save_state(
    path: Path, model: nn.Module, optimizer=None, average: Average | None = None, state: dict | None = None
) -> None:
    """Writes a model, and for resuming its optimiser, average and counters, whole or not at all."""
    tensors: dict[str, Tensor] = {f"model.{n}": v for n, v in unique_tensors(model).items()}
    if optimizer is not None:
        for number, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{n}": v for n, v in values.items() if isinstance(v, Tensor)}
    if average is not None:
        tensors |= {f"average.{n}": v for n, v in average.values.items()}
    save_tensors(path, tensors, {"state": json.dumps(state or {})})


def load_state(path: Path, model: nn.Module, optimizer=None, average: Average | None = None) -> dict:
    """Reads what `save_state` wrote into the model (and the rest, where given). Returns the counters."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise CaptioningError(
            f"Cannot read the training state {path}: {error}. Delete it to start this stage again."
        ) from error
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    wrong = [name for name, value in weights.items() if shapes.get(name) != value.shape]
    wrong += [name for name in unique_tensors(model) if name not in weights]
    if wrong:
        raise CaptioningError(f"{path} belongs to another model: {wrong[:3]} do not fit. Choose another output folder.")
    model.load_state_dict(weights, strict=False)
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


def load_mean(paths: Sequence[Path], model: nn.Module) -> None:
    """Reads the mean of several files' weights into the model, a "model soup" (Wortsman et al. 2022).

    It is of use where each went on from the same weights: then the mean lies in the same valley.
    """
    soup: dict[str, Tensor] = {}
    for path in paths:
        load_state(path, model)
        for name, value in unique_tensors(model).items():
            if value.is_floating_point():
                soup[name] = soup.get(name, 0.0) + value.double() / len(paths)
            else:
                soup[name] = value.clone()
    kinds = {name: value.dtype for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.to(kinds[name]) for name, value in soup.items()}, strict=False)


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the model's tensors without second names of the same one (tied weights), which safetensors refuses."""
    seen, out = set(), {}
    for name, value in model.state_dict().items():
        key = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
        if key not in seen:
            seen.add(key)
            out[name] = value
    return out
EXPLODED = 10  # times the loss of a model that guesses evenly among all words; a healthy one starts at about once that
MAX_REWARD = 11  # CIDEr-D up to 10 and BLEU up to 1: a self-critical loss is as many times a log-probability
OVERFLOWS = 25  # in a row: the scale of an fp16 loss halves at each, and 2^16 is where it starts


class Watch:
    """Looks at every loss and every gradient of a stage.

    Raises CaptioningError, with the step, the batch and the last good checkpoint, when the loss is not finite or far
    beyond what any sensible model has, or when a gradient is not finite. In fp16 an overflow is no fault: the step is
    skipped and the loss scaled down (Micikevicius et al. 2018, section 3.2), unless that goes on and on.
    """

    def __init__(self, objective: str, words: int, scaled: bool, last: Path | None):
        self.limit = EXPLODED * math.log(max(words, 3)) * (MAX_REWARD if objective == "self_critical" else 1)
        self.scaled, self.last, self.overflows = scaled, last, 0

    def loss(self, mean: Tensor, step: int, epoch: int, images: Sequence[str]) -> None:
        """Takes the loss per token. `step` counts the steps done, `epoch` the epochs done."""
        value = float(mean.detach())
        if not math.isfinite(value):
            self._stop(f"The loss is {value}", step, epoch, images)
        if abs(value) > self.limit:
            what = f"The loss has exploded: it is {value:.4g} per word, above {self.limit:.4g},"
            self._stop(what, step, epoch, images)

    def gradients(self, norm: Tensor | None, step: int, epoch: int, images: Sequence[str]) -> None:
        """Takes the norm of all gradients, before the optimiser uses them."""
        if norm is None or math.isfinite(float(norm)):
            self.overflows = 0
            return
        self.overflows += 1
        if not self.scaled:
            self._stop(f"The loss is a number, but its gradient is {float(norm)}", step, epoch, images)
        if self.overflows > OVERFLOWS:
            self._stop(f"fp16 overflowed {self.overflows} times in a row", step, epoch, images)

    def _stop(self, what: str, step: int, epoch: int, images: Sequence[str]) -> None:
        good = "No epoch had been completed, so there is no checkpoint."
        if self.last is not None and self.last.exists():
            good = f"The last good checkpoint is {self.last}."
        raise CaptioningError(
            f"{what} at step {step + 1} (epoch {epoch + 1}), in the batch of {', '.join(images[:4])}, … . "
            f"Training stopped before the weights were changed. {good} Lower the learning rate or clip, or switch "
            "mixed precision off."
        )
