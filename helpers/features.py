"""The feature cache: every image goes through the encoder once, however often it is used after.

A cache is one memory-mapped array beside a list of names, in a folder whose name says which encoder, weights and images
it belongs to. It is filled in blocks; a killed run goes on at the first missing one. Several processes share the work:

    accelerate launch -m helpers.features --dataset flickr8k --encoder clip:ViT-B/32 --kind pooled

Shapes: N images, R regions, D feature width.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.datasets import load_dataset
from helpers.encoders import encode_batches, load_encoder, worker_threads
from helpers.files import CaptioningError, atomic_write, cache_dir, command, only_one, read_json, write_json
from helpers.trunks import Encoder

BLOCK = 256  # images between two saved marks of progress
POLL = 0.1  # seconds between two looks for what the other processes have done


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


@dataclass
class Block:
    """What was made of one block: its names in order, their features, the reasons of those that failed.

    Notebook 01, section 8.
    """

    names: list[str]
    array: np.ndarray | None  # fp16 [len(names), ...]; None when every one of them failed
    failed: dict[str, str] = field(default_factory=dict)


def cache_features(
    encoder: Encoder, paths: dict[str, Path] | object, kind: str = "grid", *, flip: bool = False,
    folder: Path | None = None, batch_size: int = 32, progress: bool = True, process: tuple[int, int] | None = None,
) -> Features:
    """Returns the features of all `paths` (name -> file, or a Dataset), from the cache where they are there.

    `flip` encodes the mirror images. An image that cannot be read is left out and named in `.failed` with the reason.
    Stored as fp16: half the disk, and an error far below the encoder's own noise. `process`: (number of this process,
    number of processes) that share the work and the cache folder; by default those of the launched job, if any.
    Raises CaptioningError when there are no images, or none can be read. Notebook 01, section 8.
    """
    if not isinstance(paths, dict):
        paths = {name: paths.path(name) for split in paths.splits() for name in paths.images(split)}
    if not paths:
        raise CaptioningError("There are no images to encode; check the dataset's split and folder.")
    names, root = list(paths), Path(folder or cache_dir() / "features")
    blocks = {f"{start:09d}": names[start : start + BLOCK] for start in range(0, len(names), BLOCK)}
    grid = root / _key(encoder, paths, "grid", flip)

    def work(keys: Sequence[str]) -> Iterator[Block]:
        if _complete(grid) and kind == "pooled" and type(encoder).pooled is Encoder.pooled:
            return _from_grid(_read_features(grid), keys, blocks, lambda grid: grid.mean(1))
        if _complete(grid) and kind == "embedding" and hasattr(encoder, "embed_grid"):
            return _from_grid(_read_features(grid), keys, blocks, encoder.embed_grid)
        return _encoded(encoder, paths, kind, flip, keys, blocks, batch_size, progress)

    cache = root / _key(encoder, paths, kind, flip)
    _fill_together(cache, list(blocks), work, process or _this_process(), _made_from(encoder, kind))
    return _read_features(cache)


def _from_grid(
    grid: Features, keys: Sequence[str], blocks: dict[str, list[str]], to_vectors: Callable[[Tensor], Tensor]
) -> Iterator[Block]:
    """Yields blocks of vectors made of the cached grids of the same pictures, which need not be encoded again."""
    begin = {key: BLOCK * number for number, key in enumerate(blocks)}
    for key in keys:
        rows = grid.array[begin[key] : begin[key] + len(blocks[key])]
        vectors = to_vectors(torch.from_numpy(rows.astype(np.float32))).cpu().numpy().astype(np.float16)
        yield Block(blocks[key], vectors, {name: grid.failed[name] for name in blocks[key] if name in grid.failed})


def _encoded(
    encoder: Encoder, paths: dict[str, Path], kind: str, flip: bool, keys: Sequence[str],
    blocks: dict[str, list[str]], batch_size: int, progress: bool,
) -> Iterator[Block]:
    """Yields the blocks of `keys` as they come from the encoder, without a pause between two of them.

    Few images make small batches, so that every thread has some; a batch ends where a block ends.
    """
    from tqdm import tqdm

    total, whole = sum(len(blocks[key]) for key in keys), encoder.chunk
    batch_size = min(batch_size, whole * max(1, -(-total // (whole * worker_threads(encoder)[0]))))
    pieces = []
    for key in keys:
        pieces += [(key, blocks[key][start : start + batch_size]) for start in range(0, len(blocks[key]), batch_size)]
    photos = ([(name, paths[name]) for name in piece] for _, piece in pieces)
    made = {}
    with tqdm(total=total, unit="image", desc=f"{encoder.name} {kind}", disable=None if progress else True) as bar:
        for (key, piece), (good, values, failed) in zip(
            pieces, encode_batches(encoder, photos, kind, flip), strict=True
        ):
            block = made.setdefault(key, Block(blocks[key], None))
            block.failed |= failed
            if good:
                if block.array is None:
                    block.array = np.zeros((len(block.names), *values.shape[1:]), np.float16)
                block.array[[block.names.index(name) for name in good]] = values.half().numpy()
            bar.update(len(piece))
            if piece[-1] == blocks[key][-1]:
                yield made.pop(key)


def _key(encoder: Encoder, paths: dict[str, Path], kind: str, flip: bool) -> str:
    """Returns a folder name that changes with the encoder, its weights, the image files (size, time) or the kind."""
    digest = hashlib.sha256()
    for name, path in paths.items():
        try:
            stat = path.stat()
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{name} missing\n".encode("utf-8", "surrogateescape"))
    safe = "".join(c if c.isalnum() else "-" for c in encoder.name)
    return f"{safe}-{encoder.fingerprint}-{kind}{'-flip' if flip else ''}-{digest.hexdigest()[:12]}"


def _made_from(encoder: Encoder, kind: str) -> dict:
    return {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "kind": kind}


def _this_process() -> tuple[int, int]:
    """Returns (number of this process, number of processes) of a launched job; (0, 1) without one."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _complete(folder: Path) -> bool:
    """Returns whether the cache in `folder` is whole."""
    return (folder / "done.json").exists() and (folder / "features.npy").exists()


