"""Captions of every kind through every layout: none lost, none altered."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from helpers.caption_files import MAX_WORDS
from helpers.datasets import Dataset, load_dataset, read_flickr8k, read_folder
from helpers.files import CaptioningError
from tests.small_datasets import photos

ODD = [
    'A sign says "no dogs" , fast .', "犬が走る", "A dog 🐕 and a 👩\u200d👩\u200d👧 family", "one | two # three ;",
    "<b>bold</b> & co", "=SUM(A1:A9)", "null", "NaN", "0", " ".join(["word"] * MAX_WORDS), "e\u0301 combining",
    "right\u200fto\u200eleft", "line\u2028separator",
]  # fmt: skip
EXPECTED = [" ".join(caption.split()) for caption in ODD]


def kaggle(folder: Path, rows: list[tuple[str, str]]) -> Dataset:
    return _csv(folder / "captions.txt", rows, folder, read_flickr8k)


def any_folder(folder: Path, rows: list[tuple[str, str]]) -> Dataset:
    return _csv(folder / "captions.csv", rows, folder, read_folder)


def _csv(path: Path, rows: list[tuple[str, str]], folder: Path, reader) -> Dataset:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return reader(folder)


def tokens(folder: Path, rows: list[tuple[str, str]]) -> Dataset:
    lines = "".join(f"{image}#{n}\t{caption}\r\n" for n, (image, caption) in enumerate(rows))
    (folder / "Flickr8k.token.txt").write_text("\ufeff" + lines, encoding="utf-8", newline="")
    return read_flickr8k(folder)


def bars(folder: Path, rows: list[tuple[str, str]]) -> Dataset:
    lines = "".join(f"{image}| {n}| {caption}\n" for n, (image, caption) in enumerate(rows))
    (folder / "results.csv").write_text("image_name| comment_number| comment\n" + lines, encoding="utf-8")
    return load_dataset("flickr30k", folder)


def coco(folder: Path, rows: list[tuple[str, str]]) -> Dataset:
    numbers = {image: n for n, image in enumerate(dict.fromkeys(image for image, _ in rows))}
    content = {"images": [{"id": n, "file_name": image} for image, n in numbers.items()],
               "annotations": [{"image_id": numbers[image], "caption": caption} for image, caption in rows]}
    (folder / "captions_train2017.json").write_text(json.dumps(content), encoding="utf-8")
    return load_dataset("coco", folder)


LAYOUTS = {"kaggle": kaggle, "tokens": tokens, "bars": bars, "coco": coco, "folder": any_folder}
every_layout = pytest.mark.parametrize("layout", list(LAYOUTS))


@pytest.fixture
def folder(tmp_path) -> Path:
    photos(tmp_path / "images", *(f"{n}.jpg" for n in range(len(ODD))))
    return tmp_path


@every_layout
def test_odd_captions_arrive_as_they_are(layout, folder) -> None:
    dataset = LAYOUTS[layout](folder, [(f"{n}.jpg", caption) for n, caption in enumerate(ODD)])
    pairs = zip(dataset.table.image, dataset.table.caption, strict=True)
    found = {Path(image).name: caption for image, caption in pairs}
    assert found == {f"{n}.jpg": caption for n, caption in enumerate(EXPECTED)}
    assert all(isinstance(caption, str) for caption in dataset.table.caption)  # "NaN", "null" and "0" are words
    assert set(dataset.table.split) <= {"train", "dev", "test"}


@every_layout
def test_a_caption_without_an_image_and_an_image_without_a_caption(layout, folder) -> None:
    rows = [(f"{n}.jpg", "A dog .") for n in range(len(ODD) - 1)]
    dataset = LAYOUTS[layout](folder, rows)
    assert any("1 images have no caption" in note and f"{len(ODD) - 1}.jpg" in note for note in dataset.notes)
    with pytest.raises(CaptioningError, match=r"captions for an image that is not in .*: 1 \(.*gone.jpg"):
        LAYOUTS[layout](folder, [*rows, ("gone.jpg", "A cat .")])


@every_layout
def test_captions_that_are_no_captions_are_named_or_noted(layout, folder) -> None:
    rows = [("0.jpg", "fine"), ("1.jpg", "  "), ("2.jpg", "bell \a rings"), ("3.jpg", " ".join(["word"] * 10_000))]
    with pytest.raises(CaptioningError, match="more than 500 words"):
        LAYOUTS[layout](folder, rows)
    if layout == "folder":  # one's own file: it can be mended
        with pytest.raises(CaptioningError, match="(?s)control characters.*|empty caption.*"):
            LAYOUTS[layout](folder, rows[:3])
        return
    dataset = LAYOUTS[layout](folder, rows[:3])
    assert sorted(dataset.table.caption) == ["bell rings", "fine"]
    assert any("without a caption left out" in note for note in dataset.notes)
    assert any("control characters" in note for note in dataset.notes)
