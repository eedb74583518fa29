"""Constrained beam search: exact where the beam is as wide as the tree, else equal to its definition in Python."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.decoding import decode
from helpers.files import CaptioningError
from ranking.constrained import Include
from tests.test_decoding import END, Toy, score_of, toy_features
from tests.toy_captioners import features as world_features
from tests.toy_captioners import small_model

V = 5
PHRASES = [[3], [4, 3], [0, 1, 4]]
few = settings(max_examples=12, deadline=None)


def search(toy: Toy, features, phrases, size: int, depth: int, penalty: float = 0.7):
    """Returns for each image a list of (tokens, score), best first."""
    ids = {str(phrase): phrase for phrase in phrases}
    toy.tokenizer = type("Tokenizer", (), {"encode": lambda self, text: ids[text], "decode": str})()
    options = {"beam_size": size, "max_length": depth, "length_penalty": penalty}
    found = decode(toy, features, constraint=Include(toy, [list(ids)] * len(features)), **options)
    return [[(tuple(h.tokens), h.score) for h in group] for group in found]


def says(tokens, phrases) -> bool:
    return any(tuple(tokens[i : i + len(p)]) == tuple(p) for p in phrases for i in range(len(tokens)))


@few
@given(
    st.integers(0, 10_000), st.sampled_from([[[3]], [[3], [4]], [[4, 3]], PHRASES]), st.sampled_from([0.0, 0.7, 1.5])
)
def test_a_beam_as_wide_as_the_tree_finds_the_best_captions_that_say_it(seed, phrases, penalty) -> None:
    toy, features, depth = Toy(seed, V, sharpness=1.0), toy_features(seed, 2), 4
    found = search(toy, features, phrases, V**depth, depth, penalty)
    for image, captions in zip(features, found, strict=True):
        every = {}
        for words in itertools.product(range(V), repeat=depth):
            tokens = words[: words.index(END) + 1] if END in words else words
            if says(tokens, phrases):
                every[tokens] = sum(score_of(toy, image, tokens)) / len(tokens) ** penalty
        best = sorted(every.items(), key=lambda item: -item[1])[:5]
        seen = list(dict.fromkeys(captions))  # a phrase of several tokens can also be entered half-way through another
        assert [tokens for tokens, _ in seen[:5]] == [tokens for tokens, _ in best]
        assert [score for _, score in seen[:5]] == pytest.approx([score for _, score in best])


def test_a_batch_gives_what_its_images_give_alone() -> None:
    toy, features = Toy(7, V, sharpness=1.0), toy_features(3, 4)
    together = search(toy, features, PHRASES, 3, 6)
    alone = [search(toy, features[i : i + 1], PHRASES, 3, 6)[0] for i in range(4)]
    for one, other in zip(together, alone, strict=True):
        assert [tokens for tokens, _ in one] == [tokens for tokens, _ in other]
        assert [score for _, score in one] == pytest.approx([score for _, score in other])


@pytest.mark.parametrize("kind", ["ShowAndTell", "ShowAttendTell"])
def test_captions_of_a_model_say_a_word_each(kind) -> None:
    model, photos = small_model(kind, seed=3), torch.from_numpy(world_features("t").array)[:3]
    include = [["bird"], ["sleeps", "zeppelin"], ["cat", "dog"]]
    found = decode(model, photos, beam_size=3, max_length=8, constraint=Include(model, include), banned=["blue"])
    for group, words in zip(found, include, strict=True):
        assert len(group) == 3
        for h in group:
            assert set(h.caption.split()) & set(words) and "blue" not in h.caption
            assert sum(h.token_log_probs) == pytest.approx(h.log_prob, abs=1e-4)
            assert h.score == pytest.approx(h.log_prob / len(h.tokens) ** 0.7, abs=1e-4)
            assert len(h.attention) == (len(h.tokens) if kind == "ShowAttendTell" else 0)
        assert group[0].score >= group[-1].score
    one = found[0][0]
    logits, _ = model(photos[:1], torch.tensor([[model.start_id, *one.tokens[:-1]]]), torch.zeros(1, dtype=torch.long))
    expected = logits.log_softmax(-1)[0].gather(1, torch.tensor(one.tokens)[:, None]).squeeze(1)
    assert one.token_log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_what_cannot_be_included_is_named() -> None:
    model, photos = small_model(), torch.from_numpy(world_features("t").array)[:1]
    for words in (["zeppelin"], []):
        with pytest.raises(CaptioningError, match="Image 2 has no word to include"):
            Include(model, [["dog"], words])
    for options in ({"method": "greedy"}, {"trace": []}):
        with pytest.raises(CaptioningError, match="with method 'beam' and no trace"):
            decode(model, photos, constraint=Include(model, [["dog"]]), **options)
