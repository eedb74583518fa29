"""The front door: `Captioner.load(name).caption(images)`. Also how a captioner is saved, and checked when it is loaded.

A checkpoint is a folder: `model.safetensors`, `config.json` (class, options, encoder, preprocessing, decoding, hashes),
the vocabulary or tokenizer, `encoder.safetensors` where the encoder was tuned, and a card, `README.md`. They travel
together and are verified together.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers import captioner as checkpoint_config
from helpers.files import (
    CHECKPOINTS,
    ROOT,
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
from helpers.images import shown

FORMAT = 1
ENTRIES = {"format": int, "class": str, "options": dict, "encoder": dict, "tokenizer": str, "sha256": dict}
TOKENIZERS = ("vocabulary.json", "tokenizer.json")
MOST = 100_000_000  # of any number in the options; some language models state wave lengths that large
DECODING = {  # setting -> the largest number that a caption could need
    "beam_size": 64, "samples": 64, "max_length": 256, "min_length": 256, "no_repeat_ngram": 256,
    "top_k": MOST, "top_p": 1, "temperature": 100, "length_penalty": 10, "repetition_penalty": 100,
    "clip_weight": 100, "consensus_weight": 100, "tag_weight": 100, "flaw_weight": 100,
}  # fmt: skip
FILLS = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
         "xavier_normal_", "constant_", "fill_", "zero_", "zeros_", "ones_"}  # fmt: skip
# With these a transformers configuration fetches and runs code, or changes how the weights are read.
CODE = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "trust_remote_code")


def check(folder: Path, config: object) -> dict:
    """Returns `config` if it is one that training could have written.

    Raises CaptioningError when an entry is missing or of another type, a class or a setting is not known, a number is
    beyond all sense, or a folder is named that belongs neither to the checkpoint nor to this project.
    """
    place = folder / "config.json"
    if not isinstance(config, dict) or not set(ENTRIES) <= set(config):
        raise CaptioningError(f"{place} lacks entries of a checkpoint's configuration; train or fetch it again.")
    for name, kind in ENTRIES.items():
        if type(config[name]) is not kind:
            raise CaptioningError(f"{place}: {name!r} should be of the type {kind.__name__}. Fetch it again.")
    if config["format"] != FORMAT:
        raise CaptioningError(f"{folder} has format {config['format']}; this version reads format {FORMAT}.")
    if config["class"] not in CLASSES:
        raise unknown_name("model class", config["class"], CLASSES)
    if config["tokenizer"] not in TOKENIZERS:
        raise CaptioningError(
            f"{folder}: the tokenizer must be {' or '.join(TOKENIZERS)} beside it, not {config['tokenizer']!r}."
        )
    if not all(isinstance(config["encoder"].get(name), str) for name in ("name", "kind", "fingerprint")):
        raise CaptioningError(f"{place}: 'encoder' should have a name, a kind and a fingerprint, all of them text.")
    if not isinstance(config.get("name", ""), str):
        raise CaptioningError(f"{place}: 'name' should be text.")
    config.setdefault("name", folder.name)
    for name in ("options", "encoder"):
        _bounded(config[name], f"{place}: {name}", folder)
    _decoding(config.get("decoding", {}), place)
    return config


def check_options(folder: Path, config: object) -> dict:
    """Returns the configuration of an encoder's checkpoint, if its hashes and options are of the right kind."""
    place = folder / "config.json"
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in ("options", "sha256")):
        raise CaptioningError(f"{place} lacks the options or the hashes of a checkpoint; train or fetch it again.")
    _bounded(config["options"], f"{place}: options", folder)
    return config


