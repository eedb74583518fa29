"""What a training run writes to go on later: weights, optimiser moments and counters, as safetensors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.errors import CaptioningError
from helpers.files import save_tensors


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
