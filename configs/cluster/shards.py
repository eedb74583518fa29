"""Datasets too large for a disk: images stream from tar shards, with the usual table of captions in front.

    python -m helpers.shards write --dataset flickr8k --to data/flickr8k-shards    # shards of any dataset
    python -m helpers.shards index data/cc3m                                       # table for shards with .txt captions
    accelerate launch -m helpers.features --dataset shards --data_dir data/cc3m --encoder clip:ViT-B/32 --kind embedding

A folder of shards holds `captions.csv` (image, caption, split) and `*.tar`, or a file `shards.txt` that names one shard
a line: a file, or an address that is read as it comes, so that nothing of it stays on the disk. An image's name is that
of its member in the tar. Every image goes through the encoder once; what stays is its features.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.datasets import Dataset, split_by_image
from helpers.files import CaptioningError, atomic_write, cache_dir, command
from helpers.images import SUFFIXES, shown

if TYPE_CHECKING:
    from helpers.features import Features
    from helpers.trunks import Encoder
TABLE, LIST = "captions.csv", "shards.txt"
# webdataset has handed addresses to a shell (curl), so they may hold nothing that a shell understands.
_ADDRESS = re.compile(r"https?://[\w.:/%=+~@,-]+")


@dataclass
class ShardedDataset(Dataset):
    """A dataset whose images lie in `shards`, paths or addresses of tar files; `table` is as in any other."""

    shards: list[str] = field(default_factory=list)

    def path(self, image: str) -> Path:
        """Raises CaptioningError: a streamed image has no file."""
        raise CaptioningError(
            f"{shown(image)} lies in a tar shard and has no file of its own. Read its features (helpers.shards), or "
            "unpack the shards of its split and name their folder as a dataset."
        )


def read_shards(data_dir: str | os.PathLike, seed: int = 0) -> ShardedDataset:
    """Returns the dataset in a folder of shards. Without a column `split` images are split at random (`seed`).

    Raises CaptioningError when the table or the shards are missing, or a shard's address cannot be trusted.
    """
    import pandas as pd

    folder = Path(data_dir)
    shards = shard_list(folder)
    if not (folder / TABLE).is_file():
        raise CaptioningError(
            f"There is no {TABLE} in {shown(folder)}. If the shards hold a .txt beside every image, write it with "
            f"`python -m helpers.shards index {shown(folder)}`."
        )
    try:
        table = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise CaptioningError(f"{shown(folder / TABLE)} cannot be read: {error}") from error
    if not {"image", "caption"} <= set(table.columns):
        raise CaptioningError(f"{shown(folder / TABLE)} needs the columns image and caption, not {[*table.columns]}.")
    if "split" not in table:
        table = split_by_image(table, seed)
    return ShardedDataset(folder.name, table[["image", "caption", "split"]], folder, shards=shards)


def shard_list(folder: Path) -> list[str]:
    """Returns the shards of a folder: the lines of shards.txt, else its tar files, in order."""
    if (folder / LIST).is_file():
        lines = [line.strip() for line in (folder / LIST).read_text(encoding="utf-8").splitlines() if line.strip()]
        for line in lines:
            if ":" in line and not _ADDRESS.fullmatch(line):
                raise CaptioningError(
                    f"{shown(folder / LIST)}: {shown(line)} is neither a file nor a plain http or https address."
                )
        shards = [line if ":" in line else str(folder / line) for line in lines]
    else:
        shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    if not shards:
        raise CaptioningError(f"There is no tar file in {shown(folder)}, and no {LIST} that names shards.")
    stems = [Path(shard).stem for shard in shards]
    if len(set(stems)) < len(stems):
        raise CaptioningError(f"Two shards in {shown(folder)} have the same name; their features would be mixed up.")
    return shards


def members(shard: str, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of the members of a shard with one of the `suffixes`, one at a time, as the tar streams by.

    Raises CaptioningError, naming the shard, when it is missing, cut off or no tar file.
    """
    from webdataset.tariterators import tar_file_expander, url_opener

    wanted = lambda name: name.lower().endswith(suffixes)  # noqa: E731
    try:
        for member in tar_file_expander(url_opener([{"url": shard}]), select_files=wanted, eof_value=None):
            yield member["fname"], member["data"]
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or (error.args[0] if error.args else type(error).__name__)
        reason = "curl could not fetch it" if "://" in shard and isinstance(error, OSError) else reason
        raise CaptioningError(f"The shard {shown(shard)} cannot be read: {reason}. Fetch it again.") from error


def shard_features(
    encoder: Encoder,
    dataset: ShardedDataset,
    kind: str = "grid",
    *,
    flip: bool = False,
    folder: Path | None = None,
    batch_size: int = 32,
    process: tuple[int, int] | None = None,
) -> Features:
    """Returns the features of all images in the shards; see `helpers.features.cache_features`."""
    from helpers.features import complete, names_in, read_features

    cache = Path(folder or cache_dir() / "features") / _key(encoder, dataset.shards, kind, flip)
    if not complete(cache):
        encode_shards(encoder, dataset.shards, cache, kind, flip, batch_size, process)
    return read_features(cache, list(names_in(cache)))