def _bounded(value: object, where: str, folder: Path, depth: int = 0) -> None:
    """Raises CaptioningError on a number that no model has, and on what leads to files or code elsewhere."""
    if isinstance(value, dict) and depth < 6:
        for name, inner in value.items():
            if name == "_name_or_path":  # a note of where a language model once came from; nobody reads it
                continue
            if (name in CODE or name.startswith("_")) and inner is not None:
                raise CaptioningError(f"{where} asks for code from elsewhere ({shown(name)}). It was not loaded.")
            _bounded(inner, f"{where}.{shown(name)}", folder, depth + 1)
    elif isinstance(value, list) and depth < 6:
        for inner in value:
            _bounded(inner, where, folder, depth + 1)
    elif isinstance(value, str):
        _inside(value, where, folder)
    elif isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > MOST:
            raise CaptioningError(f"{where} is {value}, and no model has that. Fetch the checkpoint again.")
    elif value is not None:
        raise CaptioningError(f"{where} is nested too deeply. Fetch the checkpoint again.")


def _inside(name: str, where: str, folder: Path) -> None:
    """Raises CaptioningError when `name` is the path of something outside the checkpoint, the project and the cache.

    Names of models look like paths ("openai/clip-vit-base-patch32", "clip:ViT-B/32") and are let through.
    """
    if len(name) > 4000 or not name.isprintable():
        raise CaptioningError(f"{where} is no name: {shown(name)}")
    bare = re.sub(r"^(hf-clip|pocket-clip|clip):", "", name)
    parts = re.split(r"[/\\]", bare)
    if not (parts[0] in ("", "~") and bare or ".." in parts or re.match(r"[A-Za-z]:", bare) or _exists(bare)):
        return
    place = Path(bare).expanduser().resolve()
    trusted = [Path(root) for root in os.environ.get("CAPTIONING_TRUSTED", "").split(os.pathsep) if root]
    if not any(place.is_relative_to(root.resolve()) for root in (folder, ROOT, cache_dir(), *trusted)):
        raise CaptioningError(
            f"{where} names {shown(place)}, which is outside the checkpoint {shown(folder)}. If that folder is yours, "
            f"allow it by the environment variable CAPTIONING_TRUSTED={shown(place.parent)}."
        )


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):
        return False


def _decoding(settings: object, place: Path) -> None:
    if not isinstance(settings, dict):
        raise CaptioningError(f"{place}: 'decoding' should be an object of settings.")
    for name, value in settings.items():
        if name in ("method", "prompt"):
            right = isinstance(value, str) and len(value) < 1000
        elif name == "banned":
            right = isinstance(value, list) and len(value) <= MOST
        elif name in DECODING:
            number = isinstance(value, int | float) and math.isfinite(value) and abs(value) <= DECODING[name]
            right = value is None or number or value == "never"
        else:
            raise unknown_name("decoding setting", name, [*DECODING, "method", "prompt", "banned"])
        if not right:
            raise CaptioningError(f"{place}: decoding {name!r} is {shown(value)}, and no caption needs that.")


def check_size(build, tensors: dict, folder: Path) -> None:
    """Raises CaptioningError when the model that `build()` makes is not of the size of its weights.

    It is built without memory first (PyTorch's "meta" device): a few numbers in a configuration can ask for terabytes.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Unfilled(TorchFunctionMode):
        """Leaves out random and constant values. Without memory they mean nothing, and asking for them makes PyTorch
        import its compiler, which takes as long as all the rest."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__name__", "") in FILLS:
                return args[0] if args else kwargs["tensor"]
            return function(*args, **(kwargs or {}))

    with torch.device("meta"), Unfilled():
        shapes = {name: value.shape for name, value in build().state_dict().items()}
    wrong = sorted(name for name, value in tensors.items() if shapes.get(name) != value.shape)
    asked = sum(shape.numel() for shape in shapes.values())
    # a factor of three, since tied weights have several names and one place in the file
    if wrong or asked > 3 * sum(value.numel() for value in tensors.values()):
        raise CaptioningError(
            f"The weights in {folder} do not fit its configuration: {wrong[:3]}. Fetch the checkpoint again."
        )
