"""Converting official ClipCap weights: small models of the official names, computed here from the paper's words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from helpers.captioner import Captioner, load_checkpoint
from helpers.encoders import load_encoder
from helpers.files import CaptioningError
from helpers.language_models import load_language_model
from helpers.text import pad
from scripts.convert_clipcap import DECODING, convert, main, read_model
from tests.tiny_clips import save_clip
from tests.toy_language_models import save_family

D, W, HEADS, LAYERS = 16, 16, 8, 2  # D: the small CLIP's joint width; W: the small GPT-2's
LENGTH = {"mlp": 4, "transformer": 5}
SPREAD = 3


class Modules(nn.Module):
    """Weights by dotted name, so that a state dict has the official keys."""

    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def official(variant: str, language_model: nn.Module, seed: int = 0) -> nn.Module:
    """The weights of an official captioner, small: names as in its files, values at random."""
    torch.manual_seed(seed)
    if variant == "mlp":
        hidden = LENGTH["mlp"] * W // 2
        layers = nn.Sequential(nn.Linear(D, hidden), nn.Tanh(), nn.Linear(hidden, LENGTH["mlp"] * W))
        return Modules(gpt=language_model, clip_project=Modules(model=layers))
    stack = [
        Modules(
            norm1=nn.LayerNorm(W), norm2=nn.LayerNorm(W),
            attn=Modules(
                to_queries=nn.Linear(W, W, bias=False), to_keys_values=nn.Linear(W, 2 * W, bias=False),
                project=nn.Linear(W, W),
            ),
            mlp=Modules(fc1=nn.Linear(W, 2 * W), fc2=nn.Linear(2 * W, W)),
        )
        for _ in range(LAYERS)
    ]  # fmt: skip
    project = Modules(transformer=Modules(layers=nn.ModuleList(stack)), linear=nn.Linear(D, SPREAD * W))
    project.register_parameter("prefix_const", nn.Parameter(torch.randn(LENGTH["transformer"], W)))
    return Modules(gpt=language_model, clip_project=project)


def prefix_of(model: nn.Module, variant: str, vectors: Tensor) -> Tensor:
    """Returns the official prefix [B, P, W] of image vectors [B, D]."""
    project = model.clip_project
    if variant == "mlp":
        return project.model(vectors).view(len(vectors), LENGTH["mlp"], W)
    x = project.linear(vectors).view(len(vectors), SPREAD, W)
    x = torch.cat([x, project.prefix_const.expand(len(vectors), -1, -1)], 1)  # [B, L, W]
    for layer in project.transformer.layers:
        y = layer.norm1(x)
        size = W // HEADS
        queries = layer.attn.to_queries(y).view(*y.shape[:2], HEADS, size)
        both = layer.attn.to_keys_values(y).view(*y.shape[:2], 2, HEADS, size)  # keys, then values, then heads
        out = torch.empty_like(queries)
        for head in range(HEADS):
            scores = queries[:, :, head] @ both[:, :, 0, head].transpose(1, 2) / math.sqrt(size)
            out[:, :, head] = scores.softmax(-1) @ both[:, :, 1, head]
        x = x + layer.attn.project(out.flatten(2))
        x = x + layer.mlp.fc2(layer.mlp.fc1(layer.norm2(x)).relu())
    return x[:, SPREAD:]


def logits_of(model: nn.Module, variant: str, vectors: Tensor, tokens: Tensor) -> Tensor:
    """Returns the official logits [B, T + 1, V] that predict `tokens` [B, T] and what follows."""
    prefix = prefix_of(model, variant, vectors)
    words = model.gpt.get_input_embeddings()(tokens)
    return model.gpt(inputs_embeds=torch.cat([prefix, words], 1)).logits[:, prefix.shape[1] - 1 :]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return save_family(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return f"clip:{save_clip('clip', tmp_path_factory.mktemp('clip'))}"


def save_official(path: Path, variant: str, gpt2: Path) -> nn.Module:
    """Writes the file that the authors' script would, masks of an older transformers included."""
    language_model = AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32)
    if variant == "mlp":  # tuned: no longer the language model that it was
        with torch.no_grad():
            for parameter in language_model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model = official(variant, language_model).eval()
    state = model.state_dict()
    for layer in range(2):
        state[f"gpt.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 96, 96).tril().bool()
        state[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, path)
    return model


both = pytest.mark.parametrize("variant", ["mlp", "transformer"])


@both
@torch.no_grad()
def test_the_converted_model_gives_the_official_logits(gpt2: Path, tmp_path: Path, variant: str) -> None:
    reference = save_official(tmp_path / "weights.pt", variant, gpt2)
    model = read_model(tmp_path / "weights.pt", str(gpt2))
    assert model.config["tune"] == {"mlp": "full", "transformer": "none"}[variant]
    assert model.config["prefix_length"] == LENGTH[variant]
    vectors = torch.randn(3, D) * 4
    tokens = pad([model.tokenizer.encode(c) for c in ("a red dog", "the cat that sits", "a bird")], 0)
    expected = logits_of(reference, variant, vectors, tokens)
    torch.testing.assert_close(model(vectors[:, None], tokens)[0], expected, atol=1e-5, rtol=1e-4)


@both
@torch.no_grad()
def test_the_checkpoint_captions_a_photo_as_the_official_scripts_do(
    gpt2: Path, clip: str, tmp_path: Path, variant: str
) -> None:
    reference = save_official(tmp_path / "weights.pt", variant, gpt2)
    convert(tmp_path / "weights.pt", tmp_path / "out", encoder=clip, language_model=str(gpt2))
    captioner = Captioner.load(tmp_path / "out")
    photo = Image.radial_gradient("L").convert("RGB")
    encoder = load_encoder(clip)
    vector = encoder.encode_image(encoder.prepare(photo)[None], normalise=variant == "transformer")
    expected = logits_of(reference, variant, vector, torch.zeros(1, 0, dtype=torch.long))[0, -1]
    features = encoder.features(encoder.prepare(photo)[None], captioner.feature_kind)
    first = captioner.model.start(features[:, None]).log_probs[0]
    torch.testing.assert_close(first, expected.log_softmax(-1), atol=5e-3, rtol=0)  # fp16 on disk
    (caption,) = captioner.caption([photo], method="greedy", max_length=8)
    assert caption.error is None and isinstance(caption.caption, str)
    assert captioner.decoding["length_penalty"] == DECODING["length_penalty"] == 1.0


def test_a_full_stop_ends_a_caption(gpt2: Path, tmp_path: Path) -> None:
    save_official(tmp_path / "weights.pt", "transformer", gpt2)
    model = read_model(tmp_path / "weights.pt", str(gpt2))
    (stop,) = model.tokenizer.tokenizer.encode(".", add_special_tokens=False).ids
    assert model.end_id == stop != load_language_model(str(gpt2))[1].end_id
    assert model.tokenizer.decode([*model.tokenizer.encode("a dog"), stop, *model.tokenizer.encode("cat")]) == "a dog"


def test_what_is_no_clipcap_is_refused(gpt2: Path, clip: str, tmp_path: Path) -> None:
    model = save_official(tmp_path / "weights.pt", "mlp", gpt2)
    state = model.state_dict()
    cases = {
        "no ClipCap of the official kind.*gpt.transformer": {n: v for n, v in state.items() if n.startswith("gpt.")},
        "other layers than the official": {**state, "clip_project.model.4.weight": torch.zeros(2, 2)},
        "has no GPT-2": {n: v for n, v in state.items() if not n.startswith("gpt.")},
        "The mapper in .* does not fit": {**state, "clip_project.model.0.bias": torch.zeros(3)},
        "missing \\['transformer.h.1": {n: v for n, v in state.items() if ".h.1." not in n},
    }
    for message, weights in cases.items():
        torch.save(weights, tmp_path / "bad.pt")
        with pytest.raises(CaptioningError, match=message):
            read_model(tmp_path / "bad.pt", str(gpt2))
    with pytest.raises(CaptioningError, match="reads 16 numbers"):
        convert(tmp_path / "weights.pt", tmp_path / "out", language_model=str(gpt2))
    with pytest.raises(CaptioningError, match="reads 16 numbers an image, and efficientnet-lite0 gives 1280"):
        convert(
            tmp_path / "weights.pt", tmp_path / "out", encoder="efficientnet-lite0", features="pooled",
            language_model=str(gpt2),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_command(gpt2: Path, clip: str, tmp_path: Path, capsys) -> None:
    save_official(tmp_path / "weights.pt", "transformer", gpt2)
    options = ["--encoder", clip, "--language_model", str(gpt2), "--name", "official"]
    assert main([str(tmp_path / "weights.pt"), str(tmp_path / "out"), *options]) == 0
    assert "generate_caption.py --checkpoint" in capsys.readouterr().out
    model, config = load_checkpoint(tmp_path / "out")
    assert config["name"] == "official" and config["encoder"]["kind"] == "embedding"
    assert main([str(tmp_path / "missing.pt"), str(tmp_path / "other")]) == 2
    assert "There is no file" in capsys.readouterr().err
