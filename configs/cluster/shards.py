"""Datasets too large for a disk: images stream from tar shards, with the usual table of captions in front.

    python -m configs.cluster.shards data/cc3m      # writes the table of shards that hold a .txt beside each image
    accelerate launch -m configs.cluster.shards configs/cluster/clipcap-cc3m.json           # trains on them

A folder of shards holds `captions.csv` (image, caption, split) and `*.tar`, or a file `shards.txt` that names one shard
a line: a file, or an address that is read as it comes, so that nothing of it stays on the disk. An image's name is that
of its member in the tar. Every image goes through the encoder once; what stays is its features.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from webdataset.tariterators import tar_file_expander, url_opener

from helpers.datasets import Dataset, split_by_image
from helpers.encoders import Features, encode_batches
from helpers.files import CaptioningError, atomic_write, cache_dir, command, read_json, write_json
from helpers.images import SUFFIXES, shown
from helpers.training import train

TABLE, LIST = "captions.csv", "shards.txt"
# webdataset hands addresses to a shell (curl), so they may hold nothing that a shell understands
_ADDRESS = re.compile(r"https?://[\w.:/%=+~@,-]+")


@dataclass
class ShardedDataset(Dataset):
    """A dataset whose images lie in `shards`, paths or addresses of tar files; `table` is as in any other."""

    shards: list[str] = field(default_factory=list)


def read_shards(data_dir: str | os.PathLike) -> ShardedDataset:
    """Returns the dataset in a folder of shards.

    Raises CaptioningError when the table or the shards are missing, or a shard's address cannot be trusted.
    """
    folder = Path(data_dir)
    shards = shard_list(folder)
    try:
        table = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False)[["image", "caption", "split"]]
    except (ValueError, KeyError, OSError) as error:
        command_line = f"`python -m configs.cluster.shards {shown(folder)}`"
        raise CaptioningError(f"{shown(folder / TABLE)} cannot be read: {error}. {command_line} writes it.") from error
    return ShardedDataset(folder.name, table, folder, shards=shards)


def shard_list(folder: Path) -> list[str]:
    """Returns the shards of a folder: the lines of shards.txt, else its tar files, in order."""
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    if (folder / LIST).is_file():
        lines = (folder / LIST).read_text(encoding="utf-8").split()
        if wrong := [line for line in lines if ":" in line and not _ADDRESS.fullmatch(line)]:
            raise CaptioningError(f"{shown(wrong[0])} in {LIST} is neither a file nor a plain http or https address.")
        shards = [line if ":" in line else str(folder / line) for line in lines]
    if not shards:
        raise CaptioningError(f"There is no tar file in {shown(folder)}, and no {LIST} that names shards.")
    return shards


def members(shard: str, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of the members of a shard with one of the `suffixes`, one at a time, as the tar streams by.

    Raises CaptioningError, naming the shard, when it is missing, cut off or no tar file.
    """
    try:
        for member in tar_file_expander(url_opener([{"url": shard}]), eof_value=None):
            if member["fname"].lower().endswith(suffixes):
                yield member["fname"], member["data"]
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise CaptioningError(f"The shard {shown(shard)} cannot be read: {reason}. Fetch it again.") from error


def shard_features(
    encoder, dataset: ShardedDataset, kind: str = "grid", *, flip: bool = False, batch_size: int = 32
) -> Features:
    """Returns the features of all images in the shards, stored as fp16 in the cache.

    The processes of a launched job share the shards, and a killed job goes on with the first shard that is not done.
    Memory: one shard's features. Raises CaptioningError when a shard cannot be read.
    """
    key = hashlib.sha256(f"{encoder.fingerprint} {kind} {flip} {dataset.shards}".encode()).hexdigest()[:16]
    folder = cache_dir() / "features" / f"shards-{key}"
    done = [folder / f"{number:06d}.json" for number in range(len(dataset.shards))]  # written after the array
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for number in range(rank, len(done), processes):
        if not done[number].is_file():
            names, values, failed = _encoded(encoder, dataset.shards[number], kind, flip, batch_size)
            with atomic_write(done[number].with_suffix(".npy")) as temporary, open(temporary, "wb") as file:
                np.save(file, values)
            write_json(done[number], {"names": names, "failed": failed})
    while not all(file.is_file() for file in done):  # the others' shares
        time.sleep(1)
    abouts = [read_json(file) for file in done]
    names = [name for about in abouts for name in about["names"]]
    failed = {name: reason for about in abouts for name, reason in about["failed"].items()}
    whole = folder / "features.npy"
    if rank == 0 and not whole.is_file():
        with atomic_write(whole) as temporary, open(temporary, "wb") as file:
            arrays = [np.load(part.with_suffix(".npy"), mmap_mode="r") for part in done]
            np.save(file, np.concatenate([array for array in arrays if len(array)]))
    while not whole.is_file():
        time.sleep(1)
    return Features(names, np.load(whole, mmap_mode="r"), failed)


def _encoded(encoder, shard: str, kind: str, flip: bool, batch_size: int) -> tuple[list, np.ndarray, dict]:
    names, parts, failed, photos = [], [], {}, members(shard)
    batches = iter(lambda: list(islice(photos, batch_size)), [])
    for good, values, bad in encode_batches(encoder, batches, kind, flip):
        names += good
        failed |= bad
        if values is not None:
            parts.append(values.half().numpy())
    return names, np.concatenate(parts) if parts else np.empty(0, np.float16), failed


def train_on_shards(file: str) -> None:
    """Trains as the configuration in `file` says, on the shards in its dataset's data_dir."""
    config = read_json(file)
    dataset = read_shards(config["dataset"]["data_dir"])

    def encode(encoder, _, kind: str, flip: bool = False) -> Features:
        return shard_features(encoder, dataset, kind, flip=flip)

    train(config, lambda row: print(json.dumps(row), flush=True), dataset=dataset, encode=encode)


def write_table(folder: str) -> None:
    """Writes the table of shards that hold `KEY.txt`, a caption, beside each image `KEY.jpg`, as img2dataset does."""
    rows = []
    for shard in shard_list(Path(folder)):
        images, captions = {}, {}
        for name, data in members(shard, (*SUFFIXES, ".txt")):
            key = name.rpartition(".")[0]
            if name.endswith(".txt"):
                captions[key] = " ".join(data.decode("utf-8", "replace").split())
            else:
                images[key] = name
        rows += [(images[key], captions[key]) for key in images if captions.get(key)]
    table = split_by_image(pd.DataFrame(rows, columns=["image", "caption"]), 0, (0.99, 0.005, 0.005))
    with atomic_write(Path(folder) / TABLE) as temporary:
        table.to_csv(temporary, columns=["image", "caption", "split"], index=False)
    print(f"{len(rows):,} captions")


@command
def main(place: str) -> None:
    """Writes the table of a folder of shards, or trains as a configuration says."""
    (train_on_shards if place.endswith(".json") else write_table)(place)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
