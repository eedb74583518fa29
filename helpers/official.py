"""The authors' own ClipCap (Mokady et al. 2021) by name: `Captioner.load("clipcap-coco")`.

On first use the weights, CLIP ViT-B/32 and GPT-2 come from the Hugging Face hub; what is made of them is kept as a
checkpoint like any other.

Shapes: D width of CLIP's image vector, P prefix length, W width of GPT-2.
"""

from __future__ import annotations

import sys
from pathlib import Path

from helpers.clipcap import ClipCap
from helpers.clips import OPENAI
from helpers.encoders import load_encoder
from helpers.files import CaptioningError, cache_dir, load_weights

OFFICIAL = {  # name -> repository on the hub, file
    "clipcap-coco": ("akhaliq/CLIP-prefix-captioning-COCO-weights", "coco_weights.pt"),
    "clipcap-conceptual": ("akhaliq/CLIP-prefix-captioning-conceptual-weights", "conceptual_weights.pt"),
}
CLIP, GPT2 = "clip:ViT-B/32", "openai-community/gpt2"
LICENCE = "ClipCap: MIT licence, github.com/rmokady/CLIP_prefix_caption. CLIP: MIT. GPT-2: modified MIT."
MASKS = (".attn.bias", ".attn.masked_bias")  # which older versions of transformers stored beside the weights
DECODING = {"method": "beam", "beam_size": 5, "length_penalty": 1.0, "max_length": 67}  # as in the authors' scripts


def fetch(name: str) -> tuple[ClipCap, dict]:
    """Returns the official captioner called `name` and its configuration, as `captioner.save_checkpoint` takes them.

    Says first what is fetched, how large it is, and under which licence; a broken download goes on where it stopped.
    Raises CaptioningError, in one line, when something cannot be had. Notebook 06, section 1.
    """
    repository, file = OFFICIAL[name]
    path = by_hand = cache_dir() / "official" / file
    if not by_hand.is_file():
        path = _download(name, repository, file, by_hand)
    return read_weights(path), {"name": name, "encoder": CLIP, "features": "pooled", "decoding": DECODING}


def _download(name: str, repository: str, file: str, by_hand: Path) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    needed = {repository: (file,), OPENAI[CLIP.partition(":")[2]]: ("model.safetensors", "pytorch_model.bin")}
    needed[GPT2] = ("model.safetensors", "pytorch_model.bin")
    try:
        print(f"{name} is made of these, which are fetched once and kept. {LICENCE}", file=sys.stderr)
        for source, files in needed.items():
            siblings = {s.rfilename: s.size for s in HfApi().model_info(source, files_metadata=True).siblings}
            found = next(file for file in files if file in siblings)
            print(f"  {source}/{found}: {siblings[found] / 1e6:,.0f} MB", file=sys.stderr)
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub's own errors, and those of whatever HTTP library its client is built on
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CaptioningError(
            f"{name} needs {file} of huggingface.co/{repository}, which could not be fetched ({reason}). Put it into "
            f"{by_hand.parent} by hand, and {' and '.join(list(needed)[1:])} into the cache of `hf download`."
        ) from error


def read_weights(path: str | Path, encoder: str = CLIP, language_model: str = GPT2) -> ClipCap:
    """Returns a ClipCap with the weights in `path`, which the authors' training script wrote: an MLP mapper and the
    GPT-2 that was tuned with it, in fp32 or fp16, alone or in a LightningModule.

    `encoder` and `language_model`: what it was trained with. Raises CaptioningError when the file holds something else,
    or the encoder's vector is not as wide as the mapper's input. Notebook 06, section 1.
    """
    mapper, reader = {}, {}
    for name, value in load_weights(path).items():
        name = name.removeprefix("model.")  # of a LightningModule
        if name.startswith("clip_project."):
            mapper[name.removeprefix("clip_project.")] = value.float()
        elif name.startswith("gpt.") and not name.endswith(MASKS):
            reader[name.removeprefix("gpt.")] = value.float()
    if set(mapper) != {f"model.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")} or not reader:
        raise CaptioningError(
            f"{path} holds no ClipCap with an MLP mapper (clip_project.model.…) and its GPT-2 (gpt.…). A transformer "
            "mapper of the authors needs CLIP RN50x4, which is not on the hub in the format of transformers."
        )
    hidden, D = mapper["model.0.weight"].shape
    given = getattr(load_encoder(encoder), "joint", None)
    if given != D:
        raise CaptioningError(f"{path} reads {D} numbers an image, and {encoder} gives {given}. Name another CLIP.")
    P = len(mapper["model.2.weight"]) // reader["transformer.wte.weight"].shape[1]  # P * W rows
    model = ClipCap(
        D, language_model=language_model, mapper_options={"hidden": hidden}, prefix_length=P, standardise=False
    )
    try:
        model.mapper.load_state_dict(mapper)
        model.language_model.load_weights(reader)
    except RuntimeError as error:  # another shape, or a weight too few
        reason = str(error).splitlines()[-1].strip()
        raise CaptioningError(f"{path} does not fit {language_model!r}: {reason}") from error
    # The recipe trained no end of sequence; its decoding stops at the full stop that ends COCO's captions.
    (stop,) = model.tokenizer.tokenizer.encode(".", add_special_tokens=False).ids
    model.end_id = model.tokenizer.end_id = model.config["end_id"] = stop
    return model.eval()
