"""The front door: `Captioner.load(name).caption(photos)`. Also how a captioner is saved, and checked when it is loaded.

A checkpoint is a folder: `model.safetensors`, `config.json` (class, options, encoder, decoding, hashes),
the vocabulary or tokenizer, and a card, `README.md`. They travel together and are verified together.

Shapes: B photos, R regions, D feature width.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.clipcap import ClipCap
from helpers.cnn_lstm import ShowAndTell, ShowAttendTell
from helpers.decoding import decode
from helpers.encoders import load_encoder
from helpers.files import (
    CHECKPOINTS,
    CaptioningError,
    cache_dir,
    pick_device,
    read_json,
    save_tensors,
    sha256_file,
    unknown_name,
    write_json,
)
from helpers.images import list_images, open_image
from helpers.official import OFFICIAL, fetch
from helpers.text import Vocabulary
from helpers.trunks import weights_fingerprint

CLASSES = {"ShowAndTell": ShowAndTell, "ShowAttendTell": ShowAttendTell, "ClipCap": ClipCap}
DEFAULT_MODEL = "clipcap-mlp"
FORMAT = 1
ENTRIES = {"format": int, "name": str, "class": str, "tokenizer": str}  # of config.json, and of what type
ENTRIES |= {"options": dict, "encoder": dict, "decoding": dict, "sha256": dict}
TOKENIZERS = ("vocabulary.json", "tokenizer.json")
SETTINGS = {*inspect.signature(decode).parameters} - {"model", "features", "generator", "trace"}
PATHS = (str, os.PathLike)


def build_model(name: str, options: dict) -> nn.Module:
    """Returns a new model. Raises CaptioningError on an unknown class or option. Notebook 09, section 12."""
    if name not in CLASSES:
        raise unknown_name("model class", name, CLASSES)
    try:
        return CLASSES[name](**options)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:  # RuntimeError: no memory for it
        raise CaptioningError(f"{name} cannot be built from these options: {error}") from error


def _refusal(place: Path, why: str) -> CaptioningError:
    return CaptioningError(f"{place} {why}. Fetch the checkpoint again.")


def check(folder: Path, config: object) -> dict:
    """Returns `config`, the content of config.json in `folder`, if training could have written it.

    Raises CaptioningError when an entry is missing, of another type or not known. Notebook 00, section 3.
    """
    config = {"name": folder.name, "decoding": {}, **config} if isinstance(config, dict) else {}
    wrong = [name for name, kind in ENTRIES.items() if type(config.get(name)) is not kind]
    if not wrong and config["tokenizer"] not in TOKENIZERS:
        wrong.append("tokenizer")
    if not wrong and not all(isinstance(config["encoder"].get(name), str) for name in ("name", "kind", "fingerprint")):
        wrong.append("encoder")
    if wrong:
        raise _refusal(folder / "config.json", f"is not as training writes it: see {', '.join(wrong)}")
    if config["format"] != FORMAT:
        raise _refusal(folder, f"has format {config['format']}, and this version reads format {FORMAT}")
    for name in config["decoding"]:
        if name not in SETTINGS:
            raise unknown_name("decoding setting", name, SETTINGS)
    return config


def available() -> list[str]:
    """Returns the names of the captioners in data/checkpoints, the default first. Notebook 00, section 1."""
    names = [p.parent.name for p in CHECKPOINTS.glob("*/config.json") if read_json(p).get("class") in CLASSES]
    return sorted(names, key=lambda name: (name != DEFAULT_MODEL, name))


def checkpoint_folder(name: str | Path) -> Path:
    """Returns the folder of a checkpoint, given a shipped name or a path; those of `official.OFFICIAL` are fetched.
    Notebook 00, section 3."""
    shipped = CHECKPOINTS / str(name)
    folder = shipped if Path(str(name)).name == str(name) and shipped.is_dir() else Path(name)
    if str(name) in OFFICIAL and not folder.exists():
        folder = cache_dir() / "official" / str(name)
        if not (folder / "config.json").is_file():
            save_checkpoint(folder, *fetch(str(name)))
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise CaptioningError(f"{folder} is no checkpoint: it has no config.json. Name a folder that training wrote.")
    raise unknown_name("model", str(name), [*available(), *OFFICIAL])


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the model's tensors without second names of the same one (tied weights), which safetensors refuses.

    Notebook 02, section 9.
    """
    seen, out = set(), {}
    for name, value in model.state_dict().items():
        key = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
        if key not in seen:
            seen.add(key)
            out[name] = value
    return out


