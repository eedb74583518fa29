"""The labelling cell without a browser: buttons are pressed and the CSV is read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from helpers.datasets import read_folder
from helpers.files import CaptioningError
from helpers.labelling import LabellingCell, Labels, suggestions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("photo2.jpg", "photo10.jpg", "photo1.png"):
        Image.new("RGB", (900, 600), "blue").save(tmp_path / name)
    return tmp_path


def write(cell: LabellingCell, caption: str) -> None:
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
    write(again, "two")  # a second caption of the same photo
    assert Labels(folder).captions("photo1.png") == ["one", "two"]
    again.back.click()
    again.undo.click()
    assert Labels(folder).captions("photo1.png") == ["one"]
    again.skip.click()
    again.skip.click()
    again.skip.click()
    assert again.image == "photo1.png"  # once round


@pytest.mark.parametrize("caption", ["", "   ", "word " * 501])
def test_an_unusable_caption_is_refused_and_nothing_is_written(folder: Path, caption: str) -> None:
    cell = LabellingCell(folder)
    write(cell, caption)
    assert 'role="alert"' in cell.message.value and cell.image == "photo1.png"
    assert not (folder / "captions.csv").exists()


def test_what_is_written_is_shown_as_text(folder: Path) -> None:
    cell = LabellingCell(folder)
    write(cell, "<img src=x onerror=alert(1)>")
    cell.back.click()
    assert "<img" not in cell.progress.value and "&lt;img" in cell.progress.value


def test_rows_and_columns_of_an_existing_file_stay(folder: Path) -> None:
    (folder / "captions.csv").write_text("caption,image,split,by\nold,photo1.png,test,ada\n")
    labels = Labels(folder)
    labels.add("photo1.png", "new")
    labels.add("photo2.jpg", "other")
    first, *rows = (folder / "captions.csv").read_text().splitlines()
    assert first == "caption,image,split,by"
    assert rows == ["old,photo1.png,test,ada", "new,photo1.png,test,ada", "other,photo2.jpg,,"]
    with pytest.raises(CaptioningError, match="already"):
        labels.add("photo1.png", "new")


def test_bad_folders_and_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match="no folder"):
        Labels(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaptioningError, match="no photos"):
        Labels(tmp_path / "empty")
    (folder / "captions.csv").write_text("name,text\n")
    with pytest.raises(CaptioningError, match="name, text"):
        Labels(folder)


def test_a_broken_photo_is_said_and_passed_over(folder: Path) -> None:
    (folder / "photo1.png").write_bytes(b"not a picture")
    cell = LabellingCell(folder)
    assert "photo1.png" in cell.message.value and cell.photo.value == b""
    cell.skip.click()
    assert cell.message.value == "" and cell.photo.value


def test_a_captioner_may_suggest(folder: Path) -> None:
    asked = []

    class Parrot:
        def caption(self, images: list[Path]) -> list[SimpleNamespace]:
            asked.append(images[0].name)
            return [SimpleNamespace(caption="a blue field")]

    cell = LabellingCell(folder, suggest=suggestions(Parrot()))
    assert cell.text.value == "a blue field" and asked == ["photo1.png"]
    cell.save.click()
    assert Labels(folder).captions("photo1.png") == ["a blue field"]
