"""Notebook 09's labelling cell without a browser: its source runs as it stands, buttons are pressed, the CSV read."""

from __future__ import annotations

import csv
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from helpers.datasets import read_folder
from helpers.files import CaptioningError
from helpers.images import list_images

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "09_your_own_data.ipynb"
SPACE: dict = {"csv": csv, "Path": Path, "CaptioningError": CaptioningError, "list_images": list_images}
for code in nbformat.read(NOTEBOOK, as_version=4).cells:
    if any(name in code.source for name in ("def as_line(", "class Labels:", "class LabellingCell:")):
        exec(code.source, SPACE)
Labels, LabellingCell = SPACE["Labels"], SPACE["LabellingCell"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("photo2.jpg", "photo10.jpg", "photo1.png"):
        Image.new("RGB", (900, 600), "blue").save(tmp_path / name)
    return tmp_path


def write(cell, caption: str) -> None:
    cell.text.value = caption
    cell.save.click()


def test_captions_are_on_disk_at_once_and_read_as_a_dataset(folder: Path) -> None:
    cell = LabellingCell(folder)
    assert cell.image == "photo1.png" and cell.photo.value[:2] == b"\xff\xd8"
    write(cell, 'A blue wall, called "Wall" .')
    assert cell.image == "photo2.jpg" and cell.text.value == ""
    assert (folder / "captions.csv").read_text() == 'image,caption\nphoto1.png,"A blue wall, called ""Wall"" ."\n'
    write(cell, "  Ünïcode   wall ")
    write(cell, "a third wall")
    dataset = read_folder(folder)
    assert sorted(dataset.table["caption"]) == ['A blue wall, called "Wall" .', "a third wall", "Ünïcode wall"]
    assert "3 of 3" in cell.progress.value


def test_a_later_session_goes_on_at_the_first_photo_without_a_caption(folder: Path) -> None:
    write(LabellingCell(folder), "one")
    again = LabellingCell(folder)
    assert again.image == "photo2.jpg" and "1 of 3" in again.progress.value
    again.back.click()
    assert again.image == "photo1.png" and "<li>one</li>" in again.progress.value
    again.undo.click()
    assert "Nothing to take back" in again.message.value  # written by another session
    write(again, "two")  # a second caption of the same photo
    assert Labels(folder).captions("photo1.png") == ["one", "two"]
    again.undo.click()
    assert Labels(folder).captions("photo1.png") == ["one"]
    for _ in range(2):
        again.skip.click()
    assert again.image == "photo1.png"  # once round


@pytest.mark.parametrize("caption", ["", "   ", "word " * 501, "a bell \a rings", "one"])
def test_an_unusable_caption_is_refused_and_nothing_is_written(folder: Path, caption: str) -> None:
    write(LabellingCell(folder), "one")
    before, cell = (folder / "captions.csv").read_bytes(), LabellingCell(folder)
    cell.back.click()
    write(cell, caption)
    assert 'role="alert"' in cell.message.value and cell.image == "photo1.png" and cell.text.value == caption
    assert (folder / "captions.csv").read_bytes() == before


@pytest.mark.parametrize(("text", "encoding"), [
    ("sep=;\r\nimage;caption\r\nphoto1.png;\"Grün; blau\"\r\n", "cp1252"),
    ("file_name,text\nphoto1.png,Grün", "utf-8"),  # Hugging Face's names; no line end at the end
    ("\ufeffimage\tcaption\r\nphoto1.png\tGrün\r\n", "utf-16-le"),
])
def test_every_byte_of_an_existing_file_stays(folder: Path, text: str, encoding: str) -> None:
    before = text.encode(encoding)
    (folder / "captions.csv").write_bytes(before)
    labels = Labels(folder)
    assert labels.left() == ["photo2.jpg", "photo10.jpg"]
    labels.add("photo2.jpg", "Eine Wand, blau; schön")
    after = (folder / "captions.csv").read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    assert read_folder(folder).references()["photo2.jpg"] == ["Eine Wand, blau; schön"]
    assert ("\r\n".encode(encoding) in after) == ("\r\n" in text)
    if encoding == "cp1252":
        with pytest.raises(CaptioningError, match="is in cp1252, which lacks a letter"):
            labels.add("photo10.jpg", "犬が走る")
    labels.undo()
    assert (folder / "captions.csv").read_bytes() == before


def test_a_file_that_loses_text_is_refused_and_untouched(folder: Path) -> None:
    (folder / "captions.csv").write_text("image,caption\nphoto1.png,one dog, wet\n")
    with pytest.raises(CaptioningError, match="not 2 fields.*line 2"):
        Labels(folder)
    (folder / "captions.csv").write_text("image,caption\nphoto1.png,one\n")
    labels = Labels(folder)
    changed = "image,caption\nphoto1.png,one dog, wet\n"
    (folder / "captions.csv").write_text(changed)  # in an editor, meanwhile
    with pytest.raises(CaptioningError, match="not 2 fields"):
        labels.add("photo2.jpg", "two")
    assert (folder / "captions.csv").read_text() == changed


def test_a_captioner_may_suggest(folder: Path) -> None:
    asked = []
    cell = LabellingCell(folder, suggest=lambda path: asked.append(path.name) or "a blue field")
    assert cell.text.value == "a blue field" and asked == ["photo1.png"]
    cell.save.click()
    assert Labels(folder).captions("photo1.png") == ["a blue field"]


@pytest.mark.parametrize("part", ["images", "Images"])
def test_photos_may_lie_in_a_folder_of_their_own(tmp_path: Path, part: str) -> None:
    (tmp_path / part).mkdir()
    Image.new("RGB", (90, 60), "blue").save(tmp_path / part / "one.jpg")
    write(LabellingCell(tmp_path), "a blue wall")
    assert read_folder(tmp_path).references() == {"one.jpg": ["a blue wall"]}
