"""Feature extraction against its bounds: `python benchmarks/features.py [--images 512] [--folder PHOTOS] [--compile]`.

Prints four tables:
1. the feature cache (decoding, encoding, writing) against the bare forward passes on pixels already in memory;
2. the same against encoding one image at a time, once for each caption, as the script of ClipCap's authors does;
3. peak memory for more and more images;
4. the forward pass itself: the published code in fp32, ours in fp32, in bf16, compiled; and how near the features stay.

What is compared runs in turns and the median is taken, so that other work on the machine troubles all alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from helpers.files import usable_cores  # noqa: E402

CAPTIONS = 5  # a photo, in Flickr8k and COCO


def make_photos(folder: Path, count: int) -> list[Path]:
    """Writes `count` JPEGs of 500 x 375, the size of Flickr8k's, cut from the sample photos; returns their paths."""
    import random

    from helpers.images import open_image

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
    """Tables 1 and 2: the cache against bare forward passes, and against one image at a time once a caption."""
    from helpers.features import cache_features
    from helpers.images import open_image

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
    print(f"  feature cache, from the files  {rate['cache']:8.1f} images/s   {share:.2f} of bare (asked: 0.90)")
    print(f"  one at a time, once a caption  {rate['authors']:8.2f} images/s   cache {faster:.1f} times as fast (6)")


CHILD = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads({threads})
from helpers.encoders import load_encoder
from helpers.features import cache_features
photos = sorted(Path({photos!r}).glob("*.jpg"))
paths = {{f"{{i}} {{photos[i % len(photos)].name}}": photos[i % len(photos)] for i in range({count})}}
cache_features(load_encoder({name!r}), paths, {kind!r}, folder=Path({work!r}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "linux" else 1024))
"""


def memory(name: str, kind: str, photos: Path, counts: list[int], work: Path) -> None:
    """Table 3: peak resident memory of a process that encodes each number of images."""
    print(f"\n{name}, {kind}: peak memory of the process")
    for count in counts:
        options = {"root": str(ROOT), "photos": str(photos), "work": str(work), "name": name, "kind": kind}
        script = CHILD.format(threads=torch.get_num_threads(), count=count, **options)
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        written = sum(path.stat().st_size for path in work.rglob("features.npy"))
        print(f"  {count:6d} images  {int(out) / 1024:7.0f} MB   (all features so far: {written / 1e6:.0f} MB on disk)")


def passes(version: int, paths: list[Path], rounds: int, compiled: bool) -> None:
    """Table 4: forward passes of one network in several ways, with the cosine of their features to the first's."""
    from efficientnet_lite_pytorch import EfficientNet

    from helpers.encoders import load_encoder
    from helpers.images import open_image
    from helpers.trunks import fast_bf16, pretrained_weights

    encoder = load_encoder(f"efficientnet-lite{version}")
    pixels = torch.stack([encoder.prepare(open_image(path)) for path in paths[:32]])
    net = EfficientNet.from_name(f"efficientnet-lite{version}", image_size=encoder.size).eval()
    net.load_state_dict(torch.load(pretrained_weights(version), map_location="cpu", weights_only=True))

    def published() -> torch.Tensor:
        return net.extract_features((pixels.float() - 127) / 128).flatten(2).transpose(1, 2)

    def ours(module) -> torch.Tensor:
        return torch.cat([module(part).float() for part in pixels.split(encoder.chunk)])

    def bf16(module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ours(module)

    runs = {
        "published code, fp32": published,
        "ours: folded, channels last, fp32": lambda: ours(encoder.module),
    }
    hardware = fast_bf16("cpu")  # emulated it is up to a hundred times slower, and not what anyone would use
    if hardware:
        runs["the same, bf16"] = lambda: bf16(encoder.module)
    if compiled:
        faster = torch.compile(encoder.module)
        runs["compiled, fp32"] = lambda: ours(faster)
        if hardware:
            runs["compiled, bf16"] = lambda: bf16(faster)
    with torch.inference_mode():
        features = {name: run() for name, run in runs.items()}
        seconds = in_turns(rounds, **runs)
    first = next(iter(runs))
    print(f"\nefficientnet-lite{version}, 32 images a pass, bf16 in hardware: {hardware}")
    for name, values in seconds.items():
        cosine = F.cosine_similarity(features[name].float(), features[first], dim=-1)[features[first].norm(dim=-1) > 0]
        print(
            f"  {name:34s} {32 / statistics.median(values):7.1f} images/s  {ratio(seconds[first], values):5.2f} times  "
            f"cosine to fp32: mean {cosine.mean():.5f}, worst region {cosine.min():.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="photos to encode; without it, some are cut from the sample photos")
    parser.add_argument("--encoder", default="efficientnet-lite2")
    parser.add_argument("--kind", default="grid")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from helpers.encoders import load_encoder

    with tempfile.TemporaryDirectory() as name:
        work, photos = Path(name), options.folder
        if photos is None:
            photos = work / "photos"
            photos.mkdir()
            make_photos(photos, options.images)
        paths = sorted(photos.glob("*.jpg"))[: options.images]
        encoder = load_encoder(options.encoder)
        speed(encoder, paths, options.kind, options.rounds, work)
        counts = [options.images, 2 * options.images, 4 * options.images]
        memory(options.encoder, options.kind, photos, counts, work / "memory")
        passes(2, paths, options.rounds, options.compile)


if __name__ == "__main__":
    main()
