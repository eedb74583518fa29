"""Fetches the full-size datasets: one source after the other, checked, unpacked, and put in place whole.

A dataset comes to `data/NAME`. What is on the way lies in `data/NAME.download`, which also keeps the SHA-256 of every
archive that turned out right (`sha256.json`): a later download of the same file has to match it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from helpers.archives import ArchiveError, extract
from helpers.errors import CaptioningError, unknown_name
from helpers.fetch import fetch_file
from helpers.files import read_json, sha256_file, write_json
from helpers.images import SUFFIXES, shown
from helpers.locks import only_one
from helpers.mirrors import DISK, EXPECTED, SOURCES, RemoteFile, Source


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
