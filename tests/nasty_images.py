"""A corpus of broken and nasty image files, for every door that takes photos: library, command line, page, service.

`make_corpus(folder)` writes it and returns path -> "image" (must open), "error" (must give the one clear error) or
"either" (damaged so slightly that a decoder may or may not notice).
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def encode(image: Image.Image, format: str, **options) -> bytes:
    """Returns the bytes of `image` as a file of `format`."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Returns an image of random values, which no format compresses to a handful of bytes."""
    generator = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = generator.integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), values.tobytes())


def png(width: int, height: int, rows: int, colour: int = 2) -> bytes:
    """Returns a PNG that declares width x height pixels and holds `rows` rows of zeros, tightly packed."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + width * (3 if colour == 2 else 1))
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_declaring(width: int, height: int) -> bytes:
    """Returns a small JPEG whose header claims width x height pixels."""
    data = bytearray(encode(noise(16, 16), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5:frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_many_passes(side: int, passes: int) -> bytes:
    """Returns a progressive JPEG that repeats its last pass over the picture."""
    data = encode(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:start] + data[start:end] * passes + data[end:]


def animation(format: str) -> bytes:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    return encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50,
                  **({"lossless": True} if format == "WEBP" else {}))


def with_exif(exif: bytes) -> bytes:
    return encode(noise(16, 8), "JPEG", exif=exif)


def good_files() -> dict[str, bytes]:
    """Returns name -> bytes of odd files that are images all the same."""
    files = {
        "plain.jpg": encode(noise(16, 16), "JPEG"),
        "grey.jpg": encode(noise(16, 16, "L"), "JPEG"),
        "cmyk.jpg": encode(noise(16, 16, "CMYK"), "JPEG"),
        "progressive.jpg": encode(noise(64, 64), "JPEG", progressive=True),
        "rgb.png": encode(noise(16, 16), "PNG"),
        "palette_transparent.png": encode(noise(16, 16).quantize(8), "PNG", transparency=0),
        "rgba.png": encode(noise(16, 16, "RGBA"), "PNG"),
        "grey_alpha.png": encode(noise(16, 16, "LA"), "PNG"),
        "sixteen_bit.png": encode(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 256), "PNG"),
        "one_pixel.png": encode(Image.new("RGB", (1, 1), "red"), "PNG"),
        "thread.png": encode(noise(1, 20000), "PNG"),
        "ribbon.jpg": encode(noise(20000, 1), "JPEG"),
        "moving.gif": animation("GIF"),
        "moving.webp": animation("WEBP"),
        "plain.webp": encode(noise(16, 16), "WEBP"),
        "plain.bmp": encode(noise(16, 16), "BMP"),
        "plain.tif": encode(noise(16, 16), "TIFF"),
        "float.tif": encode(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF"),
        "not_a_number.tif": encode(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
        "wrong_extension.txt.jpg": encode(noise(16, 16), "PNG"),
        "exif_broken.jpg": with_exif(b"Exif\0\0II*\0" + b"\xff" * 40),
        "exif_orientation_99.jpg": with_exif(_orientation(99)),
        "rubbish_after_the_end.jpg": encode(noise(16, 16), "JPEG") + b"\0" * 1000,
        "just_within_the_limit.png": png(8000, 8000, 8000, colour=0),
    }
    files |= {f"exif_orientation_{turn}.jpg": with_exif(_orientation(turn)) for turn in (1, 3, 6)}
    return files


def _orientation(turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif.tobytes()


def bad_files() -> dict[str, bytes]:
    """Returns name -> bytes of files that are no images, or that no one should decode."""
    gif = bytearray(animation("GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(encode(noise(16, 16), "BMP"))
    bmp[18:26] = struct.pack("<ii", 100000, 100000)
    return {
        "empty.jpg": b"",
        "text.jpg": b"A dog runs.\n",
        "page.jpg": b"<!DOCTYPE html><html><body>photo</body></html>",
        "drawing.svg.jpg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>',
        "paper.pdf.jpg": b"%PDF-1.7\n1 0 obj",
        "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100,
        "random.jpg": random.Random(0).randbytes(5000),
        "header_only.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "declares_huge.png": png(100000, 100000, 1),
        "declares_huge.jpg": jpeg_declaring(65000, 65000),
        "declares_huge.gif": bytes(gif),
        "declares_huge.bmp": bytes(bmp),
        "declares_nothing.png": png(0, 0, 1),
        "declares_thread.png": png(1_700_000, 10, 10),
        "bomb.png": png(9000, 9000, 9000, colour=0),
        "many_passes.jpg": jpeg_of_many_passes(1000, 5000),
    }


def make_corpus(folder: Path) -> dict[Path, str]:
    """Writes the corpus, some 60 files, into `folder`; returns path -> "image", "error" or "either"."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[Path, str] = {}

    def put(name: str, data: bytes, outcome: str) -> None:
        (folder / name).write_bytes(data)
        expected[folder / name] = outcome

    for name, data in good_files().items():
        put(name, data, "image")
    for name, data in bad_files().items():
        put(name, data, "error")
    put("rows_missing.png", png(500, 500, 3), "either")
    small = {"jpg": encode(noise(12, 12), "JPEG", quality=40), "png": encode(noise(12, 12), "PNG"),
             "gif": encode(noise(12, 12, "L"), "GIF"), "webp": encode(noise(20, 20), "WEBP"),
             "bmp": encode(noise(10, 10), "BMP"), "tif": encode(noise(10, 10), "TIFF")}
    for suffix, data in small.items():
        put(f"cut.{suffix}", data[: len(data) // 3], "error")
        broken = bytearray(data)
        generator = random.Random(suffix)
        for _ in range(4):
            broken[generator.randrange(len(broken))] = generator.randrange(256)
        put(f"altered.{suffix}", bytes(broken), "either")
    put("line\nbreak.jpg", small["jpg"], "image")
    put("café 写真 🐕.jpg", small["jpg"], "image")
    (folder / "directory.jpg").mkdir()
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "fifo.jpg")
    expected |= {folder / f"{name}.jpg": "error" for name in ("directory", "loop", "dangling", "fifo", "no_such_file")}
    undecodable = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    try:
        undecodable.write_bytes(small["jpg"])
        expected[undecodable] = "image"
    except OSError:  # file systems of Apple and Microsoft refuse the name
        pass
    return expected
