"""What each kind of bad data is answered with: every fault at once, never a wrong split or a silent skip."""

from __future__ import annotations

import os

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.datasets import load_dataset, read_flickr8k, read_folder, split_by_image
from tests.small_datasets import error_of, folder_with, kaggle


def test_byte_order_mark_windows_line_ends_and_utf16(tmp_path):
    text = 'image,caption\r\na.jpg,"Ein Hund, läuft"\r\nb.jpg,犬が走る\r\n\r\nc.jpg,كلب يجري 🐕\r\n'
    for data in (text.encode("utf-8-sig"), text.encode("utf-16"), text.replace("\r\n", "\r").encode()):
        references = read_folder(folder_with(tmp_path, data)).references()
        assert references == {"a.jpg": ["Ein Hund, läuft"], "b.jpg": ["犬が走る"], "c.jpg": ["كلب يجري 🐕"]}
    assert "not UTF-8" in error_of(read_folder, folder_with(tmp_path, text.encode()[:-20] + b"\x81"))


@pytest.mark.parametrize(("delimiter", "encoding", "first"), [
    (";", "cp1252", ""), (";", "cp1252", "sep=;\r\n"), (";", "utf-8-sig", "sep=;\r\n"), ("\t", "utf-16", ""),
])
def test_csv_files_as_excel_writes_them(tmp_path, delimiter, encoding, first):
    rows = [("image", "caption"), ("a.jpg", f'"Ein Hund{delimiter}{delimiter} läuft"'), ("b.jpg", "Eine Katze – ruht")]
    text = first + "".join(f"{image}{delimiter}{caption}\r\n" for image, caption in rows)
    blank = f"{delimiter}\r\n"
    with_other = folder_with(tmp_path, (text + "a.jpg" + blank).encode(encoding))
    dataset = read_folder(with_other)
    hound = " ".join(f"Ein Hund{delimiter}{delimiter} läuft".split())
    assert dataset.references() == {"a.jpg": [hound], "b.jpg": ["Eine Katze – ruht"]}
    line = 5 if first else 4
    assert f"row without a caption left out: 1 (line {line})" in dataset.notes  # the photo has another
    assert any("read as Windows-1252" in note for note in dataset.notes) == (encoding == "cp1252")
    message = error_of(read_folder, folder_with(tmp_path, (text + "c.jpg" + blank).encode(encoding)))
    assert f"empty caption; write one or delete the row: 1 (line {line})" in message


def test_every_fault_is_reported_at_once(tmp_path):
    long = " ".join(["word"] * 10_000)
    folder = folder_with(tmp_path, (
        "image,caption,split\n"
        "a.jpg,fine,train\n"          # line 2
        "c.jpg,,train\n"              # empty
        "c.jpg,   ,train\n"           # empty
        "a.jpg,bell \a rings,train\n"  # control character
        f"a.jpg,{long},train\n"       # 10,000 words
        "a.jpg,one, two,train\n"      # unquoted comma
        "d.jpg,no such image,train\n"
        "B.jpg,case differs,dev\n"
        "../a.jpg,out of the folder,train\n"
        "/etc/passwd,out of the folder,train\n"
        ",no name,train\n"
        "a.jpg,an image in two splits,test\n"
        "b.jpg,unknown split,trian\n"
    ))
    message = error_of(read_folder, folder)
    for words in (
        "empty caption; write one or delete the row: 2 (line 3, line 4)",
        "control characters in the caption: 1 (line 5)", "more than 500 words", "line 6: 10,000",
        "not 3 fields", "line 7", "d.jpg, line 8", "there is b.jpg",
        "leads out of the image folder: 2 (line 10: ../a.jpg, line 11: /etc/passwd)", "no image name: 1 (line 12)",
        "different splits", "unknown split", "line 14: trian",
    ):
        assert words in message, words
    assert message.startswith(f"{folder / 'captions.csv'} cannot be used as it is: 15 faults.")


@pytest.mark.parametrize(("csv", "words"), [
    ("file,text\na.jpg,x\n", "needs the columns image and caption in its first line; it has: file,text"),
    ("image,caption,caption\na.jpg,x,y\n", "needs the columns image and caption"),
    ("image,caption\n", "has no captions"),
    ('image,caption\na.jpg,"never closed\nb.jpg,x\n', "is a double quote missing?"),
    ('image,caption\na.jpg,"one\ntwo"\n', "runs over several lines"),
    ("image,caption\na.jpg," + "x" * 200_000 + "\n", "not CSV from here on: field larger"),
])
def test_faults_of_a_csv(tmp_path, csv, words):
    assert words in error_of(read_folder, folder_with(tmp_path, csv))


def test_missing_things_are_named(tmp_path):
    assert "There is no folder" in error_of(load_dataset, "flickr8k", tmp_path / "none")
    assert "holds none of captions.txt" in error_of(load_dataset, "flickr8k", tmp_path)
    assert "holds none of captions_*.json" in error_of(load_dataset, "coco", tmp_path)
    assert "holds none of captions.csv" in error_of(load_dataset, "folder", tmp_path)
    assert "needs data_dir" in error_of(load_dataset, "folder")
    assert "Did you mean 'flickr8k'?" in error_of(load_dataset, "flikr8k", tmp_path)
    dataset = read_flickr8k(kaggle(tmp_path))
    assert "Unknown split 'trian'" in error_of(dataset.images, "trian")


def test_a_fifo_in_place_of_a_caption_file_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "captions.csv")
    assert "There is no file" in error_of(read_folder, tmp_path)


def test_fingerprint_follows_captions_splits_and_image_files(tmp_path):
    folder = folder_with(tmp_path, "image,caption,split\na.jpg,x,train\nb.jpg,y,dev\n")
    first = read_folder(folder).fingerprint()
    assert read_folder(folder).fingerprint() == first
    changed = set()
    for rows in ("a.jpg,z,train\nb.jpg,y,dev\n", "a.jpg,x,train\nb.jpg,y,test\n"):
        changed.add(read_folder(folder_with(tmp_path, "image,caption,split\n" + rows)).fingerprint())
    folder_with(tmp_path, "image,caption,split\na.jpg,x,train\nb.jpg,y,dev\n")
    with open(folder / "a.jpg", "ab") as file:
        file.write(b"more")
    changed.add(read_folder(folder).fingerprint())
    assert len(changed) == 3 and first not in changed


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=120), st.integers(0, 5))
def test_split_by_image_whatever_the_rows(images, seed):
    table = pd.DataFrame({"image": [f"{n}.jpg" for n in images], "caption": "x", "split": ""})
    split = split_by_image(table, seed)
    of_image = dict(zip(split["image"], split["split"], strict=True))
    assert (split["split"] == split["image"].map(of_image)).all() and len(split) == len(table)
    moved = split_by_image(table[::-1], seed)
    assert dict(zip(moved["image"], moved["split"], strict=True)) == of_image
    assert set(of_image.values()) == ({"train", "dev", "test"} if len(of_image) >= 3 else {"train"})
