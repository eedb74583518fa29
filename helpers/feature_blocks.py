"""Features that several processes make together: each encodes its own blocks, the first puts them into one array.

A block is whatever can be encoded by itself: a run of photos, or one tar shard. It is a file on its own until it is
merged, so a killed job goes on with whatever number of processes, on whatever hosts share the folder.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers.errors import CaptioningError
from helpers.files import atomic_write, read_json, write_json
from helpers.locks import only_one

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
