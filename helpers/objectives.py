"""What a training stage minimises. An objective returns (summed loss, tokens, figures to log) of one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.models import unwrapped
from helpers.text import IGNORE


@dataclass
class CrossEntropy:
    """Teacher forcing: the model reads the true caption and is asked for its next word at every position.

    `label_smoothing` spreads that share of each label over all words (Szegedy et al. 2016, section 7).
    `word_dropout` hides that share of the words read behind `<unk>`, so that the picture has to be looked at.
    `scheduled_sampling` replaces that share of the words read by the model's own guesses (Bengio et al. 2015), made in
    a first pass without gradients, as for models that read all words at once (Mihaylova and Martins 2019).
    """

    label_smoothing: float = 0.0
    word_dropout: float = 0.0
    scheduled_sampling: float = 0.0
    unknown_id: int | None = None

    def __call__(self, model, batch) -> tuple[Tensor, Tensor, dict[str, float]]:
        inputs, start_id = batch.inputs, unwrapped(model).start_id
        if self.scheduled_sampling and model.training:
            inputs = self._mix(model, batch, inputs)
        if self.word_dropout and model.training and self.unknown_id is not None:
            hidden = torch.rand(inputs.shape, device=inputs.device) < self.word_dropout
            hidden &= inputs != (start_id if start_id is not None else -1)
            inputs = inputs.masked_fill(hidden, self.unknown_id)
        logits, attention = model(batch.features, inputs, batch.row)
        mask = batch.labels != IGNORE
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            batch.labels.flatten(),
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        tokens = mask.sum()
        # The extra loss is a mean over captions: each process's part of a batch counts by its captions, not its tokens.
        weight = tokens if batch.length is None else len(batch.labels) * batch.length
        return loss + unwrapped(model).extra_loss(attention, mask.float()) * weight, tokens, {}

    @torch.no_grad()
    def _mix(self, model, batch, inputs: Tensor) -> Tensor:
        logits, _ = model(batch.features, inputs, batch.row)
        offset = 1 if unwrapped(model).start_id is not None else 0  # position t of the logits predicts input t + offset
        guesses = (
            logits[:, : inputs.shape[1] - offset].argmax(-1) if offset else logits[:, : inputs.shape[1]].argmax(-1)
        )
        true = inputs[:, offset:]
        take = torch.rand(true.shape, device=true.device) < self.scheduled_sampling
        take &= batch.labels[:, : true.shape[1]] != IGNORE
        mixed = inputs.clone()
        mixed[:, offset:] = torch.where(take, guesses, true)
        return mixed
