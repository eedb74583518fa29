"""Fetches one file over HTTP: several addresses in turn, resumed where the line was cut, checked by size and hash."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from helpers.errors import CaptioningError
from helpers.files import sha256_file, write_json
from helpers.images import shown
from helpers.mirrors import RemoteFile

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
