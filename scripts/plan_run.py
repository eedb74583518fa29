"""The arithmetic of a large training: `python scripts/plan_run.py CONFIG.json [--processes 16] [--peak 312]`.

Prints batch, steps, memory of a GPU, memory of a host, disk and time for COCO or Conceptual Captions 3M. Nothing is
downloaded: model and encoder are built from their shapes with random weights, and what a step multiplies and keeps for
the backward pass is counted on the CPU. Times are estimates: from the counted operations, the GPU's `--peak` (bf16,
10^12 a second; an A100's is 312) and the `--share` of it that is reached, and for decoding from this machine's CPU.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

# Training and dev images, training captions. COCO: Karpathy's splits with restval in train. CC3M: Sharma et al. 2018.
DATA = {"coco": (113_287, 5_000, 566_747), "shards": (3_318_333, 15_840, 3_318_333)}
TOKENS = 14  # of a caption, with its end; see --tokens
GB = 1e9


def count_step(config: dict, tokens: int, images: int) -> tuple[int, float, float]:
    """Returns the trained weights, and for a step on `images` with their captions: operations, bytes kept."""
    from helpers.captioner import build_model
    from helpers.losses import CrossEntropy
    from helpers.text import Batch

    options = {key: value for key, value in config["model"].items() if key != "class"}
    model = build_model("ClipCap", {"feature_width": 512, **options, "language_model_config": {"model_type": "gpt2"}})
    captions = images * config["stages"][0]["captions_per_image"]
    inputs = torch.randint(0, 1000, (captions, tokens - 1))
    labels = torch.randint(0, 1000, (captions, tokens))
    row = torch.arange(images).repeat_interleave(captions // images)
    batch = Batch(["a"] * images, torch.randn(images, 1, 512), row, inputs, labels)
    weights, seen, kept = {p.data_ptr() for p in model.parameters()}, set(), 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen and storage.data_ptr() not in weights:
            seen.add(storage.data_ptr())
            kept += storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _, _ = CrossEntropy()(model.train(), batch)
        loss.backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, counter.get_total_flops(), kept


def count_encoder() -> float:
    """Returns the operations of CLIP ViT-B/32 on one image."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        model, pixels = CLIPVisionModel(CLIPVisionConfig()), torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(pixels)
    return counter.get_total_flops()


def photos(side: int) -> tuple[float, float]:
    """Returns mean bytes and CPU seconds to decode of the sample photos, as JPEGs with that shorter side."""
    from PIL import Image

    from helpers.images import open_image

    sizes, seconds = [], 0.0
    for path in sorted((ROOT / "sample_images").glob("*.jpg")):
        image = open_image(path)
        scale = side / min(image.size)
        out = io.BytesIO()
        image.resize([round(scale * s) for s in image.size], Image.Resampling.LANCZOS).save(out, "JPEG", quality=95)
        sizes.append(len(out.getvalue()))
        began = time.process_time()
        open_image(out.getvalue()).resize((224, 224), Image.Resampling.BICUBIC, reducing_gap=3.0)
        seconds += time.process_time() - began
    return sum(sizes) / len(sizes), seconds / len(sizes)


def host_bytes(tokens: int, sample: int = 20_000) -> float:
    """Returns the memory that a process keeps for one caption: the table's row, the reference, the token numbers."""
    import tracemalloc

    import pandas as pd

    chance = random.Random(0)
    words = [f"word{n}" for n in range(5000)]
    tracemalloc.start()
    rows = [(f"{n:09d}.jpg", " ".join(chance.choices(words, k=tokens - 1)), "train") for n in range(sample)]
    table = pd.DataFrame(rows, columns=["image", "caption", "split"])
    del rows
    references = {image: [caption] for image, caption in zip(table["image"], table["caption"], strict=True)}
    encoded = {image: [[chance.randrange(50_000) for _ in range(tokens - 1)]] for image in references}
    index = {image: row for row, image in enumerate(encoded)}
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return used / len(index)


def clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan(config: dict, processes: int, peak: float, share: float, network: float, tokens: int) -> list[tuple[str, str]]:
    """Returns the lines of the plan: what, and how much."""
    name, stage = config["dataset"]["name"], config["stages"][0]
    images, dev, captions = DATA[name]
    size, epochs = stage["images_per_batch"], stage["epochs"]
    each, steps = size / processes, images // size
    (trained, one, small), (_, three, large) = (count_step(config, tokens, count) for count in (1, 3))
    work, kept = (three - one) / 2, (large - small) / 2  # of an image; what is left is kept once a step
    side = 256 if name == "shards" else 480
    photo, decode = photos(side)
    rate = peak * 1e12 * share * processes
    encode = count_encoder() * (images + dev)
    states = 20 * trained  # fp32: weight, gradient, its copy while it is shared, two moments
    return [
        ("images, captions for training", f"{images:,}, {captions:,}"),
        ("a batch of all processes", f"{size:,} images, {size * stage['captions_per_image']:,} captions"),
        ("of one process", f"{each:g} images, {each * stage['captions_per_image']:g} captions"),
        ("steps", f"{steps:,} an epoch, {steps * epochs:,} in {epochs} epochs"),
        ("weights trained", f"{trained / 1e6:.0f} million"),
        ("GPU: weights, gradients, moments", f"{states / GB:.1f} GB"),
        ("GPU: kept for the backward pass", f"{(small - kept + each * kept) / GB:.1f} GB"),
        ("GPU: together", f"{(states + small - kept + each * kept) / GB:.1f} GB"),
        ("host: captions and names, 8 processes", f"{8 * captions * host_bytes(tokens) / GB:.1f} GB"),
        ("disk: features, 512 numbers in fp16", f"{2 * 512 * (images + dev) / GB:.2f} GB"),
        (f"the images themselves, {side} pixels", f"{photo * (images + dev) / GB:.0f} GB"),
        ("operations: encoder, one epoch", f"{encode / 1e15:.1f}, {work * images / 1e15:.1f} x 10^15"),
        ("shared each step, each way, of a host", f"{4 * trained / GB:.2f} GB"),
        (f"time: encoder, at {share:.0%} of {peak:g} T/s", clock(encode / rate)),
        (f"time: {epochs} epochs, the same", clock(work * images * epochs / rate)),
        (f"time: sharing, at {network:g} GB/s between hosts", clock(steps * epochs * 4 * trained / GB / network)),
        (f"time: decoding, {4 * processes} threads", clock(decode * (images + dev) / (4 * processes))),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Prints the plan. Returns the exit status."""
    from helpers.files import read_json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a ClipCap configuration over the dataset coco or shards")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--peak", type=float, default=312.0, help="10^12 operations a second of a GPU in bf16")
    parser.add_argument("--share", type=float, default=0.3, help="of the peak that is reached")
    parser.add_argument("--network", type=float, default=12.5, help="10^9 bytes a second between hosts, each way")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a caption, with its end")
    options = parser.parse_args(arguments)
    config = read_json(options.config)
    for what, value in plan(config, options.processes, options.peak, options.share, options.network, options.tokens):
        print(f"{what:42} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
