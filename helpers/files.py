"""Small file work that must never leave half a file behind."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.errors import CaptioningError
from helpers.locks import claimed, sweep

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """Returns the folder for everything that can be made again: `CAPTIONING_CACHE`, else `data/cache`."""
    return Path(os.environ.get("CAPTIONING_CACHE") or ROOT / "data" / "cache")


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its name when the block ends without an error.

    A reader sees the old file or the whole new one, never a part. What a killed process left of an earlier attempt is
    removed. Raises CaptioningError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f".{glob.escape(path.name)}.*.part")
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes it private; the finished file should follow the umask
    temporary = Path(name)
    try:
        with _writing(path):
            with claimed(temporary):
                yield temporary
                with open(temporary, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder, whose files take their places in `folder` when the block ends without an error.

    For libraries that write several files by themselves: until all of them are whole, `folder` stays as it was. Raises
    CaptioningError as `atomic_write` does.
    """
    folder = Path(folder)
    with _part_folder(folder) as part:
        folder.mkdir(parents=True, exist_ok=True)
        yield part
        for file in sorted(part.iterdir()):
            _take_place(file, folder / file.name)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors of any shape as a safetensors file, whole or not at all. Raises as `atomic_write` does.

    Where tensors share memory, which safetensors refuses, each is written in full.

    safetensors (from 0.8) makes a temporary file of its own, private and under a name of its own, and never removes it
    when the process is killed. So it writes in a temporary folder that `sweep` knows.
    """
    from safetensors.torch import save_file

    path = Path(path)
    with _part_folder(path) as part:
        own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(own, part / path.name, metadata=metadata)
        _take_place(part / path.name, path)


@contextlib.contextmanager
def _part_folder(path: Path) -> Iterator[Path]:
    """Yields a claimed temporary folder beside `path`, which is removed in the end."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f".{glob.escape(path.name)}.*.part")
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        with _writing(path), claimed(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _take_place(file: Path, path: Path) -> None:
    """Moves a file that a library wrote to its place: on the disk before that, and for those to read who should."""
    if file.is_file():
        os.chmod(file, 0o666 & ~_umask())
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    os.replace(file, path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what the system says of a full disk or a closed folder into one clear message."""
    try:
        yield
    except Exception as error:
        # safetensors has an error of its own for a full disk
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise _cannot_write(path, error) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: Exception) -> CaptioningError:
    reason = getattr(error, "strerror", None) or error
    return CaptioningError(
        f"Cannot write {path}: {reason}. Free some space or choose a folder that can be written (CAPTIONING_CACHE "
        "names the cache folder). Files written earlier are untouched."
    )


def write_json(path: str | Path, value: object) -> None:
    """Writes `value` as readable JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> object:
    """Returns the value in a JSON file. Raises CaptioningError when it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CaptioningError(f"There is no file {path}.") from error
    except (OSError, ValueError, RecursionError) as error:  # brackets in brackets in brackets, a million deep
        raise CaptioningError(f"Cannot read {path} as JSON: {error}.") from error


def sha256_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
