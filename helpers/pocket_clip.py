"""PocketCLIP: a small dual encoder of our own, pictures and captions in one space, and how it is trained.

    python -m helpers.pocket_clip data/checkpoints/pocket-clip/training.json

Shapes: B images, N captions, R regions, D trunk width, W text width, E joint width, T tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.encoders import TrunkEncoder, weights_fingerprint
from helpers.errors import CaptioningError
from helpers.files import cache_dir, read_json, save_tensors, sha256_file, write_json
from helpers.text import UNKNOWN, Vocabulary, pad
from helpers.trunks import WIDTH, LiteTrunk


class Pooling(nn.Module):
    """A grid [B, R, D] to one vector [B, E]: the mean of all regions, plus what a few learned heads look at."""

    def __init__(self, width: int, joint: int, heads: int, dropout: float):
        super().__init__()
        self.scores = nn.Linear(width, heads)
        self.values = nn.Linear(width, joint)
        self.mix = nn.Linear(joint, joint)
        self.mean = nn.Linear(width, joint)
        self.dropout = nn.Dropout(dropout)

    def forward(self, grid: Tensor) -> Tensor:
        weights = self.scores(grid).softmax(1)  # [B, R, heads], over the regions
        values = self.values(grid).unflatten(-1, (weights.shape[-1], -1))  # [B, R, heads, E / heads]
        looked = (weights[..., None] * values).sum(1).flatten(1)  # [B, E]
        return self.mean(self.dropout(grid.mean(1))) + self.mix(self.dropout(looked))


class TextTower(nn.Module):
    """Captions to vectors: word embeddings, a small transformer without a causal mask, the mean over the words."""

    def __init__(self, vocabulary_size: int, width: int, layers: int, joint: int, dropout: float, max_words: int = 32):
        super().__init__()
        self.embed = nn.Embedding(vocabulary_size, width, padding_idx=0)
        nn.init.normal_(self.embed.weight, std=0.05)
        self.place = nn.Parameter(torch.randn(max_words, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, joint)
        self.dropout = nn.Dropout(dropout)
        self.hide = 0.1  # share of words hidden in training, so that no caption hangs on one word

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens[:, : len(self.place)]
        real = tokens != 0  # [N, T]
        if self.training:
            tokens = tokens.masked_fill((torch.rand(tokens.shape, device=tokens.device) < self.hide) & real, UNKNOWN)
        x = self.dropout(self.embed(tokens)) + self.place[: tokens.shape[1]]  # [N, T, W]
        x = self.layers(x, src_key_padding_mask=~real)
        mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)  # [N, W]
        return self.output(self.dropout(mean))


class PocketCLIP(nn.Module):
    """EfficientNet-Lite with a learned pooling on one side, a small transformer on the other."""

    defaults = {"version": 2, "size": 224, "joint": 512, "heads": 8, "width": 256, "layers": 2, "dropout": 0.2}

    def __init__(self, vocabulary: Vocabulary, pretrained: bool = True, **options):
        super().__init__()
        self.config = c = {**self.defaults, **options}
        self.tokenizer = vocabulary
        self.trunk = LiteTrunk(c["version"], c["size"], pretrained)
        self.pool = Pooling(WIDTH, c["joint"], c["heads"], c["dropout"])
        self.text = TextTower(len(vocabulary), c["width"], c["layers"], c["joint"], c["dropout"])
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def trunk_parameters(self):
        return self.trunk.parameters()

    def image_side(self, stem: Tensor) -> tuple[Tensor, Tensor]:
        """Returns vectors [B, E] and the grid [B, R, D] from the trunk's cached stem output."""
        grid = self.trunk.tail(stem)
        return self.pool(grid), grid

    def text_side(self, captions: Sequence[str]) -> Tensor:
        """Returns vectors [N, E], not normalised."""
        ids = [self.tokenizer.encode(caption) or [UNKNOWN] for caption in captions]
        return self.text(pad(ids, 0).to(self.logit_scale.device))


