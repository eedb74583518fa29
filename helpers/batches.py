"""Training batches: a group of images, each with several of its captions, so that a picture is looked at once for all.

Shapes: B images, N = B * captions rows, R regions, D feature width, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.errors import CaptioningError
from helpers.text import IGNORE, teacher_forcing_batch


@dataclass
class Batch:
    images: list[str]
    features: Tensor  # [B, R, D] float32
    row: Tensor  # [N] which image each caption describes
    inputs: Tensor  # [N, T] what the model reads
    labels: Tensor  # [N, T] (one longer behind a prefix) what it should say; IGNORE where nothing is asked
    share: float = 1.0  # this process's part of the global batch's tokens, times the number of processes
    length: float | None = None  # tokens a caption in the global batch, where this is a part of one

    def to(self, device: torch.device | str) -> Batch:
        moved = [value.to(device) for value in (self.features, self.row, self.inputs, self.labels)]
        return Batch(self.images, *moved, self.share, self.length)

    @property
    def tokens(self) -> int:
        return int((self.labels != IGNORE).sum())


class CaptionBatches:
    """Batches of one split. Epoch `e` of seed `s` is the same on every machine and after every restart."""

    def __init__(
        self,
        references: dict[str, list[str]],
        views: Sequence,
        tokenizer,
        *,
        start_id: int | None,
        end_id: int,
        images_per_batch: int = 32,
        captions_per_image: int = 5,
        max_tokens: int = 30,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
    ):
        """`views`: one or more Features of the same images (plain, mirrored); each batch uses one at random.

        `process`: (number of this process, number of processes); each gets its slice of every batch.
        """
        self.images = [image for image in references if all(image in view for view in views)]
        if not self.images:
            raise CaptioningError(
                "No image has both captions and features; check that the split and the feature cache belong together."
            )
        self.encoded = {image: [tokenizer.encode(c)[:max_tokens] for c in references[image]] for image in self.images}
        self.views, self.start_id, self.end_id, self.seed = list(views), start_id, end_id, seed
        self.size, self.captions, self.process = images_per_batch, captions_per_image, process

    def __len__(self) -> int:
        return max(1, len(self.images) // self.size)

    def features(self, images: Sequence[str], view: int = 0) -> Tensor:
        """Returns features [B, R, D]; one vector an image becomes a grid of one region."""
        values = self.views[view][images]
        return values[:, None] if values.ndim == 2 else values

    def make(self, images: Sequence[str], captions: Sequence[Sequence[Sequence[int]]], view: int = 0) -> Batch:
        """Returns the batch of these images with these encoded captions."""
        flat = [caption for group in captions for caption in group]
        row = torch.tensor([i for i, group in enumerate(captions) for _ in group])
        inputs, labels = teacher_forcing_batch(flat, self.start_id, self.end_id)
        return Batch(list(images), self.features(images, view), row, inputs, labels)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields shuffled training batches; the last incomplete one is dropped unless it is the only one."""
        chance = random.Random(f"{self.seed} {epoch}")
        order = chance.sample(self.images, len(self.images))
        number, processes = self.process
        if (smallest := min(self.size, len(order))) < processes:
            raise CaptioningError(
                f"A batch of {smallest} images cannot be shared by {processes} processes; set images_per_batch, which "
                "counts the images of all processes together, higher."
            )
        for start in range(0, len(self) * self.size, self.size):
            images = order[start : start + self.size]
            captions = [chance.sample(c, min(self.captions, len(c))) for c in (self.encoded[image] for image in images)]
            view = chance.randrange(len(self.views))
            mine = slice(number, None, processes)
            batch = self.make(images[mine], captions[mine], view)
            total = sum(len(caption) + 1 for group in captions for caption in group)
            if processes > 1:
                batch.share = batch.tokens * processes / total
                batch.length = total / sum(len(group) for group in captions)
            yield batch

    def in_order(self) -> Iterator[Batch]:
        """Yields every image once with all its captions, for measuring; of several processes each gets its share."""
        number, processes = self.process
        mine = self.images[number::processes]
        every = [len(caption) + 1 for image in self.images for caption in self.encoded[image]]
        for start in range(0, len(mine), self.size):
            images = mine[start : start + self.size]
            batch = self.make(images, [self.encoded[image] for image in images])
            batch.length = sum(every) / len(every)  # so that the loss is the same however the images are shared
            yield batch
