"""ClipCap's training step against the obvious one: `python benchmarks/clipcap_training.py [--images 32] [--rounds 5]`.

The obvious step pads every caption to 40 tokens, gives each its own copy of the prefix, and sends the picture through
the encoder once for every caption. Ours pads to the longest caption of the batch, reads the prefix once for the five
captions of an image, and takes the picture's features from the cache. The losses of one batch are printed side by
side: nothing is left out. What is compared runs in turns and the median is taken.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from configs.pocket.pretraining import new_pocket_gpt2, save_language_model  # noqa: E402
from helpers.clipcap import ClipCap  # noqa: E402
from helpers.encoders import load_encoder  # noqa: E402
from helpers.losses import CrossEntropy  # noqa: E402
from helpers.text import Batch, teacher_forcing_batch  # noqa: E402
from pocket_scenes.scenes import draw_scene  # noqa: E402

FIXED = 40  # tokens a caption


@dataclass
class Work:
    """One batch, as pixels and as cached features, with its captions as token numbers."""

    pixels: Tensor  # [B, 3, S, S] uint8
    features: Tensor  # [B, R, D]
    row: Tensor  # [N]
    captions: list[list[int]]
    kind: str  # "grid" or "pooled"


def obvious_loss(model, encoder, work: Work) -> Tensor:
    """Mean loss a token, every caption by itself and 40 tokens long, and the picture encoded once a caption."""
    N, end = len(work.captions), model.end_id
    features = torch.cat([encoder.features(work.pixels[i : i + 1], work.kind) for i in work.row.tolist()])
    features = features.view(N, -1, features.shape[-1])
    tokens = torch.full((N, FIXED), end)
    labels = torch.full((N, FIXED), -100)
    for number, caption in enumerate(work.captions):
        tokens[number, : len(caption)] = torch.tensor(caption)
        labels[number, : len(caption) + 1] = torch.tensor([*caption, end])
    prefix = model.prefix(features)  # [N, P, W]
    words = model.language_model.get_input_embeddings()(tokens)  # [N, 40, W]
    P = prefix.shape[1]
    logits = model.language_model(inputs_embeds=torch.cat([prefix, words], 1)).logits
    return F.cross_entropy(logits[:, P - 1 : -1].flatten(0, 1), labels.flatten())


def our_loss(model, work: Work) -> Tensor:
    """Mean loss a token of our own training step."""
    inputs, labels = teacher_forcing_batch(work.captions, None, model.end_id)
    loss, count, _ = CrossEntropy()(model, Batch([], work.features, work.row, inputs, labels))
    return loss / count


def captions_per_second(model, rounds: int, work: Work, losses: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Returns the median speed of a whole training step with each loss, all taking turns."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)  # the loss stays
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(rounds + 1):
        for name, loss in losses.items():
            begin = time.perf_counter()
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: len(work.captions) / statistics.median(values) for name, values in seconds.items()}


def build(mapper: str, images: int, encoder) -> tuple[torch.nn.Module, Work]:
    """Returns a ClipCap of the shipped sizes (weights at random) and a batch: scenes with their five captions."""
    scenes = [draw_scene(f"benchmark {number}")[:2] for number in range(images)]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        language_model, tokenizer = new_pocket_gpt2([c for _, captions in scenes for c in captions])
        for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
            language_model.config[name] = 0.0  # without chance, so that losses can be compared
        save_language_model(folder, language_model, tokenizer)
        options = {"language_model": folder, "mapper": mapper, "tune": "full" if mapper == "mlp" else "none"}
        grid = {"regions": encoder.regions, "mapper_options": {"hidden": 512} if mapper == "mlp" else {"layers": 4}}
        model = ClipCap(encoder.width, **options, **(grid if mapper == "transformer" else {})).train()
    kind = "grid" if mapper == "transformer" else "pooled"
    pixels = torch.stack([encoder.prepare(picture) for picture, _ in scenes])
    features = encoder.features(pixels, kind).view(images, -1, encoder.width)
    row = torch.arange(images).repeat_interleave(5)
    return model, Work(pixels, features, row, [tokenizer.encode(c) for _, group in scenes for c in group], kind)


def main() -> None:
    parser = argparse.ArgumentParser(description="ClipCap's training step against the obvious one.")
    parser.add_argument("--images", type=int, default=32, help="in a batch, five captions each (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each kind (default: 5)")
    parser.add_argument("--encoder", default="efficientnet-lite2")
    options = parser.parse_args()
    encoder = load_encoder(options.encoder)
    titles = {"mlp": "MLP mapper, one vector, tuned", "transformer": "Transformer mapper, grid, frozen"}
    for mapper, title in titles.items():
        model, work = build(mapper, options.images, encoder)
        losses = {
            "the obvious step": partial(obvious_loss, model, encoder, work),
            "our step": partial(our_loss, model, work),
        }
        speeds = captions_per_second(model, options.rounds, work, losses)
        slowest = next(iter(speeds.values()))
        print(f"{title}; {options.images} images, {len(work.captions)} captions")
        print(f"{'':<40}{'loss':>10}{'captions/s':>12}{'ratio':>8}")
        for name, loss in losses.items():
            with torch.no_grad():
                print(f"{name:<40}{loss().item():>10.5f}{speeds[name]:>12.1f}{speeds[name] / slowest:>8.2f}")
        print(flush=True)


if __name__ == "__main__":
    main()