CLASSES = {"ShowAndTell": "helpers.cnn_lstm", "ShowAttendTell": "helpers.cnn_lstm", "ClipCap": "helpers.clipcap"}


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the captioner itself; in a job of several processes a wrapper that shares gradients stands around it."""
    return getattr(model, "module", model)


def model_class(name: str) -> type[nn.Module]:
    """Returns the class called `name`; its module is imported only now. Raises CaptioningError on another name."""
    if name not in CLASSES:
        raise unknown_name("model class", name, CLASSES)
    return getattr(import_module(CLASSES[name]), name)


def build_model(name: str, options: dict) -> nn.Module:
    """Returns a new model of class `name` with these options. Raises CaptioningError on options that do not fit it."""
    try:
        return model_class(name)(**options)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:  # RuntimeError: no memory for it
        raise CaptioningError(f"{name} cannot be built from these options: {error}") from error
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
    from helpers import encoders as tuned_encoder
    from helpers.encoders import load_encoder
    from helpers.loop import unique_tensors
    from helpers.trunks import weights_fingerprint

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
    from helpers.encoders import FILE

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
    from helpers.loop import unique_tensors
    from helpers.trunks import weights_fingerprint

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
        from helpers.encoders import checkpoint_encoder

        model, config = load_checkpoint(name or DEFAULT_MODEL, device, for_captioning=True)
        encoder = checkpoint_encoder(checkpoint_folder(name or DEFAULT_MODEL), config, device)
        return cls(model, encoder, config, device)

    @cached_property
    def frozen(self):
        """The encoder by whose vectors candidates are judged, see `helpers.rerank`. Loaded when it is first needed."""
        from helpers.encoders import load_encoder
        from ranking.rerank import FROZEN

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
        from ranking.rerank import FROZEN_KIND

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
        from ranking.rerank import WEIGHTS, image_vectors, rerank

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
            from ranking.tags import add_candidates, find_tags

            seen = find_tags(self.frozen.classify(frozen))
            groups = add_candidates(self.model, features.to(self.device), groups, seen, options)
        captions = [[self.model.tokenizer.decode(h.tokens) for h in group] for group in groups]
        vectors = image_vectors(self.encoder, features) if weights["clip_weight"] else None
        ranked = rerank(groups, captions, vectors, self.encoder, frozen, **weights, seen=seen)
        return [group[:size] for group, size in zip(ranked, sizes, strict=True)]
FILES = ("config.json", "model.safetensors", "vocabulary.json", "tokenizer.json", "encoder.safetensors",
         "training.json", "README.md")  # fmt: skip
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(checkpoint: str | os.PathLike, folder: str | os.PathLike, licence: str = "mit") -> Path:
    """Writes a checkpoint (a shipped name, or a folder that training wrote) in the hub's format; returns the folder.

    Raises CaptioningError when it is no whole checkpoint. Its encoder is named, not copied: who loads it needs it; of a
    tuned one the tail goes along.
    """
    source, folder = checkpoint_folder(checkpoint), Path(folder)
    load_checkpoint(source)  # whole, and its files belong together
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES[:-1]:
        if (source / name).is_file() and not (folder / name).exists():
            with atomic_write(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
        elif (source / name).is_file() and (folder / name).read_bytes() != (source / name).read_bytes():
            raise CaptioningError(f"{folder} holds another checkpoint. Choose an empty folder.")
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card(source, licence), encoding="utf-8")
    return folder


def card(source: Path, licence: str = "mit") -> str:
    """Returns the model card of a checkpoint with the header that the hub reads."""
    config = read_json(source / "config.json")
    training = read_json(source / "training.json") if (source / "training.json").is_file() else {}
    trained_on = training.get("dataset", {}).get("name")
    header = ["---", f"license: {licence}", "language: en", "pipeline_tag: image-to-text"]
    header += ["tags:", "- image-captioning", f"- {config['class'].lower()}", "- safetensors"]
    header += ["datasets:", f"- {trained_on}"] if trained_on else []
    text = (source / "README.md").read_text(encoding="utf-8") if (source / "README.md").is_file() else ""
    if text.startswith("---\n"):
        return text  # it has a header, perhaps a better one
    text = text or f"# {config['name']}\n\nAn image captioner ({config['class']}).\n"
    use = f"""
