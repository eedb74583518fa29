"""Streaming from tar shards: `python benchmarks/shards.py [--images 1000 10000 100000]`.

Encodes the images of shards of 1,000 in a process of its own and prints, for each number of images, the processor time
an image and how much memory the process took beyond what it took for the first shard. The images are tiny and the
encoder is a mean over squares, so that what is measured is the streaming. Table and names stay in memory once training
begins; what they take is measured apart.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IN_A_SHARD = 1000

CHILD = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from helpers.encoders import Encoder
from helpers.shards import encode_shards, read_shards, shard_features


class Means(Encoder):
    name, fingerprint, size, width, regions, device = "means", "one", 32, 3, 16, torch.device("cpu")

    def grid(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels.float(), 8).flatten(2).transpose(1, 2)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


folder, work = Path({folder!r}), Path({work!r})
shards = [str(folder / f"{{n:06d}}.tar") for n in range({count})]
encode_shards(Means(), shards[:1], work / "first")
before, began = peak(), seconds()
encode_shards(Means(), shards, work / "all")
took, more = seconds() - began, peak() - before
before = peak()
features = shard_features(Means(), read_shards(work / "table"), folder=work)
names = read_shards(work / "table").references("train")
print(json.dumps([took, more, peak() - before, len(features), len(names)]))
"""


def make_shards(folder: Path, count: int) -> None:
    """Writes `count` shards of images of 32 x 32 pixels."""
    chance, pictures = np.random.default_rng(0), []
    for _ in range(50):
        out = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(out, "JPEG")
        pictures.append(out.getvalue())
    for shard in range(count):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for row in range(IN_A_SHARD):
                entry = tarfile.TarInfo(f"{shard:06d}{row:04d}.jpg")
                entry.size = len(pictures[row % 50])
                tar.addfile(entry, io.BytesIO(pictures[row % 50]))


def measure(folder: Path, images: int) -> list[float]:
    """Returns seconds, more MB while streaming, more MB for table, names and an index of the features."""
    with tempfile.TemporaryDirectory() as temporary:
        work, count = Path(temporary), images // IN_A_SHARD
        (work / "table").mkdir()
        (work / "table" / "shards.txt").write_text("".join(f"{folder}/{n:06d}.tar\n" for n in range(count)))
        with open(work / "table" / "captions.csv", "w", encoding="utf-8") as table:
            table.write("image,caption,split\n")
            for shard in range(count):
                for row in range(IN_A_SHARD):
                    table.write(f"{shard:06d}{row:04d}.jpg,a dog runs over the grass with a ball number {row},train\n")
        code = CHILD.format(root=str(ROOT), folder=str(folder), work=temporary, count=count)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(run.stderr)
    took, streaming, table, encoded, named = json.loads(run.stdout.splitlines()[-1])
    if (encoded, named) != (images, images):
        raise SystemExit(f"{encoded} of {images} images were encoded, and {named} have captions")
    return [took, streaming, table]


def main() -> int:
    """Prints the table. Returns 0 when memory is flat and the cost of an image the same, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        make_shards(Path(temporary), max(options.images) // IN_A_SHARD)
        print("   images   CPU s   us an image   more MB, streaming   more MB, table and names")
        for images in options.images:
            took, streaming, table = measure(Path(temporary), images)
            rows.append((1e6 * took / images, streaming))
            print(f"{images:9,} {took:7.2f} {rows[-1][0]:13.0f} {streaming:20.1f} {table:26.1f}", flush=True)
    flat = max(streaming for _, streaming in rows) < 50
    linear = rows[-1][0] < 1.5 * rows[0][0]
    print(f"memory {'flat' if flat else 'GROWS'}, cost {'linear' if linear else 'NOT LINEAR'}")
    return 0 if flat and linear else 1


if __name__ == "__main__":
    sys.exit(main())
