"""What a checkpoint's config.json may say. It may come from a stranger, and everything it names is acted upon."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from helpers.errors import CaptioningError, unknown_name
from helpers.files import ROOT, cache_dir
from helpers.images import shown
from helpers.models import CLASSES

FORMAT = 1
ENTRIES = {"format": int, "class": str, "options": dict, "encoder": dict, "tokenizer": str, "sha256": dict}
TOKENIZERS = ("vocabulary.json", "tokenizer.json")
MOST = 100_000_000  # of any number in the options; some language models state wave lengths that large
DECODING = {  # setting -> the largest number that a caption could need
    "beam_size": 64, "groups": 64, "samples": 64, "max_length": 256, "min_length": 256, "no_repeat_ngram": 256,
    "top_k": MOST, "top_p": 1, "temperature": 100, "diversity": 100, "length_penalty": 10, "repetition_penalty": 100,
    "clip_weight": 100, "consensus_weight": 100, "tag_weight": 100, "flaw_weight": 100,
    "early_stopping": 1,
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
