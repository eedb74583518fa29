"""The image door: what opens, with which pixels; what is refused, with which words; in what time and memory."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import images
from helpers.files import CaptioningError
from helpers.images import list_images, open_image, shown
from tests import nasty_images as nasty

ROOT = Path(__file__).parent.parent


def pixel(source, place=(0, 0)) -> tuple[int, int, int]:
    image = open_image(source)
    assert image.mode == "RGB"
    return image.getpixel(place)


def error_of(source) -> str:
    with pytest.raises(CaptioningError) as caught:
        open_image(source)
    return str(caught.value)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return nasty.make_corpus(tmp_path_factory.mktemp("corpus"))


def test_corpus_in_one_process_within_time_and_memory(corpus, tmp_path):
    """Every file gives an RGB image or one printable message; none takes long; memory stays bounded."""
    assert len(corpus) >= 50
    script = """
import json, os, resource, sys, time
from helpers.files import CaptioningError
from helpers.images import open_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
results = []
for path in json.load(open(sys.argv[1])):
    start = time.process_time()
    try:
        image = open_image(path)
        outcome = ["image", image.mode]
    except CaptioningError as error:
        outcome = ["error", str(error)]
    results.append([path, *outcome, time.process_time() - start])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
json.dump([results, grown / 1024], open(sys.argv[2], "w"))
"""
    names, out = tmp_path / "names.json", tmp_path / "out.json"
    names.write_text(json.dumps([str(path) for path in corpus]))
    done = subprocess.run([sys.executable, "-c", script, names, out], cwd=ROOT, timeout=300, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    results, megabytes = json.loads(out.read_text())
    wrong = [(path, outcome, text) for path, outcome, text, _ in results
             if corpus[Path(path)] not in (outcome, "either")]
    assert wrong == []
    for path, outcome, text, _seconds in results:
        assert outcome != "image" or text == "RGB"
        assert outcome != "error" or (text.isprintable() and "Traceback" not in text and len(text) < 900), path
    assert max(seconds for *_, seconds in results) < 10  # of computing, whatever else the machine does
    assert megabytes < 700


def test_one_message_and_no_warnings_beside_it(recwarn):
    error_of(nasty.png(9000, 9000, 1))
    error_of(nasty.with_exif(b"Exif\0\0II*\0" + b"\xff" * 40)[:200])
    assert [str(w.message) for w in recwarn if "PIL" in str(w.filename)] == []


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(turn):
    upright = Image.new("RGB", (4, 2), "black")
    upright.putpixel((0, 0), (255, 0, 0))  # top left
    upright.putpixel((3, 0), (0, 255, 0))  # top right
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]  # PIL.Image.Transpose members that store it turned
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = turn
    for format in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        image = open_image(nasty.encode(stored, format, exif=exif, **options))
        assert np.array_equal(np.asarray(image), np.asarray(upright)), format


def test_alpha_is_laid_on_white():
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    half.putpixel((1, 0), (9, 9, 9, 0))
    data = nasty.encode(half, "PNG")
    assert pixel(data) == (255, 127, 127)
    assert pixel(data, (1, 0)) == (255, 255, 255)
    grey = nasty.encode(Image.new("LA", (1, 1), (0, 51)), "PNG")
    assert pixel(grey) == (204, 204, 204)
    paletted = Image.new("P", (1, 1), 0)
    paletted.putpalette([10, 20, 30])
    assert pixel(nasty.encode(paletted, "PNG")) == (10, 20, 30)
    assert pixel(nasty.encode(paletted, "PNG", transparency=0)) == (255, 255, 255)
    assert pixel(nasty.encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == (255, 255, 255)


def test_more_than_eight_bits_are_scaled_and_not_cut_off():
    for format in ("PNG", "TIFF"):
        for bits in (8, 10, 12, 14, 16):  # cameras store fewer bits in 16
            top = 2**bits - 1
            opened = open_image(nasty.encode(Image.fromarray(np.array([[0, top // 5, top]], np.uint16)), format))
            assert np.allclose(np.asarray(opened)[0, :, 0], [0, 51, 255], atol=1)
    whole = Image.fromarray(np.array([[0, 65535, 257]], np.int32))
    assert np.asarray(open_image(whole))[0, :, 1].tolist() == [0, 255, 1]
    fraction = Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32))
    assert np.asarray(open_image(fraction))[0, :, 2].tolist() == [0, 51, 255]


def test_cmyk_becomes_the_printed_colour_and_an_animation_its_first_frame():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.allclose(pixel(nasty.encode(cyan, "JPEG", quality=95)), (0, 255, 255), atol=6)
    assert pixel(nasty.encode(cyan, "TIFF")) == (0, 255, 255)
    for format in ("GIF", "WEBP"):  # the first frame of an animation
        assert np.allclose(pixel(nasty.animation(format)), (255, 0, 0), atol=2)


def test_sources_of_every_kind(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (3, 2), (1, 2, 3)).save(path)
    upload = io.BytesIO(path.read_bytes())
    upload.read()  # as a page does that has looked at the file before
    with open(path, "rb") as file:
        for source in (path, str(path), upload, file, path.read_bytes(), Image.open(path)):
            assert pixel(source) == (1, 2, 3)
    assert "open as text" in error_of(io.StringIO("text"))
    assert "not int" in error_of(7)


@pytest.mark.parametrize(("name", "words"), [
    ("empty.jpg", "is empty (0 bytes)"), ("text.jpg", "is not an image"), ("phone.heic", "pip install pillow-heif"),
    ("declares_huge.png", "64 million pixels"), ("declares_huge.bmp", "64 million pixels"),
    ("declares_thread.png", "no side may be longer than 65,535"),
    ("bomb.png", "9000 x 9000 pixels"), ("many_passes.jpg", "too many passes"), ("directory.jpg", "is a folder"),
    ("fifo.jpg", "not a regular file"), ("loop.jpg", "symbolic links"), ("dangling.jpg", "There is no file"),
    ("no_such_file.jpg", "There is no file"), ("cut.jpg", "cannot be decoded"),
])
def test_messages_name_the_file_and_the_fault(corpus, name, words):
    path = next(path for path in corpus if path.name == name)
    message = error_of(path)
    assert words in message and name in message


def test_declared_size_is_checked_before_anything_is_decoded():
    data = nasty.png(60000, 60000, 300)
    start = time.process_time()
    assert "far too many" in error_of(data)
    assert time.process_time() - start < 0.05
    giant = Image.new("1", (9000, 9000))
    assert "9000 x 9000" in error_of(giant)


def test_a_file_larger_than_the_limit_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1_000_000)
    path = tmp_path / "large.jpg"
    with open(path, "wb") as file:
        file.truncate(50_000_000_000)  # sparse: takes no room
    assert "larger than 1 MB" in error_of(path)


def test_web_addresses_and_impossible_names():
    assert "web address" in error_of("https://example.org/dog.jpg")
    assert "embedded null" in error_of("a\0b.jpg")
    assert "too long" in error_of("x" * 5000 + ".jpg")


def test_list_images_expands_folders_in_natural_order(tmp_path):
    for name in ("photo10.jpg", "photo2.JPG", "Photo1.png", "notes.txt", ".hidden.jpg", "._photo2.jpg", "a.HEIC"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub.jpg").mkdir()
    (tmp_path / "empty").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.HEIC", "Photo1.png", "photo2.JPG", "photo10.jpg"]
    given = [tmp_path / "photo10.jpg", tmp_path / "missing.jpg", tmp_path / "empty", "a\0b"]
    assert list_images(given) == [Path(path) for path in given]
    assert "is a folder" in error_of(tmp_path / "empty")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert list_images([tmp_path / "loop"]) == [tmp_path / "loop"]


def test_shown_is_one_printable_line():
    assert shown("a\nb\tc\x1b[31m\udce9é写🐕") == "a\\nb\\tc\\x1b[31m\\udce9é写🐕"
    assert shown(b"caf\xe9.jpg") == "caf\\udce9.jpg"
    assert len(shown("x" * 10_000)) < 300
    shown(os.fsdecode(b"\xff\xfe")).encode("utf-8")
