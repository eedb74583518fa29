"""The feature cache: every image goes through the encoder once, however often it is used after.

A cache is one memory-mapped array and a list of names, in a folder whose name says which encoder, weights and images
it belongs to. A killed run goes on at the first batch that is missing; a second run in the same place waits for it.

Shapes: N images, R regions, D feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from helpers.encoders import Encoded, encode_batches
from helpers.files import CaptioningError, cache_dir, only_one, read_json, write_json
from helpers.trunks import Encoder


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
    place, grid = (root / _key(encoder, paths, k, flip) for k in (kind, "grid"))
    to_vectors = _from_grid(encoder, kind)
    with only_one(place):
        done = _progress(place)
        names = list(paths)[done["rows"] :]
        parts = [names[start : start + batch_size] for start in range(0, len(names), batch_size)]
        if to_vectors and _progress(grid)["rows"] == len(paths):
            source = _vectors(_read_features(grid, list(paths)), parts, to_vectors)
        else:
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
            np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape).flush()
        array = np.load(file, mmap_mode="r+")
        array[[done["rows"] + part.index(name) for name in good]] = values.half().numpy()
        array.flush()
    done["rows"] += len(part)
    done["failed"] |= failed
    write_json(place / "done.json", done)


def _progress(place: Path) -> dict:
    """Returns how many rows of a cache are written, and which of its images failed."""
    if (place / "done.json").exists() and (place / "features.npy").exists():
        return read_json(place / "done.json")
    return {"rows": 0, "failed": {}}


def _from_grid(encoder: Encoder, kind: str) -> Callable[[Tensor], Tensor] | None:
    """Returns what makes vectors of this kind of grids [B, R, D], which then need not be encoded again, if anything."""
    if kind == "pooled" and type(encoder).pooled is Encoder.pooled:
        return lambda grid: grid.mean(1)
    return getattr(encoder, "embed_grid", None) if kind == "embedding" else None


def _vectors(grid: Features, parts: list[list[str]], to_vectors: Callable[[Tensor], Tensor]) -> Iterator[Encoded]:
    for part in parts:
        good = [name for name in part if name in grid]
        failed = {name: grid.failed[name] for name in part if name in grid.failed}
        yield good, to_vectors(grid[good]).cpu() if good else None, failed


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
    failed = read_json(place / "done.json")["failed"]
    if len(failed) == len(names):
        raise CaptioningError(f"None of the {len(names)} images could be read: {'; '.join(list(failed.values())[:3])}")
    try:
        array = np.load(place / "features.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise CaptioningError(f"Cannot read the features in {place}: {error}. Delete that folder, repeat.") from error
    return Features(names, array, failed)
