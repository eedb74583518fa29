"""Feature extraction against its bounds: `python benchmarks/features.py [--images 512] [--folder PHOTOS]`.

Prints the speed of the feature cache (decoding, encoding, writing) beside that of the bare forward passes on pixels
already in memory, and of encoding one image at a time, once for each caption, as the script of ClipCap's authors does.
What is compared runs in turns and the median is taken, so that other work on the machine troubles all alike.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from helpers.encoders import cache_features, load_encoder  # noqa: E402
from helpers.images import open_image  # noqa: E402

CAPTIONS = 5  # a photo, in Flickr8k and COCO


def make_photos(folder: Path, count: int) -> list[Path]:
    """Writes `count` JPEGs of 500 x 375, the size of Flickr8k's, cut from the sample photos; returns their paths."""
    chance, paths = random.Random(0), []
    photos = [open_image(path) for path in sorted((ROOT / "sample_images").glob("*.jpg"))]
    for number in range(count):
        photo = photos[number % len(photos)]
        width, height = photo.size
        left, top = chance.randrange(width // 4), chance.randrange(height // 4)
        cut = photo.crop((left, top, left + 3 * width // 4, top + 3 * height // 4)).resize((500, 375))
        paths.append(folder / f"{number:05d}.jpg")
        cut.save(paths[-1], quality=90)
    return paths


def in_turns(rounds: int, **runs: Callable[[], object]) -> dict[str, list[float]]:
    """Returns the seconds of each run in each round; all take their turn in every round, after one round unmeasured."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Returns the median over the rounds of one time over another."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def speed(encoder, paths: list[Path], kind: str, rounds: int, work: Path) -> None:
    """Prints the cache against bare forward passes, and against one image at a time once a caption."""
    named = {path.name: path for path in paths}
    pixels = torch.stack([encoder.prepare(open_image(path)) for path in paths])
    few = paths[: max(4, len(paths) // 32)]
    folders: Iterator[Path] = (work / f"cache {number}" for number in range(1000))

    def bare() -> None:
        for part in pixels.split(32):
            encoder.features(part, kind)

    def authors() -> None:
        for path in few:
            for _ in range(CAPTIONS):
                encoder.features(encoder.prepare(open_image(path))[None], kind)

    seconds = in_turns(
        rounds,
        bare=bare,
        cache=lambda: cache_features(encoder, named, kind, folder=next(folders)),
        authors=authors,
    )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    share = ratio(seconds["bare"], seconds["cache"])
    faster = ratio(seconds["authors"], seconds["cache"]) * len(paths) / len(few)
    rate = {name: len(few if name == "authors" else paths) / value for name, value in median.items()}
    print(f"\n{encoder.name}, {kind}, {len(paths)} photos, {torch.get_num_threads()} threads, {rounds} rounds")
    print(f"  bare forward passes            {rate['bare']:8.1f} images/s")
    print(f"  feature cache, from the files  {rate['cache']:8.1f} images/s   {share:.2f} of bare")
    print(f"  one at a time, once a caption  {rate['authors']:8.2f} images/s   cache {faster:.1f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="photos to encode; without it, some are cut from the sample photos")
    parser.add_argument("--encoder", default="efficientnet-lite2")
    parser.add_argument("--kind", default="grid")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work, photos = Path(name), options.folder
        if photos is None:
            photos = work / "photos"
            photos.mkdir()
            make_photos(photos, options.images)
        paths = sorted(photos.glob("*.jpg"))[: options.images]
        speed(load_encoder(options.encoder), paths, options.kind, options.rounds, work)


if __name__ == "__main__":
    main()
