"""The image door: every photo, whoever sent it, comes in through `open_image`, in bounded time and memory."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from helpers.files import CaptioningError

MAX_PIXELS = 64_000_000  # above the 50-megapixel phones; 64 million pixels are 192 MB once decoded to RGB
MAX_SIDE = 65_535  # as in JPEG; WebP and PNG can declare threads of millions of pixels
MAX_BYTES = 100_000_000  # of the file itself
MAX_SCAN_PIXELS = 1_500_000_000  # pixels x passes of a progressive JPEG: a small file can ask for thousands of passes
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif",
            ".heic", ".heif")  # the last two so that a folder of phone photos explains itself and is not "empty"
# Only decoders that work in memory on a size declared up front: EPS would start Ghostscript, ICO and ICNS hide
# a second image with a size of its own.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
SIDE, LOW = 32, 16  # a hash is the signs of the LOW x LOW lowest frequencies of a SIDE x SIDE grey copy
NEAR = 40  # differing bits of 255 up to which two photos count as the same; see `near_duplicates`
_COSINES = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(LOW)[:, None]).astype(np.float32)  # [LOW, SIDE]
# Pillow warns about odd metadata and about sizes that are refused here in any case; the answer is one message, not two.
warnings.filterwarnings("ignore", module=r"PIL\.")


def shown(name: object) -> str:
    """Returns `name` fit for one line: control characters, undecodable bytes are escaped. Notebook 00, section 7."""
    text = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def open_image(source: str | os.PathLike | bytes | IO[bytes] | Image.Image) -> Image.Image:
    """Returns a photo as an 8-bit RGB image, upright, at its full size.

    `source` is a path, an open binary file (an upload), the bytes of an image file, or a PIL image. Of an animation the
    first frame is taken, transparency is laid on white. Raises CaptioningError when it is no whole image, larger than
    MAX_BYTES, or declares more than MAX_PIXELS or MAX_SIDE (checked before decoding). Notebook 00, section 7.
    """
    if isinstance(source, Image.Image):
        return _finish(source, shown(getattr(source, "filename", "") or "the image"))
    name, data = _read(source)
    if not data:
        raise CaptioningError(f"{name} is empty (0 bytes). Copy or download it again.")
    if len(data) > MAX_BYTES:
        raise CaptioningError(f"{name} is larger than {MAX_BYTES // 10**6} MB. Save a smaller copy and use that.")
    return _finish(_identify(data, name), name, data)


def list_images(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """Returns the files that `paths` name, each folder replaced by the images directly in it, in natural order.

    Natural order puts photo2 before photo10. A path that does not exist, and a folder without images, stay in the list:
    `open_image` says what is wrong with them, and the others go on. Notebook 00, section 2.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths):
        try:
            inside = [entry for entry in path.iterdir() if _looks_like_image(entry)]
        except (OSError, ValueError):  # a file, nothing, no permission, a name no system accepts
            inside = []
        found += sorted(inside, key=_natural) or [path]
    return found


def _natural(path: Path) -> list[int | str]:
    """A sort key by which numbers inside names compare as numbers."""
    pieces = re.split(r"([0-9]{1,18})", path.name)  # every second one is a number
    return [int(piece) if i % 2 else piece.lower() for i, piece in enumerate(pieces)]


