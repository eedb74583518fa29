"""Drawing Pocket Scenes: `python benchmarks/scenes.py [--images 1500]`.

Writes the whole dataset to a temporary folder and prints the seconds it took, and the ratio to the time that Pillow
alone takes to save the same pictures.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from pocket_scenes.scenes import generate

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        drawn = generate(Path(folder) / "pocket", options.images)
        whole = time.perf_counter() - began
        pictures = [Image.open(path).convert("RGB") for path in sorted(drawn.rglob("*.jpg"))]
        began = time.perf_counter()
        for picture in pictures:
            picture.save(io.BytesIO(), "JPEG", quality=92, subsampling=0)
        saving = time.perf_counter() - began
    print(f"{len(pictures)} scenes in {whole:.1f} s, {whole / saving:.1f} times the saving alone")


if __name__ == "__main__":
    main()
