"""Fetches the full-size datasets: one source after the other, checked, unpacked, and put in place whole.

A dataset comes to `data/NAME`. What is on the way lies in `data/NAME.download`.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from helpers.files import CaptioningError, only_one, unknown_name, writing

TIMEOUT = 30  # seconds without a byte
TRIES = 4  # in a row without any progress
PAUSE = 0.5  # seconds before the second try; doubled before each later one
MAX_RATIO = 200  # unpacked to packed: photos are near 1, captions below 10, bombs above 1,000
_IGNORED = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|Thumbs\.db$|\._)")
_JBROWNLEE = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
_COCO = "http://images.cocodataset.org"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web: its name here, its address, its "md5:..." or "sha256:..." if known. Notebook 01, section 1."""

    name: str
    url: str
    hash: str | None = None
    into: str = ""  # the folder below the dataset's that it is unpacked to
    optional: bool = False  # the dataset can be used without it


@dataclass(frozen=True)
class Source:
    """One way to get a dataset: archives, or a repository of the hub. Notebook 01, section 1."""

    name: str
    files: tuple[RemoteFile, ...] = ()
    repository: str | None = None
    revision: str | None = None


_KARPATHY = RemoteFile(
    "caption_datasets.zip", "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "md5:4fa8c08369d22fe16e41dc124bd1adc2", optional=True,
)  # fmt: skip
SOURCES: dict[str, tuple[Source, ...]] = {
    "flickr8k": (
        Source("GitHub jbrownlee/Datasets", (
            RemoteFile("Flickr8k_Dataset.zip", f"{_JBROWNLEE}/Flickr8k_Dataset.zip",
                       "md5:f18a1e2920de5bd84dae7cf08ec78978"),
            RemoteFile("Flickr8k_text.zip", f"{_JBROWNLEE}/Flickr8k_text.zip",
                       "md5:bf6c1abcb8e4a833b7f922104de18627", into="Flickr8k_text"))),
        Source("Hugging Face jxie/flickr8k", repository="jxie/flickr8k"),
    ),
    "flickr30k": (
        Source("Hugging Face nlphuji/flickr30k", repository="nlphuji/flickr30k", revision="refs/convert/parquet"),
    ),
    "coco": (
        Source("COCO 2014", (
            RemoteFile("annotations_trainval2014.zip", f"{_COCO}/annotations/annotations_trainval2014.zip",
                       "md5:0a379cfc70b0e71301e0f377548639bd"),
            _KARPATHY,
            RemoteFile("val2014.zip", f"{_COCO}/zips/val2014.zip", "md5:a3d79f5ed8d289b7a7554ce06a5782b3"),
            RemoteFile("train2014.zip", f"{_COCO}/zips/train2014.zip", "md5:0da8c0bd3d6becc4dcb32757491aca88"))),
    ),
}  # fmt: skip
EXPECTED = {"flickr8k": (8000, 5), "flickr30k": (31000, 5), "coco": (120000, 5)}  # images at least, captions an image
DISK = {"flickr8k": 2.5e9, "flickr30k": 14e9, "coco": 42e9}  # bytes needed while archives and files are both there


def fetch_dataset(
    name: str, folder: str | os.PathLike, read: Callable, sources: Sequence[Source] | None = None,
    expected: tuple[int, int] | None = None,
) -> Path:
    """Returns `folder` with the dataset `name` in it, fetched if it is missing or empty. Notebook 01, section 1.

    Each source is tried until one gives a dataset that `read` (folder -> Dataset) accepts with at least `expected` =
    (images, captions an image). The folder appears whole or not at all; of two processes the second waits. Raises
    CaptioningError with why each source failed, and how to do it by hand.
    """
    folder = Path(folder).absolute()
    if name not in SOURCES:
        raise unknown_name("dataset to download", name, SOURCES)
    work, problems = folder.with_name(folder.name + ".download"), []
    with only_one(work):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
        free = shutil.disk_usage(folder.parent).free
        if sources is None and free < DISK[name]:
            raise CaptioningError(f"{name} needs {DISK[name] / 1e9:.1f} GB while it is unpacked; {folder.parent} has "
                                  f"{free / 1e9:.1f} GB left. Free some, or name a data_dir on another disk.")
        for source in sources or SOURCES[name]:
            try:
                _from_source(source, folder, work, read, expected or EXPECTED[name])
                return folder
            except CaptioningError as error:
                problems.append(f"- {source.name}: {error}")
    files = next((source.files for source in sources or SOURCES[name] if source.files), ())
    raise CaptioningError("\n".join([
        f"{name} could not be downloaded.", *problems, "By hand: where there is a connection, download",
        *(f"    {file.url}" for file in files), f"  put the files into {work} under the same names and call again, or",
        f"  fill {folder} yourself, in a layout that data/README.md shows."]))  # fmt: skip


