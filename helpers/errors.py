"""The one exception that bad input raises."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


class CaptioningError(Exception):
    """Input that cannot be used. The message names the thing, says what was expected and what to do."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> CaptioningError:
    """Returns the error for a name that no table knows, with the nearest known name as a hint."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return CaptioningError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


def command(main: Callable[..., None]) -> Callable[..., int]:
    """Makes `main` a command that returns its exit status: 0, or 1 after the message of a CaptioningError."""

    @functools.wraps(main)
    def with_status(*arguments, **options) -> int:
        try:
            main(*arguments, **options)
        except CaptioningError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    return with_status