class PocketClipEncoder(TrunkEncoder):
    """A trained PocketCLIP as an encoder: grid, pooled and embedding, and `encode_text`."""

    def __init__(self, folder: str | None = None, device: str = "cpu"):
        from helpers.captioner import CHECKPOINTS

        folder = Path(folder) if folder else CHECKPOINTS / "pocket-clip"
        self.device = torch.device(device)
        self.model = load_pocket_clip(folder).to(self.device)
        self.module, self.regions, self.width = self.model.trunk, self.model.trunk.regions, WIDTH
        self.name = "pocket-clip" if folder == CHECKPOINTS / "pocket-clip" else f"pocket-clip:{folder}"
        self.size = self.model.config["size"]
        self.folder = folder

    @cached_property
    def consensus(self):
        """What people said of photos like the training photos, see `helpers.consensus`."""
        from helpers.consensus import Consensus

        return Consensus.load(self.folder)

    @property
    def fingerprint(self) -> str:
        """Follows the weights, so that no feature cached before a fine-tuning is taken for one after it."""
        return weights_fingerprint(self.module, self.model.pool, extra=f"pocket-clip {self.size}")

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities, the inverse of the temperature."""
        return self.model.logit_scale.detach().exp().item()

    def encode_image(self, pixels: Tensor, normalise: bool = True) -> Tensor:
        """Returns image vectors [B, E] of uint8 pixels, of length 1 unless asked otherwise."""
        vectors = self.model.pool(self.grid(pixels).float())
        return nn.functional.normalize(vectors, dim=-1) if normalise else vectors

    def embed_grid(self, grid: Tensor) -> Tensor:
        """Returns image vectors [B, E] of length 1 from grids [B, R, D] that were encoded before."""
        with torch.inference_mode():
            return nn.functional.normalize(self.model.pool(grid.to(self.device).float()), dim=-1)

    def encode_text(self, captions: Sequence[str], normalise: bool = True) -> Tensor:
        """Returns caption vectors [N, E]."""
        with torch.inference_mode():
            vectors = self.model.text_side(list(captions)).float()
        return nn.functional.normalize(vectors, dim=-1) if normalise else vectors


def save_pocket_clip(folder: Path, model: PocketCLIP, extra: dict | None = None) -> None:
    """Writes weights in fp16, vocabulary and configuration with their hashes."""
    model.tokenizer.save(folder / "vocabulary.json")
    tensors = {n: v.half() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    save_tensors(folder / "model.safetensors", tensors)
    hashes = {name: sha256_file(folder / name) for name in ("model.safetensors", "vocabulary.json")}
    config = {"format": 1, "name": "pocket-clip", "class": "PocketCLIP", "options": model.config, "sha256": hashes}
    write_json(folder / "config.json", config | (extra or {}))


def load_pocket_clip(folder: Path) -> PocketCLIP:
    """Returns the model of a checkpoint, verified by hash, in evaluation mode and fp32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from helpers.checkpoint_config import check_options

    config = check_options(folder, read_json(folder / "config.json"))
    if config.get("class") != "PocketCLIP":
        raise CaptioningError(f"{folder} holds {config.get('class')!r}, not a PocketCLIP.")
    for name in ("model.safetensors", "vocabulary.json"):
        if not (folder / name).is_file() or sha256_file(folder / name) != config["sha256"].get(name):
            raise CaptioningError(
                f"{folder / name} is missing or not the file that config.json was written with. Fetch it again."
            )
    try:
        model = PocketCLIP(Vocabulary.load(folder / "vocabulary.json"), pretrained=False, **config["options"])
        model.load_state_dict(
            {n: v.float() if v.is_floating_point() else v for n, v in load_file(folder / "model.safetensors").items()}
        )
    except (TypeError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CaptioningError(
            f"The weights in {folder} do not fit its configuration: {str(error)[:200]}. Fetch the checkpoint again."
        ) from error
    return model.eval().requires_grad_(False)


def crop(stem: Tensor, chance: random.Random, smallest: float = 0.78) -> Tensor:
    """Returns one random window of a batch of stem activations [B, H, W, C]: a crop of the picture, for nothing."""
    H, W = stem.shape[1:3]
    h, w = chance.randint(math.ceil(H * smallest), H), chance.randint(math.ceil(W * smallest), W)
    top, left = chance.randint(0, H - h), chance.randint(0, W - w)
    return stem[:, top : top + h, left : left + w]


def train(config: dict | str | Path, callback=None) -> PocketCLIP:
    """Trains a PocketCLIP on a captions dataset as the configuration says, and writes the checkpoint.

    Keys: dataset (arguments of `load_dataset`), model (options of PocketCLIP), vocabulary, captioner (options of the
    ShowAttendTell trained beside it, or null), training (arguments of `contrastive.fine_tune`), seed, output.
    """
    from helpers.cnn_lstm import ShowAttendTell
    from helpers.contrastive import fine_tune
    from helpers.datasets import load_dataset
    from helpers.encoders import load_encoder
    from helpers.features import cache_features
    from helpers.training import seed_everything

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


if __name__ == "__main__":
    import json
    import sys

    train(sys.argv[1], callback=lambda row: print(json.dumps(row), flush=True))