def encode_shards(
    encoder: Encoder,
    shards: list[str],
    cache: Path,
    kind: str = "grid",
    flip: bool = False,
    batch_size: int = 32,
    process: tuple[int, int] | None = None,
) -> None:
    """Fills the folder `cache`, a block a shard, each by one of the processes. Memory: a shard's features, no more.

    A killed job goes on with the first shard that is not done.
    """
    import numpy as np

    from helpers.encoders import encode_batches
    from helpers.features import Block, fill_together, this_process

    def work(key: str) -> Block:
        names, parts, failed = [], [], {}
        photos = members(by_stem[key])
        batches = iter(lambda: list(islice(photos, batch_size)), [])
        for good, values, bad in encode_batches(encoder, batches, kind, flip):
            names += good
            failed |= bad
            if values is not None:
                parts.append(values.half().numpy())
        return Block(names, np.concatenate(parts) if parts else None, failed)

    by_stem = {Path(shard).stem: shard for shard in shards}
    fill_together(cache, list(by_stem), work, process or this_process(), {"encoder": encoder.name, "kind": kind})


def _key(encoder: Encoder, shards: list[str], kind: str, flip: bool) -> str:
    from helpers.features import folder_name

    digest = hashlib.sha256()
    for shard in shards:
        stat = os.stat(shard) if os.path.isfile(shard) else None
        digest.update(f"{shard} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode("utf-8", "surrogateescape"))
    return folder_name(encoder, kind, flip, digest.hexdigest())


def write_shards(dataset: Dataset, folder: str | os.PathLike, images_per_shard: int = 1000) -> list[Path]:
    """Writes a dataset's images to tar shards in `folder`, and its table last; returns the shards.

    Raises CaptioningError when the folder has a table already, or an image has no suffix that tells its format.
    """
    from webdataset import TarWriter

    folder, out = Path(folder), []
    if (folder / TABLE).exists():
        raise CaptioningError(f"{shown(folder)} holds a table of captions already. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    images = dataset.images()
    for start in range(0, len(images), images_per_shard):
        out.append(folder / f"{dataset.name}-{start // images_per_shard:06d}.tar")
        with atomic_write(out[-1]) as temporary, TarWriter(str(temporary), encoder=False, mtime=0) as writer:
            for image in images[start : start + images_per_shard]:
                stem, dot, suffix = image.rpartition(".")
                if f".{suffix}".lower() not in SUFFIXES or not dot:
                    raise CaptioningError(f"The image {shown(image)} needs a suffix such as .jpg in its name.")
                writer.write({"__key__": stem, suffix: dataset.path(image).read_bytes()})
    _write_table(folder, dataset.table[["image", "caption", "split"]].itertuples(index=False))
    return out


def index_shards(folder: str | os.PathLike, parts: tuple[float, float, float] = (0.99, 0.005, 0.005)) -> int:
    """Writes the table of shards that hold `KEY.txt`, a caption, beside each image `KEY.jpg`; returns its rows.

    img2dataset writes such shards. Images without a caption are left out; `parts` are the shares of train, dev, test.
    """
    import pandas as pd

    folder, rows, seen = Path(folder), [], set()
    for shard in shard_list(folder):
        images, captions = {}, {}
        for name, data in members(shard, (*SUFFIXES, ".txt")):
            key = name.rpartition(".")[0]
            if name.endswith(".txt"):
                captions[key] = " ".join(data.decode("utf-8", "replace").split())
            else:
                images[key] = name
        if twice := seen & images.keys():
            raise CaptioningError(f"Two images are called {shown(min(twice))}, the second in {shown(shard)}.")
        seen |= images.keys()
        rows += [(images[key], captions[key]) for key in images if captions.get(key)]
    if not rows:
        raise CaptioningError(f"No image in the shards of {shown(folder)} has a caption in a .txt beside it.")
    table = split_by_image(pd.DataFrame(rows, columns=["image", "caption"]), 0, parts)
    _write_table(folder, table.itertuples(index=False))
    return len(rows)


def _write_table(folder: Path, rows) -> None:
    with atomic_write(folder / TABLE) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        writer.writerows(rows)


@command
def main(arguments: list[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m helpers.shards", description="Tar shards with a table in front.")
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write a dataset's images to shards")
    write.add_argument("--dataset", required=True)
    write.add_argument("--data_dir")
    write.add_argument("--to", required=True, help="the folder to write to")
    write.add_argument("--images_per_shard", type=int, default=1000)
    index = commands.add_parser("index", help="write the table of shards that hold a .txt beside each image")
    index.add_argument("folder")
    options = parser.parse_args(arguments)
    if options.command == "write":
        from helpers.datasets import load_dataset

        dataset = load_dataset(options.dataset, options.data_dir)
        print(*write_shards(dataset, options.to, options.images_per_shard), sep="\n")
    else:
        print(f"{index_shards(options.folder):,} captions")


if __name__ == "__main__":
    raise SystemExit(main())
