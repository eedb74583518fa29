"""Tags: the table against ImageNet's own names, what is sure enough, and captions that say it."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import ResNet50_Weights

from helpers.captioner import DEFAULT_MODEL, Captioner, available
from helpers.decoding import decode
from helpers.encoders import load_encoder
from helpers.files import CaptioningError
from helpers.images import open_image
from helpers.text import normalise
from ranking.rerank import FROZEN, FROZEN_KIND, rerank
from ranking.tags import ALONE, PEOPLE, SURE, TAGS, Seen, Tag, add_candidates, find_tags
from tests.toy_captioners import features as world_features
from tests.toy_captioners import small_model

NAMES = ResNet50_Weights.DEFAULT.meta["categories"]


def tag(word: str) -> Tag:
    """Returns the tag of which `word` is the first word."""
    return next(tag for tag in TAGS if tag.words[0] == word)


def probabilities(**shares: float) -> torch.Tensor:
    """One image; each named class has a share."""
    row = torch.zeros(1, 1000)
    for name, share in shares.items():
        row[0, NAMES.index(name.replace("_", " "))] = share
    return row


def test_only_what_is_sure_is_a_tag() -> None:
    sure, unsure, nothing = find_tags(
        torch.cat([probabilities(ram=0.5, bighorn=0.3), probabilities(ram=SURE - 0.01), torch.full((1, 1000), 0.001)])
    )
    assert sure.tag == tag("sheep") and sure.probability == pytest.approx(0.8)
    assert unsure is None and nothing is None
    with pytest.raises(CaptioningError, match=r"\[B, 1000\]"):
        find_tags(torch.zeros(2, 999))


def test_another_animal_is_ruled_out_unless_it_may_be_there() -> None:
    (seen,) = find_tags(probabilities(ram=0.8, ox=0.1, hog=0.01))
    assert {"dog", "dogs", "pig", "cat"} <= set(seen.banned) and not {"cow", "cows", "sheep"} & set(seen.banned)
    (wolf,) = find_tags(probabilities(timber_wolf=0.9))
    assert "dog" not in wolf.banned  # a word of the tag itself
    (thing,) = find_tags(probabilities(mountain_bike=0.9))
    assert thing.banned == ()


def test_people_are_ruled_out_beside_an_animal_that_fills_the_photo() -> None:
    (filled,) = find_tags(probabilities(hen=ALONE + 0.01))
    assert {"children", "man", "people"} <= set(filled.banned)
    for shares in ({"hen": ALONE - 0.01}, {"Chihuahua": 0.99}, {"sorrel": 0.99}, {"mountain_bike": 0.99}):
        (seen,) = find_tags(probabilities(**shares))
        assert seen is not None and not set(PEOPLE) & set(seen.banned), shares


def test_candidates_that_say_it_join_those_that_do_not() -> None:
    model, photos = small_model(seed=3), torch.from_numpy(world_features("t").array)[:4]
    options = {"method": "beam", "beam_size": 2, "max_length": 8}
    groups = decode(model, photos, **options)
    said = groups[1][0].caption.split()
    bird = Seen(Tag(("bird",), frozenset({1}), True), 0.9, ("dog", "cat"))
    unknown = Seen(Tag(("zeppelin",), frozenset({2})), 0.9)
    known = Seen(Tag((said[0],), frozenset({3})), 0.9)
    more = add_candidates(model, photos, groups, [bird, known, None, unknown], options)
    assert more[1:] == [list(group) for group in groups[1:]]  # said already, nothing seen, no such word
    assert more[0][:2] == groups[0] and len(more[0]) > 2
    for h in more[0][2:]:
        assert "bird" in h.caption and "dog" not in h.caption and "cat" not in h.caption
    captions = [[h.caption for h in group] for group in more]
    weighted = rerank(more, captions, None, None, tag_weight=50.0, seen=[bird, known, None, unknown])
    assert "bird" in weighted[0][0].caption
    best = max(more[0], key=lambda h: h.score + 50.0 * ("bird" in h.caption))
    assert weighted[0][0].score == pytest.approx(best.score + 50.0)


def test_the_classifier_of_the_frozen_encoder_knows_the_samples(samples) -> None:
    encoder = load_encoder(FROZEN)
    named = {path.stem: open_image(path) for path in samples if path.stem in ("cat", "sheep", "dog", "cow", "chickens")}
    seen = find_tags(encoder.classify(encoder.encode(list(named.values()), FROZEN_KIND)))
    found = {name: known and known.tag.words[0] for name, known in zip(named, seen, strict=True)}
    assert found == {"cat": "cat", "sheep": "sheep", "dog": "dog", "cow": "cow", "chickens": "chicken"}


@pytest.mark.skipif(DEFAULT_MODEL not in available(), reason="data/checkpoints/ holds no captioner yet")
def test_the_default_captioner_says_what_is_there(samples) -> None:
    captioner = Captioner.load()
    photos = {path.stem: path for path in samples if path.stem in ("sheep", "cow", "chickens")}
    plain = captioner.caption(list(photos.values()), tag_weight=0.0)
    tagged = captioner.caption(list(photos.values()))
    for name, before, after in zip(photos, plain, tagged, strict=True):
        word = name.removesuffix("s") if name == "chickens" else name
        assert not tag(word).said_in(before.caption) and tag(word).said_in(after.caption)
        assert word == "cow" or not set(PEOPLE) & set(normalise(after.caption))  # of the cow it is 0.73 sure
