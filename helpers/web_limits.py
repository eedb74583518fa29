"""What one visitor of the page, or one request to the service, may ask for; and the page's memory.

Streamlit keeps every uploaded file until its visitor has left, and limits the size of one file alone: a single visitor
could fill the memory with many. Here all files of a visitor have a limit together, and all visitors have one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for."""

    photo_bytes: int = 25_000_000
    request_bytes: int = 60_000_000  # all photos of a request together, or of a visitor of the page
    held_bytes: int = 600_000_000  # all photos of all visitors that the page holds
    photos: int = 20  # of a request, or on a page
    seconds: float = 30.0  # from the first byte of a request to its answer
    upload_seconds: float = 300.0  # from the first byte to the last of a photo sent to the page, over a phone's line
    refusals: int = 100  # refused photos of a visitor whose names the page still shows
    waiting: int = 200  # photos that may wait for the captioner, of all visitors together
LIMITS = Limits()
LEAST = 10_000  # bytes that any file counts for: empty ones take room, too
REFUSED = "application/x-refused"  # in place of a file's type: what was sent is not kept, only its name
FULL = "The page holds as many photos as it can. Remove these, and choose them again in a few minutes."
_pasted: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # gone with the visitor who pasted them


def remember(item: Any) -> None:
    """Counts a photo that the page keeps itself, for as long as anyone holds `item`. It has its bytes in `data`."""
    _pasted[id(item)] = item


def size_of(data: bytes) -> int:
    """Returns the bytes that a file counts for."""
    return max(len(data), LEAST)


def total(items: Iterable[Any]) -> int:
    """Returns the bytes that items count for together."""
    return sum(size_of(item.data) for item in items)


def held(manager: Any) -> dict[str, int]:
    """Returns the bytes that uploads take, by visitor, and those of pasted photos together (by the name "")."""
    stored: Mapping[str, Mapping[str, Any]] = manager.file_storage
    sizes = {visitor: total([*files.values()]) for visitor, files in [*stored.items()]}
    return sizes | {"": total([*_pasted.values()])}


def too_many(limits: Limits) -> str:
    """Returns what a visitor over his limit reads."""
    return (
        f"All your photos together may have {limits.request_bytes // 10**6} MB. Remove some, or make them smaller, and "
        "choose these again."
    )


def refusal(file: Any, limits: Limits = LIMITS) -> str:
    """Returns why a file of Streamlit's was refused, or "" when it was not."""
    kind, _, reason = (file.type or "").partition(";")
    return "" if kind != REFUSED else FULL if reason == "full" else too_many(limits)


def limit_uploads(manager: Any, limits: Limits) -> None:
    """Makes Streamlit's file manager refuse a file that is too much for one visitor or for all of them together.

    Of a refused file an empty one stays, so that the page can tell its visitor (see `refusal`): a status of HTTP would
    be shown as a number and nothing else. Where even these are too many, the answer is 413 or 503. `manager` is the
    `uploaded_file_mgr` of a running script; limiting it twice changes nothing.

    Raises TypeError when it is not the manager that this was written for: better no page than one without a limit.
    """
    from fastapi import HTTPException

    known = callable(getattr(manager, "add_file", None)) and isinstance(getattr(manager, "file_storage", None), Mapping)
    if not known:
        raise TypeError(f"{type(manager).__name__} is not the file manager that helpers/web_limits.py can limit.")
    if getattr(manager, "limited", False):
        return
    add, lock = manager.add_file, threading.Lock()

    def add_file(session_id: str, file: Any) -> None:
        with lock:  # two uploads that arrive together must not each find room for one
            sizes, new, names = held(manager), size_of(file.data), limits.refusals * LEAST
            own, all_together = sizes.get(session_id, 0), sum(sizes.values())
            if own + new > limits.request_bytes:
                file = file._replace(data=b"", type=f"{REFUSED};own")
                if own + LEAST > limits.request_bytes + names:
                    raise HTTPException(413, too_many(limits))
            elif all_together + new > limits.held_bytes:
                file = file._replace(data=b"", type=f"{REFUSED};full")
            if all_together + size_of(file.data) > limits.held_bytes + 10 * names:
                raise HTTPException(503, FULL)
            add(session_id, file)

    manager.add_file, manager.limited = add_file, True
