"""The front door: `Captioner.load(name).caption(images)`. Also how a captioner is saved, and checked when it is loaded.

A checkpoint is a folder: `model.safetensors`, `config.json` (class, options, encoder, preprocessing, decoding, hashes),
the vocabulary or tokenizer, `encoder.safetensors` where the encoder was tuned, and a card, `README.md`. They travel
together and are verified together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers import checkpoint_config
from helpers.errors import CaptioningError, unknown_name
from helpers.files import ROOT, read_json, save_tensors, sha256_file, write_json
from helpers.models import build_model

CHECKPOINTS = ROOT / "data" / "checkpoints"
DEFAULT_MODEL = "clipcap-mlp"


@dataclass
class Caption:
    """What became of one image: a caption with its log-probability, other candidates, or the reason there is none."""

    image: str
    caption: str | None
    log_prob: float | None
    model: str
    alternatives: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None
    attention: Any = field(default=None, repr=False)  # [words, R] for models that attend
    words: list[str] = field(default_factory=list, repr=False)

    def as_dict(self) -> dict:
        """Returns the five public entries, ready for JSON, and `error` where there is one."""
        entries = {"image": self.image, "caption": self.caption, "log_prob": self.log_prob, "model": self.model}
        entries["alternatives"] = [
            {"caption": caption, "log_prob": log_prob} for caption, log_prob in self.alternatives
        ]
        return entries | ({"error": self.error} if self.error else {})


def available() -> list[str]:
    """Returns the names of the captioners in data/checkpoints, the default first."""
    names = sorted(
        p.parent.name for p in CHECKPOINTS.glob("*/config.json") if read_json(p).get("class") in _captioner_classes()
    )
    return sorted(names, key=lambda name: (name != DEFAULT_MODEL, name))


def _captioner_classes() -> set[str]:
    from helpers.models import CLASSES

    return set(CLASSES)


def checkpoint_folder(name: str | Path) -> Path:
    """Returns the folder of a checkpoint, given a shipped name or a path."""
    shipped = CHECKPOINTS / str(name)
    folder = shipped if Path(str(name)).name == str(name) and shipped.is_dir() else Path(name)
    if not (folder / "config.json").is_file():
        if folder.is_dir():
            raise CaptioningError(
                f"{folder} is no checkpoint: it has no config.json. Name a folder that training wrote."
            )
        raise unknown_name("model", str(name), available())
    return folder


def save_checkpoint(folder: str | Path, model: nn.Module, config: dict, extra: dict | None = None) -> Path:
    """Writes weights (fp16), tokenizer and configuration of `model` to `folder`, with hashes; returns the folder.

    `config` is the training configuration; `extra` adds entries, such as measured scores.
    """
    from helpers import tuned_encoder
    from helpers.encoders import load_encoder, weights_fingerprint
    from helpers.training_state import unique_tensors

    folder = Path(folder)
    model, trunk = tuned_encoder.parts(model)
    left_out = set(getattr(model, "left_out", lambda: ())())
    tensors = {
        name: value.half() if value.is_floating_point() else value
        for name, value in unique_tensors(model).items()
        if name not in left_out
    }
    tokenizer_file = f"{'vocabulary' if type(model.tokenizer).__name__ == 'Vocabulary' else 'tokenizer'}.json"
    model.tokenizer.save(folder / tokenizer_file)
    save_tensors(folder / "model.safetensors", tensors)
    encoder, files = load_encoder(config["encoder"]), ["model.safetensors", tokenizer_file]
    if trunk is not None:
        encoder = tuned_encoder.save_tail(folder, encoder, trunk)
        files.append(tuned_encoder.FILE)
    entry = {
        "name": config["encoder"],
        "kind": config.get("inference_features", config.get("features", "grid")),
        **encoder.preprocessing,
        "fingerprint": encoder.fingerprint,
    }
    write_json(
        folder / "config.json",
        {
            "format": checkpoint_config.FORMAT,
            "name": config["name"],
            "class": type(model).__name__,
            "options": model.config,
            "encoder": entry,
            "decoding": config.get("decoding", {}),
            "tokenizer": tokenizer_file,
            "sha256": {name: sha256_file(folder / name) for name in files},
            **({"left_out": weights_fingerprint(model, only=left_out)} if left_out else {}),
            **(extra or {}),
        },
    )
    write_json(folder / "training.json", {key: value for key, value in config.items() if key != "output"})
    return folder


def load_checkpoint(name: str | Path, device: str = "cpu", for_captioning: bool = False) -> tuple[nn.Module, dict]:
    """Returns (model, configuration) of a checkpoint, verified by hash. The model is in evaluation mode, in fp32.

    `for_captioning`: the model will not be trained, so a class may leave out what only training needs.

    Raises CaptioningError when a file is missing, was changed or swapped, or does not fit the others.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = checkpoint_folder(name)
    config = checkpoint_config.check(folder, read_json(folder / "config.json"))
    from helpers.tuned_encoder import FILE

    tail = [FILE] if FILE in config["sha256"] else []  # of a captioner whose encoder was tuned with it
    for file in ("model.safetensors", config["tokenizer"], *tail):
        if not (folder / file).is_file():
            raise CaptioningError(f"{folder} is incomplete: {file} is missing. Fetch the checkpoint again.")
        if sha256_file(folder / file) != config["sha256"].get(file):
            raise CaptioningError(
                f"{folder / file} is not the file that config.json was written with (SHA-256 differs). Fetch both anew."
            )
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise CaptioningError(f"{folder / 'model.safetensors'} cannot be read: {error}.") from error
    options = config["options"] | ({"for_captioning": True} if for_captioning and config["class"] == "ClipCap" else {})
    # a ClipCap with a language model from elsewhere reads that first, whatever its size
    rebuilt = config["options"].get("tune", "full") == "full" and config["options"].get("language_model_config")
    if config["class"] != "ClipCap" or rebuilt:
        build = partial(build_model, config["class"], options)
        checkpoint_config.check_size(build, tensors, folder)
    model = build_model(config["class"], options)
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    from helpers.encoders import weights_fingerprint
    from helpers.training_state import unique_tensors

    left_out = set(getattr(model, "left_out", lambda: ())())
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    wrong = [key for key, value in tensors.items() if shapes.get(key) != value.shape]
    wrong += [key for key in unique_tensors(model) if key not in tensors and key not in left_out]
    if wrong:
        raise CaptioningError(
            f"The weights in {folder} do not fit its configuration: {sorted(wrong)[:3]}. Fetch the checkpoint again."
        )
    if left_out and "left_out" in config and config["left_out"] != weights_fingerprint(model, only=left_out):
        raise CaptioningError(
            f"The language model {model.config['language_model']!r} is not the one that {folder} was trained with "
            "(its weights differ). Fetch both anew."
        )
    model.load_state_dict(tensors, strict=False)
    if config["tokenizer"] == "vocabulary.json":
        from helpers.text import Vocabulary

        model.tokenizer = Vocabulary.load(folder / "vocabulary.json")
        model.end_id = model.tokenizer.end_id
        if len(model.tokenizer) != config["options"].get("vocabulary_size"):
            raise CaptioningError(
                f"{folder}: the vocabulary has {len(model.tokenizer)} words, not what the model has. Fetch both again."
            )
    else:
        model.load_tokenizer(folder / "tokenizer.json")
    return model.to(device).eval(), config


