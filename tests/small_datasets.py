"""Small datasets on disk for the tests of the readers."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from helpers.files import CaptioningError


def photos(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(folder / name, "JPEG")


def folder_with(tmp_path: Path, csv: str | bytes, *names: str) -> Path:
    photos(tmp_path, *(names or ("a.jpg", "b.jpg", "c.jpg")))
    (tmp_path / "captions.csv").write_bytes(csv if isinstance(csv, bytes) else csv.encode())
    return tmp_path


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(CaptioningError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def kaggle(tmp_path: Path, images: int = 8) -> Path:
    names = [f"{number}.jpg" for number in range(images)]
    photos(tmp_path / "Images", *names)
    rows = [f'{name},"A dog , number {n} , runs ."' for name in names for n in range(5)]
    (tmp_path / "captions.txt").write_text("image,caption\n" + "\n".join(rows) + "\n")
    return tmp_path
