"""How the shipped clipcap-mlp learned to read tags: photos, and captions without photos (DeCap, CapDec, Tag2Text).

    python -m configs.pocket.tags data/checkpoints/clipcap-mlp/tags.json

A caption without a photo becomes a training example all the same. What it says names its tags, as a classifier would
have named them; the rest of its features is borrowed from the training photo that PocketCLIP finds nearest to it. So
the model learns to say "sheep" when a tag says so, although no photo it was trained on shows one.

Keys of the configuration: those of `helpers.training` (features "tagged"), and
    text: tables with the columns image, caption (.tsv or .csv, also .gz), of captions without photos
    examples: how many of them stand beside the photos
    power: how much more often common words are tags than rare ones, 0 (all alike) to 1 (as often as they are said)
    mean: folder -> share; after training the weights are averaged with those (Wortsman et al. 2022, "Model soups")
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import loop
from helpers.captioner import load_checkpoint, save_checkpoint
from helpers.encoders import load_encoder
from helpers.files import CaptioningError, command, read_json, write_json
from helpers.text import normalise
from helpers.training import prepare, run_stage
from helpers.trunks import class_words

OWN = ("text", "examples", "power", "mean")
BARE = 0.15  # the share of training photos without their tags


def plural(word: str) -> str:
    """Returns the regular plural of an English noun."""
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def read_text(files: list[str]) -> dict[str, list[str]]:
    """Returns image -> captions of tables of captions without photos. Raises CaptioningError when one is missing."""
    for file in files:
        if not Path(file).is_file():
            raise CaptioningError(f"{file} is missing: captions without photos, with the columns image, caption.")
    tables = [pd.read_csv(file, sep="\t" if ".tsv" in file else ",") for file in files]
    return pd.concat(tables).groupby("image")["caption"].apply(list).to_dict()


def choose(text: dict[str, list[str]], count: int, power: float, chance: random.Random) -> dict[str, tuple]:
    """Returns example name -> (tags, captions that name the first tag), balanced over tags.

    A tag that is said n times is chosen in proportion to n ** power: by frequency alone "man" would be all there is.
    """
    form = {said: word for word in class_words()[0] for said in (plural(word), word)}
    naming = defaultdict(dict)  # tag -> image -> captions that say it
    for image, captions in text.items():
        for caption in captions:
            for word in {form[w] for w in normalise(caption) if w in form}:
                naming[word].setdefault(image, []).append(caption)
    words = [word for word, images in naming.items() if len(images) >= 4]
    examples = {}
    for number, tag in enumerate(chance.choices(words, [len(naming[w]) ** power for w in words], k=count)):
        image = chance.choice(list(naming[tag]))
        others = [word for word in words if word != tag and image in naming[word]]
        tags = [tag, *chance.sample(others, min(len(others), chance.choice((0, 0, 1, 2))))]
        examples[f"text {number}"] = (chance.sample(tags, len(tags)), naming[tag][image])
    return examples


class WithText:
    """Features of photos and of captions without photos: `features[names]` is [len(names), R + 1, D], as an encoder's
    kind "tagged" has them."""

    def __init__(self, photos, examples: dict[str, tuple], borrowed: dict[str, str], train: list[str], seed: int = 0):
        """`borrowed`: example -> the photo whose grid it borrows. Some of `train` never show their tags in this view,
        so that the model does not lean on tags alone."""
        self.photos, self.examples, self.borrowed = photos, examples, borrowed
        words, names = class_words()
        self.place = {word: int(names[:, i].argmax()) for i, word in enumerate(words)}  # the first class of each
        self.bare = {name for name in train if random.Random(f"{seed} {name}").random() < BARE}

    def __contains__(self, name: str) -> bool:
        return name in self.examples or name in self.photos

    def __getitem__(self, names: list[str]) -> Tensor:
        features = self.photos[[self.borrowed.get(name, name) for name in names]]
        for row, name in enumerate(names):
            if name in self.examples:
                features[row, -1] = 0
                for tag in self.examples[name][0]:
                    features[row, -1, self.place[tag]] = 20  # all that softmax has to give
            elif name in self.bare:
                features[row, -1] = 0
        return features


@torch.inference_mode()
def nearest_photos(examples: dict[str, tuple], photos, names: list[str], encoder) -> dict[str, str]:
    """Returns example -> the photo among `names` whose picture PocketCLIP finds nearest to the example's captions."""
    grids = (photos[names[i : i + 100]][:, :-1] for i in range(0, len(names), 100))
    vectors = F.normalize(torch.cat([encoder.model.pool(grid) for grid in grids]), dim=-1)  # [photos, E]
    borrowed = {}
    for name, (_, captions) in examples.items():
        said = encoder.encode_text(captions).mean(0)  # [E]
        borrowed[name] = names[int((vectors @ said).argmax())]
    return borrowed


def average(model: torch.nn.Module, shares: dict[str, float]) -> None:
    """Mixes the weights of other checkpoints into `model`; what is left of 1 is its own share."""
    total = {name: value * (1 - sum(shares.values())) for name, value in model.state_dict().items()}
    for folder, share in shares.items():
        for name, value in load_checkpoint(folder)[0].state_dict().items():
            total[name] = total[name] + share * value
    model.load_state_dict(total)


@command
def main(arguments: list[str] | None = None) -> None:
    """Trains as the configuration says."""
    parser = argparse.ArgumentParser(description="Train a ClipCap that reads tags.")
    parser.add_argument("config", type=Path, help="a JSON configuration")
    whole = read_json(parser.parse_args(arguments).config)
    config, own = {k: v for k, v in whole.items() if k not in OWN}, {k: whole.get(k) for k in OWN}
    run, chance = prepare(config), random.Random(config.get("seed", 0))
    photos = list(run.train)
    examples = choose(read_text(own["text"]), own["examples"], own["power"], chance)
    borrowed = nearest_photos(examples, run.views[0], photos, load_encoder(config["encoder"]))
    run.train |= {name: captions for name, (_, captions) in examples.items()}
    run.views = [WithText(view, examples, borrowed, photos, number) for number, view in enumerate(run.views)]
    accelerator = loop.make_accelerator(config.get("mixed_precision"))
    for number, stage in enumerate(config["stages"], 1):
        run_stage(run, stage, number, accelerator, print)
    average(run.model, own["mean"] or {})
    save_checkpoint(run.folder, run.model, config)
    write_json(run.folder / "tags.json", whole)


if __name__ == "__main__":
    main()
