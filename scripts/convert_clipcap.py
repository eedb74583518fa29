"""The official ClipCap weights as a checkpoint of this course: `python scripts/convert_clipcap.py WEIGHTS.pt FOLDER`.

The authors (github.com/rmokady/CLIP_prefix_caption, Mokady et al. 2021) published two captioners trained on COCO:
`coco_weights.pt`, an MLP mapper with its own tuned GPT-2 (CLIP ViT-B/32, 512 numbers an image), and
`transformer_weights.pt`, a transformer mapper before GPT-2 as it was (CLIP RN50x4, 640 numbers an image; that CLIP has
to be given, since the Hugging Face hub does not have it in the format of transformers).

Shapes: D feature width, P prefix length, W width of the language model.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers.captioner import save_checkpoint  # noqa: E402
from helpers.clipcap import ClipCap  # noqa: E402
from helpers.encoders import load_encoder  # noqa: E402
from helpers.files import CaptioningError, command, load_weights  # noqa: E402

ENCODERS = {512: "clip:ViT-B/32"}  # by D
# The official scripts divide the transformer's image vector by its length, and give the MLP the vector as CLIP made it.
FEATURES = {"mlp": "pooled", "transformer": "embedding"}
END = "."  # the recipe trained no end-of-sequence; its decoding stops at the full stop that ends COCO's captions
DECODING = {"method": "beam", "beam_size": 5, "length_penalty": 1.0, "max_length": 67}  # as in the official scripts
MASKS = (".attn.bias", ".attn.masked_bias")  # which older versions of transformers stored beside the weights
HEADS = 8  # of the transformer mapper; no weight's shape tells


def convert(
    path: str | Path, folder: str | Path, *, name: str | None = None, encoder: str | None = None,
    features: str | None = None, language_model: str = "gpt2",
) -> Path:  # fmt: skip
    """Writes the official weights in `path` as a checkpoint to `folder`, and returns the folder.

    `encoder` is by default the CLIP that the width of the mapper's input tells, `features` is "pooled" (the vector as
    CLIP makes it) or "embedding" (of length 1), by default what the official scripts use for this mapper.
    Raises CaptioningError, before anything is written, when the file holds something else, the CLIP is not of the
    mapper's width, or one of the models cannot be had.
    """
    model = read_model(path, language_model)
    width, mapper = model.config["feature_width"], model.config["mapper"]
    encoder = encoder or ENCODERS.get(width)
    if encoder is None:
        raise CaptioningError(
            f"{path} reads {width} numbers an image, and the CLIP of the official MLP gives 512; name its CLIP."
        )
    kind, clip = features or FEATURES[mapper], load_encoder(encoder)
    given = clip.features(clip.prepare(Image.new("RGB", (32, 32)))[None], kind).shape[-1]
    if given != width:
        raise CaptioningError(f"{path} reads {width} numbers an image, and {encoder} gives {given}. Name another CLIP.")
    config = {"name": name or Path(folder).name, "encoder": encoder, "features": kind, "decoding": DECODING}
    note = f"Converted from {Path(path).name} of github.com/rmokady/CLIP_prefix_caption."
    return save_checkpoint(folder, model, config | {"note": note})


def read_model(path: str | Path, language_model: str = "gpt2") -> ClipCap:
    """Returns a ClipCap with the official weights in `path`, in evaluation mode: of the kind "none" when the language
    model in the file is the one called `language_model`, weight for weight, and of the kind "full" otherwise."""
    weights = load_weights(path)
    mapper = {_our_name(n): v for n, v in weights.items() if n.startswith("clip_project.")}
    reader = {n.removeprefix("gpt."): v for n, v in weights.items() if n.startswith("gpt.") and not n.endswith(MASKS)}
    if "model.0.weight" in mapper:
        options = _mlp_options(mapper, reader, path)
    elif "constants" in mapper:
        options = _transformer_options(mapper, path)
    else:
        raise CaptioningError(
            f"{path} holds no ClipCap of the official kind: there is neither clip_project.model.0.weight nor "
            f"clip_project.prefix_const, but {', '.join(list(weights)[:3])}, … ."
        )
    options |= {"language_model": language_model, "standardise": False}
    model = ClipCap(**options, tune="full")
    if not reader or _same(model.language_model.state_dict(), reader):
        model = ClipCap(**options, tune="none")
    else:
        _load(model.language_model, reader, f"The language model in {path}", language_model)
    _load(model.mapper, mapper, f"The mapper in {path}", language_model)
    stops = model.tokenizer.tokenizer.encode(END, add_special_tokens=False).ids
    model.end_id = model.tokenizer.end_id = model.config["end_id"] = stops[0]
    return model.eval()


def _our_name(name: str) -> str:
    """Returns what a weight of the official mapper is called here."""
    name = re.sub(r"^clip_project\.(transformer\.)?", "", name)
    return re.sub(r"^prefix_const$", "constants", re.sub(r"\.(attn|mlp)\.", ".", name))


def _mlp_options(mapper: dict[str, Tensor], reader: dict[str, Tensor], path: str | Path) -> dict:
    words = reader.get("transformer.wte.weight")  # [V, W]
    if words is None:
        raise CaptioningError(f"{path} has no GPT-2 (gpt.…), and the MLP's was tuned with it. Take the whole file.")
    if set(mapper) != {f"model.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}:
        raise CaptioningError(f"{path}: the MLP mapper has other layers than the official one: {sorted(mapper)}.")
    hidden, feature_width = mapper["model.0.weight"].shape
    length = len(mapper["model.2.weight"]) // words.shape[1]  # P * W rows
    options = {"mapper_options": {"hidden": hidden}, "prefix_length": length}
    return {"feature_width": feature_width, "mapper": "mlp", **options}


def _transformer_options(mapper: dict[str, Tensor], path: str | Path) -> dict:
    length, width = mapper["constants"].shape
    layers = {int(n.split(".")[1]) for n in mapper if n.startswith("layers.")}
    try:
        spread, feature_width = mapper["linear.weight"].shape
        ratio = mapper["layers.0.fc1.weight"].shape[0] / width
    except KeyError as error:
        raise CaptioningError(f"{path} is incomplete: the mapper has no {error}. Download it again.") from error
    options = {"layers": len(layers), "heads": HEADS, "mlp_ratio": ratio, "clip_length": spread // width}
    return {"feature_width": feature_width, "mapper": "transformer", "mapper_options": options, "prefix_length": length}


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(n in ours and v.shape == ours[n].shape and torch.allclose(v.float(), ours[n]) for n, v in theirs.items())


def _load(module: nn.Module, weights: dict[str, Tensor], what: str, language_model: str) -> None:
    try:
        missing, unexpected = module.load_state_dict({n: v.float() for n, v in weights.items()}, strict=False)
    except RuntimeError as error:  # another shape
        reason = str(error).splitlines()[-1].strip()
        raise CaptioningError(f"{what} does not fit {language_model!r}: {reason}") from error
    missing = [n for n in missing if n != "lm_head.weight"]  # GPT-2's last layer is its first
    if missing or unexpected:
        raise CaptioningError(f"{what} is not as expected: missing {missing[:3]}, not known {unexpected[:3]}.")


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert official ClipCap weights into a checkpoint.")
    parser.add_argument("weights", help="coco_weights.pt or transformer_weights.pt")
    parser.add_argument("folder", help="the checkpoint to write")
    parser.add_argument("--name", help="of the captioner; the folder's by default")
    parser.add_argument("--encoder", help="the CLIP it was trained with, if it is not clip:ViT-B/32")
    parser.add_argument("--features", choices=["pooled", "embedding"], help="the image vector as it is, or of length 1")
    parser.add_argument("--language_model", default="gpt2", help="name or folder (default: gpt2)")
    options = vars(parser.parse_args(arguments))
    folder = convert(options.pop("weights"), options.pop("folder"), **options)
    print(f"{folder} is ready: python generate_caption.py --checkpoint {folder} --image_path PHOTO")


if __name__ == "__main__":
    raise SystemExit(main())
