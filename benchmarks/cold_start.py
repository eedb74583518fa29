"""From the shell to the first caption: `python benchmarks/cold_start.py [--models NAME ...] [--repeats 3]`.

Starts the command line anew for each shipped captioner and prints the seconds until it has captioned one photo, the
best of a few starts, and the ratio to a process that only imports PyTorch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "sample_images" / "cat.jpg"


def seconds(command: list[str], repeats: int) -> float:
    """Returns the wall time of the fastest of some runs of a command."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from helpers.captioner import available

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=available())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    bare = seconds(["-c", "import torch"], options.repeats)
    print(f"{'import torch':22s} {bare:5.1f} s")
    for name in options.models:
        whole = seconds(["generate_caption.py", "--model", name, "--image_path", str(PHOTO)], options.repeats)
        print(f"{name:22s} {whole:5.1f} s, {whole / bare:.2f} times the import")


if __name__ == "__main__":
    main()
