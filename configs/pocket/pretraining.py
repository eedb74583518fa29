"""How the shipped PocketCLIP and PocketGPT2 were made; notebooks 05 and 09 use the same two functions on less data.

    python -m configs.pocket.pretraining data/checkpoints/pocket-clip/training.json [--ship]

The configuration's "kind" says which: pocket-clip or pocket-gpt2.
Shapes: B images, N captions, R regions, D trunk width, E joint width, T tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import loop
from helpers.clips import PocketCLIP
from helpers.cnn_lstm import ShowAttendTell
from helpers.datasets import Dataset, load_dataset
from helpers.encoders import cache_features, load_encoder
from helpers.files import (
    CHECKPOINTS,
    CaptioningError,
    atomic_write,
    cache_dir,
    command,
    read_json,
    save_tensors,
    sha256_file,
    unknown_name,
    write_json,
)
from helpers.language_models import END_TEXT, GPT2, CaptionTokenizer
from helpers.losses import CrossEntropy, contrastive_loss
from helpers.text import IGNORE, Batch, Vocabulary, normalise, pad, teacher_forcing_batch
from helpers.trunks import WIDTH, LiteTrunk

FINE_TUNING = {"epochs": 5, "weight_decay": 0.05, "warmup_steps": 100, "beta2": 0.98, "choose_by": ""}
PRETRAINING = {"epochs": 12, "weight_decay": 0.1, "warmup_steps": 100, "beta2": 0.98}


@dataclass
class Chosen:
    """The images of a batch and what belongs to them. Notebook 05, section 8."""

    images: list[str]
    given: tuple
    share: float = 1.0

    def to(self, device: torch.device) -> Chosen:
        return Chosen(self.images, tuple(v.to(device) if isinstance(v, Tensor) else v for v in self.given))


class Batches:
    """Shuffled batches for `loop.fit`; the last incomplete one is dropped unless it is the only one.

    make(names, chance) gives what a batch holds. Epoch `e` of seed `s` is the same after every restart.
    Notebook 05, section 8.
    """

    def __init__(self, names: Sequence[str], size: int, seed: int, make: Callable[[list[str], random.Random], tuple]):
        self.names, self.size, self.seed, self.make = list(names), size, seed, make

    def __len__(self) -> int:
        return max(1, len(self.names) // self.size)

    def epoch(self, epoch: int) -> Iterator[Chosen]:
        chance = random.Random(f"{self.seed} {epoch}")
        order = chance.sample(self.names, len(self.names))
        for start in range(0, len(self) * self.size, self.size):
            names = order[start : start + self.size]
            yield Chosen(names, self.make(names, chance))


def _fit(model, objective, batches, validate, defaults: dict, settings: dict, folder: Path | None, **options) -> list:
    """Calls `loop.fit` in one process, in a temporary folder where none is given."""
    for name in settings:
        if name not in loop.SETTINGS:
            raise unknown_name("training setting", name, loop.SETTINGS)
    if options["accelerator"].num_processes > 1:
        raise CaptioningError("Pretraining runs in one process. Start it without accelerate launch.")
    with TemporaryDirectory() as temporary:
        folder = Path(folder or temporary)
        return loop.fit(model, objective, batches, validate, {**defaults, **settings}, folder, **options)


def new_pocket_gpt2(
    captions: Iterable[str], vocabulary: int = 4000, width: int = 256, layers: int = 4, heads: int = 4,
    positions: int = 128,
) -> tuple[GPT2, CaptionTokenizer]:  # fmt: skip
    """Returns an untrained GPT-2 of this shape with a byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al.
    2019) that was trained on the captions. Notebook 09, section 12."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes: no text is unknown
    options = {"special_tokens": [END_TEXT], "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, **options)
    tokenizer.train_from_iterator((" " + " ".join(normalise(caption)) for caption in captions), trainer)
    end = tokenizer.token_to_id(END_TEXT)
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": tokenizer.get_vocab_size(),
        "n_positions": positions, "n_embd": width, "n_layer": layers, "n_head": heads, "bos_token_id": end,
        "eos_token_id": end, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "plain_captions": True,
    }  # fmt: skip
    return GPT2(config), CaptionTokenizer(tokenizer, end, plain=True)


def save_language_model(folder: str | Path, model: GPT2, tokenizer: CaptionTokenizer) -> None:
    """Writes a GPT-2 in fp16, so that plain calls of transformers load it. Notebook 09, section 12."""
    folder, tensors = Path(folder), {name: value.half() for name, value in model.state_dict().items()}
    del tensors["lm_head.weight"]  # the same table as wte
    about = dict.fromkeys(("eos_token", "bos_token", "unk_token"), END_TEXT)
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    tokenizer.save(folder / "tokenizer.json")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **about})
    write_json(folder / "config.json", {**model.config, "dtype": "float16"})


