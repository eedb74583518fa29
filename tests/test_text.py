"""Captions to numbers and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.files import CaptioningError
from helpers.text import END, IGNORE, PAD, START, UNKNOWN, Vocabulary, normalise, teacher_forcing_batch


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's well-worn hat .", ["a", "mans", "well", "worn", "hat"]),
        ("  Two   DOGS,\trun\n", ["two", "dogs", "run"]),
        ("the ﬁrst ball №5", ["the", "first", "ball", "no5"]),
        ("एक काली बिल्ली सोती है।", ["एक", "काली", "बिल्ली", "सोती", "है"]),  # vowel signs belong to their word
        ("قِطَّةٌ سَوْدَاءُ", ["قِطَّةٌ", "سَوْدَاءُ"]),
        ("cafe\u0301 Zoe\u0308", ["café", "zoë"]),  # decomposed, as macOS writes it
        ("I ❤\ufe0f 1\ufe0f\u20e3 dog", ["i", "1", "dog"]),
        ("", []),
    ],
)
def test_normalise(caption: str, words: list[str]) -> None:
    assert normalise(caption) == words


def test_vocabulary_is_ordered_by_count_then_alphabet() -> None:
    words = Vocabulary.build(["a dog and a cat", "A dog, a bird"], min_count=1)
    assert words.words == ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "and", "bird", "cat"]
    assert (words.pad_id, words.start_id, words.end_id, words.unknown_id) == (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)


def test_rare_and_unseen_words_are_unknown() -> None:
    words = Vocabulary.build(["a dog", "a dog", "a cat"], min_count=2)
    assert len(words) == 6 and "dog" in words and "cat" not in words
    assert words.encode("A dog, a cat, a zebra") == [4, 5, 4, UNKNOWN, 4, UNKNOWN]


def test_text_without_blanks_is_refused() -> None:
    with pytest.raises(CaptioningError, match="No word occurs 4 times.*Chinese need blanks"):
        Vocabulary.build(["一只黑狗在草地上奔跑。", "两个人骑着马"])


def test_decode_stops_at_the_end_and_skips_padding() -> None:
    words = Vocabulary(["a", "dog"])
    assert words.decode([START, 4, 5, END, 4, 4]) == "a dog"
    assert words.decode([4, PAD, UNKNOWN, 5]) == "a <unk> dog"
    assert words.decode(torch.tensor([4, 5])) == "a dog"
    assert words.decode([END]) == ""


def test_save_and_load(tmp_path: Path) -> None:
    words = Vocabulary(["a", "çay", "狗"])
    words.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json").words == words.words


@pytest.mark.parametrize("value", [["a"], {"word": ["a"]}, {"words": [1]}, {"words": "a dog"}, "a"], ids=str)
def test_another_file_is_no_vocabulary(tmp_path: Path, value) -> None:
    (tmp_path / "v.json").write_text(json.dumps(value))
    with pytest.raises(CaptioningError, match="is not a vocabulary"):
        Vocabulary.load(tmp_path / "v.json")


def test_teacher_forcing_shifts_by_one_and_asks_for_the_end() -> None:
    inputs, labels = teacher_forcing_batch([[7, 8], [9]], START, END)
    assert inputs.tolist() == [[START, 7, 8], [START, 9, PAD]]
    assert labels.tolist() == [[7, 8, END], [9, END, IGNORE]]
    inputs, labels = teacher_forcing_batch([[7, 8], [9]], None, END)  # behind a prefix: one label more
    assert inputs.tolist() == [[7, 8], [9, PAD]] and labels.tolist() == [[7, 8, END], [9, END, IGNORE]]
