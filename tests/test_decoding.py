"""Decoding: exactness against brute force and plain references, the rules, sampling, traces, maps, limits.

The comparisons with `transformers` and the fast GPT-2 step are in test_decoding_gpt2.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.cnn_lstm import ShowAndTell, ShowAttendTell
from helpers.decoding import Draw, decode
from helpers.files import CaptioningError
from helpers.text import Vocabulary

START, END = 1, 2


@dataclass
class ToyState:
    hidden: torch.Tensor  # [N, H]
    attention: torch.Tensor  # [N, R]


class Toy(nn.Module):
    """A random recurrent captioner in float64, so that rounding never decides between two captions."""

    start_id, end_id, tokenizer = START, END, None

    def __init__(self, seed: int, vocabulary: int = 6, width: int = 5, sharpness: float = 2.0, regions: int = 3):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
        self.words, self.mix = normal(vocabulary, width), normal(width, width)
        self.out, self.look = sharpness * normal(width, vocabulary), normal(width, regions)
        self.rows: list[int] = []  # how many rows each step was asked for

    def start(self, features):  # [B, R, D]
        return ToyState(features.mean(1), features.new_zeros(len(features), self.look.shape[1]))

    def step(self, tokens, state):
        assert len(tokens) == len(state.hidden)
        self.rows.append(len(tokens))
        hidden = torch.tanh(state.hidden @ self.mix + self.words[tokens])
        return (hidden @ self.out).log_softmax(-1), ToyState(hidden, (hidden @ self.look).softmax(-1))

    def reorder(self, state, index):
        return ToyState(state.hidden[index], state.attention[index])


def toy_features(seed: int, images: int, width: int = 5) -> torch.Tensor:
    return torch.randn(images, 2, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score_of(toy: Toy, features, tokens, prompt=()) -> list[float]:
    """The log-probability of each token, one image and one token at a time."""
    state, previous, out = toy.start(features[None]), START, []
    for token in [*prompt, *tokens]:
        log_probs, state = toy.step(torch.tensor([previous]), state)
        out.append(log_probs[0, token].item())
        previous = token
    return out[len(prompt) :]


def plain_beam(toy: Toy, features, size, max_length, penalty):
    """Beam search of one image with Python lists: the definition, to hold the tensors against."""
    beams, done = [((), 0.0)], []
    for length in range(1, max_length + 1):
        candidates = []
        for tokens, total in beams:
            state, previous = toy.start(features[None]), START
            for token in [*tokens, None]:
                log_probs, state = toy.step(torch.tensor([previous]), state)
                previous = token
            candidates += [((*tokens, v), total + p) for v, p in enumerate(log_probs[0].tolist())]
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * size]
        for rank, (tokens, total) in enumerate(candidates):
            if rank < size and (tokens[-1] == END or length == max_length):
                done.append((tokens, total / length**penalty))
        done = sorted(done, key=lambda d: -d[1])[:size]
        beams = [c for c in candidates if c[0][-1] != END][:size]
        if len(done) == size and (size == 1 or beams[0][1] / length**penalty <= done[-1][1]):
            break
    return done


seeds = st.integers(0, 10_000)
toys = st.builds(Toy, seeds, st.integers(4, 9), sharpness=st.sampled_from([0.5, 2.0, 6.0]))
few = settings(max_examples=15, deadline=None)


# -- exactness ----------------------------------------------------------------------------------------------------


def test_greedy_takes_the_likeliest_token_each_time():
    toy, features = Toy(3), toy_features(4, 5)
    for image, (found,) in zip(features, decode(toy, features, "greedy", max_length=7), strict=True):
        state, previous, tokens = toy.start(image[None]), START, []
        while previous != END and len(tokens) < 7:
            log_probs, state = toy.step(torch.tensor([previous]), state)
            previous = log_probs.argmax().item()
            tokens.append(previous)
        assert found.tokens == tokens and found.finished == (tokens[-1] == END)


@few
@given(toys, seeds, st.integers(2, 6), st.sampled_from([0.0, 0.7, 2.0]))
def test_beam_search_equals_its_definition(toy, seed, size, penalty):
    features = toy_features(seed, 3)
    found = decode(toy, features, beam_size=size, max_length=6, length_penalty=penalty)
    for image, hypotheses in zip(features, found, strict=True):
        expected = plain_beam(toy, image, size, 6, penalty)
        assert [tuple(h.tokens) for h in hypotheses] == [tokens for tokens, _ in expected]
        assert [h.score for h in hypotheses] == pytest.approx([score for _, score in expected])


@few
@given(
    toys, seeds, st.integers(2, 6),
    st.sampled_from(
        [
            ("greedy", {}), ("beam", {"beam_size": 3}),
            ("sample", {"samples": 3, "top_p": 0.8}), ("sample", {"samples": 1, "repetition_penalty": 1.3}),
        ]
    ),
)  # fmt: skip
def test_a_batch_gives_what_its_images_give_alone(toy, seed, images, how):
    method, options = how
    features = toy_features(seed, images)
    options = {**options, "max_length": 9}
    together = decode(toy, features, method, generator=torch.Generator().manual_seed(seed), **options)
    draw = torch.Generator().manual_seed(seed)
    alone = [decode(toy, image[None], method, generator=draw, **options)[0] for image in features]
    for a, b in zip(together, alone, strict=True):
        assert [h.tokens for h in a] == [h.tokens for h in b]
        assert [h.score for h in a] == pytest.approx([h.score for h in b])
        assert [h.token_log_probs for h in a] == [pytest.approx(h.token_log_probs) for h in b]


@few
@given(toys, seeds, st.sampled_from(["greedy", "beam", "sample"]))
def test_scores_are_those_of_the_captions(toy, seed, method):
    """Rows that end early are carried along as padding until their image leaves; that never changes a score."""
    features = toy_features(seed, 4)
    for image, group in zip(features, decode(toy, features, method, max_length=9, samples=3, seed=1), strict=True):
        assert [h.score for h in group] == sorted((h.score for h in group), reverse=True)
        for h in group:
            expected = score_of(toy, image, h.tokens)
            assert h.token_log_probs == pytest.approx(expected) and h.log_prob == pytest.approx(sum(expected))
            assert h.score == pytest.approx(sum(expected) / len(h.tokens) ** 0.7)
            assert h.finished == (h.tokens[-1] == END) and END not in h.tokens[:-1]
            assert h.finished or len(h.tokens) == 9


@pytest.mark.parametrize("kind", [ShowAndTell, ShowAttendTell])
@pytest.mark.parametrize("method", ["beam", "sample"])
def test_lstm_scores_and_maps_are_those_of_one_padded_batch_of_teacher_forcing(kind, method):
    torch.manual_seed(0)
    model = kind(40, 8, embedding=8, hidden=16)
    for weights in model.parameters():
        weights.data.mul_(4)
    model.output.bias.data[END] += 2  # so that some captions end in time, and some do not
    model.end_id = END
    features = torch.randn(6, 5, 8)
    groups = decode(model, features, method, beam_size=4, samples=4, max_length=12, length_penalty=0.0, seed=0)
    found = [h for group in groups for h in group]
    lengths = {len(h.tokens) for h in found}
    assert len(lengths) > 1 and any(h.finished for h in found) and not all(h.finished for h in found)
    T = max(lengths)
    inputs = torch.tensor([([START] + h.tokens[:-1] + [0] * T)[:T] for h in found])
    row = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    with torch.no_grad():
        logits, maps = model.eval()(features, inputs, row)
    for h, log_probs, seen in zip(found, logits.log_softmax(-1), maps, strict=True):
        n = len(h.tokens)
        expected = log_probs[:n].gather(1, torch.tensor(h.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(h.token_log_probs), expected)
        assert len(h.attention) == (n if kind is ShowAttendTell else 0)
        if h.attention:
            torch.testing.assert_close(torch.stack(h.attention), seen[:n], atol=1e-4, rtol=1e-3)


# -- rules ---------------------------------------------------------------------------------------------------------


def test_a_penalty_ranks_but_is_not_part_of_the_log_probability():
    toy, features = Toy(2, 6, sharpness=3.0), toy_features(1, 6)
    found = decode(toy, features, max_length=8, repetition_penalty=1.5, length_penalty=0.0)
    for image, group in zip(features, found, strict=True):
        for h in group:
            assert h.log_prob == pytest.approx(sum(score_of(toy, image, h.tokens)))
    assert any(h.score < h.log_prob - 1e-3 for group in found for h in group)


# -- sampling ------------------------------------------------------------------------------------------------------


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """How many standard deviations the chi-square statistic lies above its mean."""
    kept = expected > 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def bins(counts: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with what is expected fewer than five times put into one bin, as the statistic needs."""
    big = expected >= 5
    return tuple(torch.cat([x[big], x[~big].sum()[None]]) for x in (counts, expected))


