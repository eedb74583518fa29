"""PocketCLIP: a small dual encoder of our own, pictures and captions in one space, and how it is trained.

    python -m helpers.pocket_clip data/checkpoints/pocket-clip/training.json

Shapes: B images, N captions, R regions, D trunk width, W text width, E joint width, T tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.clips import PocketCLIP, save_pocket_clip
from helpers.files import (
    CaptioningError,
    cache_dir,
    pick_device,
    read_json,
    write_json,
)
from helpers.language_models import CaptionTokenizer, new_pocket_gpt2, save_language_model
from helpers.loop import Average, load_state, save_state
from helpers.losses import _vectors, contrastive_loss, measure
from helpers.text import IGNORE, Vocabulary, pad
from helpers.trunks import WIDTH


def crop(stem: Tensor, chance: random.Random, smallest: float = 0.78) -> Tensor:
    """Returns one random window of a batch of stem activations [B, H, W, C]: a crop of the picture, for nothing."""
    H, W = stem.shape[1:3]
    h, w = chance.randint(math.ceil(H * smallest), H), chance.randint(math.ceil(W * smallest), W)
    top, left = chance.randint(0, H - h), chance.randint(0, W - w)
    return stem[:, top : top + h, left : left + w]


def train_pocket_clip(config: dict | str | Path, callback=None) -> PocketCLIP:
    """Trains a PocketCLIP on a captions dataset as the configuration says, and writes the checkpoint.

    Keys: dataset (arguments of `load_dataset`), model (options of PocketCLIP), vocabulary, captioner (options of the
    ShowAttendTell trained beside it, or null), training (arguments of `contrastive.fine_tune`), seed, output.
    """
    from helpers.cnn_lstm import ShowAttendTell
    from helpers.datasets import load_dataset
    from helpers.encoders import load_encoder
    from helpers.features import cache_features
    from helpers.loop import seed_everything

    config = dict(read_json(config)) if isinstance(config, (str, Path)) else dict(config)
    dataset = load_dataset(**config["dataset"])
    references, dev = dataset.references("train"), dataset.references("dev")
    paths = {image: dataset.path(image) for image in [*references, *dev]}
    options = {**PocketCLIP.defaults, **config.get("model", {})}
    base = load_encoder(f"efficientnet-lite{options['version']}", size=options["size"])
    views = [cache_features(base, paths, "stem", flip=mirror) for mirror in (False, True)]
    seed_everything(config.get("seed", 0))
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
            captioner.standardise.fit(
                torch.cat([model.trunk.tail(views[0][names[i : i + 50]]) for i in range(0, len(names), 50)])
            )

    def inputs(names: list[str], chance: random.Random | None) -> Tensor:
        return views[0][names] if chance is None else crop(views[chance.randrange(2)][names], chance)

    folder = Path(config.get("output") or cache_dir() / "runs" / "pocket-clip")
    history = fine_tune(
        model,
        inputs,
        references,
        dev,
        captioner=captioner,
        seed=config.get("seed", 0),
        folder=folder,
        callback=callback,
        **config["training"],
    )
    save_pocket_clip(folder, model, {"scores": {"flickr8k dev": history[-1]}})
    write_json(folder / "training.json", {key: value for key, value in config.items() if key != "output"})
    return model


def documents(
    references: dict[str, list[str]], tokenizer: CaptionTokenizer, chance: random.Random | None
) -> Iterator[list[int]]:
    """Yields one sequence an image: all its captions, each closed by the end token, shuffled when `chance` is given.

    Captions of one image stand together so that what comes before says something about what follows. A language model
    trained so has learned to read its context, and a prefix is a context.
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
    epochs: int = 12,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    warmup_steps: int = 100,
    seed: int = 0,
    folder: Path | None = None,
    callback=None,
) -> list[dict]:
    """Trains `model` on the captions' text and leaves the weights of the best epoch in it; returns the history.

    Columns: epoch, train_loss, dev_loss, dev_perplexity (per token), seconds. Resumes from `folder`.
    """
    import math
    import time

    from helpers.loop import (
        Average,
        Watch,
        _schedule,
        load_state,
        make_accelerator,
        make_optimizer,
        parameter_groups,
        save_state,
        seed_everything,
        write_history,
    )

    accelerator = make_accelerator()
    model.to(accelerator.device)
    optimizer = make_optimizer(
        parameter_groups(model, weight_decay), learning_rate, accelerator.device, betas=(0.9, 0.98)
    )
    average = Average(model, 0.0)
    last, top = (folder / f"{kind}.safetensors" if folder else None for kind in ("last", "best"))
    state, best = {"epoch": 0, "step": 0, "history": []}, None
    if last and last.exists():
        if top.exists():
            load_state(top, model)
            best = {n: v.clone() for n, v in model.state_dict().items()}
        state = load_state(last, model, optimizer, average)
    best = best or {n: v.clone() for n, v in model.state_dict().items()}
    steps = -(-len(train) // batch_size)
    settings = {"warmup_steps": warmup_steps, "schedule": "cosine"}
    longest = model.config["n_positions"]
    watch = Watch("cross_entropy", len(tokenizer), False, last)

    def loss_of(sequences: list[list[int]]) -> torch.Tensor:
        sequences = [s[:longest] for s in sequences]
        inputs = pad([s[:-1] for s in sequences], tokenizer.end_id).to(accelerator.device)
        labels = pad([s[1:] for s in sequences], IGNORE).to(accelerator.device)
        with accelerator.autocast():
            logits = model(input_ids=inputs).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)

    held = list(documents(dev, tokenizer, None))
    for epoch in range(state["epoch"], epochs):
        began = time.perf_counter()
        seed_everything(seed * 1000 + epoch)
        chance = random.Random(f"{seed} {epoch}")
        texts = list(zip(documents(train, tokenizer, chance), train, strict=True))  # each with the name of its image
        chance.shuffle(texts)
        model.train()
        losses = []
        for start in range(0, len(texts), batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(settings, state["step"], epochs * steps)
            batch, images = zip(*texts[start : start + batch_size], strict=True)
            loss = loss_of(batch)
            watch.loss(loss, state["step"], epoch, images)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            watch.gradients(norm, state["step"], epoch, images)
            optimizer.step()
            state["step"] += 1
            losses.append(float(loss.detach()))
        model.eval()
        with torch.inference_mode():
            dev_loss = sum(float(loss_of(held[i : i + 64])) for i in range(0, len(held), 64)) / -(-len(held) // 64)
        row = {
            "epoch": epoch + 1,
            "train_loss": sum(losses) / len(losses),
            "dev_loss": dev_loss,
            "dev_perplexity": math.exp(dev_loss),
        }
        row["seconds"] = time.perf_counter() - began
        state["history"].append(row)
        state["epoch"] = epoch + 1
        if dev_loss <= min(r["dev_loss"] for r in state["history"]):
            best = {n: v.clone() for n, v in model.state_dict().items()}
            if top:
                save_state(top, model)
        if last:
            save_state(last, model, optimizer, average, state)
            write_history(folder / "history.csv", state["history"])
        if callback:
            callback(row)
    if last:  # once more, for a run that was killed between its last state and its history
        write_history(folder / "history.csv", state["history"])
    model.load_state_dict(best)
    model.cpu()
    return state["history"]


def train_language_model(config: dict | str | Path, callback=None) -> nn.Module:
    """Makes a PocketGPT2 from the training captions of a dataset. Keys: dataset, model, training, seed, output."""
    from helpers.datasets import load_dataset
    from helpers.loop import seed_everything

    config = dict(read_json(config)) if isinstance(config, (str, Path)) else dict(config)
    dataset = load_dataset(**config["dataset"])
    references = dataset.references("train")
    seed_everything(config.get("seed", 0))
    model, tokenizer = new_pocket_gpt2((c for group in references.values() for c in group), **config.get("model", {}))
    folder = Path(config.get("output") or cache_dir() / "runs" / "pocket-gpt2")
    pretrain(
        model, tokenizer, references, dataset.references("dev"), folder=folder, callback=callback, **config["training"]
    )
    save_language_model(folder / "model", model, tokenizer)
    return model


def fine_tune(
    dual: nn.Module,
    inputs: Callable[[list[str], random.Random | None], Tensor],
    train: dict[str, list[str]],
    dev: dict[str, list[str]],
    *,
    epochs: int = 5,
    images_per_batch: int = 128,
    captions_per_image: int = 2,
    learning_rate: float = 1e-3,
    trunk_learning_rate: float = 2e-4,
    weight_decay: float = 0.05,
    warmup_steps: int = 100,
    average: float = 0.0,
    captioner: nn.Module | None = None,
    caption_weight: float = 0.5,
    seed: int = 0,
    folder: Path | None = None,
    callback: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Trains `dual` with the contrastive loss and returns the history, a row an epoch with the recalls on dev.

    `dual.trunk_parameters()` learn at `trunk_learning_rate`; frozen ones stay out. `inputs(names, chance)` gives what
    `image_side` takes, augmented when `chance` is given. A `captioner` reading the same grid may be trained beside
    it, its word loss added with `caption_weight` (Yu et al. 2022, "CoCa"): the grid then learns words, not only which
    picture is which. With a `folder` the run resumes after being killed. The last (averaged) weights are kept.
    """
    from helpers.loop import Watch, _schedule, make_accelerator, make_optimizer, seed_everything, write_history
    from helpers.losses import CrossEntropy
    from helpers.text import Batch, teacher_forcing_batch

    accelerator = make_accelerator()
    both = nn.ModuleDict({"dual": dual} | ({"captioner": captioner} if captioner is not None else {}))
    trunk = [p for p in dual.trunk_parameters() if p.requires_grad]
    in_trunk = {id(p) for p in trunk}
    rest = [p for p in both.parameters() if p.requires_grad and id(p) not in in_trunk]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay, "base": learning_rate},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "base": learning_rate},
    ] + ([{"params": trunk, "weight_decay": weight_decay, "base": trunk_learning_rate}] if trunk else [])
    optimizer = make_optimizer(groups, learning_rate, accelerator.device, betas=(0.9, 0.98))
    mean = Average(both, average)
    last = folder / "last.safetensors" if folder else None
    state = (
        load_state(last, both, optimizer, mean) if last and last.exists() else {"epoch": 0, "step": 0, "history": []}
    )
    names = list(train)
    batches = max(1, len(names) // images_per_batch)
    settings = {"warmup_steps": warmup_steps, "schedule": "cosine"}
    words = len(captioner.tokenizer) if captioner is not None else 0
    watch = Watch("contrastive", max(words, images_per_batch * captions_per_image), False, last)
    for epoch in range(state["epoch"], epochs):
        began, losses, word_losses = time.perf_counter(), [], []
        seed_everything(seed * 1000 + epoch)
        chance = random.Random(f"{seed} {epoch}")
        order = chance.sample(names, len(names))
        both.train()
        for start in range(0, batches * images_per_batch, images_per_batch):
            chosen = order[start : start + images_per_batch]
            groups_of = [chance.sample(train[name], min(captions_per_image, len(train[name]))) for name in chosen]
            captions = [caption for group in groups_of for caption in group]
            owner = torch.tensor([i for i, group in enumerate(groups_of) for _ in group])
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * _schedule(settings, state["step"], epochs * batches)
            with accelerator.autocast():
                out = dual.image_side(inputs(chosen, chance))
                loss = contrastive_loss(
                    _vectors(out),
                    dual.text_side(captions),
                    owner.to(_vectors(out).device),
                    dual.logit_scale.exp().clamp(max=100),
                )
                total = loss
                if captioner is not None:
                    ids = [captioner.tokenizer.encode(caption) for caption in captions]
                    pair = teacher_forcing_batch(ids, captioner.start_id, captioner.end_id)
                    word_loss, tokens, _ = CrossEntropy()(captioner, Batch(chosen, out[1], owner, *pair))
                    total = loss + caption_weight * word_loss / tokens
                    word_losses.append(float(word_loss.detach() / tokens))
            watch.loss(total, state["step"], epoch, chosen)
            optimizer.zero_grad()
            total.backward()
            for part in filter(None, (rest, trunk)):
                watch.gradients(nn.utils.clip_grad_norm_(part, 1.0), state["step"], epoch, chosen)
            optimizer.step()
            state["step"] += 1
            mean.update(state["step"])
            losses.append(float(loss.detach()))
        row = {"epoch": epoch + 1, "loss": sum(losses) / len(losses)}
        if word_losses:
            row["word_loss"] = sum(word_losses) / len(word_losses)
        with mean.applied(), accelerator.autocast():
            row |= measure(dual, lambda names: inputs(names, None), dev)
        row["seconds"] = time.perf_counter() - began
        state["history"].append(row)
        state["epoch"] = epoch + 1
        if last:
            save_state(last, both, optimizer, mean, state)
            write_history(folder / "history.csv", state["history"])
        if callback:
            callback(row)
    if last:  # once more, for a run that was killed between its last state and its history
        write_history(folder / "history.csv", state["history"])
    with torch.no_grad():
        mean._swap()
    return state["history"]
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
    from helpers.losses import measure

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
    from helpers.clips import save_pocket_clip

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
