"""The feature cache: every image goes through the encoder once, however often it is used after.

A cache is one memory-mapped array beside a list of names, in a folder whose name says which encoder, weights and images
it belongs to. It is filled in blocks; a killed run goes on at the first missing one. Several processes share the work:

    accelerate launch -m helpers.features --dataset flickr8k --encoder clip:ViT-B/32 --kind pooled

Shapes: N images, R regions, D feature width.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.encoders import encode_batches, worker_threads
from helpers.files import CaptioningError, atomic_write, cache_dir, command, only_one, read_json, write_json
from helpers.trunks import Encoder

BLOCK = 256  # images between two saved marks of progress


class Features:
    """Image features by name. `features[names]` is a float32 tensor [len(names), R, D] (or [len(names), D]).

    `array` [N, R, D] stays on disk until it is read; the row of an image that failed holds nothing of use.
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
            raise CaptioningError(
                f"No features of image {error}: {self.failed.get(error.args[0], 'it was not encoded')}."
            ) from None
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
    process: tuple[int, int] | None = None,
) -> Features:
    """Returns the features of all `paths` (name -> file, or a Dataset), from the cache where they are there.

    `flip` encodes the mirror images. An image that cannot be read is left out and named in `.failed` with the reason.
    Stored as fp16: half the disk, and an error far below the encoder's own noise. `process`: (number of this process,
    number of processes) that share the work and the cache folder; by default those of the launched job, if any.
    """
    if not isinstance(paths, dict):
        paths = {name: paths.path(name) for split in paths.splits() for name in paths.images(split)}
    if not paths:
        raise CaptioningError("There are no images to encode; check the dataset's split and folder.")
    process = process or this_process()
    root = Path(folder or cache_dir() / "features")
    folder = root / _key(encoder, paths, kind, flip)
    if not complete(folder):
        from helpers.files import only_one

        if (process[1] > 1 or (folder / "blocks").is_dir()) and not _grid_to(encoder, paths, kind, flip, root):
            _fill_together(encoder, paths, kind, flip, folder, batch_size, process)
        else:
            with only_one(folder):
                if not complete(folder) and (grid := _grid_to(encoder, paths, kind, flip, root)):
                    _fill_from_grid(*grid, kind, folder)
                if not complete(folder):
                    _fill(encoder, paths, kind, flip, folder, batch_size, progress)
    return read_features(folder, list(paths))


def read_features(folder: Path, names: Sequence[str]) -> Features:
    """Returns the Features of a cache folder that is complete. Raises CaptioningError when its array cannot be read."""
    try:
        array = np.load(folder / "features.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise CaptioningError(
            f"Cannot read the features in {folder}: {error}. Delete that folder and repeat."
        ) from error
    return Features(names, array, read_json(folder / "done.json")["failed"])


def _grid_to(
    encoder: Encoder, paths: dict[str, Path], kind: str, flip: bool, root: Path
) -> tuple[Path, Callable[[Tensor], Tensor]] | None:
    """Returns the cached grids of the same pictures, and what makes vectors of `kind` of them [B, R, D]; None where
    there is none of the two. The pictures need not be encoded again then."""
    if kind == "pooled" and type(encoder).pooled is Encoder.pooled:
        to_vectors = partial(torch.mean, dim=1)
    elif kind == "embedding" and hasattr(encoder, "embed_grid"):
        to_vectors = encoder.embed_grid
    else:
        return None
    grid = root / _key(encoder, paths, "grid", flip)
    return (grid, to_vectors) if complete(grid) else None


def _fill_from_grid(grid: Path, to_vectors: Callable[[Tensor], Tensor], kind: str, folder: Path) -> None:
    array, made = np.load(grid / "features.npy", mmap_mode="r"), None
    done = read_json(grid / "done.json")
    for start in range(0, len(array), BLOCK):
        block = to_vectors(torch.from_numpy(array[start : start + BLOCK].astype(np.float32))).cpu().numpy()
        made = _new_array(folder, (len(array), block.shape[-1])) if made is None else made
        made[start : start + BLOCK] = block
    made.flush()
    write_json(folder / "done.json", {**done, "kind": kind})


