"""Makes the virtual environment, or mends it: `python3 scripts/make_environment.py .venv requirements.txt`.

Runs on the system's Python alone. Does nothing when the environment is whole and requirements.txt has not changed since
it was made: the file `.ready` in it, written last, holds the hash of the requirements it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# One module of each large or easily broken package: an install that was cut short shows here.
PROOF = "import PIL, matplotlib, nbclient, nbval, numpy, pandas, torch, torchvision, transformers"


def python_of(folder: Path) -> Path:
    """Returns the environment's interpreter."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint(requirements: Path) -> str:
    """Returns the hash that the stamp of an up-to-date environment holds."""
    return hashlib.sha256(requirements.read_bytes()).hexdigest()


def runs(folder: Path, code: str) -> bool:
    """Returns whether the environment's interpreter exists and executes `code` without an error."""
    try:
        return subprocess.run([python_of(folder), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def is_ready(folder: Path, requirements: Path) -> bool:
    """Returns whether the environment was finished, from these requirements, and its interpreter still runs."""
    stamp = folder / ".ready"
    return stamp.is_file() and stamp.read_text().strip() == fingerprint(requirements) and runs(folder, "import pip")


def install(folder: Path, requirements: Path) -> bool:
    """Returns whether pip installed everything and the result can be imported."""
    pip = [python_of(folder), "-m", "pip", "--disable-pip-version-check", "install", "-r", requirements]
    if not sys.stdout.isatty():
        pip.append("--quiet")  # a log needs neither bars nor 200 package names
    return subprocess.run(pip).returncode == 0 and runs(folder, PROOF)


def create(folder: Path) -> bool:
    """Returns whether an empty environment now stands in `folder`, whatever was there before."""
    return subprocess.run([sys.executable, "-m", "venv", "--clear", folder]).returncode == 0


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lets one process at a time in; a second `make` waits here and then finds the work done."""
    try:
        import fcntl
    except ImportError:  # Windows outside WSL has no such lock
        yield
        return
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """Returns 0 when the environment is ready, 1 with a message when it could not be made, 2 for wrong usage."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder, requirements = Path(arguments[0]), Path(arguments[1])
    with alone(requirements):
        if is_ready(folder, requirements):
            return 0
        begin = time.time()
        mended = runs(folder, "import pip")
        verb = "Updating" if mended else "Making"
        print(f"{verb} the environment {folder} (a few minutes the first time) …", flush=True)
        (folder / ".ready").unlink(missing_ok=True)
        done = mended and install(folder, requirements)
        if not done:  # nothing there, or an earlier run was cut short in the middle of a package
            done = create(folder) and install(folder, requirements)
        if not done:
            print(
                f"The environment could not be made in {folder}; the reason stands above. It needs the network and "
                "about 7 GB of disk. Repeat the command to go on.",
                file=sys.stderr,
            )
            return 1
        temporary = folder / ".ready.part"
        temporary.write_text(fingerprint(requirements) + "\n")
        temporary.replace(folder / ".ready")
        print(f"The environment is ready ({time.time() - begin:.0f} s).", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
