"""Unpacks zip and tar archives that nobody vouches for: what they name is checked before it is written."""

from __future__ import annotations

import bisect
import bz2
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from helpers.errors import CaptioningError
from helpers.images import shown

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