def _from_source(source: Source, folder: Path, work: Path, read: Callable, expected: tuple[int, int]) -> None:
    """Fetches, unpacks, checks, and renames to `folder`."""
    archives: dict[RemoteFile, Path] = {}
    for file in source.files:
        try:
            archives[file] = fetch_file(file, work)
        except CaptioningError as error:
            if not file.optional:
                raise
            print(f"{file.name} is left out: {error}")
    shutil.rmtree(work / "unpacked", ignore_errors=True)  # of a run that was killed; nobody else is here
    part = work / "unpacked" / "dataset"
    try:
        with writing(folder):
            part.mkdir(parents=True)
            if source.repository is not None:
                from_hub(source, part)
            for file, path in archives.items():
                _unpack(path, part / file.into)
            counts = read(part).table.groupby("image").size()
            if len(counts) < expected[0] or counts.min() < expected[1]:
                raise CaptioningError(f"what was downloaded has {len(counts):,} images with {counts.min()} captions or "
                                      f"more; {expected[0]:,} with {expected[1]} were expected")
            if folder.is_dir():
                folder.rmdir()  # empty, or we should not be here
            os.rename(part, folder)
    except CaptioningError:
        for file, path in archives.items():
            if file.hash is None:  # a known hash says that the bytes are right
                path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(work / "unpacked", ignore_errors=True)
    for path in archives.values():
        path.unlink(missing_ok=True)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks into `folder`, without the outer folders that some archives put around everything."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = Path(tempfile.mkdtemp(prefix="unpack.", dir=folder))
    extract(archive, inner)
    root, entries = inner, list(inner.iterdir())
    while len(entries) == 1 and entries[0].is_dir() and entries[0].name != "annotations" \
            and not any(entry.suffix.lower() in (".jpg", ".jpeg", ".png") for entry in entries[0].iterdir()):
        root = entries[0]
        entries = list(root.iterdir())
    for entry in entries:
        if (folder / entry.name).exists():
            raise CaptioningError(f"two archives hold {entry.name}")
        os.rename(entry, folder / entry.name)
    shutil.rmtree(inner)


def extract(archive: Path, folder: Path) -> None:
    """Unpacks a zip or tar archive into an empty `folder`. Notebook 01, section 1.

    Raises CaptioningError when it is neither, is damaged, leads out of the folder, holds links or devices, or unpacks
    to more than MAX_RATIO times its size. What was written until then stays: the folder should be a temporary one.
    """
    limit = max(archive.stat().st_size * MAX_RATIO, 10_000_000)
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as packed:
            is_zip = isinstance(packed, zipfile.ZipFile)
            for member in packed.infolist() if is_zip else packed:
                name, size = (member.filename, member.file_size) if is_zip else (member.name, member.size)
                name = name.replace("\\", "/")
                if _IGNORED.search(name):
                    continue
                limit -= size
                if limit < 0:
                    raise CaptioningError(f"{archive.name} is refused: it unpacks to far more than it should.")
                if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name):
                    raise CaptioningError(f"{archive.name} is refused: {name!r} leads out of the folder.")
                if is_zip:
                    packed.extract(member, folder)
                else:
                    packed.extract(member, folder, filter="data")  # refuses links that lead out, and devices
    except CaptioningError:
        raise
    except tarfile.FilterError as error:
        raise CaptioningError(f"{archive.name} is refused: {error}.") from error
    except OSError as error:
        if error.errno is None:  # gzip reports a bad checksum so
            raise CaptioningError(f"{archive.name} is damaged: {error}.") from error
        raise
    except Exception as error:  # zipfile and tarfile raise nearly everything on damaged input
        raise CaptioningError(f"{archive.name} is damaged or no zip or tar archive: {error}.") from error