def save_checkpoint(folder: str | Path, model: nn.Module, config: dict, extra: dict | None = None) -> Path:
    """Writes weights (fp16), tokenizer and configuration of `model` to `folder`, with hashes; returns the folder.

    `config` is the training configuration; `extra` adds entries, such as measured scores. Notebook 09, section 7.
    """
    folder, encoder = Path(folder), load_encoder(config["encoder"])
    left_out = set(model.left_out())
    kept = {name: value for name, value in unique_tensors(model).items() if name not in left_out}
    kept = {name: value.half() if value.is_floating_point() else value for name, value in kept.items()}
    tokenizer_file = TOKENIZERS[0] if isinstance(model.tokenizer, Vocabulary) else TOKENIZERS[1]
    model.tokenizer.save(folder / tokenizer_file)
    save_tensors(folder / "model.safetensors", kept)
    kind = config.get("inference_features", config.get("features", "grid"))
    about = {"name": config["encoder"], "kind": kind, "size": encoder.size, "fingerprint": encoder.fingerprint}
    entries = {
        "format": FORMAT, "name": config["name"], "class": type(model).__name__, "options": model.config,
        "encoder": about, "decoding": config.get("decoding", {}), "tokenizer": tokenizer_file,
        "sha256": {name: sha256_file(folder / name) for name in ("model.safetensors", tokenizer_file)},
    }  # fmt: skip
    if left_out:
        entries["left_out"] = weights_fingerprint(model, only=left_out)
    write_json(folder / "config.json", entries | (extra or {}))
    write_json(folder / "training.json", {key: value for key, value in config.items() if key != "output"})
    return folder


