"""Fine-tunes any CLIP on a captions dataset and measures retrieval before and after.

    python -m helpers.tune_clip clip:ViT-B/32 flickr8k --data_dir DIR --output data/runs/clip-flickr8k

Shapes: B images, R regions, D trunk width, E joint width, S pixels a side.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.devices import pick_device
from helpers.errors import CaptioningError

# A pretrained CLIP forgets what it knows at the rates that our small model needs.
RATES = {
    "clip": {"learning_rate": 1e-5, "trunk_learning_rate": 1e-6},
    "pocket": {"learning_rate": 5e-4, "trunk_learning_rate": 1e-4},
}


class GridSide(nn.Module):
    """PocketCLIP behind a frozen trunk: `image_side` takes the cached grid [B, R, D], so that training is quick."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.requires_grad_(True)
        self.model.trunk.requires_grad_(False)

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.model.logit_scale

    def trunk_parameters(self) -> list[nn.Parameter]:
        return list(self.model.trunk_parameters())

    def image_side(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Returns vectors [B, E] and the grid."""
        grid = grid.to(self.logit_scale.device)
        return self.model.pool(grid), grid

    def text_side(self, captions: Sequence[str]) -> Tensor:
        """Returns vectors [N, E]."""
        return self.model.text_side(captions)


def dual_encoder(encoder, train_trunk: bool = False) -> tuple[nn.Module, str]:
    """Returns what `contrastive.fine_tune` trains, and what its image side takes: pixels, or a kind of cached feature.

    The encoder shares the weights, so it is fine-tuned with it. A frozen trunk's output is cached; of PocketCLIP's
    trunk only the second half is ever trained, and the first half's output is cached. Raises CaptioningError when the
    encoder has no text side.
    """
    if hasattr(encoder, "dual"):
        return encoder.dual(train_trunk), "pixels" if train_trunk else "stem"
    if not hasattr(encoder, "encode_text"):
        raise CaptioningError(f"{encoder.name} has no text side to tune; use pocket-clip, clip:NAME or hf-clip:NAME.")
    if not train_trunk:
        return GridSide(encoder.model), "grid"
    encoder.model.requires_grad_(True)
    encoder.model.trunk.freeze(stem=True, tail=False)
    return encoder.model, "stem"


def make_inputs(encoder, paths: dict[str, Path], kind: str, mirror: bool = True) -> Callable:
    """Returns `inputs(names, chance)` for `fine_tune`: cached features, or pixels [B, 3, S, S] decoded when asked for.

    With `chance` given, half of the batches are of mirror images when `mirror` is set. Leave it off where captions
    speak of left and right.
    """
    if kind != "pixels":
        from helpers.features import cache_features

        views = [cache_features(encoder, paths, kind, flip=flip) for flip in ((False, True) if mirror else (False,))]
        return lambda names, chance: views[0 if chance is None else chance.randrange(len(views))][names]
    from helpers.images import open_image

    pool = ThreadPoolExecutor(4)

    def pixels(names: list[str], chance: random.Random | None) -> Tensor:
        batch = torch.stack(list(pool.map(lambda name: encoder.prepare(open_image(paths[name])), names)))
        return batch.flip(-1) if mirror and chance is not None and chance.random() < 0.5 else batch

    return pixels


def tune(
    encoder,
    dataset,
    *,
    train_trunk: bool = False,
    mirror: bool = True,
    folder: Path | None = None,
    callback: Callable[[dict], None] | None = None,
    **training,
) -> dict:
    """Fine-tunes `encoder` on the dataset's train split. Returns recalls on dev: {"before", "after", "history"}.

    `training`: arguments of `contrastive.fine_tune`; the rates default to gentle ones for pretrained CLIPs. With a
    `folder` a killed run goes on, and the tuned model is saved in its own format under `folder`/model.
    """
    from helpers.contrastive import fine_tune, measure

    references, dev = dataset.references("train"), dataset.references("dev")
    paths = {image: dataset.path(image) for image in [*references, *dev]}
    dual, kind = dual_encoder(encoder, train_trunk)
    inputs = make_inputs(encoder, paths, kind, mirror)
    before = measure(dual, lambda names: inputs(names, None), dev)
    if callback:
        callback({"epoch": 0, **before})
    rates = RATES["clip" if hasattr(encoder, "dual") else "pocket"]
    history = fine_tune(dual, inputs, references, dev, folder=folder, callback=callback, **{**rates, **training})
    dual.eval().requires_grad_(False)
    if folder is not None:
        save_tuned(encoder, Path(folder) / "model")
    return {"before": before, "after": {k: v for k, v in history[-1].items() if k in before}, "history": history}


def save_tuned(encoder, folder: Path) -> Path:
    """Writes a fine-tuned encoder in its own format. Returns what follows the colon in its name for `load_encoder`."""
    if hasattr(encoder, "save"):
        return encoder.save(folder)
    from helpers.pocket_clip import save_pocket_clip

    folder.mkdir(parents=True, exist_ok=True)
    save_pocket_clip(folder, encoder.model)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Runs the command above; prints a JSON object an epoch. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m helpers.tune_clip", description=__doc__.splitlines()[0])
    parser.add_argument("encoder", help="clip:NAME, hf-clip:NAME or pocket-clip")
    parser.add_argument("dataset", help="pocket, flickr8k, flickr30k, coco or folder")
    parser.add_argument("--data_dir")
    parser.add_argument("--output", type=Path, default=Path("data/runs/tuned-clip"))
    parser.add_argument("--train_trunk", action="store_true", help="let the image tower learn as well")
    parser.add_argument("--no_mirror", action="store_true", help="no mirror images, where captions say left and right")
    parser.add_argument("--device", default=pick_device())
    parser.add_argument("--seed", type=int, default=0)
    for name, kind in (("epochs", int), ("images_per_batch", int), ("captions_per_image", int), ("warmup_steps", int),
                       ("learning_rate", float), ("trunk_learning_rate", float)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    options = vars(parser.parse_args(arguments))
    from helpers.datasets import load_dataset
    from helpers.encoders import load_encoder

    try:
        encoder = load_encoder(options.pop("encoder"), options.pop("device"))
        dataset = load_dataset(options.pop("dataset"), options.pop("data_dir"))
        settings = {"train_trunk": options.pop("train_trunk"), "mirror": not options.pop("no_mirror")}
        settings["callback"] = lambda row: print(json.dumps(row), flush=True)
        result = tune(encoder, dataset, folder=options.pop("output"), **settings, **options)
    except CaptioningError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"before": result["before"], "after": result["after"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