class Captioner:
    """A trained model with its encoder, preprocessing and decoding settings: photos in, captions out."""

    def __init__(self, model: nn.Module, encoder, config: dict, device: str = "cpu"):
        self.model, self.encoder, self.config, self.device = model, encoder, config, device
        self.name = config["name"]
        self.feature_kind = config["encoder"]["kind"]
        self.decoding = {"method": "beam", "beam_size": 5, **config.get("decoding", {})}

    @classmethod
    def load(cls, name: str | Path | None = None, device: str = "cpu") -> Captioner:
        """Returns the captioner called `name`, or in the folder `name`; the default one without a name."""
        from helpers.tuned_encoder import checkpoint_encoder

        model, config = load_checkpoint(name or DEFAULT_MODEL, device, for_captioning=True)
        encoder = checkpoint_encoder(checkpoint_folder(name or DEFAULT_MODEL), config, device)
        return cls(model, encoder, config, device)

    @cached_property
    def frozen(self):
        """The encoder by whose vectors candidates are judged, see `helpers.rerank`. Loaded when it is first needed."""
        from helpers.encoders import load_encoder
        from helpers.rerank import FROZEN

        return load_encoder(FROZEN, self.device)

    def asks_frozen(self, options: dict) -> bool:
        """Returns whether decoding with these options takes the frozen encoder's vectors."""
        chosen = {**self.decoding, **options}
        return chosen["method"] == "beam" and bool(chosen.get("consensus_weight") or chosen.get("tag_weight"))

    def encode(self, images: Sequence) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns what `decode` takes for PIL images: features [B, R, D] or [B, D], and the frozen encoder's vectors
        [B, 1280], or None where the captioner's own settings ask for none."""
        return self._see([self._prepare(image, judged := self.asks_frozen({})) for image in images], judged)

    def _prepare(self, image, judged: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        pixels = self.encoder.prepare(image)
        if not judged:
            return pixels, None
        return pixels, pixels if self._prepared_alike else self.frozen.prepare(image)

    @cached_property
    def _prepared_alike(self) -> bool:
        """Whether one small copy of a photo serves both encoders."""
        return self.encoder.preprocessing == self.frozen.preprocessing

    def _see(self, pixels: Sequence[tuple], judged: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        from helpers.rerank import FROZEN_KIND

        ours, theirs = zip(*pixels, strict=True)
        with self.encoder.full_precision():
            features = self.encoder.features(torch.stack(ours), self.feature_kind)
        if not judged:
            return features, None
        with self.frozen.full_precision():
            return features, self.frozen.features(torch.stack(theirs), FROZEN_KIND)

    def caption(self, images: Sequence, batch_size: int = 16, **options) -> list[Caption]:
        """Returns one Caption an image, in order; an image that cannot be read has `error` set, and the rest go on.

        `images`: paths, open binary files or PIL images; a single one may stand alone. `options` override the
        decoding settings, see `helpers.decoding.decode`.
        """
        from PIL import Image

        from helpers.images import open_image

        if isinstance(images, (str, Path, Image.Image)) or hasattr(images, "read"):
            images = [images]
        out: list[Caption] = []
        judged = self.asks_frozen(options)
        for start in range(0, len(images), batch_size):
            pixels, readable, captions = [], [], []
            for number, item in enumerate(images[start : start + batch_size], start):
                name = (
                    str(item)
                    if isinstance(item, (str, Path))
                    else str(getattr(item, "name", None) or f"image {number + 1}")
                )
                caption = Caption(name, None, None, self.name)
                captions.append(caption)
                try:
                    pixels.append(self._prepare(open_image(item), judged))
                    readable.append(caption)
                except CaptioningError as error:
                    caption.error = str(error)
            if pixels:
                self._fill(readable, *self._see(pixels, judged), options)
            out += captions
        return out

    def _fill(self, captions: list[Caption], features: torch.Tensor, frozen, options: dict) -> None:
        groups = self.decode(features, frozen, **options)
        for caption, group in zip(captions, groups, strict=True):
            texts = [self.model.tokenizer.decode(hypothesis.tokens) for hypothesis in group]
            best = group[0]
            caption.caption, caption.log_prob = texts[0], best.log_prob
            caption.alternatives = [(text, h.log_prob) for text, h in zip(texts[1:], group[1:], strict=True)]
            caption.words = [self.model.tokenizer.decode([token]) for token in best.tokens]
            caption.attention = torch.stack(best.attention) if best.attention else None

    def decode(self, features: torch.Tensor, frozen: torch.Tensor | None = None, **options) -> list[list]:
        """Returns the hypotheses for features [B, R, D] or [B, D], see `helpers.decoding.decode`.

        Beside the options of `decode` there are four weights, by which the candidates of a beam search are ranked,
        see `helpers.rerank`; 0 is off. `clip_weight`: how much the likeness of photo and caption counts;
        `consensus_weight`: how much the likeness with what people say of such photos does; `tag_weight`: how much it
        counts to name what a classifier is sure of; `flaw_weight`: how much a flaw costs, such as a word said twice.
        The second and the third need `frozen`, the vectors [B, 1280] of the frozen encoder, see `encode`. Raises
        CaptioningError when they are missing.
        """
        from helpers.decoding import decode
        from helpers.rerank import WEIGHTS, image_vectors, rerank

        features = features[:, None] if features.ndim == 2 else features
        options = {**self.decoding, **options}
        weights = {name: options.pop(name, None) or 0.0 for name in WEIGHTS}
        groups = decode(self.model, features.to(self.device), **options)
        if not any(weights.values()) or options["method"] != "beam":
            return groups
        if self.asks_frozen(options | weights) and frozen is None:
            raise CaptioningError(
                "consensus_weight and tag_weight judge captions by the frozen encoder's vectors: pass both of what "
                "`encode` returns, or set both weights to 0."
            )
        seen, sizes = [], [len(group) for group in groups]
        if weights["tag_weight"]:
            from helpers.tags import add_candidates, find_tags

            seen = find_tags(self.frozen.classify(frozen))
            groups = add_candidates(self.model, features.to(self.device), groups, seen, options)
        captions = [[self.model.tokenizer.decode(h.tokens) for h in group] for group in groups]
        vectors = image_vectors(self.encoder, features) if weights["clip_weight"] else None
        ranked = rerank(groups, captions, vectors, self.encoder, frozen, **weights, seen=seen)
        return [group[:size] for group, size in zip(ranked, sizes, strict=True)]
