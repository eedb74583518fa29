"""What stops a training run whose numbers are worth nothing any more, before weights or a checkpoint are spoilt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from helpers.errors import CaptioningError

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