def load_checkpoint(name: str | Path, device: str = "cpu") -> tuple[nn.Module, dict]:
    """Returns (model, configuration) of a checkpoint, verified by hash. The model is in evaluation mode, in fp32.

    Raises CaptioningError when a file is missing, was changed, or does not fit the others. Notebook 09, section 6.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = checkpoint_folder(name)
    config = check(folder, read_json(folder / "config.json"))
    for file in ("model.safetensors", config["tokenizer"]):
        if not (folder / file).is_file():
            raise _refusal(folder, f"is incomplete: {file} is missing")
        if sha256_file(folder / file) != config["sha256"].get(file):
            raise _refusal(folder / file, "is not the file that config.json was written with (SHA-256 differs)")
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise _refusal(folder / "model.safetensors", f"cannot be read: {error}") from error
    model = build_model(config["class"], config["options"])
    left_out = set(model.left_out())
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    wrong = {key for key, value in tensors.items() if shapes.get(key) != value.shape}
    wrong |= unique_tensors(model).keys() - tensors.keys() - left_out
    if wrong:
        raise _refusal(folder, f"holds weights that do not fit its configuration: {sorted(wrong)[:3]}")
    if left_out and "left_out" in config and config["left_out"] != weights_fingerprint(model, only=left_out):
        named = model.config["language_model"]
        raise _refusal(folder, f"was trained with another language model than the {named!r} here (its weights differ)")
    model.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in tensors.items()}, strict=False)
    model.load_tokenizer(folder / config["tokenizer"])
    return model.to(device).eval(), config


def _encoder_of(config: dict, device: str):
    """Returns the encoder that a captioner was trained with. Raises CaptioningError when here is another one."""
    wanted = config["encoder"]
    encoder = load_encoder(wanted["name"], device)
    if encoder.fingerprint != wanted["fingerprint"]:
        raise CaptioningError(
            f"{config['name']} was trained with another version of the encoder {wanted['name']}: its fingerprint is "
            f"{wanted['fingerprint']}, here {encoder.fingerprint}. Fetch both again."
        )
    return encoder


@dataclass
class Caption:
    """What became of one photo: a caption, or the reason that there is none. Notebook 00, section 4."""

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
        entries["alternatives"] = [{"caption": text, "log_prob": log_prob} for text, log_prob in self.alternatives]
        return entries | ({"error": self.error} if self.error else {})


class Captioner:
    """A trained model with its encoder and decoding settings: photos in, captions out. Notebook 00, section 1."""

    def __init__(self, model: nn.Module, encoder, config: dict, device: str = "cpu"):
        self.model, self.encoder, self.config, self.device = model, encoder, config, device
        self.name = config["name"]
        self.feature_kind = config["encoder"]["kind"]
        self.decoding = {"method": "beam", "beam_size": 5, **config.get("decoding", {})}

    @classmethod
    def load(cls, name: str | Path | None = None, device: str = "cpu") -> Captioner:
        """Returns the captioner called `name`, or in that folder; the default one without a name. `device`: "cpu",
        "cuda", or "auto", the GPU where there is one. Raises CaptioningError when either cannot be used."""
        device = pick_device(device)
        model, config = load_checkpoint(name or DEFAULT_MODEL, device)
        return cls(model, _encoder_of(config, device), config, device)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Returns the features [B, R, D] or [B, D] of PIL images, as `decode` takes them."""
        return self.encoder.encode(images, self.feature_kind)

    def decode(self, features: Tensor, **options) -> list[list]:
        """Returns the hypotheses for features [B, R, D] or [B, D]. `options` override the checkpoint's settings; they
        are those of `helpers.decoding.decode`."""
        features = (features[:, None] if features.ndim == 2 else features).to(self.device)
        return decode(self.model, features, **{**self.decoding, **options})

    def caption(self, images: object, batch_size: int = 16, **options) -> list[Caption]:
        """Returns one Caption a photo, in order; a photo that cannot be read has `error` set, and the rest go on.

        `images`: a path, a folder (its photos), the bytes of an image file, an open binary file, a PIL image, an array
        [height, width, 3] of uint8, or any iterable of these, such as a list or `folder.glob("*.jpg")`. `options`
        override the decoding settings, see `decode`. Raises CaptioningError when `images` is something else.
        """
        out: list[Caption] = []
        photos = _photos(images)
        while True:
            batch = list(islice(photos, batch_size))
            if not batch:
                return out
            opened, readable = [], []
            for item in batch:
                name = item if isinstance(item, PATHS) else getattr(item, "name", None)
                out.append(Caption(str(name or f"image {len(out) + 1}"), None, None, self.name))
                try:
                    opened.append(_open(item))
                    readable.append(out[-1])
                except CaptioningError as error:
                    out[-1].error = str(error)
            groups = self.decode(self.encode(opened), **options) if opened else []
            for caption, group in zip(readable, groups, strict=True):
                self._fill(caption, group)

    def _fill(self, caption: Caption, group: list) -> None:
        text, best = self.model.tokenizer.decode, group[0]
        caption.caption, caption.log_prob = text(best.tokens), best.log_prob
        caption.alternatives = [(text(other.tokens), other.log_prob) for other in group[1:]]
        caption.words = [text([token]) for token in best.tokens]
        caption.attention = torch.stack(best.attention) if best.attention else None


def _photos(images: object) -> Iterator:
    """Yields each photo that `images` stands for. Raises CaptioningError when it is nothing that `caption` takes."""
    picture = isinstance(images, np.ndarray) and images.dtype.kind not in "OUS"  # an array of names is a list of them
    if isinstance(images, (*PATHS, bytes, bytearray, memoryview, Image.Image)) or hasattr(images, "read") or picture:
        images = [images]
    if isinstance(images, Mapping | Tensor) or not isinstance(images, Iterable):
        right = "a path, a folder, the bytes of an image file, an open binary file, a PIL image, an array of uint8"
        raise CaptioningError(f"Expected photos to caption, not {type(images).__name__}: {right}, or a list of these.")
    return (photo for item in images for photo in (list_images(item) if isinstance(item, PATHS) else [item]))


def _open(item: object) -> Image.Image:
    if not isinstance(item, np.ndarray):
        return open_image(item)
    if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3:
        raise CaptioningError(f"An array should be [height, width, 3] of uint8, not {[*item.shape]} of {item.dtype}.")
    return open_image(Image.fromarray(item))
