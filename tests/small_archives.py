"""Small archives for the tests of downloads and unpacking."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from helpers.download import extract
from helpers.files import CaptioningError

DATA = random.Random(0).randbytes(300_000)


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(CaptioningError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def photo(colour=0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour % 256, 50, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def packed(files: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def flickr8k_zip(images: int = 6, captions: int = 5) -> bytes:
    names = [f"{number}.jpg" for number in range(images)]
    rows = "".join(f"{name},A dog runs {n} .\n" for name in names for n in range(captions))
    return packed({"captions.txt": b"image,caption\n" + rows.encode(),
                   **{f"Images/{name}": photo(n) for n, name in enumerate(names)},
                   "__MACOSX/._captions.txt": b"x"})


def extract_to(data: bytes, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    archive = folder.with_name(folder.name + ".archive")
    archive.write_bytes(data)
    extract(archive, folder)
