"""The image door: every photo, whoever sent it, comes in through `open_image`, in bounded time and memory."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from helpers.files import CaptioningError, usable_cores

MAX_PIXELS = 64_000_000  # above the 50-megapixel phones; 64 million pixels are 192 MB once decoded to RGB
MAX_SIDE = 65_535  # as in JPEG; WebP and PNG can declare threads of millions of pixels
MAX_BYTES = 100_000_000  # of the file itself
MAX_SCAN_PIXELS = 1_500_000_000  # pixels x passes of a progressive JPEG: a small file can ask for thousands of passes
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif",
            ".heic", ".heif")  # the last two so that a folder of phone photos explains itself and is not "empty"
# Only decoders that work in memory on a size declared up front: EPS would start Ghostscript, ICO and ICNS hide
# a second image with a size of its own.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
_ACCEPTED = "JPEG, PNG, GIF, WebP, BMP, TIFF or AVIF"
SIDE, LOW = 32, 16  # a hash is the signs of the LOW x LOW lowest frequencies of a SIDE x SIDE grey copy
NEAR = 40  # differing bits of 255 up to which two photos count as the same; see `near_duplicates`
_COSINES = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(LOW)[:, None]).astype(np.float32)  # [LOW, SIDE]
# Pillow warns about odd metadata and about sizes that are refused here in any case; the answer is one message, not two.
warnings.filterwarnings("ignore", module=r"PIL\.")


def shown(name: object) -> str:
    """Returns `name` fit for one line: control characters, undecodable bytes are escaped. Notebook 00, section 8."""
    text = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def open_image(source: str | os.PathLike | bytes | IO[bytes] | Image.Image) -> Image.Image:
    """Returns a photo as an 8-bit RGB image, upright, at its full size.

    `source` is a path, an open binary file (an upload), the bytes of an image file, or a PIL image. Of an animation the
    first frame is taken, transparency is laid on white. Raises CaptioningError when it is no whole image, larger than
    MAX_BYTES, or declares more than MAX_PIXELS or MAX_SIDE (checked before decoding). Notebook 00, section 8.
    """
    if isinstance(source, Image.Image):
        name = shown(getattr(source, "filename", "") or "the image")
        return _finish(source, name)
    name, data = _read(source)
    if not data:
        raise CaptioningError(f"{name} is empty (0 bytes). Copy or download it again.")
    return _finish(_identify(data, name), name, data)


def list_images(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """Returns the files that `paths` name, each folder replaced by the images directly in it, in natural order.

    Natural order puts photo2 before photo10. A path that does not exist, and a folder without images, stay in the list:
    `open_image` says what is wrong with them, and the others go on. Notebook 00, section 2.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: list[Path] = []
    for path in map(Path, paths):
        inside: list[Path] = []
        try:
            if path.is_dir():
                inside = [entry for entry in path.iterdir() if _looks_like_image(entry)]
        except (OSError, ValueError):  # no permission, a link to itself, a name no system accepts
            pass
        found += sorted(inside, key=natural_key) or [path]
    return found


def natural_key(path: str | os.PathLike) -> list[tuple[int, int, str]]:
    """Returns a sort key by which numbers inside names compare as numbers. Notebook 00, section 2."""
    pieces = re.split(r"([0-9]{1,18})", os.fspath(path))
    return [(0, int(piece), piece) if i % 2 else (1, 0, piece.lower()) for i, piece in enumerate(pieces)]


def _looks_like_image(path: Path) -> bool:
    # "._photo.jpg" is what macOS leaves beside a photo on a foreign disk; it holds no image
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _read(source: str | os.PathLike | bytes | IO[bytes]) -> tuple[str, bytes]:
    """Returns the printable name and at most MAX_BYTES of the source; never waits on a FIFO or a device."""
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = "the image", bytes(source)
    elif isinstance(source, str | os.PathLike):
        name, data = shown(source), _read_path(source)
    elif hasattr(source, "read"):
        name = shown(getattr(source, "name", None) or "the image")
        try:
            if source.seekable():
                source.seek(0)  # an upload may have been read once already
            data = source.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise CaptioningError(f"Cannot read {name}: {error}.") from error
        if not isinstance(data, bytes):
            raise CaptioningError(f"{name} is open as text. Open it with mode 'rb'.")
    else:
        raise CaptioningError(f"Expected a path, an open file or an image, not {type(source).__name__}.")
    if len(data) > MAX_BYTES:
        raise CaptioningError(f"{name} is larger than {MAX_BYTES // 10**6} MB. Save a smaller copy and use that.")
    return name, data


def _read_path(path: str | os.PathLike) -> bytes:
    name = shown(path)
    if name.lower().startswith(("http://", "https://")):
        raise CaptioningError(f"{name} is a web address. Download the photo first and give the path of the file.")
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise CaptioningError(f"{name} is a folder without images in it, not an image. Name a photo, or a folder "
                                  f"that holds photos directly ({', '.join(SUFFIXES[:4])}, ...).")
        if not stat.S_ISREG(mode):  # looked at before it is opened: opening a pipe waits for a writer for ever
            raise CaptioningError(f"{name} is not a regular file (it is a pipe, a socket or a device). Name a photo.")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CaptioningError(f"There is no file {name}. Check the spelling and the folder.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise CaptioningError(f"Cannot open {name}: {getattr(error, 'strerror', None) or error}.") from error


def _identify(data: bytes, name: str) -> Image.Image:
    """Returns the image with its header read and nothing decoded."""
    formats = FORMATS
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        try:
            import pillow_heif

            pillow_heif.register_heif_opener()
            formats = ("HEIF", *FORMATS)
        except ImportError:
            if b"avif" not in data[8:64]:  # AVIF may carry mif1 as its major brand
                raise CaptioningError(
                    f"{name} is a HEIC photo, which needs a decoder. Run `pip install pillow-heif`, or save the photo "
                    "as JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible)."
                ) from None
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise _too_large(name, "far more") from None
    except (Image.UnidentifiedImageError, KeyError):  # KeyError: a Pillow built without one of the formats
        raise CaptioningError(f"{name} is not an image that can be read. Use {_ACCEPTED}.") from None
    except Exception as error:  # Pillow's parsers raise nearly everything on damaged headers
        raise _damaged(name, error) from error


def _finish(image: Image.Image, name: str, data: bytes = b"") -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise CaptioningError(f"{name} has no pixels ({width} x {height}).")
    if max(width, height) > MAX_SIDE:
        raise CaptioningError(f"{name} is {width} x {height} pixels; no side may be longer than {MAX_SIDE:,}.")
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height} pixels, more")
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
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # noqa: BLE001  broken metadata is no reason to refuse a photo that can be seen
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image if type(image) is Image.Image else image.copy()  # a plain image, free of the file's bytes
    if image.mode.startswith(("I", "F")):
        return _scale(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        paper = Image.new("RGB", rgba.size, "white")
        paper.paste(rgba, mask=rgba.getchannel("A"))
        return paper
    return image.convert("RGB")


def _scale(image: Image.Image) -> Image.Image:
    """Returns grey values of 16 or 32 bits as 8 bits; Pillow's own conversion would cut them off at 255.

    Cameras store 10 or 12 bits in 16: the scale is the smallest usual one that holds the brightest pixel.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    brightest = values.max()
    tops = [1.0] if image.mode == "F" else []
    tops += [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]
    top = next((top for top in tops if brightest <= top), brightest)
    return Image.fromarray(np.rint(values * (255.0 / top)).clip(0, 255).astype(np.uint8))


def _too_large(name: str, size: str) -> CaptioningError:
    return CaptioningError(
        f"{name} declares {size} than the {MAX_PIXELS // 10**6} million pixels allowed. Save and use a smaller copy."
    )


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


def examine(paths: Mapping[str, Path]) -> tuple[list[tuple[str, str, str]], dict[str, np.ndarray]]:
    """Returns ("unreadable", name, why) for what cannot be opened, and name -> hash for the others, on all cores.

    Notebook 01, section 5.
    """

    def hash_or_reason(path: Path) -> np.ndarray | str:
        try:
            return perceptual_hash(open_image(path))
        except CaptioningError as error:
            return str(error)

    with ThreadPoolExecutor(usable_cores()) as pool:
        results = dict(zip(paths, tqdm(pool.map(hash_or_reason, paths.values()), "images", len(paths)), strict=True))
    faults = [("unreadable", name, found) for name, found in results.items() if isinstance(found, str)]
    return faults, {name: found for name, found in results.items() if not isinstance(found, str)}
