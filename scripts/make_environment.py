"""Makes the virtual environment, or mends it: `python3 scripts/make_environment.py [--cpu] .venv requirements.txt ...`.

Runs on the system's Python alone. Does nothing when the environment is whole and has what the files ask for: `.ready`
in it, written last, holds the name and the hash of each file that was installed. With `--cpu` PyTorch's build without
NVIDIA's libraries is taken, by uv, which knows where it lies; where that cannot be reached, the usual one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

# One module of each large or easily broken package of a file: an install that was cut short shows here.
PROOF = {
    "requirements.txt": "PIL, matplotlib, numpy, pandas, torch, torchvision, transformers",
    "requirements-lab.txt": "jupyterlab, nbclient",
    "requirements-page.txt": "fastapi, streamlit",
    "requirements-dev.txt": "nbval, pytest",
}


def python_of(folder: Path) -> Path:
    """Returns the environment's interpreter."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def runs(folder: Path, code: str) -> bool:
    """Returns whether the environment's interpreter exists and executes `code` without an error."""
    try:
        return subprocess.run([python_of(folder), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def install(folder: Path, files: list[Path], cpu: bool) -> bool:
    """Returns whether pip installed everything and the result can be imported."""
    pip = [python_of(folder), "-m", "pip", "--disable-pip-version-check", "install"]
    if not sys.stdout.isatty():
        pip.append("--quiet")  # a log needs neither bars nor 200 package names
    if cpu and not runs(folder, "import torch"):
        lines = [line.split("#")[0].strip() for line in files[0].read_text(encoding="utf-8").splitlines()]
        torch = [line for line in lines if line.startswith("torch")]
        uv = [python_of(folder), "-m", "uv", "pip", "install", "--python", python_of(folder), "--torch-backend=cpu"]
        if subprocess.run([*pip, "uv"]).returncode or subprocess.run([*uv, *torch]).returncode:
            print("PyTorch's CPU build could not be fetched; its usual one is taken, which runs here as well.")
    packages = [argument for file in files for argument in ("-r", file)]
    proof = "; ".join(f"import {PROOF[file.name]}" for file in files)
    return subprocess.run([*pip, *packages]).returncode == 0 and runs(folder, proof)


def main(arguments: list[str]) -> int:
    """Returns 0 when the environment is ready, 1 with a message when it could not be made."""
    cpu = "--cpu" in arguments
    folder, *files = [Path(argument) for argument in arguments if argument != "--cpu"]
    wanted = {f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files}
    stamp = folder / ".ready"
    there = runs(folder, "import pip")
    stamped = set(stamp.read_text().splitlines()) if there and stamp.is_file() else set()
    if wanted <= stamped:
        return 0
    print(f"{'Updating' if there else 'Making'} the environment {folder} (a few minutes the first time) …", flush=True)
    stamp.unlink(missing_ok=True)
    done = there and install(folder, files, cpu)
    if not done:  # nothing there, or an earlier run was cut short in the middle of a package
        stamped = set()
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", folder]).returncode == 0
        done = made and install(folder, files, cpu)
    if not done:
        needs = "It needs the network and up to 7 GB of disk, with CPU=1 about 2"
        print(f"{folder} could not be made; the reason stands above. {needs}. Repeat the command.", file=sys.stderr)
        return 1
    others = {line for line in stamped if line.split()[0] not in {file.name for file in files}}
    stamp.write_text("\n".join(sorted(wanted | others)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