## Use

It needs the image captioning course (`helpers/`) and the encoder `{config["encoder"]["name"]}`:

```python
from helpers.hub import from_pretrained
captioner = from_pretrained("USER/{config["name"]}")       # or a folder
print(captioner.caption("photo.jpg")[0].caption)
```
"""
    return "\n".join([*header, "---", "", ""]) + text.rstrip() + "\n" + use


def from_pretrained(name: str | os.PathLike, revision: str | None = None, device: str = "cpu") -> Captioner:
    """Returns the captioner in a folder, or in the hub's repository USER/NAME (kept in the hub's cache once fetched).

    `revision`: a branch, tag or commit. Raises CaptioningError when there is none, or its files do not fit together.
    """
    if Path(name).is_dir() or not _REPOSITORY.fullmatch(str(name)):
        return Captioner.load(name, device)
    fetched = call_hub("snapshot_download", repo_id=str(name), revision=revision, allow_patterns=list(FILES))
    return Captioner.load(Path(fetched), device)


def push_to_hub(checkpoint: str | os.PathLike, repository: str, private: bool = True, licence: str = "mit") -> str:
    """Uploads a checkpoint to the repository USER/NAME, made if it is not there; returns the commit's identity."""
    if not _REPOSITORY.fullmatch(repository):
        raise CaptioningError(f"{repository!r} is no repository of the hub; it should read USER/NAME.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(checkpoint, Path(temporary) / "checkpoint", licence)
        call_hub("create_repo", repo_id=repository, private=private, exist_ok=True)
        commit = call_hub(
            "upload_folder", repo_id=repository, folder_path=folder, allow_patterns=list(FILES),
            commit_message="A captioner with its card",
        )  # fmt: skip
    return commit.oid


def pull_from_hub(repository: str, folder: str | os.PathLike, revision: str | None = None) -> Path:
    """Fetches the captioner in USER/NAME into `folder`, checks it, and returns the folder."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CaptioningError(f"{folder} is not empty. Choose another folder.")
    call_hub(
        "snapshot_download", repo_id=repository, revision=revision, local_dir=folder, allow_patterns=list(FILES)
    )  # fmt: skip
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub's notes on what it fetched
    load_checkpoint(folder)
    return folder


def call_hub(action: str, **arguments):
    """Returns the answer of the hub to `action`, a method of its client. The one place that speaks to it.

    HF_ENDPOINT names another hub, HF_TOKEN the key to it. Raises CaptioningError with the hub's reason.
    """
    from huggingface_hub import HfApi

    client = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="image-captioning-course")
    try:
        return getattr(client, action)(**arguments)
    except Exception as error:  # the hub's own errors, and those of whatever HTTP library its client is built on
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CaptioningError(
            f"The hub refused {action.replace('_', ' ')} of {arguments.get('repo_id')}: {reason} Check the name and "
            "the token (`hf auth login`), and that HF_HUB_OFFLINE is not set."
        ) from error


@command
def main(arguments: list[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m helpers.hub", description="Captioners in the hub's format.")
    parser.add_argument("action", choices=["save", "push", "pull"])
    parser.add_argument("source", help="a checkpoint's name or folder; for pull, USER/NAME")
    parser.add_argument("target", help="a folder; for push, USER/NAME")
    parser.add_argument("--public", action="store_true", help="a pushed repository can be read by all")
    parser.add_argument("--revision", help="for pull: a branch, tag or commit")
    options = parser.parse_args(arguments)
    if options.action == "save":
        print(save_pretrained(options.source, options.target))
    elif options.action == "push":
        print(push_to_hub(options.source, options.target, private=not options.public))
    else:
        print(pull_from_hub(options.source, options.target, options.revision))
