"""Pocket Scenes: the same from the same seed, true captions, a whole folder or none."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from helpers.datasets import load_dataset
from helpers.files import CaptioningError
from pocket_scenes import scenes
from pocket_scenes.pen import COLOURS
from pocket_scenes.people import PEOPLE
from pocket_scenes.scenes import draw_scene, generate, sharp

SCENES = 400
GOLDEN_TRUTH = "71888d15b558daba"
GOLDEN_BYTES = "316ba9740c4e3441"


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Image.Image, list[str], dict]]:
    return [draw_scene(f"test/{number}") for number in range(SCENES)]


def truth_hash(drawn) -> str:
    text = json.dumps([(captions, facts) for _, captions, facts in drawn[:50]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bytes_hash(drawn) -> str:
    digest = hashlib.sha256()
    for picture, *_ in drawn[:50]:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=92, subsampling=0, optimize=False)
        digest.update(picture.tobytes() + file.getvalue())
    return digest.hexdigest()[:16]


# --- the same from the same seed ---
def test_a_seed_gives_the_same_scene_and_another_seed_another(drawn):
    picture, captions, facts = draw_scene("test/7")
    assert (picture.tobytes(), captions, facts) == (drawn[7][0].tobytes(), *drawn[7][1:])
    assert len({picture.tobytes() for picture, *_ in drawn}) == SCENES
    assert picture.mode == "RGB" and picture.size == (128, 128)
    assert draw_scene(3, size=96)[0].size == (96, 96)


def test_captions_and_facts_are_the_same_on_every_machine(drawn):
    assert truth_hash(drawn) == GOLDEN_TRUTH, "pictures or captions changed: raise scenes.VERSION, then this value"


def test_bytes_are_the_same_with_every_pillow_that_the_module_names(drawn):
    version = tuple(int(part) for part in PIL.__version__.split(".")[:3])
    if not (11, 2, 1) <= version < (14,):
        pytest.skip(f"Pillow {PIL.__version__} may round differently from 11.2.1 to 13")
    assert bytes_hash(drawn) == GOLDEN_BYTES, "pictures changed: raise scenes.VERSION, then this value"


# --- captions ---
def test_five_different_captions_in_the_style_of_flickr8k(drawn):
    lengths = []
    for _, captions, _ in drawn:
        assert len(captions) == len(set(captions)) == 5
        for caption in captions:
            assert re.fullmatch(r"[A-Z][a-z]*( ,)?( [a-z]+( ,)?)* \.", caption), caption
            assert not re.search(r"\b(\w+) \1\b", caption), caption
            assert not re.search(r"\b(a [aeiou]|an [^aeiou])", caption), caption
            lengths.append(len(caption.split()) - 1)
    assert min(lengths) <= 4 and max(lengths) >= 16 and 6 <= sum(lengths) / len(lengths) <= 11
    words = Counter(word for _, captions, _ in drawn for caption in captions for word in caption.lower().split())
    assert 150 <= len(words) <= 300
    assert len({caption.split()[0] for _, captions, _ in drawn for caption in captions}) > 10  # they begin differently


NOUNS = {
    "man": "man", "men": "man", "woman": "woman", "women": "woman", "lady": "woman", "ladies": "woman", "boy": "boy",
    "boys": "boy", "girl": "girl", "girls": "girl", "bike": "bicycle", "sailboat": "boat", "sailboats": "boat",
    "couch": "sofa", "sheep": "sheep", "boat": "boat", "boats": "boat", "car": "car", "bicycle": "bicycle",
    **{kind: kind for kind in ("dog", "cat", "horse", "cow", "bird", "duck", "house")},
    **{f"{kind}s": kind for kind in ("dog", "cat", "horse", "cow", "bird", "duck")},
    **{kind: kind for kind in ("ball", "kite", "balloon", "umbrella", "bench", "sofa", "chair", "table", "snowman")},
}  # fmt: skip


def said(caption: str) -> set[str]:
    return set(caption.lower().split())


def test_captions_name_only_things_that_are_there(drawn):
    for _, captions, facts in drawn:
        kinds = {group["kind"] for group in facts["groups"]}
        for caption in captions:
            for word in said(caption) & set(NOUNS):
                assert NOUNS[word] in kinds or "inside the house" in caption.lower(), (caption, kinds)
            if said(caption) & {"child", "children", "kid", "kids"}:
                assert kinds & {"boy", "girl"}, caption
            if said(caption) & {"person", "people"}:
                assert kinds & {"man", "woman"}, caption


def test_captions_give_things_their_own_colours(drawn):
    pairs = 0
    for _, captions, facts in drawn:
        for caption in captions:
            for colour, noun in re.findall(r"(\w+) (\w+)(?= )", caption.lower()):
                if colour in COLOURS and noun in NOUNS:
                    true = {group["colour"] for group in facts["groups"] if group["kind"] == NOUNS[noun]}
                    also = {"white": {"brown"}, "brown": {"tan"}}.get(colour, set())  # brown and white; light brown
                    assert true & ({colour} | also), caption
                    pairs += 1
            for colour in re.findall(r"(?:in|wearing) (?:an? )?(\w+)", caption.lower()):
                if colour in COLOURS:
                    assert colour in {g["colour"] for g in facts["groups"] if g["kind"] in PEOPLE}, caption
                    pairs += 1
    assert pairs > SCENES


def test_left_and_right_are_those_of_the_picture(drawn):
    told = 0
    for number in range(SCENES, SCENES + 10):
        drawn = [*drawn, draw_scene(f"test/{number}")]
    for _, captions, facts in drawn:
        for relation in facts["relations"]:
            a, b = box_of(facts, relation["subject"]), box_of(facts, relation["object"])
            assert relation["side"] == ("left" if a[0] + a[2] < b[0] + b[2] else "right")
        for caption in captions:
            if side := re.search(r"to the (left|right) of", caption):
                assert side[1] == next(r["side"] for r in facts["relations"] if r["subject"] == 0)
                told += 1
    assert told > 5


# --- pictures ---
def box_of(facts: dict, group: int) -> list[int]:
    return next(o["box"] for o in facts["objects"] if o["group"] == group)


def overlap(a: list[int], b: list[int]) -> float:
    """The share of the smaller box that the other one covers."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, wide) * max(0, high) / min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