def _read_features(folder: Path) -> Features:
    """Returns the Features of a cache folder that is complete. Raises CaptioningError when it cannot be read."""
    done = read_json(folder / "done.json")
    try:
        array = np.load(folder / "features.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise CaptioningError(f"Cannot read the features in {folder}: {error}. Delete that folder, repeat.") from error
    return Features(done["names"], array, done["failed"])


def _fill_together(
    folder: Path, keys: Sequence[str], work: Callable[[Sequence[str]], Iterator[Block]], process: tuple[int, int],
    about: dict,
) -> None:
    """Makes the cache in `folder`: this process takes every `processes`-th of the blocks called `keys`.

    `work(keys)` yields their blocks, in order. Returns when the whole cache is there; a second run that is not one of
    the `processes` waits and finds it done. `about` goes into done.json.
    """
    number, processes = process
    if _complete(folder):
        return
    if processes == 1:
        with only_one(folder):
            _fill(folder, keys, work)
            _merge(folder, keys, about)
        return
    _fill(folder, keys[number::processes], work)
    while not _complete(folder):  # a process that fails ends the others through the launcher, so there is no limit
        if number == 0 and all(_file(folder, key).exists() for key in keys):
            with only_one(folder):
                _merge(folder, keys, about)
        else:
            time.sleep(POLL)


def _file(folder: Path, key: str) -> Path:
    return folder / "blocks" / f"{key}.json"


def _fill(folder: Path, keys: Sequence[str], work: Callable[[Sequence[str]], Iterator[Block]]) -> None:
    left = [key for key in keys if not _complete(folder) and not _file(folder, key).exists()]
    for key, block in zip(left, work(left) if left else [], strict=True):
        path, array = _file(folder, key), np.zeros(0, np.float16) if block.array is None else block.array
        with atomic_write(path.with_suffix(".npy")) as temporary:
            np.save(temporary, array)
        write_json(path, {"names": block.names, "failed": block.failed, "shape": array.shape})  # last: it is whole


def _merge(folder: Path, keys: Sequence[str], about: dict) -> None:
    """Joins the blocks to one array; they are deleted when it is whole, so that a kill loses nothing."""
    if _complete(folder):
        return
    heads = [read_json(_file(folder, key)) for key in keys]
    names = [name for head in heads for name in head["names"]]
    failed = {name: reason for head in heads for name, reason in head["failed"].items()}
    if len(failed) == len(names):
        shutil.rmtree(folder / "blocks")
        reasons = "; ".join(list(failed.values())[:3])
        raise CaptioningError(f"None of the {len(names)} images could be read: {reasons}")
    shape = next(head["shape"][1:] for head in heads if len(head["shape"]) > 1)
    with atomic_write(folder / "features.npy") as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(len(names), *shape))
        row = 0
        for key, head in zip(keys, heads, strict=True):
            if len(head["shape"]) > 1:
                array[row : row + len(head["names"])] = np.load(_file(folder, key).with_suffix(".npy"))
            row += len(head["names"])
        array.flush()
        del array
    write_json(folder / "done.json", {**about, "names": names, "failed": failed})
    shutil.rmtree(folder / "blocks")


@command
def main(arguments: list[str] | None = None) -> None:
    """Fills the cache for a dataset; the processes of a launched job share the work. Notebook 08, section 7."""
    import argparse

    from accelerate import PartialState

    parser = argparse.ArgumentParser(prog="python -m helpers.features", description="Encode a dataset's images.")
    parser.add_argument("--dataset", required=True, help="a name for load_dataset")
    parser.add_argument("--data_dir", help="where its files lie")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--kind", default="grid", choices=["grid", "pooled", "embedding", "stem"])
    parser.add_argument("--flip", action="store_true", help="the mirror images")
    options = parser.parse_args(arguments)
    state = PartialState()
    encoder = load_encoder(options.encoder, state.device.type)
    features = cache_features(encoder, load_dataset(options.dataset, options.data_dir), options.kind, flip=options.flip)
    if state.is_main_process:
        print(f"{len(features):,} images, {len(features.failed):,} failed, {list(features.array.shape[1:])} each")


if __name__ == "__main__":
    raise SystemExit(main())
