"""Small language models of the classes and file layouts of the large ones, and ClipCaps over them, for the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from configs.pocket.pretraining import new_pocket_gpt2, save_language_model
from helpers.clipcap import ClipCap
from helpers.encoders import Features
from helpers.language_models import CaptionTokenizer
from helpers.training import Run
from tests.toy_captioners import MEANINGS, WIDTH, features, world

SHAPE = {"vocabulary": 300, "width": 16, "layers": 2, "heads": 2, "positions": 96}
FAMILIES = ("gpt2", "llama")
MAPPER = {"mlp": {"hidden": 20}, "transformer": {"layers": 2, "heads": 2, "clip_length": 3}}


def all_captions() -> list[str]:
    return [caption for group in world("t").values() for caption in group]


def pocket_gpt2(seed: int = 0) -> tuple[nn.Module, CaptionTokenizer]:
    """An untrained PocketGPT2 of two layers over the toy captions."""
    torch.manual_seed(seed)
    return new_pocket_gpt2(all_captions(), **SHAPE)


def save_family(folder: Path, family: str = "gpt2") -> Path:
    """Writes an untrained language model as `save_pretrained` does, so that any name or folder may stand for it."""
    model, tokenizer = pocket_gpt2()
    save_language_model(folder, model, tokenizer)
    if family == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        theirs = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=96,
                bos_token_id=tokenizer.end_id, eos_token_id=tokenizer.end_id,
            )
        )  # fmt: skip
        theirs.config.plain_captions = True
        theirs.half().save_pretrained(folder)
    return folder


def clipcap(folder: Path, mapper: str = "mlp", seed: int = 0, **options) -> ClipCap:
    """A ClipCap over the language model in `folder`, the same for the same seed, in evaluation mode."""
    torch.manual_seed(seed)
    options = {"prefix_length": 3, "mapper_options": MAPPER[mapper], **options}
    model = ClipCap(WIDTH, language_model=str(folder), mapper=mapper, **options)
    if options.get("standardise", True):
        model.standardise.fit(torch.from_numpy(features("t").array))
    return model.eval()


def clipcap_run(folder: Path, model: ClipCap, grid: bool = False) -> Run:
    """A training run of `model` on the toy world; dev shows the same meanings."""
    both = {**world("t"), **world("d", MEANINGS[:12])}
    views = [Features(list(both), features("t", MEANINGS + MEANINGS[:12], grid).array)]
    return Run(model, world("t"), world("d", MEANINGS[:12]), views, folder)
