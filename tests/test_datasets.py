"""Readers of every layout: captions, splits, image files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from helpers.datasets import load_dataset, read_flickr8k, read_folder
from tests.small_datasets import error_of, folder_with, kaggle, photos

FLICKR8K = Path(__file__).parents[2] / "shared" / "flickr8k"


# The layouts


def test_flickr8k_kaggle_layout_with_lists(tmp_path):
    folder = kaggle(tmp_path)
    (folder / "Flickr_8k.trainImages.txt").write_text("0.jpg\r\n1.jpg\r\n2.jpg\r\n3.jpg\r\n\r\n")
    (folder / "Flickr_8k.devImages.txt").write_text("\ufeff4.jpg\n5.jpg", encoding="utf-8")
    (folder / "Flickr_8k.testImages.txt").write_text("6.jpg\n")
    dataset = load_dataset("flickr8k", folder)
    assert dataset.splits() == ["train", "dev", "test"]
    assert dataset.images("train") == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert dataset.images("dev") == dataset.images("val") == ["4.jpg", "5.jpg"]
    assert dataset.references("test") == {"6.jpg": [f"A dog , number {n} , runs ." for n in range(5)]}
    assert len(dataset.table) == 40 and len(dataset.captions()) == 35  # 7.jpg is in no list
    assert dataset.images() == [f"{n}.jpg" for n in range(7)] and dataset.images("") == ["7.jpg"]
    assert dataset.path("6.jpg").is_file()
    assert any("1 images are in no split list" in note for note in dataset.notes)


def test_flickr8k_token_layout(tmp_path):
    photos(tmp_path / "Flicker8k_Dataset", "x.jpg", "y.jpg")
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    lines = [f"{name}#{n}\tA cat\tsits {n} ." for name in ("x.jpg", "y.jpg", "2258277193_586949ec62.jpg.1")
             for n in range(5)]
    (text / "Flickr8k.token.txt").write_text("\r\n".join(lines))
    (text / "Flickr_8k.trainImages.txt").write_text("x.jpg\n")
    (text / "Flickr_8k.testImages.txt").write_text("y.jpg\n")
    dataset = read_flickr8k(tmp_path)
    assert dataset.splits() == ["train", "test"]
    assert dataset.references("train") == {"x.jpg": [f"A cat sits {n} ." for n in range(5)]}
    assert any("1 of 3 images are not in" in note for note in dataset.notes)


def test_flickr8k_without_lists_is_split_by_image_and_seed(tmp_path):
    dataset = read_flickr8k(kaggle(tmp_path, 80))
    assert [len(dataset.images(split)) for split in dataset.splits()] == [60, 10, 10]
    assert sorted(dataset.images()) == sorted(f"{n}.jpg" for n in range(80))
    assert dataset.table.groupby("image")["split"].nunique().max() == 1
    again, other = read_flickr8k(tmp_path), read_flickr8k(tmp_path, seed=1)
    assert again.images("dev") == dataset.images("dev") != other.images("dev")
    assert again.fingerprint() == dataset.fingerprint() != other.fingerprint()


def test_part_of_a_dataset_is_read_when_asked_for(tmp_path):
    folder = kaggle(tmp_path, 8)
    (folder / "Flickr_8k.trainImages.txt").write_text("0.jpg\n1.jpg\n2.jpg\n")
    (folder / "Flickr_8k.devImages.txt").write_text("3.jpg\n4.jpg\n5.jpg\n6.jpg\n7.jpg\n")
    (folder / "Flickr_8k.testImages.txt").write_text("90.jpg\n91.jpg\n")  # withheld: no captions, no images
    for number in (2, 3):
        (folder / "Images" / f"{number}.jpg").unlink()
    assert "2 (2.jpg, line 12, 3.jpg, line 17)" in error_of(read_flickr8k, folder)
    dataset = load_dataset("flickr8k", folder, missing="skip")
    assert [dataset.images(split) for split in dataset.splits()] == [["0.jpg", "1.jpg"],
                                                                    ["4.jpg", "5.jpg", "6.jpg", "7.jpg"]]
    assert f"2 of 8 images are not in {folder / 'Images'} and are left out, such as 2.jpg." in dataset.notes
    assert "No captions here for the 2 images of the split 'test'." in dataset.notes
    message = error_of(dataset.images, "test")
    assert "no 'test' split, but ['train', 'dev']" in message


def test_flickr30k_with_bars_and_the_broken_row(tmp_path):
    photos(tmp_path / "flickr30k_images" / "flickr30k_images", "1.jpg", "2199200615.jpg")
    (tmp_path / "flickr30k_images" / "results.csv").write_text(
        "image_name| comment_number| comment\n1.jpg| 0| A man | a dog .\n1.jpg| 1| Two \"men\" , talking .\n"
        "2199200615.jpg| 0| A dog .\n2199200615.jpg| 4   A dog runs across the grass .\n"
    )
    for stem, name in (("train", "1"), ("test", "2199200615")):
        (tmp_path / f"{stem}.txt").write_text(name + "\n")
    dataset = load_dataset("flickr30k", tmp_path)
    assert dataset.references("train") == {"1.jpg": ["A man | a dog .", 'Two "men" , talking .']}
    assert dataset.references("test") == {"2199200615.jpg": ["A dog .", "A dog runs across the grass ."]}


def coco(tmp_path: Path) -> Path:
    photos(tmp_path, "train2014/COCO_train2014_000000000009.jpg", "val2014/COCO_val2014_000000000042.jpg",
           "val2014/COCO_val2014_000000000073.jpg")
    (tmp_path / "annotations").mkdir()
    for part, ids in (("train2014", [9]), ("val2014", [42, 73])):
        content = {"images": [{"id": n, "file_name": f"COCO_{part}_{n:012d}.jpg"} for n in ids],
                   "annotations": [{"image_id": n, "id": n, "caption": f"A thing\nnumber {n}. "} for n in ids]}
        (tmp_path / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_with_and_without_karpathy(tmp_path):
    folder = coco(tmp_path)
    dataset = load_dataset("coco", folder)
    assert dataset.references("train") == {"train2014/COCO_train2014_000000000009.jpg": ["A thing number 9."]}
    assert len(dataset.images("dev")) == 2 and all(dataset.path(image).is_file() for image in dataset.images())
    splits = {9: "train", 42: "restval", 73: "test"}
    images = [{"cocoid": n, "filename": "any.jpg", "split": split} for n, split in splits.items()]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    dataset = load_dataset("coco", folder)
    assert dataset.splits() == ["train", "test"]
    assert dataset.images("test") == ["val2014/COCO_val2014_000000000073.jpg"] and len(dataset.images("train")) == 2


def test_karpathy_files_alone_are_datasets(tmp_path):
    splits = ("train", "restval", "val", "test")
    for name, images, place in (("flickr8k", "Images", None), ("flickr30k", "flickr30k-images", None),
                                ("coco", "val2014", "val2014")):
        folder = tmp_path / name
        photos(folder / images, *(f"{n}.jpg" for n in range(4)))
        entries = [{"filename": f"{n}.jpg", "split": split, "cocoid": n, "sentences": [{"raw": f"A dog {n} ."}] * 2}
                   | ({"filepath": place} if place else {}) for n, split in enumerate(splits)]
        (folder / f"dataset_{name}.json").write_text(json.dumps({"images": entries, "dataset": name}))
        dataset = load_dataset(name, folder)
        inside = f"{place}/" if place else ""
        assert [dataset.images(split) for split in dataset.splits()] == [
            [f"{inside}0.jpg", f"{inside}1.jpg"], [f"{inside}2.jpg"], [f"{inside}3.jpg"]]
        assert dataset.references("test") == {f"{inside}3.jpg": ["A dog 3 ."] * 2}
        assert all(dataset.path(image).is_file() for image in dataset.images())


@pytest.mark.parametrize("content", [
    "{}", "not json", '{"images": [7], "annotations": [{}]}', '{"images": [], "annotations": []}',
    '{"images": [{"id": 1, "file_name": "../../etc/passwd"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
])
def test_coco_files_that_are_not_what_they_should_be(tmp_path, content):
    (tmp_path / "captions_val2014.json").write_text(content)
    assert str(tmp_path) in error_of(load_dataset, "coco", tmp_path)


def test_folder_with_and_without_a_split_column(tmp_path):
    folder = folder_with(tmp_path, "Caption;IMAGE ;split;mood\nA, b;a.jpg;train;x\nHe;b.jpg;val;x\nIt;c.jpg;Test;\n")
    dataset = load_dataset("folder", folder)
    assert [dataset.references(s) for s in dataset.splits()] == [{"a.jpg": ["A, b"]}, {"b.jpg": ["He"]},
                                                                {"c.jpg": ["It"]}]
    (folder / "captions.csv").write_text("image,caption\n" + "".join(f"{n}.jpg,x\n" for n in "abc"))
    assert [len(read_folder(folder).images(split)) for split in ("train", "dev", "test")] == [1, 1, 1]


@pytest.mark.parametrize(("name", "content"), [
    ("metadata.csv", "file_name,text\na.jpg,A dog\nsub/b.jpg,A cat\n"),
    ("metadata.jsonl", '{"file_name": "a.jpg", "text": "A dog"}\n\n{"file_name": "sub/b.jpg", "text": "A cat"}\n'),
])
def test_metadata_of_hugging_face(tmp_path, name, content):
    photos(tmp_path, "a.jpg", "sub/b.jpg")
    (tmp_path / name).write_text(content)
    assert read_folder(tmp_path).references() == {"a.jpg": ["A dog"], "sub/b.jpg": ["A cat"]}


@pytest.mark.parametrize(("written", "there"), [
    ("cafe\u0301.jpg", "caf\u00e9.jpg"), ("zoo\\a.jpg", "zoo/a.jpg"), ("a.jpg", "a.JPG"),  # macOS decomposes
])
def test_names_from_other_systems_are_matched_and_said(tmp_path, written, there):
    photos(tmp_path, there, "z.jpg")
    (tmp_path / "captions.csv").write_text(f"image,caption,split\n{written},A dog,train\nz.jpg,A cat,dev\n")
    dataset = read_folder(tmp_path)
    assert dataset.references("train") == {there: ["A dog"]} and dataset.path(there).is_file()
    assert any("1 names are written otherwise" in note and f"is {there}" in note for note in dataset.notes)


def test_pocket_is_made_on_first_use_and_read_as_it_is_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path))
    dataset = load_dataset("pocket", images=30, size=32, seed=3)
    assert dataset.name == "pocket" and dataset.image_dir == tmp_path / "pocket-images30-seed3-size32" / "Images"
    assert [len(dataset.images(split)) for split in dataset.splits()] == [24, 3, 3]
    assert {len(captions) for captions in dataset.references().values()} == {5}
    assert dataset.notes == []
    assert load_dataset("pocket", images=30, size=32, seed=3).fingerprint() == dataset.fingerprint()
    there = load_dataset("pocket", tmp_path / "pocket-images30-seed3-size32")  # as it is, not 1,500 new images
    assert there.fingerprint() == dataset.fingerprint()


# The real thing


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="Flickr8k is not beside the repository")
def test_the_real_flickr8k():
    dataset = load_dataset("flickr8k", FLICKR8K)
    sizes = {split: len(dataset.images(split)) for split in dataset.splits()}
    assert sizes["train"] == 6000 and sizes["dev"] == 1000
    assert {len(captions) for captions in dataset.references().values()} == {5}
    assert not set(dataset.images("train")) & set(dataset.images("dev"))
    sample = random.Random(0).sample(dataset.images("dev"), 5)
    assert all(dataset.path(image).is_file() for image in sample)
