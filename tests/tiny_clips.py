"""Small CLIPs of transformers' classes: they stand in for weights that must be downloaded."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ["<pad>", "<unk>", "a", "dog", "two", "children", "boat", "<end>"]


def save_clip(kind: str, folder: Path) -> Path:
    """Writes a small CLIP or SigLIP, `kind` clip or siglip, with `save_pretrained`; its tokenizer knows WORDS alone."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 7)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**layer, "image_size": 64, "patch_size": 16}
    text = {**layer, "vocab_size": 8, "max_position_embeddings": 12}
    text |= {"eos_token_id": 7, "bos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "clip":
        model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        images = hf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    else:
        model = hf.SiglipModel(hf.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision))
        images = hf.SiglipImageProcessor(size={"height": 64, "width": 64})
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder
