"""Where the full-size datasets can be had, and how each place's form becomes a layout that `datasets.py` reads.

Hashes are those that others published for the same files (sources in data/README.md); a file without one is checked by
its size as the server states it, by the checksums inside the archive, and by what comes out of it.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import CaptioningError

_GITHUB = "https://github.com/{}/releases/download/{}"
_JBROWNLEE = _GITHUB.format("jbrownlee/Datasets", "Flickr8k")
_AWSAF = _GITHUB.format("awsaf49/flickr-dataset", "v1.0")
_ZENODO = "https://zenodo.org/records/12572919/files/{}?download=1"
_COCO = "images.cocodataset.org"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web: its name here, its addresses; where known, its bytes and its "md5:..." or "sha256:..."."""

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    hash: str | None = None
    into: str = ""  # the folder below the dataset's that it is unpacked to
    optional: bool = False  # the dataset can be used without it


@dataclass(frozen=True)
class Source:
    """One way to get a dataset: archives to unpack (`joined`: parts of a single one), or a function to call."""

    name: str
    files: tuple[RemoteFile, ...] = ()
    joined: bool = False
    call: Callable[[Path], None] | None = None


def _hub(repository: str, **options) -> Source:
    return Source(f"Hugging Face {repository}", call=lambda folder: from_hugging_face(repository, folder, **options))


def _kaggle(name: str) -> Source:
    return Source(f"Kaggle {name}", call=lambda folder: from_kaggle(name, folder))


_TEXT = RemoteFile("Flickr8k_text.zip", (f"{_JBROWNLEE}/Flickr8k_text.zip",),
                   hash="md5:bf6c1abcb8e4a833b7f922104de18627", into="Flickr8k_text")
_KARPATHY = RemoteFile("caption_datasets.zip",
                       ("https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",),
                       hash="md5:4fa8c08369d22fe16e41dc124bd1adc2", optional=True)


def _coco(name: str, place: str, md5: str) -> RemoteFile:
    return RemoteFile(name, (f"https://s3.amazonaws.com/{_COCO}/{place}/{name}", f"http://{_COCO}/{place}/{name}"),
                      hash=f"md5:{md5}")


SOURCES: dict[str, tuple[Source, ...]] = {
    "flickr8k": (
        Source("GitHub jbrownlee/Datasets", (
            RemoteFile("Flickr8k_Dataset.zip", (f"{_JBROWNLEE}/Flickr8k_Dataset.zip",),
                       hash="md5:f18a1e2920de5bd84dae7cf08ec78978"), _TEXT)),
        Source("GitHub awsaf49/flickr-dataset", (
            RemoteFile("flickr8k.zip", (f"{_AWSAF}/flickr8k.zip", _ZENODO.format("flickr8k.zip"))),
            # the official splits, which this archive lacks
            RemoteFile(_TEXT.name, _TEXT.urls, hash=_TEXT.hash, into="Flickr8k_text", optional=True))),
        _hub("intro/flickr8k"),
        _hub("jxie/flickr8k"),
        _kaggle("adityajn105/flickr8k"),
    ),
    "flickr30k": (
        Source("GitHub awsaf49/flickr-dataset", tuple(
            RemoteFile(part, (f"{_AWSAF}/{part}", _ZENODO.format(part))) for part in
            (f"flickr30k_part0{number}" for number in range(3))) + (_KARPATHY,), joined=True),
        _hub("nlphuji/flickr30k", revision="refs/convert/parquet"),
        _kaggle("hsankesara/flickr-image-dataset"),
    ),
    "coco": (
        Source("COCO 2014", (
            _coco("annotations_trainval2014.zip", "annotations", "0a379cfc70b0e71301e0f377548639bd"), _KARPATHY,
            _coco("val2014.zip", "zips", "a3d79f5ed8d289b7a7554ce06a5782b3"),
            _coco("train2014.zip", "zips", "0da8c0bd3d6becc4dcb32757491aca88"))),
    ),
}
EXPECTED = {"flickr8k": (8000, 5), "flickr30k": (31000, 5), "coco": (120000, 5)}  # images at least, captions an image
DISK = {"flickr8k": 2.5e9, "flickr30k": 9.5e9, "coco": 42e9}  # bytes needed while archives and files are both there


def from_kaggle(name: str, folder: Path) -> None:
    """Fills `folder` with a Kaggle dataset by kagglehub (which asks for no account for public ones).

    Raises CaptioningError when kagglehub is not installed or cannot fetch it.
    """
    try:
        import kagglehub
    except ImportError:
        raise CaptioningError("needs the package kagglehub: `pip install kagglehub`") from None
    try:
        shutil.copytree(kagglehub.dataset_download(name), folder, copy_function=_link, dirs_exist_ok=True)
    except Exception as error:  # whatever a library and a network raise between them
        raise CaptioningError(f"kagglehub: {error}") from error


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)  # no second gigabyte while both are on one disk
    except OSError:
        shutil.copy2(source, target)


def from_hugging_face(repository: str, folder: Path, revision: str | None = None) -> None:
    """Fills `folder` in Flickr8k's Kaggle layout from an image-caption dataset of the Hub, by the package datasets.

    Raises CaptioningError when the package is not installed or the dataset cannot be fetched.
    """
    try:
        import datasets
    except ImportError:
        raise CaptioningError("needs the package datasets: `pip install datasets`") from None
    try:
        loaded = datasets.load_dataset(repository, revision=revision)
        undecoded = {split: rows.cast_column("image", datasets.Image(decode=False)) for split, rows in loaded.items()}
        write_rows(undecoded, folder)
    except CaptioningError:
        raise
    except Exception as error:
        raise CaptioningError(f"datasets: {error}") from error


def write_rows(splits: Mapping[str, Iterable[Mapping]], folder: Path) -> None:
    """Writes captions.txt (with a split column) and Images/ from rows as the Hub's datasets have them.

    A row has `image` ({"bytes", "path"}), captions in `caption` (text or list) or `caption_0`, `caption_1`, ..., and
    may have `filename` and `split`. Raises CaptioningError for a row without image bytes or without captions.
    """
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    with open(folder / "captions.txt", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "caption", "split"))
        for split, rows in splits.items():
            for number, row in enumerate(rows):
                image = row["image"] if isinstance(row.get("image"), Mapping) else {}
                data = image.get("bytes") or _bytes_of(image.get("path"))
                captions = _captions_of(row)
                if not data or not captions:
                    raise CaptioningError(f"row {number} of the split {split!r} has no image or no captions")
                given = os.path.basename(str(row.get("filename") or row.get("file_name") or image.get("path") or ""))
                path = folder / "Images" / given
                if not re.fullmatch(r"[\w-][\w.-]*\.(jpe?g|png)", given, re.IGNORECASE) or path.exists():
                    path = folder / "Images" / f"{split}_{number:05d}.jpg"
                path.write_bytes(data)
                table.writerows((path.name, " ".join(caption.split()), row.get("split") or split)
                                for caption in captions)


def _captions_of(row: Mapping) -> list[str]:
    numbered = sorted((key for key in row if re.fullmatch(r"caption_\d+", key)), key=lambda key: int(key[8:]))
    captions = [row[key] for key in numbered] or row.get("caption") or row.get("captions") or []
    return [captions] if isinstance(captions, str) else list(captions)


def _bytes_of(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path and os.path.isfile(path) else None
