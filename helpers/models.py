"""The captioner classes by name: the only ones that a configuration or a checkpoint may ask for."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from helpers.errors import CaptioningError, unknown_name

CLASSES = {"ShowAndTell": "helpers.cnn_lstm", "ShowAttendTell": "helpers.cnn_lstm", "ClipCap": "helpers.clipcap"}


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the captioner itself; in a job of several processes a wrapper that shares gradients stands around it."""
    return getattr(model, "module", model)


def model_class(name: str) -> type[nn.Module]:
    """Returns the class called `name`; its module is imported only now. Raises CaptioningError on another name."""
    if name not in CLASSES:
        raise unknown_name("model class", name, CLASSES)
    return getattr(import_module(CLASSES[name]), name)


def build_model(name: str, options: dict) -> nn.Module:
    """Returns a new model of class `name` with these options. Raises CaptioningError on options that do not fit it."""
    try:
        return model_class(name)(**options)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:  # RuntimeError: no memory for it
        raise CaptioningError(f"{name} cannot be built from these options: {error}") from error
