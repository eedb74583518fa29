"""Weights that others saved with PyTorch, read without running anything that is in the file.

A `.pt` file is a pickle, and a pickle may call any function. `torch.load(weights_only=True)` allows tensors and plain
containers alone; that is the one way such a file is read here. OpenAI's CLIP files are TorchScript archives, which
`torch.load` refuses and `torch.jit.load` would execute; their tensors are read in the same restricted way.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from helpers.errors import CaptioningError


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