@pytest.mark.parametrize("draw", [Draw(), Draw(0.6), Draw(1.7), Draw(top_k=3), Draw(top_p=0.7), Draw(0.8, 5, 0.9)])
@pytest.mark.parametrize("V", [7, 1000])
def test_draws_follow_the_distribution(draw, V):
    chance = torch.Generator().manual_seed(V)
    scores = torch.randn(V, generator=chance) * 2
    scores[5] = float("-inf")
    probabilities = (scores / draw.temperature).softmax(0)
    order = probabilities.argsort(descending=True)
    kept = order[: draw.top_k]
    probabilities = torch.zeros(V).index_put((kept,), probabilities[kept] / probabilities[kept].sum())
    if draw.top_p:
        before = probabilities[order].cumsum(0) - probabilities[order]
        probabilities[order[before >= draw.top_p]] = 0.0
        probabilities /= probabilities.sum()
    N = 40_000
    tokens = draw(scores.log_softmax(0).expand(N, -1), torch.rand(N, generator=chance))
    counts = torch.bincount(tokens, minlength=V).float()
    assert (counts[probabilities == 0] == 0).all()
    assert abs(chi_square(*bins(counts, probabilities * N))) < 4


def test_a_seed_gives_the_same_captions_twice_and_another_seed_others():
    toy, features = Toy(1, 9, sharpness=0.5), toy_features(0, 8)

    def sample(**options):
        return [h.tokens for group in decode(toy, features, "sample", samples=2, **options) for h in group]

    assert sample(seed=3) == sample(seed=3) == sample(generator=torch.Generator().manual_seed(3))
    assert sample(seed=3) != sample(seed=4)
    assert sample() != sample()


