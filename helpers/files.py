"""Small file work that must never leave half a file behind."""

from __future__ import annotations

import contextlib
import difflib
import functools
import glob
import hashlib
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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


def pick_device(name: str = "auto") -> str:
    """Returns the device `name`; "auto" is the GPU where there is one. Raises CaptioningError if it cannot be used."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a PyTorch without CUDA raises AssertionError
        raise CaptioningError(f"Device {name!r} cannot be used here. Use auto or cpu.") from error
    return name


def usable_cores() -> int:
    """Returns the number of cores that this process may run on: in a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
GRACE = 10  # seconds, far more than pass between the making of a temporary file and its claim


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Makes `folder` and holds its lock; the operating system frees it when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+b")  # noqa: SIM115 - closed below, after the block that it guards
    except OSError as error:
        raise CaptioningError(
            f"Cannot write in {folder}: {error.strerror}. Choose another folder by CAPTIONING_CACHE."
        ) from error
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another process is at work in {folder}; waiting for it …", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        else:
            import msvcrt

            lock.seek(0)
            msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)
        yield


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Marks a temporary file or folder as that of a living process, so that `sweep` leaves it alone."""
    handle = os.open(path, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def sweep(folder: Path, pattern: str) -> None:
    """Removes the temporary files and folders that processes left which were killed: nobody claims them any more."""
    if fcntl is None:
        return
    for left in folder.glob(pattern):
        try:
            handle = os.open(left, os.O_RDONLY)
        except OSError:  # gone meanwhile, or of another user
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(handle).st_mtime < GRACE:
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        except OSError:  # claimed, or not ours to remove
            pass
        finally:
            os.close(handle)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a `.pt`, `.pth`, `.bin` or `.safetensors` file by name, on the CPU.

    Reads a state dict, `{"state_dict": …}`, or a TorchScript archive. Raises CaptioningError when the file is missing,
    is something else, or holds anything beyond tensors and plain containers: such a file could run a program.
    """
    path = Path(path)
    if not path.is_file():
        raise CaptioningError(f"There is no file {path} with weights. Check the spelling and the folder.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if not zipfile.is_zipfile(path):  # the format of before PyTorch 1.6
            return _tensors(torch.load(path, map_location="cpu", weights_only=True), path)
        with _without_code(path) as plain:
            if plain is None:
                return _tensors(torch.load(path, map_location="cpu", weights_only=True), path)
            names = torch.serialization.get_unsafe_globals_in_checkpoint(plain)
            allowed = [(_Inert, name) for name in names if name.startswith("__torch__.")]
            allowed += [(_plain, name) for name in names if name.startswith("torch.jit._pickle.")]
            with torch.serialization.safe_globals(allowed):
                return _tensors(torch.load(plain, map_location="cpu", weights_only=True), path)
    except pickle.UnpicklingError as error:
        raise CaptioningError(
            f"{path} holds more than weights, and reading it could run a program. It was not read. Take the file from "
            f"its author's own page, or ask for a .safetensors file. ({str(error).strip().splitlines()[-1][:200]})"
        ) from error
    except CaptioningError:
        raise
    except Exception as error:  # a damaged file: zipfile, torch and safetensors each raise what they like
        raise CaptioningError(f"Cannot read weights from {path}: {str(error)[:200]}. Download it again.") from error


class _Inert:
    """Stands for every class of a TorchScript archive: keeps the attributes, has no behaviour."""

    def __setstate__(self, state: dict) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _plain(value: object, *_: object) -> object:
    """Stands for TorchScript's typed lists and dictionaries, which are the plain ones with a type beside them."""
    return value


@contextlib.contextmanager
def _without_code(path: Path) -> Iterator[Path | None]:
    """Yields a copy of a TorchScript archive with its data alone; None when the file is a plain `torch.save`."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if not any(entry.filename.endswith("/constants.pkl") for entry in entries):
            yield None
            return
        kept = {}  # the first part of a name is what the archive was saved under
        for entry in entries:
            inner = entry.filename.partition("/")[2]
            if inner in ("data.pkl", "version", "byteorder") or inner.startswith("data/"):
                kept[f"archive/{inner}"] = entry
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in kept.values()):
            raise CaptioningError(f"{path} holds compressed weights, which PyTorch never writes. It was not read.")
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "data.pt"
            with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as target:
                for name, entry in kept.items():
                    with archive.open(entry) as source, target.open(name, "w", force_zip64=True) as out:
                        shutil.copyfileobj(source, out, 1 << 20)
            yield copy


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    """Returns tensors by dotted name, from a state dict or a tree of inert modules."""
    found: dict[str, Tensor] = {}
    if isinstance(loaded, _Inert):
        waiting = [("", loaded, 0)]
        while waiting:
            prefix, module, depth = waiting.pop()
            for name, value in getattr(module, "attributes", {}).items():
                if isinstance(value, Tensor):
                    found[f"{prefix}{name}"] = value
                elif isinstance(value, _Inert) and depth < 50:  # an archive may be a ring
                    waiting.append((f"{prefix}{name}.", value, depth + 1))
    elif isinstance(loaded, dict):
        inner = loaded.get("state_dict")
        found = {k: v for k, v in (inner if isinstance(inner, dict) else loaded).items() if isinstance(v, Tensor)}
    if any(value.layout != torch.strided or value.is_quantized for value in found.values()):
        # the indices of a sparse tensor are not looked at until it is multiplied, beyond the end of its memory
        raise CaptioningError(f"{path} holds sparse or quantised tensors, which no model here has. It was not read.")
    if not found:
        raise CaptioningError(f"{path} holds no named weights. Expected the state dict of a model.")
    return found
CHECKPOINTS = ROOT / "data" / "checkpoints"
