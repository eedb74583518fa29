"""Decoding a language model behind a prefix: equal to `transformers`, what the cache of our GPT-2 shares, and that
every option combines with every kind of model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from helpers.clipcap import ClipCap
from helpers.cnn_lstm import ShowAndTell, ShowAttendTell
from helpers.decoding import decode
from helpers.files import CaptioningError
from helpers.language_models import GPT2, GROWTH, Attention, is_plain_gpt2, read_on

WIDTH, END = 16, 0


class Prefixed(ClipCap):
    """A ClipCap whose features are the prefix itself."""

    def __init__(self, theirs: nn.Module):
        """`theirs`: a model of transformers; a plain GPT-2 is run by ours with its weights."""
        nn.Module.__init__(self)
        config = theirs.config.to_dict()
        self.language_model, self.theirs, self.end_id, self.tokenizer = theirs, [theirs.eval()], END, None
        if is_plain_gpt2(config):
            self.language_model = GPT2(config)
            self.language_model.load_weights(theirs.state_dict())
        self.config = {"tune": "full"}

    def prefix(self, features: Tensor) -> Tensor:
        return features


def gpt2(seed: int, layers: int = 2, heads: int = 2, vocabulary: int = 14, **options) -> Prefixed:
    """A random GPT-2, loud enough that its distributions are far from flat and some captions end in time."""
    torch.manual_seed(seed)
    shape = {"n_embd": WIDTH, "n_layer": layers, "n_head": heads, "vocab_size": vocabulary, "n_positions": 48}
    config = GPT2Config(**shape, initializer_range=0.5, eos_token_id=END, bos_token_id=END, **options)
    return Prefixed(GPT2LMHeadModel(config)).eval()


def llama(seed: int) -> Prefixed:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=14, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=48, initializer_range=0.5, eos_token_id=END, bos_token_id=END,
    )  # fmt: skip
    return Prefixed(LlamaForCausalLM(config)).eval()


def prefixes(seed: int, images: int, length: int = 3) -> Tensor:
    return torch.randn(images, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def theirs(model: Prefixed, prefix: Tensor, beams: int, length: int, **options) -> list[list[tuple[list[int], float]]]:
    """What `transformers.generate` returns, without the padding behind an end."""
    out = model.theirs[0].generate(
        inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long), num_beams=beams,
        max_new_tokens=length, do_sample=False, num_return_sequences=beams, pad_token_id=END,
        return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    tokens = [row[: row.index(END) + 1] if END in row else row for row in out.sequences.tolist()]
    scores = out.sequences_scores.tolist() if beams > 1 else [0.0] * len(tokens)
    return [list(zip(tokens[i : i + beams], scores[i : i + beams], strict=True)) for i in range(0, len(tokens), beams)]


def assert_equal(found, expected) -> None:
    assert len(found) == len(expected)
    for hypotheses, pairs in zip(found, expected, strict=True):
        assert [h.tokens for h in hypotheses] == [tokens for tokens, _ in pairs]
        assert [h.score for h in hypotheses] == pytest.approx([score for _, score in pairs], abs=1e-4)


seeds = st.integers(0, 10_000)
few = settings(max_examples=12, deadline=None)


# -- equal to transformers ---------------------------------------------------------------------------------------------


@few
@given(
    seeds, st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(1, 5), st.integers(2, 5),
    st.integers(1, 10), st.sampled_from([0.0, 0.7, 1.0, 2.0]),
)  # fmt: skip
def test_beam_search_equals_that_of_transformers(seed, layers, heads, images, P, beams, length, penalty):
    model, prefix = gpt2(seed, layers, heads), prefixes(seed, images, P)
    ours = decode(model, prefix, beam_size=beams, max_length=length, length_penalty=penalty)
    assert_equal(ours, theirs(model, prefix, beams, length, length_penalty=penalty))


@pytest.mark.parametrize(
    ("ours", "same"),
    [
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
        ({"min_length": 6}, {"min_new_tokens": 5}),  # theirs does not count the end token
        ({"banned": [3, 5]}, {"bad_words_ids": [[3], [5]]}),
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_rules_are_those_of_transformers(ours, same):
    model, prefix = gpt2(7), prefixes(7, 4)
    plain = decode(model, prefix, max_length=10, length_penalty=1.0)
    found = decode(model, prefix, max_length=10, length_penalty=1.0, **ours)
    assert_equal(found, theirs(model, prefix, 5, 10, length_penalty=1.0, **same))
    assert [[h.tokens for h in g] for g in found] != [[h.tokens for h in g] for g in plain]


# -- the cache ---------------------------------------------------------------------------------------------------------


def whole(model: Prefixed, prefix: Tensor, tokens: list[int]) -> Tensor:
    """Log-probabilities [V] after prefix [P, W] and tokens, all computed anew by transformers."""
    embeddings = model.language_model.get_input_embeddings()(torch.tensor([tokens], dtype=torch.long))
    out = model.theirs[0](inputs_embeds=torch.cat([prefix[None], embeddings], 1), use_cache=False)
    return out.logits[0, -1].log_softmax(-1)


@few
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
@torch.inference_mode()
def test_steps_and_reordering_equal_the_whole_sequence_anew(seed, layers, images, P):
    model, prefix = gpt2(seed, layers), prefixes(seed, images, P)
    chance = torch.Generator().manual_seed(seed)
    logits, cache = read_on(model.language_model, inputs_embeds=prefix, logits_to_keep=1)
    rows = [(image, []) for image in range(images)]
    for step in range(GROWTH + 4):  # the cache grows on the way
        for (image, tokens), row in zip(rows, logits[:, -1].log_softmax(-1), strict=True):
            torch.testing.assert_close(row, whole(model, prefix[image], tokens), atol=1e-4, rtol=1e-4)
        if step % 4 == 0:  # beams chosen anew, an image may leave, and not every image need have as many rows
            index = torch.randint(len(rows), (int(torch.randint(1, 5, (1,), generator=chance)),), generator=chance)
            index = index.sort().values
            rows = [(rows[i][0], list(rows[i][1])) for i in index.tolist()]
            cache.reorder_cache(index)
        count = 1 + step % 3 % 2  # one or two tokens at once
        tokens = torch.randint(14, (len(rows), count), generator=chance)
        for (_, said), more in zip(rows, tokens.tolist(), strict=True):
            said.extend(more)
        logits, cache = read_on(model.language_model, cache, input_ids=tokens)


def test_the_prefix_is_read_once_an_image_and_never_again(monkeypatch):
    seen, run = [], Attention.forward

    def counted(self, x, *rest):
        seen.append(x.shape[0] * x.shape[1])
        return run(self, x, *rest)

    monkeypatch.setattr(Attention, "forward", counted)
    decode(gpt2(1, layers=1), prefixes(1, 4, 7), beam_size=3, max_length=5, min_length=5)
    assert seen == [4 * 7] + [4 * 3] * 4


def test_a_caption_longer_than_the_positions_is_refused_by_name():
    with pytest.raises(CaptioningError, match="reads 48 positions"):
        decode(gpt2(0), prefixes(0, 1, 40), max_length=20, min_length=20)


# -- every model, every option -----------------------------------------------------------------------------------------


def lstm(kind: type, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = kind(14, WIDTH, embedding=8, hidden=16).eval()
    for weights in model.parameters():
        weights.data.mul_(3)
    model.end_id = END
    return model


MODELS = {
    "ShowAndTell": lambda: lstm(ShowAndTell, 3),
    "ShowAttendTell": lambda: lstm(ShowAttendTell, 3),
    "gpt2": lambda: gpt2(9),
    "llama": lambda: llama(9),
}


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("kind", MODELS)
def test_all_options_combine_with_every_model(kind, method):
    model, features, said = MODELS[kind](), prefixes(1, 3), [7, 8]
    model.tokenizer = type("Tokenizer", (), {"encode": lambda self, text: said, "decode": lambda self, ids: str(ids)})()
    found = decode(
        model, features, method, beam_size=4, samples=4, temperature=0.8, top_k=9, top_p=0.95,
        seed=0, max_length=7, min_length=3, length_penalty=0.5, repetition_penalty=1.3, no_repeat_ngram=2,
        banned=[5, 6], prompt="given",
    )  # fmt: skip
    assert [len(group) for group in found] == [1 if method == "greedy" else 4] * 3
    for image, group in zip(features, found, strict=True):
        for h in group:
            new, pairs = h.tokens[2:], list(zip(h.tokens, h.tokens[1:], strict=False))
            assert h.tokens[:2] == said and 3 <= len(new) <= 7 and not {5, 6} & set(new) and h.caption
            assert len(set(pairs)) == len(pairs) and h.finished == (new[-1] == END) and END not in new[:-1]
            with torch.inference_mode():  # the model's own log-probability of each token, step by step
                state, exact = model.start(image[None]), []
                for token in [model.start_id or 0, *h.tokens]:
                    log_probs, state = model.step(torch.tensor([token]), state)
                    exact.append(log_probs[0])
            own = [row[token].item() for row, token in zip(exact, h.tokens, strict=False)]
            assert h.token_log_probs == [0.0, 0.0, *(pytest.approx(value, abs=1e-4) for value in own[2:])]
