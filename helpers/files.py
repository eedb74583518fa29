"""Files and the one error: what is written is whole or not there, what is read is checked."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "data" / "checkpoints"
STALE = 3600  # seconds after which a temporary file belongs to a process that was killed


class CaptioningError(Exception):
    """Input that cannot be used: the message names it, what was expected and what to do. Notebook 00, section 7."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> CaptioningError:
    """Returns the error for a name that no table knows, with the nearest one as a hint. Notebook 00, section 3."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return CaptioningError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Makes `main` return an exit status: its own or 0, and 2 after a CaptioningError's message.

    Notebook 00, section 7.
    """

    @functools.wraps(main)
    def with_status(*arguments, **options) -> int:
        try:
            return main(*arguments, **options) or 0
        except CaptioningError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return with_status


def pick_device(name: str = "auto") -> str:
    """Returns the device `name`, or raises CaptioningError; "auto": the GPU if there is one. Notebook 02, section 1."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a PyTorch without CUDA raises AssertionError
        raise CaptioningError(f"Device {name!r} cannot be used here. Use auto or cpu.") from error
    return name


def fast_bf16(device: torch.device | str) -> bool:
    """Returns whether bf16 matrix products are faster than fp32 on this device. Notebook 02, section 1."""
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # PyTorch has no public name for either
        return any(getattr(torch.cpu, check, bool)() for check in checks)
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def cache_dir() -> Path:
    """Returns the folder for what can be made again: `CAPTIONING_CACHE`, else `data/cache`. Notebook 01, section 8."""
    return Path(os.environ.get("CAPTIONING_CACHE") or ROOT / "data" / "cache")


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Makes `folder` and holds its lock, for which a second process waits; the system frees it when a process ends.

    Notebook 09, section 7, trains with several processes. Raises CaptioningError when the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".lock").acquire()
    with held:
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says of a full disk or a closed folder into one CaptioningError. Notebook 09, section 3."""
    try:
        yield
    except Exception as error:
        # safetensors has an error of its own for a full disk
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise CaptioningError(
            f"Cannot write {path}: {getattr(error, 'strerror', None) or error}. Free some space or choose a folder "
            "that can be written (CAPTIONING_CACHE names the cache folder). Files written earlier are untouched."
        ) from error


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path that takes the name `path` when the block ends without an error.

    A reader sees the old file or the whole new one, never a part; what killed processes left is removed.
    Notebook 09, section 3.
    """
    path = Path(path)
    folder = path.parent
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.part"):
            with contextlib.suppress(FileNotFoundError):  # another process may be done with it by now
                if time.time() - left.stat().st_mtime > STALE:
                    shutil.rmtree(left, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=".new.", suffix=".part", dir=folder))
    try:
        with writing(folder):
            file = part / path.name
            yield file
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(file, 0o666 & ~mask)  # safetensors makes its files private
            os.replace(file, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors of any shape as a safetensors file, whole or not at all. Notebook 02, section 6.

    Where tensors share memory, which safetensors refuses, each is written in full.
    """
    from safetensors.torch import save_file

    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(own, temporary, metadata=metadata)


def write_json(path: str | Path, value: object) -> None:
    """Writes `value` as readable JSON, whole or not at all. Notebook 09, section 3."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> object:
    """Returns the value in a JSON file; CaptioningError if it is missing or is none. Notebook 02, section 6."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CaptioningError(f"There is no file {path}.") from error
    except (OSError, ValueError, RecursionError) as error:  # brackets in brackets in brackets, a million deep
        raise CaptioningError(f"Cannot read {path} as JSON: {error}.") from error


def sha256_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes as hexadecimal digits. Notebook 00, section 3."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a `.pt`, `.pth`, `.bin` or `.safetensors` file by name, on the CPU.

    Reads a state dict or `{"state_dict": …}`. Raises CaptioningError when the file is missing,
    is something else, or holds more than tensors and plain containers: it could run a program. Notebook 05, section 1.
    """
    import torch
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise CaptioningError(f"There is no file {path} with weights. Check the spelling and the folder.")
    with open(path, "rb") as file:
        head = file.read(200).lstrip()
    if head.startswith((b"<", b"version https://git-lfs")):
        raise CaptioningError(f"{path} is a web page or a Git LFS pointer, not weights. Download the file itself.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CaptioningError(
            f"{path} holds more than weights, and reading it could run a program. It was not read. Take the file from "
            f"its author's own page, or ask for a .safetensors file. ({str(error).strip().splitlines()[-1][:200]})"
        ) from error
    except Exception as error:  # a damaged file: zipfile, torch and safetensors each raise what they like
        raise CaptioningError(f"Cannot read weights from {path}: {str(error)[:200]}. Download it again.") from error
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    found = {name: value for name, value in inner.items() if isinstance(value, torch.Tensor)}
    # the indices of a sparse tensor are not looked at until it is multiplied, beyond the end of its memory
    if not found or any(value.layout != torch.strided or value.is_quantized for value in found.values()):
        raise CaptioningError(f"{path} holds no named weights, or sparse or quantised ones, which no model here has. "
                              "Expected the state dict of a model.")
    return found


def record(**result: float | str | None) -> None:
    """Appends a model's results to the file that `CAPTIONING_RESULTS` names, if it does: `make run` ends with a table.

    model; bleu4, cider (0.21, not 21); captions_per_second; seconds of training. Notebook 02, section 11.
    """
    path = os.environ.get("CAPTIONING_RESULTS")
    if path:
        row = {name: float(value) if value is not None and name != "model" else value for name, value in result.items()}
        with open(path, "a", encoding="utf-8") as file:  # one short line in one write: two notebooks cannot mix theirs
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
