"""The device to run on."""

from __future__ import annotations

from helpers.errors import CaptioningError


def pick_device(name: str = "auto") -> str:
    """Returns the device `name`; "auto" is the GPU where there is one. Raises CaptioningError if it cannot be used."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a PyTorch without CUDA raises AssertionError
        raise CaptioningError(f"Device {name!r} cannot be used here. Use auto or cpu.") from error
    return name