def _looks_like_image(path: Path) -> bool:
    # "._photo.jpg" is what macOS leaves beside a photo on a foreign disk; it holds no image
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _read(source: str | os.PathLike | bytes | IO[bytes]) -> tuple[str, bytes]:
    """Returns the printable name and at most MAX_BYTES + 1 of the source; never waits on a FIFO or a device."""
    if isinstance(source, bytes | bytearray | memoryview):
        return "the image", bytes(source)
    name = shown(getattr(source, "name", None) or "the image" if hasattr(source, "read") else source)
    try:
        if isinstance(source, str | os.PathLike):
            return name, _read_path(source, name)
        if not hasattr(source, "read"):
            raise CaptioningError(f"Expected a path, an open file or an image, not {type(source).__name__}.")
        if source.seekable():
            source.seek(0)  # an upload may have been read once already
        data = source.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CaptioningError(f"There is no file {name}. Check the spelling and the folder.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name, a closed file
        raise CaptioningError(f"Cannot open {name}: {getattr(error, 'strerror', None) or error}.") from error
    if not isinstance(data, bytes):
        raise CaptioningError(f"{name} is open as text. Open it with mode 'rb'.")
    return name, data


def _read_path(path: str | os.PathLike, name: str) -> bytes:
    if name.lower().startswith(("http://", "https://")):
        raise CaptioningError(f"{name} is a web address. Download the photo first and give the path of the file.")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # looked at before it is opened: opening a pipe waits for a writer for ever
        what = "a folder without images in it" if stat.S_ISDIR(mode) else "not a regular file (a pipe or a device)"
        raise CaptioningError(f"{name} is {what}. Name a photo, or a folder that holds photos directly.")
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def _identify(data: bytes, name: str) -> Image.Image:
    """Returns the image with its header read and nothing decoded."""
    heic = data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif", b"msf") and b"avif" not in data[8:64]
    if heic and importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        return Image.open(io.BytesIO(data), formats=("HEIF",) if heic else FORMATS)
    except Image.DecompressionBombError:
        raise _wrong_size(name, "far too many") from None
    except (Image.UnidentifiedImageError, KeyError):  # KeyError: a Pillow without the format
        hint = "Use JPEG, PNG, GIF, WebP, BMP, TIFF or AVIF."
        if heic:
            hint = "It is a HEIC photo: run `pip install pillow-heif`, or save it as JPEG."
        raise CaptioningError(f"{name} is not an image that can be read. {hint}") from None
    except Exception as error:  # Pillow's parsers raise nearly everything on damaged headers
        raise _damaged(name, error) from error


def _finish(image: Image.Image, name: str, data: bytes = b"") -> Image.Image:
    width, height = image.size
    if min(width, height) < 1 or max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _wrong_size(name, f"{width} x {height}")
    # FF DA starts a pass over the picture; inside compressed data every FF is followed by 00, so counting is enough
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") * width * height > MAX_SCAN_PIXELS:
        raise CaptioningError(f"{name} is a JPEG with far too many passes. Open it and save it again.")
    try:
        image.load()
        return _to_rgb(_upright(image))  # after load: some formats keep the orientation at their end
    except Exception as error:
        raise _damaged(name, error) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  broken metadata is no reason to refuse a photo that can be seen
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _scale(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    return image.convert("RGB")


def _scale(image: Image.Image) -> Image.Image:
    """Returns grey values of 16 or 32 bits as 8 bits; Pillow's own conversion would cut them off at 255.

    Cameras store 10 or 12 bits in 16: the scale is the smallest usual one that holds the brightest pixel.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    tops = [1.0] * (image.mode == "F") + [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]
    top = next((top for top in tops if values.max() <= top), values.max())
    return Image.fromarray(np.rint(values * (255.0 / top)).clip(0, 255).astype(np.uint8))


def _wrong_size(name: str, size: str) -> CaptioningError:
    return CaptioningError(f"{name} declares {size} pixels; at most {MAX_PIXELS // 10**6} million pixels are allowed, "
                           f"and no side may be longer than {MAX_SIDE:,}. Save and use a smaller copy.")


def _damaged(name: str, error: Exception) -> CaptioningError:
    what = "there is not enough memory to decode it" if isinstance(error, MemoryError) else shown(str(error))
    return CaptioningError(f"{name} cannot be decoded: {what or type(error).__name__}. Copy or save it again.")


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Returns 32 bytes (uint8 [32]) that are alike for photos that look alike, whatever their size and compression.

    255 bits: whether each of the lowest frequencies of a small grey copy is above their median (Zauner 2010, 3.2.1).
    Notebook 01, section 4.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    low = (_COSINES @ grey @ _COSINES.T).ravel()[1:]  # [LOW, LOW] without the mean brightness
    return np.packbits(low > np.median(low))


def near_duplicates(hashes: np.ndarray, near: int = NEAR) -> list[tuple[int, int, int]]:
    """Returns (i, j, distance) for all pairs i < j of hashes (uint8 [N, 32]) at most `near` bits apart, nearest first.

    Unrelated photos differ in about 127 of the 255 bits, and by chance hardly ever in fewer than 80.
    Notebook 01, section 4.
    """
    signs = 2 * np.unpackbits(hashes, axis=1).astype(np.float32) - 1  # [N, 256] of -1 and 1
    pairs = []
    for start in range(0, len(signs), 256):  # a block of rows at a time: memory does not grow with the square of N
        distance = (256 - signs[start:start + 256] @ signs.T) / 2
        pairs += [(int(start + i), int(j), int(distance[i, j])) for i, j in np.argwhere(distance <= near)]
    return sorted((pair for pair in pairs if pair[0] < pair[1]), key=lambda pair: (pair[2], pair[:2]))