def documents(references: dict[str, list[str]], tokenizer: CaptionTokenizer, chance: random.Random | None) -> Iterator:
    """Yields one list of token numbers an image: its captions, each closed by the end token, shuffled by `chance`.

    Captions of one image stand together so that what comes before says something about what follows. A language model
    trained so has learned to read its context, and a prefix is a context. Notebook 09, section 12.
    """
    for captions in references.values():
        order = chance.sample(captions, len(captions)) if chance else captions
        yield [tokenizer.end_id] + [
            token for caption in order for token in [*tokenizer.encode(caption), tokenizer.end_id]
        ]


def pretrain(
    model: nn.Module,
    tokenizer: CaptionTokenizer,
    train: dict[str, list[str]],
    dev: dict[str, list[str]],
    *,
    batch_size: int = 32,
    seed: int = 0,
    folder: Path | None = None,
    made_from: dict | None = None,
    callback: Callable[[dict], None] | None = None,
    **settings,
) -> list[dict]:
    """Trains `model` on the captions' text and leaves the weights of the best epoch in it; returns the history.

    settings: over PRETRAINING and `loop.SETTINGS`. Columns: those of `loop.fit`, dev_loss and dev_perplexity (per
    token). Resumes from `folder`. Notebook 09, section 12.
    """
    accelerator, longest = loop.make_accelerator(), model.config["n_positions"]

    def make(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Returns inputs and labels [B, T]."""
        inputs = pad([sequence[:longest][:-1] for sequence in sequences], tokenizer.end_id)
        return inputs, pad([sequence[:longest][1:] for sequence in sequences], IGNORE)

    def objective(model: nn.Module, batch: Chosen) -> tuple[Tensor, Tensor, dict]:
        inputs, labels = batch.given
        logits = model(input_ids=inputs).logits  # [B, T, V]
        summed = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return summed, (labels != IGNORE).sum(), {}

    def validate() -> dict[str, float]:
        model.eval()
        held, total, tokens = list(documents(dev, tokenizer, None)), 0.0, 0
        with torch.inference_mode(), accelerator.autocast():
            for start in range(0, len(held), 64):
                summed, count, _ = objective(model, Chosen([], make(held[start : start + 64])).to(accelerator.device))
                total, tokens = total + float(summed), tokens + int(count)
        return {"dev_loss": total / tokens, "dev_perplexity": math.exp(total / tokens)}

    batches = Batches(
        train, batch_size, seed,
        lambda names, chance: make(list(documents({name: train[name] for name in names}, tokenizer, chance))),
    )  # fmt: skip
    history = _fit(
        model, objective, batches, validate, PRETRAINING, settings, folder, seed=seed, accelerator=accelerator,
        made_from={**(made_from or {}), "batch_size": batch_size}, callback=callback,
    )  # fmt: skip
    model.cpu()
    return history


def recall(images: Tensor, texts: Tensor, owner: Tensor, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Returns recall@k both ways: how often the right image (or one of the right captions) is among the k nearest.

    images: [B, E], texts: [N, E], owner: [N]. What is as near as the right one stands before it, so that a model which
    maps everything to one point scores nothing. Notebook 05, section 7.
    """
    similarity = F.normalize(texts.float(), dim=-1) @ F.normalize(images.float(), dim=-1).T  # [N, B]
    own = owner[:, None] == torch.arange(len(images), device=owner.device)  # [N, B]
    right = similarity[own][:, None]  # [N, 1]
    text_rank = (~(similarity < right) & ~own).sum(1)  # [N] images before the right one
    best = similarity.masked_fill(~own, -torch.inf).amax(0)  # [B] the nearest of an image's own captions
    image_rank = (~(similarity < best) & ~own).sum(0)  # [B] captions before it
    scores = {f"text-to-image R@{k}": (text_rank < k).float().mean().item() for k in at}
    return scores | {f"image-to-text R@{k}": (image_rank < k).float().mean().item() for k in at}


def measure(dual: nn.Module, inputs: Callable, references: dict[str, list[str]]) -> dict[str, float]:
    """Returns the recalls of `dual` on images with their captions; `inputs(names)` gives what `image_side` takes.

    Notebook 05, section 8.
    """
    dual.eval()
    names = list(references)
    captions = [caption for name in names for caption in references[name]]
    owner = torch.tensor([i for i, name in enumerate(names) for _ in references[name]])
    with torch.inference_mode():
        images = [dual.image_side(inputs(names[i : i + 64]))[0].float() for i in range(0, len(names), 64)]
        texts = [dual.text_side(captions[i : i + 256]).float() for i in range(0, len(captions), 256)]
    return recall(torch.cat(images).cpu(), torch.cat(texts).cpu(), owner)


def fine_tune(
    dual: nn.Module,
    inputs: Callable[[list[str], random.Random | None], Tensor],
    train: dict[str, list[str]],
    dev: dict[str, list[str]],
    *,
    images_per_batch: int = 128,
    captions_per_image: int = 2,
    trunk_learning_rate: float = 2e-4,
    captioner: nn.Module | None = None,
    caption_weight: float = 0.5,
    seed: int = 0,
    folder: Path | None = None,
    made_from: dict | None = None,
    callback: Callable[[dict], None] | None = None,
    **settings,
) -> list[dict]:
    """Trains `dual` with the contrastive loss and returns the history, a row an epoch with the recalls on dev.

    `dual.trunk` learns at `trunk_learning_rate`; frozen ones stay out. `inputs(names, chance)` gives what
    `image_side` takes, augmented when `chance` is given. A `captioner` reading the same grid may be trained beside
    it, its word loss added with `caption_weight` (Yu et al. 2022, "CoCa"): the grid then learns words, not only which
    picture is which. settings: over FINE_TUNING and `loop.SETTINGS`. With a `folder` a killed run resumes. The last
    (averaged) weights are kept. Notebook 05, section 8.
    """
    accelerator, home = loop.make_accelerator(), dual.logit_scale.device
    both = nn.ModuleDict({"dual": dual} | ({"captioner": captioner} if captioner is not None else {}))
    settings = {**FINE_TUNING, **settings}
    rate = settings.get("learning_rate", loop.SETTINGS["learning_rate"])
    slower = dict.fromkeys(dual.trunk.parameters(), trunk_learning_rate / rate)

    def make(names: list[str], chance: random.Random) -> tuple[Tensor, list[str], Tensor]:
        groups = [chance.sample(train[name], min(captions_per_image, len(train[name]))) for name in names]
        owner = torch.tensor([i for i, group in enumerate(groups) for _ in group])  # [N]
        return inputs(names, chance), [caption for group in groups for caption in group], owner

    def objective(_, batch: Chosen) -> tuple[Tensor, Tensor, dict]:
        given, captions, owner = batch.given
        vectors, grid = dual.image_side(given)  # [B, E], [B, R, D]
        loss = contrastive_loss(vectors, dual.text_side(captions), owner, dual.logit_scale.exp().clamp(max=100))
        one = torch.ones((), device=loss.device)  # it is a mean over the batch already
        if captioner is None:
            return loss, one, {}
        ids = [captioner.tokenizer.encode(caption) for caption in captions]
        read, asked = teacher_forcing_batch(ids, captioner.start_id, captioner.end_id)
        words, count, _ = CrossEntropy()(captioner, Batch(batch.images, grid, owner, read, asked).to(loss.device))
        figures = {"contrastive_loss": float(loss.detach()), "word_loss": float(words.detach() / count)}
        return loss + caption_weight * words / count, one, figures

    def validate() -> dict[str, float]:
        with accelerator.autocast():
            return measure(dual, lambda names: inputs(names, None), dev)

    options = {"images_per_batch": images_per_batch, "captions_per_image": captions_per_image,
               "trunk_learning_rate": trunk_learning_rate, "caption_weight": caption_weight}  # fmt: skip
    history = _fit(
        both, objective, Batches(train, images_per_batch, seed, make), validate, FINE_TUNING, settings, folder,
        groups=loop.parameter_groups(both, settings["weight_decay"], slower), seed=seed, accelerator=accelerator,
        made_from={**(made_from or {}), **options}, callback=callback,
    )  # fmt: skip
    both.to(home)
    return history


def tune_tail(trunk: LiteTrunk, tail: bool = True) -> None:
    """Lets gradients into the second half of a trunk, or into none of it. BatchNorm's statistics never change."""
    trunk.requires_grad_(False)
    for part in (trunk.net._conv_head, trunk.net._bn1, *trunk.net._blocks[trunk.cut :]):
        part.requires_grad_(tail)


def dual_encoder(encoder, train_trunk: bool = False) -> tuple[PocketCLIP, str]:
    """Returns the PocketCLIP behind an encoder, for `fine_tune`, and the kind of cached feature that its image side
    takes: the grid, or the output of the trunk's first half where the second is trained too.

    Raises CaptioningError when the encoder is none of ours. Notebook 05, section 4.
    """
    if not isinstance(getattr(encoder, "model", None), PocketCLIP):
        raise CaptioningError(f"{encoder.name} cannot be tuned here. Use pocket-clip, or the folder of one.")
    encoder.model.requires_grad_(True)
    tune_tail(encoder.model.trunk, train_trunk)
    return encoder.model, "stem" if train_trunk else "grid"


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
    tune_tail(model.trunk)
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
        for state in folder.glob("stage*-*.safetensors"):
            state.unlink()
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
- **Command**: `python -m configs.pocket.pretraining data/checkpoints/{name}/training.json --ship`,
  {minutes:.0f} minutes.

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