def _key(encoder: Encoder, paths: dict[str, Path], kind: str, flip: bool) -> str:
    """Returns a folder name that changes with the encoder, its weights, the image files (size, time) or the kind."""
    digest = hashlib.sha256()
    for name, path in paths.items():
        try:
            stat = path.stat()
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{name} missing\n".encode("utf-8", "surrogateescape"))
    return folder_name(encoder, kind, flip, digest.hexdigest())


def folder_name(encoder: Encoder, kind: str, flip: bool, images: str) -> str:
    """Returns the name of a cache folder; `images` is a digest of the images in it."""
    safe = "".join(c if c.isalnum() else "-" for c in encoder.name)
    return f"{safe}-{encoder.fingerprint}-{kind}{'-flip' if flip else ''}-{images[:12]}"


def _encoded(
    encoder: Encoder, paths: dict[str, Path], kind: str, flip: bool, rows: range, batch_size: int
) -> Iterator[tuple[range, list[int], Tensor | None, dict[str, str]]]:
    """Yields (rows asked for, rows that are good, their features, reasons of the others), a batch at a time.

    A batch ends where a block ends. Few rows make small batches, so that every thread has some; they are whole forward
    passes, so that a picture's features do not depend on it.
    """
    names, batches, whole = list(paths), [], encoder.chunk
    batch_size = min(batch_size, whole * max(1, -(-len(rows) // (whole * worker_threads(encoder)[0]))))
    for block in range(rows.start, rows.stop, BLOCK):
        end = min(block + BLOCK, rows.stop)
        batches += [range(start, min(start + batch_size, end)) for start in range(block, end, batch_size)]
    photos = ([(row, paths[names[row]]) for row in batch] for batch in batches)
    for batch, (good, values, bad) in zip(batches, encode_batches(encoder, photos, kind, flip), strict=True):
        yield batch, good, values, {names[row]: reason for row, reason in bad.items()}


def _fill(encoder, paths, kind, flip, folder: Path, batch_size: int, progress: bool) -> None:
    from tqdm import tqdm

    mark, file = folder / "progress.json", folder / "features.npy"
    state = read_json(mark) if mark.exists() and file.exists() else {"next": 0, "failed": {}}
    first, failed = state["next"], dict(state["failed"])
    if not first:
        (folder / "done.json").unlink(missing_ok=True)  # of a cache whose array was lost: it is not done any more
    array = np.lib.format.open_memmap(file, mode="r+") if first else None
    title, hidden = f"{encoder.name} {kind}", None if progress else True
    with tqdm(total=len(paths), initial=first, unit="image", desc=title, disable=hidden) as bar:
        for batch, good, values, bad in _encoded(encoder, paths, kind, flip, range(first, len(paths)), batch_size):
            failed |= bad
            if good:
                if array is None:
                    array = _new_array(folder, (len(paths), *values.shape[1:]))
                array[good] = values.half().numpy()
            bar.update(len(batch))
            if array is not None and (batch.stop % BLOCK == 0 or batch.stop == len(paths)):
                array.flush()
                write_json(mark, {"next": batch.stop, "failed": failed})
                array = np.lib.format.open_memmap(file, mode="r+")  # anew, so that what is written leaves the memory
    if array is None:
        reasons = "; ".join(list(failed.values())[:3])
        raise CaptioningError(f"None of the {len(paths)} images could be read: {reasons}")
    write_json(folder / "done.json", {"encoder": encoder.name, "kind": kind, "images": len(paths), "failed": failed})
    mark.unlink(missing_ok=True)


def _fill_together(encoder, paths, kind, flip, folder: Path, batch_size: int, process: tuple[int, int]) -> None:
    """Encodes this process's share of the blocks; what a single process had done before is taken over."""
    names, mark = list(paths), folder / "progress.json"
    before = read_json(mark) if mark.exists() and (folder / "features.npy").exists() else {"next": 0, "failed": {}}
    blocks = {f"{start:09d}": range(start, min(start + BLOCK, len(names))) for start in range(0, len(names), BLOCK)}

    def work(key: str) -> Block:
        rows, array, failed = blocks[key], None, {}
        here = [names[row] for row in rows]
        if rows.stop <= before["next"]:
            array = np.load(folder / "features.npy", mmap_mode="r")[rows.start : rows.stop]
            return Block(here, array, {n: before["failed"][n] for n in here if n in before["failed"]})
        for _, good, values, bad in _encoded(encoder, paths, kind, flip, rows, batch_size):
            failed |= bad
            if good:
                if array is None:
                    array = np.zeros((len(rows), *values.shape[1:]), np.float16)
                array[[row - rows.start for row in good]] = values.half().numpy()
        return Block(here, array, failed)

    fill_together(folder, list(blocks), work, process, {"encoder": encoder.name, "kind": kind})


def _new_array(folder: Path, shape: tuple[int, ...]) -> np.memmap:
    """Creates the whole array at once, so that a full disk is found at the start and not after an hour."""
    path = folder / "features.npy"
    with atomic_write(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        del array
        with open(temporary, "r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
    return np.lib.format.open_memmap(path, mode="r+")


@command
def main(arguments: list[str] | None = None) -> None:
    """Fills the cache for a dataset; the processes of a launched job share the work."""
    import argparse

    from accelerate import PartialState

    from helpers.encoders import load_encoder
    from helpers.training import features_of, load_data

    parser = argparse.ArgumentParser(prog="python -m helpers.features", description="Encode a dataset's images.")
    parser.add_argument("--dataset", required=True, help='a name for load_dataset, or "shards" for tar archives')
    parser.add_argument("--data_dir", help="where its files lie")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--kind", default="grid", choices=["grid", "pooled", "embedding", "stem"])
    parser.add_argument("--flip", action="store_true", help="the mirror images")
    options = parser.parse_args(arguments)
    state = PartialState()
    dataset = load_data({"name": options.dataset, "data_dir": options.data_dir})
    encoder = load_encoder(options.encoder, state.device.type)
    features = features_of(encoder, dataset, options.kind, options.flip)
    if state.is_main_process:
        print(f"{len(features):,} images, {len(features.failed):,} failed, {list(features.array.shape[1:])} each")
POLL = 0.1  # seconds between two looks for what the others have done


@dataclass
class Block:
    """What was made of one block: the names in it, in order, their features, and the reasons of those that failed."""

    names: list[str]
    array: np.ndarray | None  # fp16 [len(names), ...]; None when every one of them failed
    failed: dict[str, str] = field(default_factory=dict)


def this_process() -> tuple[int, int]:
    """Returns (number of this process, number of processes) of a launched job; (0, 1) without one."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def complete(folder: Path) -> bool:
    """Returns whether the cache in `folder` is whole."""
    return (folder / "done.json").exists() and (folder / "features.npy").exists()


def fill_together(
    folder: Path, keys: Sequence[str], work: Callable[[str], Block], process: tuple[int, int], about: dict
) -> None:
    """Makes the cache in `folder` with the other processes: this one works on every `processes`-th of the `keys`.

    `work(key)` encodes a block. Returns when the whole cache is there. `about` goes into done.json.
    """
    number, processes = process
    left = keys[_merged(folder)["blocks"] :]
    for key in left[number::processes]:
        if complete(folder):  # by another job
            return
        if not _file(folder, key).exists():
            _save(_file(folder, key), work(key))
    if number:
        _wait_for(lambda: complete(folder))
        return
    _wait_for(lambda: complete(folder) or all(_file(folder, key).exists() for key in left))
    with only_one(folder):
        if not complete(folder):
            _merge(folder, keys, about)


def _file(folder: Path, key: str) -> Path:
    return folder / "blocks" / f"{key}.json"


def _save(path: Path, block: Block) -> None:
    array = block.array if block.array is not None else np.zeros(0, np.float16)
    with atomic_write(path.with_suffix(".npy")) as temporary, open(temporary, "wb") as file:
        np.save(file, array.astype(np.float16, copy=False))
    write_json(path, {"names": block.names, "failed": block.failed, "shape": array.shape})  # last: the block is whole


def _wait_for(ready: Callable[[], bool]) -> None:
    """Looks until it is so. A process that fails ends the others through the launcher, so there is no time limit."""
    while not ready():
        time.sleep(POLL)


def _merged(folder: Path) -> dict:
    """Returns how far an earlier merge came: blocks, images, and those that failed among them."""
    mark = folder / "merged.json"
    return read_json(mark) if mark.exists() else {"blocks": 0, "rows": 0, "failed": {}}


def _merge(folder: Path, keys: Sequence[str], about: dict) -> None:
    """Appends the blocks to one array and deletes each that is in it: little is held twice, a kill loses nothing."""
    state = _merged(folder)
    left, path = keys[state["blocks"] :], folder / "features.npy"
    shape, total, reasons = state.get("shape"), state["rows"], []
    for key in left:  # one at a time: the names of millions of images need not be in memory
        head = read_json(_file(folder, key))
        total += len(head["names"])
        shape = shape or head["shape"][1:]
        reasons += list(head["failed"].values())[: 3 - len(reasons)]
    if not shape:
        raise CaptioningError(f"None of the images could be read: {'; '.join(reasons)}")
    if not state["blocks"]:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (total, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            state["offset"], state["shape"] = file.tell(), shape
    row_bytes = 2 * int(np.prod(shape))
    try:
        with open(path, "r+b") as file, open(folder / "names.part", "a", encoding="utf-8") as listed:
            listed.truncate(state.get("listed", 0))
            for key in left:
                head = read_json(_file(folder, key))
                array = np.load(_file(folder, key).with_suffix(".npy"))
                names = head["names"]
                array = array if array.size else np.zeros((len(names), *shape), np.float16)
                file.seek(state["offset"] + state["rows"] * row_bytes)
                file.write(array.tobytes())
                listed.write("".join(f"{_escaped(name)}\n" for name in names))
                for written in (file, listed):
                    written.flush()
                    os.fsync(written.fileno())
                state["blocks"], state["rows"] = state["blocks"] + 1, state["rows"] + len(names)
                state["failed"] |= head["failed"]
                state["listed"] = os.fstat(listed.fileno()).st_size
                write_json(folder / "merged.json", state)
                _file(folder, key).unlink()
                _file(folder, key).with_suffix(".npy").unlink()
    except OSError as error:
        raise CaptioningError(
            f"Cannot write in {folder}: {error.strerror or error}. Free some space and repeat; nothing is lost."
        ) from error
    os.replace(folder / "names.part", folder / "names.txt")
    write_json(folder / "done.json", {**about, "images": state["rows"], "failed": state["failed"]})
    for left in (folder / "blocks", folder / "merged.json", folder / "progress.json"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return name.encode("unicode_escape").decode("ascii")


def names_in(folder: Path) -> Iterator[str]:
    """Yields the names of the rows of a cache that was merged from blocks, in order."""
    with open(folder / "names.txt", encoding="ascii") as file:
        for line in file:
            yield line.rstrip("\n").encode("ascii").decode("unicode_escape")
DROP_PATH = 0.1  # as in the fine-tuning of PocketCLIP
SMALLEST = 0.78  # share of the stem's height and width that a window keeps at least
BATCH = 8  # images that share a window


def crop_views(
    encoder, paths: dict[str, Path], names: list[str], kind: str, count: int, progress: bool = True
) -> list[Features]:
    """Returns `count` cached views [N, R, D] ("grid") or [N, D] ("pooled") of the images `names`.

    `paths` are all images whose stems are cached together, `names` those of the training split. View number i is the
    same on every call. Raises CaptioningError when the encoder is not cut into stem and tail, or for another kind.
    """
    from helpers.encoders import load_encoder

    trunk = getattr(encoder, "module", None)
    if not hasattr(trunk, "tail"):
        raise CaptioningError(f"{encoder.name} has no stem to cut windows from; set crops to 0.")
    if kind not in ("grid", "pooled"):
        raise CaptioningError(f"Views by crops are of kind 'grid' or 'pooled', not {kind!r}.")
    base = load_encoder(f"efficientnet-lite{trunk.version}", str(encoder.device), size=trunk.size)
    stems = [cache_features(base, paths, "stem", flip=mirror, progress=progress) for mirror in (False, True)]
    names = [name for name in names if all(name in stem for stem in stems)]
    return [_view(encoder, stems, names, kind, number, progress) for number in range(count)]


def _view(encoder, stems: list[Features], names: list[str], kind: str, number: int, progress: bool) -> Features:
    folder = _folder(encoder, stems[0], number)
    with only_one(folder):
        if not (folder / "done.json").exists():
            _fill_augment(encoder, stems, names, folder / "features.npy", number, progress)
            write_json(folder / "done.json", {"encoder": encoder.name, "kind": "grid", "images": len(names)})
    grid = np.load(folder / "features.npy", mmap_mode="r")
    if kind == "grid":
        return Features(names, grid)
    blocks = (grid[start : start + 256].astype(np.float32) for start in range(0, len(grid), 256))
    return Features(names, np.concatenate([block.mean(1) for block in blocks]))


def _folder(encoder, stem: Features, number: int) -> Path:
    source = Path(getattr(stem.array, "filename", "memory")).parent.name.rsplit("-", 1)[-1]  # names the images
    return cache_dir() / "features" / folder_name(encoder, f"grid-crop{number}", False, source)


def _fill_augment(encoder, stems: list[Features], names: list[str], file: Path, number: int, progress: bool) -> None:
    from tqdm import tqdm

    trunk, chance = encoder.module, random.Random(number)
    was_training, before = trunk.training, trunk.drop_path
    state = torch.random.get_rng_state()
    torch.manual_seed(number)
    trunk.train()
    trunk.drop_path = DROP_PATH
    try:
        with atomic_write(file) as temporary, torch.inference_mode(), encoder.autocast():
            shape = (len(names), encoder.regions, encoder.width)
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            starts = tqdm(range(0, len(names), BATCH), desc=f"crops {number}", disable=None if progress else True)
            for start in starts:
                chosen = names[start : start + BATCH]
                window = _window(stems[chance.randrange(2)][chosen], chance)  # [B, S/16, S/16, C]
                array[start : start + len(chosen)] = trunk.tail(window.to(encoder.device)).float().half().cpu().numpy()
            array.flush()
    finally:
        trunk.train(was_training)
        trunk.drop_path = before
        torch.random.set_rng_state(state)


def _window(stem: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """Returns a random window of stem activations [B, H, W, C], stretched to their full size again."""
    H, W = stem.shape[1:3]
    h, w = (chance.randint(int(np.ceil(side * SMALLEST)), side) for side in (H, W))
    top, left = chance.randint(0, H - h), chance.randint(0, W - w)
    window = stem[:, top : top + h, left : left + w]
    if (h, w) != (H, W):
        window = F.interpolate(window.permute(0, 3, 1, 2), size=(H, W), mode="bilinear").permute(0, 2, 3, 1)
    return window.contiguous()


if __name__ == "__main__":
    raise SystemExit(main())
