"""The sample photos and what their README says about them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

FREE = {"public domain", "CC0"}


@pytest.fixture(scope="module")
def rows(root: Path) -> dict[str, dict[str, str]]:
    """The README's table: what it says of each file."""
    text = (root / "sample_images/README.md").read_text(encoding="utf-8")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    head, _, *body = table
    assert head == ["file", "what it shows", "author", "licence", "source"]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in body}


def test_every_photo_has_a_row_and_every_row_a_photo(root: Path, rows) -> None:
    files = {path.name for path in (root / "sample_images").iterdir()} - {"README.md"}
    assert files == set(rows)
    assert len(files) >= 8


def test_every_row_is_filled_in_and_may_be_redistributed(rows) -> None:
    for name, row in rows.items():
        assert row["licence"] in FREE, f"{name}: {row['licence']}"
        assert re.search(r"https://|`\w+\.\w+", row["source"]), f"{name}: no source that can be looked up"
        assert row["author"], name
        assert 5 <= len(row["what it shows"].split()) <= 30 and row["what it shows"].endswith("."), name


def test_photos_are_small_plain_jpegs(root: Path, rows) -> None:
    for name in rows:
        path = root / "sample_images" / name
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB"), name
            assert min(image.size) >= 256 and max(image.size) <= 800, f"{name}: {image.size}"
            assert not image.getexif(), f"{name} carries camera data"
        assert path.stat().st_size < 250_000, name
