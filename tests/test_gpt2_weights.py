"""A GPT-2 held as bare weights says what transformers' says, and becomes it again when all of it is needed."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from helpers.captioner import load_checkpoint
from helpers.decoding import decode
from helpers.files import CHECKPOINTS
from helpers.language_models import GPT2Weights, can_hold


@pytest.fixture(scope="module")
def pair():
    whole, _ = load_checkpoint("clipcap-mlp")
    bare, _ = load_checkpoint("clipcap-mlp", for_captioning=True)
    assert isinstance(bare.language_model, GPT2Weights) and not isinstance(whole.language_model, GPT2Weights)
    return whole, bare


def photos(model) -> torch.Tensor:
    return torch.randn(3, 49, model.config["feature_width"], generator=torch.Generator().manual_seed(1)).abs()


def test_the_same_names_and_numbers_and_configuration(pair) -> None:
    whole, bare = pair
    one, other = whole.state_dict(), bare.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    one, other = (copy.deepcopy(model.config) for model in pair)
    for config in (one, other):  # transformers puts its own version there
        config["language_model_config"].pop("transformers_version")
    assert one == other and bare.end_id == whole.end_id


def test_the_same_captions(pair) -> None:
    whole, bare = pair
    for one, other in zip(decode(whole, photos(whole)), decode(bare, photos(bare)), strict=True):
        assert [h.tokens for h in one] == [h.tokens for h in other]
        assert [h.log_prob for h in one] == pytest.approx([h.log_prob for h in other], abs=1e-5)


def test_reading_many_words_at_once_makes_it_whole() -> None:
    whole, _ = load_checkpoint("clipcap-mlp")
    bare, _ = load_checkpoint("clipcap-mlp", for_captioning=True)
    words = torch.tensor([[5, 6, 7]] * 3)
    with torch.no_grad():
        expected, found = whole(photos(whole), words)[0], bare(photos(bare), words)[0]
    assert torch.allclose(expected, found, atol=1e-4)
    assert type(bare.language_model).__name__ == "GPT2LMHeadModel"


def test_an_unusual_gpt2_is_left_to_transformers(pair) -> None:
    config = pair[0].config["language_model_config"]
    assert can_hold(config)
    for change in ({"model_type": "llama"}, {"n_inner": 99}, {"activation_function": "relu"}, {"n_embd": "256"},
                   {"scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": False}):  # fmt: skip
        assert not can_hold({**config, **change}), change


def test_captioning_imports_nothing_that_it_does_not_need() -> None:
    program = (
        "import sys; from helpers.captioner import Captioner; c = Captioner.load('clipcap-mlp'); "
        "print(c.caption('sample_images/dog.jpg')[0].caption); "
        "print([m for m in ('transformers', 'pandas', 'matplotlib', 'nltk', 'torchvision') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKPOINTS.parent.parent, capture_output=True, text=True, check=True
    )
    caption, imported = run.stdout.strip().splitlines()
    assert len(caption.split()) > 3 and imported == "[]"
