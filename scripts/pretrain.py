"""Makes a PocketCLIP or a PocketGPT2, as the shipped ones were made, and ships it with its card.

    python scripts/pretrain.py data/checkpoints/pocket-clip/training.json [--ship]

The configuration's "kind" says which: pocket-clip or pocket-gpt2.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import loop  # noqa: E402
from helpers.clips import PocketCLIP  # noqa: E402
from helpers.cnn_lstm import ShowAttendTell  # noqa: E402
from helpers.datasets import Dataset, load_dataset  # noqa: E402
from helpers.encoders import cache_features, load_encoder  # noqa: E402
from helpers.files import (  # noqa: E402
    CHECKPOINTS,
    atomic_write,
    cache_dir,
    command,
    read_json,
    save_tensors,
    sha256_file,
    unknown_name,
    write_json,
)
from helpers.language_models import new_pocket_gpt2, save_language_model  # noqa: E402
from helpers.pretraining import fine_tune, pretrain  # noqa: E402
from helpers.text import Vocabulary  # noqa: E402
from helpers.trunks import WIDTH  # noqa: E402

TEXT = {
    "pocket-clip": """A small dual encoder, class `PocketCLIP`: EfficientNet-Lite2 with its last stages fine-tuned and a
learned pooling on one side, a two-layer transformer over words on the other. Trained with the symmetric contrastive
loss, several captions an image, and with a captioner beside it whose word loss also shapes the grid (as in CoCa,
Yu et al. 2022); that captioner is thrown away.""",
    "pocket-gpt2": """A small GPT-2 with a byte-level BPE tokenizer of its own, trained on caption text alone:
