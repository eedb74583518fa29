"""Makes the virtual environment, or mends it: `python3 scripts/make_environment.py .venv requirements.txt`.

Runs on the system's Python alone. Does nothing when the environment is whole and requirements.txt has not changed since
it was made: the file `.ready` in it, written last, holds the hash of the requirements it was made from.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

# One module of each large or easily broken package: an install that was cut short shows here.
PROOF = "import PIL, matplotlib, nbclient, nbval, numpy, pandas, torch, torchvision, transformers"


def python_of(folder: Path) -> Path:
    """Returns the environment's interpreter."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def runs(folder: Path, code: str) -> bool:
    """Returns whether the environment's interpreter exists and executes `code` without an error."""
    try:
        return subprocess.run([python_of(folder), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def install(folder: Path, requirements: Path) -> bool:
    """Returns whether pip installed everything and the result can be imported."""
    pip = [python_of(folder), "-m", "pip", "--disable-pip-version-check", "install", "-r", requirements]
    if not sys.stdout.isatty():
        pip.append("--quiet")  # a log needs neither bars nor 200 package names
    return subprocess.run(pip).returncode == 0 and runs(folder, PROOF)


def main(arguments: list[str]) -> int:
    """Returns 0 when the environment is ready, 1 with a message when it could not be made."""
    folder, requirements = map(Path, arguments)
    wanted, stamp = hashlib.sha256(requirements.read_bytes()).hexdigest(), folder / ".ready"
    there = runs(folder, "import pip")
    if there and stamp.is_file() and stamp.read_text().strip() == wanted:
        return 0
    print(f"{'Updating' if there else 'Making'} the environment {folder} (a few minutes the first time) …", flush=True)
    stamp.unlink(missing_ok=True)
    done = there and install(folder, requirements)
    if not done:  # nothing there, or an earlier run was cut short in the middle of a package
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", folder]).returncode == 0
        done = made and install(folder, requirements)
    if not done:
        print(
            f"The environment could not be made in {folder}; the reason stands above. It needs the network and about "
            "7 GB of disk. Repeat the command to go on.",
            file=sys.stderr,
        )
        return 1
    stamp.write_text(wanted + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