def fetch_file(file: RemoteFile, folder: Path) -> Path:
    """Returns the path of a remote file in `folder`. One that is there is checked and used, a part of one continued.

    The file must have the hash that `file` names, if any. Raises CaptioningError. Notebook 01, section 1.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        _download(file.url, part)
        os.replace(part, path)
    if file.hash:
        algorithm, _, digest = file.hash.partition(":")
        with open(path, "rb") as content:
            found = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        if found != digest:
            path.replace(path.with_name(path.name + ".wrong"))
            raise CaptioningError(f"{path} has the wrong {algorithm} ({found} instead of {digest}). It is set aside as "
                                  f"{path.name}.wrong. Try again.")
    return path


def _download(url: str, part: Path) -> None:
    """Fetches `url` into `part`, going on from what is there; a server that cuts the line is asked again."""
    if not url.startswith(("http://", "https://")):
        raise CaptioningError(f"{url} is no web address")
    failures = 0
    while True:
        have = part.stat().st_size if part.is_file() else 0
        try:
            with _answer(url, have) as answer:
                _copy(answer, part, have if answer.status == 206 else 0)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing is left to send, or the part is of another file: the hash tells
                return
            if error.code < 500 and error.code not in (408, 429):
                raise CaptioningError(f"{url} answers {error.code} {error.reason}") from None
            reason = f"answers {error.code} {error.reason}"
        except (ConnectionError, TimeoutError, urllib.error.URLError, http.client.HTTPException) as error:
            reason = f"{'breaks off' if have else 'cannot be reached'} ({getattr(error, 'reason', None) or error})"
        grown = part.is_file() and part.stat().st_size > have
        failures = 0 if grown else failures + 1
        if failures >= TRIES:
            raise CaptioningError(f"{url} {reason}. What has come so far is kept.")
        time.sleep(PAUSE * 2**failures)


def _answer(url: str, have: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "captioning-course/1.0 (dataset download)", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def _copy(answer: http.client.HTTPResponse, part: Path, have: int) -> None:
    left = answer.headers.get("Content-Length")
    total = have + int(left) if left else None
    with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, mininterval=1) as bar, \
            writing(part), open(part, "ab" if have else "wb") as out:
        while True:
            try:
                block = answer.read1(1 << 18)
            except OSError as error:  # of the line, not of the disk
                raise http.client.HTTPException(str(error)) from error
            if not block:
                break
            out.write(block)
            bar.update(len(block))
        out.flush()
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"after {part.stat().st_size:,} of {total:,} bytes")


def from_hub(source: Source, folder: Path) -> None:
    """Fills `folder` in Flickr8k's Kaggle layout from the Parquet files of a dataset of the Hugging Face hub.

    Raises CaptioningError when they cannot be fetched or read. Notebook 01, section 1.
    """
    import pandas
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(source.repository, repo_type="dataset", revision=source.revision,
                                  allow_patterns="*.parquet")
        rows = {path: pandas.read_parquet(path).to_dict("records") for path in sorted(Path(found).rglob("*.parquet"))}
    except Exception as error:  # whatever a library and a network raise between them
        raise CaptioningError(f"the hub: {str(error).strip()[:300]}") from error
    write_rows([{"split": re.split(r"[-_]\d", path.stem)[0], **row} for path in rows for row in rows[path]], folder)


def write_rows(rows: Iterable[Mapping], folder: Path) -> None:
    """Writes captions.txt (with a split column) and Images/ from rows as the hub's datasets have them.

    A row has `image` ({"bytes", "path"}), `split`, and captions in `caption` (text or list) or `caption_0`,
    `caption_1`, ... Raises CaptioningError for a row without image bytes or captions. Notebook 01, section 1.
    """
    import pandas

    (folder / "Images").mkdir(parents=True, exist_ok=True)
    table = []
    for number, row in enumerate(rows):
        data = (row.get("image") or {}).get("bytes")
        captions = [row[key] for key in row if re.fullmatch(r"caption_\d+", key)] or row.get("caption")
        captions = [captions] if isinstance(captions, str) else list(captions if captions is not None else ())
        if not data or not captions:
            raise CaptioningError(f"row {number} of the split {row['split']!r} has no image or no captions")
        name = os.path.basename(str(row.get("filename") or ""))
        if not re.fullmatch(r"[\w-][\w.-]*\.(jpe?g|png)", name, re.IGNORECASE):
            name = f"{row['split']}_{number:05d}.jpg"
        (folder / "Images" / name).write_bytes(data)
        table += [{"image": name, "caption": " ".join(text.split()), "split": row["split"]} for text in captions]
    pandas.DataFrame(table).to_csv(folder / "captions.txt", index=False)