# -- prompts -------------------------------------------------------------------------------------------------------


def worded(model):
    model.tokenizer, model.end_id = Vocabulary([f"w{chr(97 + i)}" for i in range(36)]), END
    return model


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_a_prompt_is_continued(method):
    torch.manual_seed(1)
    model = worded(ShowAttendTell(40, 8, embedding=8, hidden=16))
    features, prompt = torch.randn(3, 5, 8), "wa wb"
    ids = model.tokenizer.encode(prompt)
    found = decode(model, features, method, prompt=prompt, max_length=6, seed=0)
    for image, group in zip(features, found, strict=True):
        for h in group:
            assert h.tokens[:2] == ids and h.caption.startswith(prompt) and h.prompt_length == 2
            assert h.token_log_probs[:2] == [0.0, 0.0] and len(h.tokens) == len(h.token_log_probs) <= 8
            inputs = torch.tensor([[START] + h.tokens[:-1]])
            with torch.no_grad():
                logits, maps = model.eval()(image[None], inputs)
            exact = logits[0].log_softmax(-1).gather(1, torch.tensor(h.tokens)[:, None])[2:, 0]
            torch.testing.assert_close(torch.tensor(h.token_log_probs[2:]), exact)
            assert h.score == pytest.approx(exact.sum().item() / (len(h.tokens) - 2) ** 0.7, rel=1e-4)
            torch.testing.assert_close(torch.stack(h.attention), maps[0], atol=1e-4, rtol=1e-3)


def test_an_unknown_word_in_a_prompt_is_named():
    with pytest.raises(CaptioningError, match="'zebra'"):
        decode(worded(ShowAndTell(40, 8)), torch.randn(1, 1, 8), prompt="wa zebra")


# -- trace, memory, errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 0}, {"samples": 0}, {"max_length": 0}, {"temperature": 0.0},
        {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"repetition_penalty": 0.0},
        {"min_length": 9, "max_length": 8}, {"no_repeat_ngram": -1}, {"method": "bean"}, {"banned": [99]},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(CaptioningError):
        decode(Toy(0), toy_features(0, 1), **options)


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_outputs_that_are_no_numbers_are_refused(method):
    toy = Toy(0)
    toy.out[0] = math.nan
    with pytest.raises(CaptioningError, match="no numbers"):
        decode(toy, toy_features(0, 2), method)


def test_no_images_no_captions_and_the_mode_of_the_model_is_kept():
    toy = Toy(0)
    assert decode(toy, toy_features(0, 0)) == []
    for mode in (True, False):
        toy.train(mode)
        decode(toy, toy_features(0, 1))
        assert toy.training is mode