def test_boxes_are_inside_the_picture_large_enough_and_apart(drawn):
    for _, _, facts in drawn:
        assert Counter(o["group"] for o in facts["objects"]) == {i: g["count"] for i, g in enumerate(facts["groups"])}
        for thing in facts["objects"]:
            left, top, right, bottom = thing["box"]
            assert 0 <= left < right <= 128 and 0 <= top < bottom <= 128
        main = [o["box"] for o in facts["objects"] if o["group"] == 0]
        assert all((b[2] - b[0]) * (b[3] - b[1]) > 300 for b in main)
        assert all(overlap(a, b) < 0.6 for a, b in combinations(main, 2)), facts
        assert all(b[0] > 0 or b[2] < 128 for b in main)


# --- the folder ---
def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_layout_is_that_of_flickr8k(tmp_path):
    folder = generate(tmp_path / "pocket", images=30, size=48, seed=5)
    with open(folder / "captions.txt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    images = sorted(os.listdir(folder / "Images"))
    assert rows[0] == ["image", "caption"] and len(rows) == 1 + 5 * 30 and len(images) == 30
    assert Counter(name for name, _ in rows[1:]) == dict.fromkeys(images, 5)
    lists = [(folder / f"Flickr_8k.{split}Images.txt").read_text().split() for split in ("train", "dev", "test")]
    assert [len(names) for names in lists] == [24, 3, 3] and sorted(sum(lists, [])) == images
    assert any('"' in line for line in (folder / "captions.txt").read_text().splitlines())  # a comma inside a caption
    facts = [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]
    picture, captions, truth = draw_scene("5/4", size=48)
    assert facts[4] == {"image": images[4], **truth} and [c for name, c in rows[1:] if name == images[4]] == captions
    with Image.open(folder / "Images" / images[4]) as stored:
        assert stored.format == "JPEG" and stored.size == (48, 48)


def test_a_seed_gives_the_same_scene_at_every_size():
    for number in range(40):
        _, captions, facts = draw_scene(f"size/{number}")
        _, captions_again, again = draw_scene(f"size/{number}", 224)
        assert captions == captions_again and facts["groups"] == again["groups"]


def test_a_picture_of_a_set_is_shown_larger_and_any_other_as_it_is(tmp_path):
    folder = generate(tmp_path / "set", images=12, seed=3)
    for path in sorted((folder / "Images").iterdir()):
        large, small = sharp(path), Image.open(path)
        assert large.size == (224, 224)
        apart = np.asarray(large.resize(small.size), float) - np.asarray(small, float)
        assert np.abs(apart).mean() < 6  # another scene is 15 away and more
    assert sharp(tmp_path / "dog.jpg") == tmp_path / "dog.jpg"


def test_other_parameters_a_new_version_or_a_lost_image_make_it_anew(tmp_path, monkeypatch):
    folder = generate(tmp_path / "pocket", 12, 48)
    first = contents(folder)
    next((folder / "Images").iterdir()).unlink()
    assert contents(generate(folder, 12, 48)) == first
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    assert contents(generate(folder, 12, 48))["pocket.json"] != first["pocket.json"]
    generate(folder, 12, 48, seed=1)
    assert not contents(folder).keys() & {name for name in first if name.startswith("Images")}


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="not Pocket Scenes"):
        generate(tmp_path / "photos", 3, 48)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError):
        generate(tmp_path / "file", 3, 48)
    with pytest.raises(CaptioningError, match="not Pocket Scenes"):
        load_dataset("pocket", tmp_path / "photos")
    assert (tmp_path / "photos" / "mine.jpg").read_bytes() == b"mine" and (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ValueError, match="3 to 99,999"):
        generate(tmp_path / "pocket", 2, 128)