lower case, no punctuation, the five captions of a photo in one sequence, so that it learns to read what stands before.
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load the folder without code of ours.""",
}


def crop(stem: Tensor, chance: random.Random, smallest: float = 0.78) -> Tensor:
    """Returns one random window of a batch of stem activations [B, H, W, C]: a crop of the picture, for nothing."""
    H, W = stem.shape[1:3]
    h, w = chance.randint(math.ceil(H * smallest), H), chance.randint(math.ceil(W * smallest), W)
    top, left = chance.randint(0, H - h), chance.randint(0, W - w)
    return stem[:, top : top + h, left : left + w]


def _paths(dataset: Dataset) -> dict[str, Path]:
    return {image: dataset.path(image) for split in ("train", "dev") for image in dataset.images(split)}


def train_pocket_clip(config: dict, dataset: Dataset, folder: Path, callback=None) -> None:
    """Trains a PocketCLIP and writes it to `folder`.

    Keys: model (options of PocketCLIP), vocabulary, captioner (options of the ShowAttendTell trained beside it, or
    null), training (arguments of `fine_tune`), seed.
    """
    references, options = dataset.references("train"), {**PocketCLIP.defaults, **config.get("model", {})}
    base = load_encoder(f"efficientnet-lite{options['version']}", size=options["size"])
    views = [cache_features(base, _paths(dataset), "stem", flip=mirror) for mirror in (False, True)]
    loop.seed_everything(config.get("seed", 0))
    captions = [caption for group in references.values() for caption in group]
    model = PocketCLIP(Vocabulary.build(captions, **config.get("vocabulary", {"min_count": 3})), **options)
    model.trunk.freeze(stem=True, tail=False)
    model.trunk.drop_path = 0.1
    captioner = None
    if config.get("captioner") is not None:
        vocabulary = Vocabulary.build(captions, min_count=4)
        captioner = ShowAttendTell(vocabulary_size=len(vocabulary), feature_width=WIDTH, **config["captioner"])
        captioner.tokenizer, captioner.end_id = vocabulary, vocabulary.end_id
        names = list(references)[:500]
        with torch.inference_mode():
            grids = [model.trunk.tail(views[0][names[i : i + 50]]) for i in range(0, len(names), 50)]
            captioner.standardise.fit(torch.cat(grids))

    def inputs(names: list[str], chance: random.Random | None) -> Tensor:
        return views[0][names] if chance is None else crop(views[chance.randrange(2)][names], chance)

    made_from = {"dataset": dataset.fingerprint(), "encoder": base.fingerprint}
    made_from |= {name: config.get(name) for name in ("model", "vocabulary", "captioner")}
    history = fine_tune(
        model, inputs, references, dataset.references("dev"), captioner=captioner, seed=config.get("seed", 0),
        folder=folder, made_from=made_from, callback=callback, **config["training"],
    )  # fmt: skip
    save_pocket_clip(folder, model, {"scores": {"flickr8k dev": history[-1]}})


def train_language_model(config: dict, dataset: Dataset, folder: Path, callback=None) -> None:
    """Makes a PocketGPT2 of the training captions and writes it to `folder`/model.

    Keys: model (options of new_pocket_gpt2), training (arguments of `pretrain`), seed.
    """
    references = dataset.references("train")
    loop.seed_everything(config.get("seed", 0))
    model, tokenizer = new_pocket_gpt2((c for group in references.values() for c in group), **config.get("model", {}))
    pretrain(
        model, tokenizer, references, dataset.references("dev"), seed=config.get("seed", 0), folder=folder,
        made_from={"dataset": dataset.fingerprint(), "model": config.get("model")}, callback=callback,
        **config["training"],
    )  # fmt: skip
    save_language_model(folder / "model", model, tokenizer)


KINDS = {"pocket-clip": train_pocket_clip, "pocket-gpt2": train_language_model}


def train(config: dict | str | Path, callback: Callable[[dict], None] = print, restart: bool = False) -> Path:
    """Trains what the configuration (a dict, or a JSON file) describes. Returns the folder.

    Keys: kind, dataset (arguments of `load_dataset`), output, and those of its kind in KINDS. A killed run goes on;
    `restart` begins anew.
    """
    config = dict(read_json(config)) if isinstance(config, (str, Path)) else dict(config)
    if config.get("kind") not in KINDS:
        raise unknown_name("kind of pretraining", config.get("kind"), KINDS)
    folder = Path(config.pop("output", None) or cache_dir() / "runs" / config["kind"])
    if restart:
        loop.begin_anew(folder)
    KINDS[config["kind"]](config, load_dataset(**config["dataset"]), folder, callback)
    write_json(folder / "training.json", config)
    return folder


def save_pocket_clip(folder: Path, model: PocketCLIP, extra: dict | None = None) -> None:
    """Writes weights in fp16, vocabulary and configuration with their hashes."""
    model.tokenizer.save(folder / "vocabulary.json")
    tensors = {n: v.half() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    save_tensors(folder / "model.safetensors", tensors)
    hashes = {name: sha256_file(folder / name) for name in ("model.safetensors", "vocabulary.json")}
    config = {"format": 1, "name": "pocket-clip", "class": "PocketCLIP", "options": model.config, "sha256": hashes}
    write_json(folder / "config.json", config | (extra or {}))


def ship(name: str, run: Path) -> None:
    """Copies what a finished run wrote to data/checkpoints, and writes the card."""
    folder = CHECKPOINTS / name
    made = run / "model" if name == "pocket-gpt2" else run
    for file in (*made.glob("*.json"), made / "model.safetensors", run / "history.csv"):
        shutil.copyfile(file, folder / file.name)
    rows = pd.read_csv(run / "history.csv")
    minutes = rows.pop("seconds").sum() / 60
    card = f"""# {name}

{TEXT[name]}

- **Data**: the training split of Flickr8k (Hodosh et al. 2013; research and education only); measured on dev,
  1,000 photos with five captions each. The test split was not used.
- **Command**: `python scripts/pretrain.py data/checkpoints/{name}/training.json --ship`, {minutes:.0f} minutes.

The run, epoch by epoch (also in `history.csv`):

{rows.round(3).to_string(index=False)}
"""
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


@command
def main(arguments: list[str] | None = None) -> None:
    """Trains as the configuration says."""
    parser = argparse.ArgumentParser(description="Make a PocketCLIP or a PocketGPT2.")
    parser.add_argument("config", help="a JSON configuration")
    parser.add_argument("--restart", action="store_true", help="begin anew where an earlier run would go on")
    parser.add_argument("--ship", action="store_true", help="put it into data/checkpoints")
    options = parser.parse_args(arguments)
    folder = train(options.config, lambda row: print(json.dumps(row), flush=True), options.restart)
    if options.ship:
        ship(read_json(options.config)["kind"], folder)


if __name__ == "__main__":
    raise SystemExit(main())
