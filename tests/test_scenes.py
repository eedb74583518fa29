"""Pocket Scenes: the same from the same seed, true captions, a whole folder or none."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import PIL
import pytest
from PIL import Image

from helpers.files import CaptioningError
from pocket_scenes import scenes
from pocket_scenes.pen import COLOURS
from pocket_scenes.people import PEOPLE
from pocket_scenes.scenes import draw_scene, generate

SCENES = 400
BRIGHT = ("red", "blue", "green", "yellow", "orange", "purple", "pink")
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


def test_the_facts_survive_json(drawn):
    for _, _, facts in drawn:
        assert json.loads(json.dumps(facts)) == facts


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
ACTIONS = {
    "run": r"runs?|running|rac(?:e|es|ing)", "jump": r"jump\w*|leap\w*", "sleep": r"sleep\w*|nap\w*|asleep",
    "wave": r"wav(?:e|es|ing)", "graze": r"graz\w+|eat\w*", "sail": r"sail(?:s|ing)?|float\w*",
    "swim": r"swim\w*|float\w*", "fly": r"fl(?:y|ies|ying)|soar\w*", "park": r"parked", "drive": r"driv\w+",
    "kick": r"kick\w*|play\w*", "chase": r"chas\w+|play\w*|run\w*", "kite": r"fl(?:y|ies|ying)|play\w*",
    "ride": r"rid(?:e|es|ing)|sitting", "mount": r"rid(?:e|es|ing)|sitting", "hold": r"hold\w*|stand\w*",
    "shelter": r"hold\w*|stand\w*", "leash": r"walk\w*", "walk": r"walk\w*", "sit": r"sits?|sitting",
    "stand": r"stand\w*",
}  # fmt: skip
PLACES = {
    "beach": "beach sand sea ocean shore water", "park": "park grassy grass", "street": "street road city buildings",
    "snow": "snow snowy winter field", "lake": "lake water grass", "hills": "hill hills grass",
    "forest": "forest woods trees", "meadow": "meadow flowers field", "room": "room living indoors",
    "kitchen": "kitchen floor indoors",
}  # fmt: skip
TIMES = {"sunset": "sunset sets evening", "night": "night moon dark", "rain": "rain rainy", "day": "sunny sunshine"}


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


def test_captions_count_right(drawn):
    counted = 0
    for _, captions, facts in drawn:
        counts = {group["count"] for group in facts["groups"]}
        for caption in captions:
            words = caption.lower()
            if re.search(r"\b(two|pair|couple)\b", words):
                assert 2 in counts, caption
                counted += 1
            if re.search(r"\b(three|group of|some (?!buildings))", words):
                assert 3 in counts, caption
                counted += 1
            if counts == {1}:
                assert not re.search(r"\b(two|three|pair|couple|group)\b", words), caption
    assert counted > 50


def test_captions_tell_what_is_done_where_and_when(drawn):
    for _, captions, facts in drawn:
        actions = {group["action"] for group in facts["groups"]} - {""}
        allowed = "|".join(ACTIONS[action] for action in actions)
        for caption in captions:
            words = " ".join(w for w in caption.lower().split())
            plain = re.sub(r"as the sun sets|living room", "", words)
            for pattern in ACTIONS.values():
                for verb in re.findall(rf"\b(?:{pattern})\b", plain):
                    assert re.fullmatch(allowed, verb), (caption, actions)
            other = set(" ".join(v for k, v in PLACES.items() if k != facts["place"]).split())
            found = said(caption.replace("eating grass", "").replace("eats grass", "").replace("eat grass", ""))
            assert not found & (other - set(PLACES[facts["place"]].split())), (caption, facts["place"])
            for when, signs in TIMES.items():
                if when != facts["time"]:
                    assert not said(caption) & set(signs.split()), (caption, facts["time"])


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


def test_relations_hold_between_the_boxes(drawn):
    seen = Counter()
    for _, _, facts in drawn:
        for r in facts["relations"]:
            (l1, t1, r1, b1), (l2, t2, r2, b2) = a, b = box_of(facts, r["subject"]), box_of(facts, r["object"])
            across = min(r1, r2) - max(l1, l2) > 0
            holds = {
                "beside": overlap(a, b) < 0.5 and abs(b1 - b2) < 24, "front": across and b1 > b2,
                "behind": across and b1 < b2, "under": across and t2 < t1, "on": across and b1 < b2 and t1 < t2,
                "seat": across and b1 <= b2 and t1 + b1 < t2 + b2, "background": b2 <= b1 or b2 < 100,
                "over": across and b1 < (t2 + b2) / 2 and t1 < t2,
                "ride": across and t1 < t2, "mount": across and t1 < t2, "shelter": across and t2 < t1,
                "kite": t2 < t1, "hold": t2 < t1, "kick": b2 > 80, "chase": b2 > 80, "leash": overlap(a, b) < 0.6,
            }  # fmt: skip
            assert holds[r["relation"]], (r, a, b, facts["place"])
            seen[r["relation"]] += 1
    assert set(seen) == {"beside", "front", "behind", "under", "on", "seat", "over", "background", "ride", "mount",
                         "shelter", "kite", "hold", "kick", "chase", "leash"}  # fmt: skip


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


@pytest.mark.parametrize("kind", ["car", "boat", "ball", "kite", "sofa", "house"])
def test_things_have_the_colour_that_the_facts_say(drawn, kind):
    right = total = 0
    for picture, _, facts in drawn:
        for thing in facts["objects"]:
            if thing["kind"] == kind and facts["time"] == "day" and thing["colour"] in BRIGHT:
                pixels = list(picture.crop(thing["box"]).convert("RGB").resize((24, 24)).tobytes())
                near = Counter(
                    min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], rgb, strict=True)))
                    for rgb in zip(pixels[::3], pixels[1::3], pixels[2::3], strict=True)
                )
                total += 1
                right += near[thing["colour"]] >= 12
    assert total >= 3 and right / total >= 0.8


def test_the_world_is_wide_enough(drawn):
    kinds = Counter(g["kind"] for *_, facts in drawn for g in facts["groups"])
    assert len(kinds) >= 24 and min(kinds.values()) >= 3
    assert len({facts["place"] for *_, facts in drawn}) == 10
    assert len({g["action"] for *_, facts in drawn for g in facts["groups"]}) >= 20
    assert {facts["time"] for *_, facts in drawn} == {"day", "sunset", "night", "rain"}


# --- the folder ---
def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part")]


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


def test_the_same_parameters_give_the_same_files_and_are_not_written_again(tmp_path):
    one, two = generate(tmp_path / "one", 12, 48), generate(tmp_path / "two", 12, 48)
    assert contents(one) == contents(two)
    before = {path: path.stat().st_mtime_ns for path in one.rglob("*")}
    generate(one, 12, 48)
    assert {path: path.stat().st_mtime_ns for path in one.rglob("*")} == before


def test_other_parameters_or_a_lost_image_make_it_anew(tmp_path):
    folder = generate(tmp_path / "pocket", 12, 48)
    first = contents(folder)
    next((folder / "Images").iterdir()).unlink()
    assert contents(generate(folder, 12, 48)) == first
    generate(folder, 12, 48, seed=1)
    assert not contents(folder).keys() & {name for name in first if name.startswith("Images")}
    assert leftovers(tmp_path) == []


def test_a_new_version_of_the_generator_makes_it_anew(tmp_path, monkeypatch):
    folder = generate(tmp_path / "pocket", 3, 48)
    before = (folder / "captions.txt").stat().st_ino
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    generate(folder, 3, 48)
    assert (folder / "captions.txt").stat().st_ino != before


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(CaptioningError, match="not Pocket Scenes"):
        generate(tmp_path / "photos", 3, 48)
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CaptioningError):
            generate(folder, 3, 48)
    assert (tmp_path / "photos" / "mine.jpg").read_bytes() == b"mine" and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert len(contents(generate(tmp_path / "empty", 3, 48))) == 9


@pytest.mark.parametrize("images, size", [(0, 128), (2, 128), (10, 8), (10, 5000)])
def test_senseless_parameters_are_refused(tmp_path, images, size):
    with pytest.raises(CaptioningError, match="3 to 99,999"):
        generate(tmp_path / "pocket", images, size)
    assert os.listdir(tmp_path) == []


def start(folder: Path, images: int, before: str = "") -> subprocess.Popen:
    code = f"{before}\nfrom helpers.scenes import generate\ngenerate({str(folder)!r}, {images}, 48)\n"
    root = Path(__file__).resolve().parent.parent
    return subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, text=True)


def test_two_at_once_both_succeed_with_one_copy(tmp_path):
    runs = [start(tmp_path / "pocket", 40) for _ in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0], [run.stderr.read() for run in runs]
    assert os.listdir(tmp_path) == ["pocket"]
    assert contents(tmp_path / "pocket") == contents(generate(tmp_path / "alone", 40, 48))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_run_leaves_nothing_that_looks_complete(tmp_path):
    for delay in (0.0, 0.1, 0.3):
        run = start(tmp_path / "pocket", 5000)
        deadline = time.time() + 60
        while not leftovers(tmp_path) and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.wait(60)
        assert not (tmp_path / "pocket").exists()
        for part in leftovers(tmp_path):
            os.utime(tmp_path / part, (0, 0))  # as if it had been left there yesterday
    generate(tmp_path / "pocket", 5, 48)
    assert os.listdir(tmp_path) == ["pocket"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_gives_a_clear_message_and_keeps_the_earlier_set(tmp_path):
    folder = generate(tmp_path / "pocket", 6, 48)
    before = contents(folder)
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    )
    run = start(folder, 40, limit)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1 and "CaptioningError: Cannot write Pocket Scenes" in errors
    assert contents(folder) == before and os.listdir(tmp_path) == ["pocket"]
