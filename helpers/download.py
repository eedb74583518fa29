"""Fetches the full-size datasets: one source after the other, checked, unpacked, and put in place whole.

A dataset comes to `data/NAME`. What is on the way lies in `data/NAME.download`, which also keeps the SHA-256 of every
archive that turned out right (`sha256.json`): a later download of the same file has to match it.
"""

from __future__ import annotations

import bisect
import bz2
import csv
import gzip
import hashlib
import http.client
import io
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from helpers.files import CaptioningError, only_one, read_json, sha256_file, unknown_name, write_json
from helpers.images import SUFFIXES, shown


def fetch_dataset(
    name: str, folder: str | os.PathLike, sources: Sequence[Source] | None = None,
    expected: tuple[int, int] | None = None,
) -> Path:
    """Returns `folder` with the dataset `name` in it, fetched if the folder is missing or empty.

    Each source is tried until one gives a dataset that its reader accepts with at least `expected` = (images, captions
    an image). The folder appears whole or not at all; of two processes the second waits for the first.
    Raises CaptioningError with the reason each source failed for, and how to do it by hand.
    """
    folder = Path(folder).absolute()
    if name not in SOURCES:
        raise unknown_name("dataset to download", name, SOURCES)
    sources = SOURCES[name] if sources is None else sources
    work = folder.with_name(folder.name + ".download")
    if _filled(folder):
        return folder
    with only_one(work):
        if _filled(folder):
            return folder
        for stale in folder.parent.glob(f".{folder.name}.*.part"):  # of a run that was killed; nobody else is here
            shutil.rmtree(stale, ignore_errors=True)
        if sources is SOURCES[name]:
            _check_room(folder.parent, DISK[name], name)
        problems = []
        for source in sources:
            try:
                _from_source(name, source, folder, work, EXPECTED[name] if expected is None else expected)
                return folder
            except CaptioningError as error:
                problems.append(f"- {source.name}: {error}")
    raise CaptioningError(_by_hand(name, sources, folder, work, problems))


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _check_room(folder: Path, needed: float, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CaptioningError(f"{name} needs {needed / 1e9:.1f} GB while it is unpacked; {shown(folder)} has "
                              f"{free / 1e9:.1f} GB left. Free some, or name a data_dir on another disk.")


def _by_hand(name: str, sources: Sequence[Source], folder: Path, work: Path, problems: list[str]) -> str:
    first = next((source for source in sources if source.files), None)
    offline = problems and all("cannot be reached" in problem or "pip install" in problem for problem in problems)
    lines = [f"{name} could not be downloaded."]
    lines += ["There seems to be no connection to the internet."] if offline else []
    lines += [*problems, "By hand:"]
    if first is not None:
        lines += ["  1. Where there is a connection, download these files, and keep their names:"]
        lines += [f"     {file.urls[0]}" for file in first.files]
        lines += [f"  2. Put them into {shown(work)} and call again: they are checked and unpacked."]
    lines += [f"  Or fill {shown(folder)} yourself, in a layout that data/README.md shows."]
    return "\n".join(lines)


def _from_source(name: str, source: Source, folder: Path, work: Path, expected: tuple[int, int]) -> None:
    """Fetches, unpacks, checks, and renames to `folder`."""
    pins = read_json(work / "sha256.json") if (work / "sha256.json").is_file() else {}
    archives: dict[RemoteFile, Path] = {}
    for file in source.files:
        try:
            archives[file] = fetch_file(file, work, pins.get(file.name))
        except CaptioningError as error:
            if not file.optional:
                raise
            print(f"{file.name} is left out: {error}")
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        if source.call is not None:
            source.call(part)
        whole = [path for file, path in archives.items() if source.joined and not file.optional]
        try:
            if whole:
                _unpack(whole, part)
            for file, path in archives.items():
                if path not in whole:
                    _unpack([path], part / file.into)
            _check_contents(name, part, expected)
        except ArchiveError:
            for file, path in archives.items():
                if file.hash is None and file.name not in pins:  # a known hash says that the bytes are right
                    path.unlink(missing_ok=True)
            raise
        write_json(work / "sha256.json", {**pins, **{f.name: sha256_file(path) for f, path in archives.items()}})
        os.chmod(part, 0o755)
        if folder.is_dir():
            folder.rmdir()  # empty, or we should not be here
        os.rename(part, folder)
    except OSError as error:
        raise CaptioningError(f"cannot write {shown(folder)}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for path in archives.values():
        path.unlink(missing_ok=True)


def _unpack(archives: Sequence[Path], folder: Path) -> None:
    """Unpacks into `folder`, without the outer folders that some archives put around everything."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = Path(tempfile.mkdtemp(prefix="unpack.", dir=folder))
    extract(archives, inner)
    root = inner
    while len(entries := list(root.iterdir())) == 1 and entries[0].is_dir() and not _holds_images(entries[0]) \
            and entries[0].name != "annotations":
        root = entries[0]
    for entry in root.iterdir():
        if (folder / entry.name).exists():
            raise ArchiveError(f"two archives hold {shown(entry.name)}")
        os.rename(entry, folder / entry.name)
    shutil.rmtree(inner)


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir())


def _check_contents(name: str, folder: Path, expected: tuple[int, int]) -> None:
    from helpers import datasets

    try:
        dataset = getattr(datasets, f"read_{name}")(folder)
    except CaptioningError as error:
        raise ArchiveError(f"what was downloaded cannot be read: {error}") from error
    counts = dataset.table.groupby("image").size()
    if len(counts) < expected[0] or counts.min() < expected[1]:
        raise ArchiveError(f"what was downloaded has {len(counts):,} images, with {counts.min()} captions or more; "
                           f"{expected[0]:,} with {expected[1]} were expected")
TIMEOUT = 30  # seconds without a byte
TRIES = 4  # in a row without any progress
MOST_TRIES = 200  # in all
PAUSE = 0.5  # seconds before the second try; doubled before each later one
_HEADERS = {"User-Agent": "captioning-course/1.0 (dataset download)", "Accept-Encoding": "identity"}


def fetch_file(file: RemoteFile, folder: Path, pinned: str | None = None) -> Path:
    """Returns the path of a remote file in `folder`, fetched from the first address that gives the right bytes.

    A file that is there already is checked and used. A part that an earlier run left is continued. The file must have
    the size and hash that `file` names and the SHA-256 `pinned`, as far as they are known.
    Raises CaptioningError with the reason for each address.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    if path.is_file():  # of an earlier run, or put there by hand
        if (fault := _fault(path, file, pinned)) is None:
            return path
        path.replace(path.with_name(path.name + ".wrong"))
        problems.append(f"{shown(path)} {fault}, and is set aside as {path.name}.wrong")
    for url in file.urls:
        try:
            resumed = _download(url, part, file)
            fault = _fault(part, file, pinned)
            if fault and resumed:  # the part may have been of another version: once more from the start
                _discard(part)
                _download(url, part, file)
                fault = _fault(part, file, pinned)
            if fault is None:
                os.replace(part, path)
                _discard(part)
                return path
            problems.append(f"{url} {fault}")
        except CaptioningError as error:
            problems.append(str(error))
            continue  # a part is kept: the next run goes on from it
        _discard(part)
    raise CaptioningError("; ".join(problems))


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def _fault(path: Path, file: RemoteFile, pinned: str | None) -> str | None:
    """Returns what is wrong with the bytes of a file, or None."""
    if file.size is not None and path.stat().st_size != file.size:
        return f"has {path.stat().st_size:,} bytes instead of {file.size:,}"
    if file.hash is not None:
        algorithm, _, digest = file.hash.partition(":")
        with open(path, "rb") as content:
            found = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        return None if found == digest else f"has the wrong {algorithm} ({found} instead of {digest})"
    if pinned is not None and sha256_file(path) != pinned:
        return "differs from what was downloaded the first time (sha256.json); delete that file if the change is wanted"
    return None


def _download(url: str, part: Path, file: RemoteFile) -> bool:
    """Fetches `url` into `part`, going on from what is there; returns whether it went on from an earlier run's part."""
    if not url.startswith(("http://", "https://")):
        raise CaptioningError(f"{url} is no web address")
    note = part.with_name(part.name + ".json")
    state = _state(note, url)
    if state is None:
        _discard(part)
    resumed = part.is_file() and part.stat().st_size > 0
    failures = 0
    for _ in range(MOST_TRIES):
        have = part.stat().st_size if part.is_file() else 0
        if have and have == (_state(note, url) or {}).get("total"):
            return resumed
        try:
            _once(url, part, note, have, file)
            return resumed
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # the part is longer than the file: it is of another one
                _discard(part)
            elif error.code < 500 and error.code not in (408, 429):
                raise CaptioningError(f"{url} answers {error.code} {error.reason}") from None
            reason = f"answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = f"{'breaks off' if have else 'cannot be reached'} ({getattr(error, 'reason', None) or error})"
        grown = (part.stat().st_size if part.is_file() else 0) > have
        failures = 0 if grown else failures + 1
        if failures >= TRIES:
            raise CaptioningError(f"{url} {reason}")
        time.sleep(PAUSE * 2**failures)
    raise CaptioningError(f"{url} breaks off again and again")


def _state(note: Path, url: str) -> dict | None:
    """Returns what is known of a part ("etag", "total"), or None when it is not of this address."""
    try:
        state = json.loads(note.read_text(encoding="utf-8"))
        return state if state["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _once(url: str, part: Path, note: Path, have: int, file: RemoteFile) -> None:
    state = _state(note, url) or {}
    headers = dict(_HEADERS)
    if have:
        headers["Range"] = f"bytes={have}-"
        if state.get("etag"):
            headers["If-Range"] = state["etag"]  # the whole file comes instead when it has changed meanwhile
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        length = answer.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        if answer.status == 206:
            first, _, whole = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            total = int(whole) if whole.isdigit() else None
            if first.split("-")[0] != str(have) or state.get("total") not in (None, total):
                _discard(part)
                raise ConnectionError("the rest is of another version of the file")
        else:
            have = 0
        if total is not None and file.size is not None and total != file.size:
            raise CaptioningError(f"{url} has {total:,} bytes instead of {file.size:,}")
        etag = answer.headers.get("ETag") or (state.get("etag", "") if have else "")
        write_json(note, {"url": url, "total": total, "etag": "" if etag.startswith("W/") else etag})
        _copy(answer, part, have, total if total is not None else file.size)


def _copy(answer: http.client.HTTPResponse, part: Path, have: int, total: int | None) -> None:
    read: Callable[[int], bytes] = getattr(answer, "read1", answer.read)  # what has come, not a full block
    with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, mininterval=1) as bar:
        try:
            out = open(part, "r+b" if have else "wb", buffering=0)  # noqa: SIM115 - closed below
        except OSError as error:
            raise _cannot_write(part, error) from error
        with out:
            out.seek(have)
            while block := read(1 << 18):
                have += len(block)
                if total is not None and have > total:
                    raise ConnectionError("sends more than it announced")
                try:
                    while block:
                        block = block[out.write(block):]
                except OSError as error:
                    raise _cannot_write(part, error) from error
                bar.update(have - bar.n)
    if total is not None and have < total:
        raise ConnectionError(f"after {have:,} of {total:,} bytes")


def _cannot_write(part: Path, error: OSError) -> CaptioningError:
    return CaptioningError(f"cannot write {shown(part)}: {error.strerror or error}. What has come so far is kept.")
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
MAX_BYTES = 60_000_000_000  # unpacked; COCO's photos are 19 GB
MAX_FILES = 1_000_000
MAX_RATIO = 200  # unpacked to packed: photos are near 1, captions below 10, bombs above 1,000
MAX_HEADERS = 50_000_000  # bytes of tar headers beside the files themselves
_IGNORED = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|Thumbs\.db$|\._)")


class ArchiveError(CaptioningError):
    """An archive that is damaged or refused: it is of no use here, and another copy may be."""


class Joined(io.RawIOBase):
    """Reads files end to end as one seekable file: an archive in parts, without a second copy on the disk."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [open(path, "rb") for path in paths]  # noqa: SIM115 - closed in close()
        self._ends, total = [], 0
        for path in paths:
            total += path.stat().st_size
            self._ends.append(total)
        self._place, self._size = 0, total

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer) -> int:
        part = bisect.bisect_right(self._ends, self._place)
        if part == len(self._files):
            return 0
        start = self._ends[part - 1] if part else 0
        self._files[part].seek(self._place - start)
        count = self._files[part].readinto(memoryview(buffer)[:self._ends[part] - self._place])
        self._place += count
        return count

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def extract(archive: Path | Sequence[Path], folder: Path, max_bytes: int = MAX_BYTES) -> int:
    """Unpacks a zip or tar archive (a path, or its parts in order) into `folder`; returns the number of files.

    Raises ArchiveError when it is neither, is damaged (every file's checksum is verified), or holds anything that an
    archive of photos has no need of: absolute names, `..`, links, devices, encrypted or repeated names, more than
    `max_bytes` or MAX_FILES, or data packed more than MAX_RATIO to one. Raises CaptioningError when `folder` cannot be
    written. What was written until then stays in it: it should be a temporary one.
    """
    parts = [archive] if isinstance(archive, Path) else list(archive)
    name = shown(parts[0].name)
    folder.mkdir(parents=True, exist_ok=True)
    with io.BufferedReader(Joined(parts), 1 << 20) as file:
        size = sum(path.stat().st_size for path in parts)
        limit = min(max_bytes, max(size * MAX_RATIO, 10_000_000))
        try:
            if zipfile.is_zipfile(file):
                file.seek(0)
                return _extract_zip(file, name, folder, limit)
            file.seek(0)
            return _extract_tar(file, name, folder, limit)
        except CaptioningError:
            raise
        except OSError as error:
            if error.errno is None:  # gzip reports a bad checksum so
                raise ArchiveError(f"{name} is damaged: {shown(str(error))}.") from error
            raise CaptioningError(f"Cannot unpack {name} into {shown(folder)}: {error.strerror}.") from error
        except Exception as error:  # zipfile and tarfile raise nearly everything on damaged input
            raise ArchiveError(f"{name} is damaged or no zip or tar archive: {shown(str(error))}.") from error


def _extract_zip(file: IO[bytes], name: str, folder: Path, limit: int) -> int:
    with zipfile.ZipFile(file) as packed:
        members = [member for member in packed.infolist() if not _IGNORED.search(member.filename)]
        if len(members) > MAX_FILES or sum(member.file_size for member in members) > limit:
            raise _refused(name, "it unpacks to far more than it should")
        for member in members:  # all of them before the first is written
            _target(name, member.filename, folder)
            mode = stat.S_IFMT(member.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(name, f"{shown(member.filename)} is a link or a device")
            if member.flag_bits & 1:
                raise _refused(name, f"{shown(member.filename)} is encrypted")
        writer = _Writer(name, folder, limit)
        for member in members:
            if not member.is_dir():
                with packed.open(member) as source:
                    writer.write(member.filename, source)
        return writer.count


def _extract_tar(file: IO[bytes], name: str, folder: Path, limit: int) -> int:
    magic = file.peek(6)[:6]
    opener = gzip.open if magic[:2] == b"\x1f\x8b" else bz2.open if magic[:3] == b"BZh" else \
        lzma.open if magic == b"\xfd7zXZ\0" else None
    stream = _Limited(opener(file) if opener else file, limit + MAX_HEADERS, name)
    writer = _Writer(name, folder, limit)
    with tarfile.open(fileobj=stream, mode="r|") as packed:
        for member in packed:
            if _IGNORED.search(member.name):
                continue
            _target(name, member.name, folder)
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise _refused(name, f"{shown(member.name)} is a link, a device or a sparse file")
            source = packed.extractfile(member) if member.isreg() else None
            if source is not None:
                writer.write(member.name, source)
    while stream.read(1 << 20):  # to the very end, where the checksum of gzip, bzip2 and xz is compared
        pass
    return writer.count


class _Limited:
    """Reads at most `left` bytes of a stream: a tar header can claim to be gigabytes long itself."""

    def __init__(self, stream: IO[bytes], left: int, archive: str) -> None:
        self.stream, self.left, self.archive = stream, left, archive

    def read(self, count: int) -> bytes:
        data = self.stream.read(min(count, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise _refused(self.archive, "it unpacks to far more than it should")
        return data


class _Writer:
    """Writes members below a folder, each name once, at most `limit` bytes in all whatever the headers claim."""

    def __init__(self, archive: str, folder: Path, limit: int) -> None:
        self.archive, self.folder, self.left, self.count = archive, folder, limit, 0

    def write(self, name: str, source: IO[bytes]) -> None:
        target = _target(self.archive, name, self.folder)
        self.count += 1
        if self.count > MAX_FILES:
            raise _refused(self.archive, "it holds too many files")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as out:
                while block := source.read(1 << 20):
                    self.left -= len(block)
                    if self.left < 0:
                        raise _refused(self.archive, "it unpacks to far more than it should")
                    out.write(block)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise _refused(self.archive, f"it holds {shown(name)} twice") from None


def _target(archive: str, name: str, folder: Path) -> Path:
    plain = name.replace("\\", "/")
    pieces = [piece for piece in plain.split("/") if piece not in ("", ".")]
    if plain.startswith("/") or ".." in pieces or re.match(r"[A-Za-z]:", plain) or "\0" in plain or not pieces:
        if plain and plain.strip("./") == "" and ".." not in pieces and not plain.startswith("/"):
            return folder  # "./", as tar writes it for the folder itself
        raise _refused(archive, f"{shown(name)!r} leads out of the folder")
    return folder.joinpath(*pieces)


def _refused(archive: str, reason: str) -> ArchiveError:
    return ArchiveError(f"{archive} is refused: {reason}. Get the archive from another source.")
