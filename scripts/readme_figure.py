"""Draw docs/captions.jpg, the sample photos with what the default captioner says of them, as it comes out.

python scripts/readme_figure.py [--model NAME]
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TARGET = ROOT / "docs" / "captions.jpg"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a captioner in data/checkpoints/ (default: the best one)")
    options = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import ImageOps

    from helpers.captioner import Captioner
    from helpers.images import list_images, open_image

    photos = list_images([ROOT / "sample_images"])
    captions = Captioner.load(options.model).caption(photos)
    columns = 5
    rows = -(-len(photos) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(12, 2.95 * rows), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, photo, caption in zip(axes.flat, photos, captions, strict=False):
        axis.imshow(ImageOps.fit(open_image(photo), (320, 320)))
        axis.set_title("\n".join(textwrap.wrap(caption.caption, 32)), fontsize=10, y=-0.04, va="top")
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, dpi=90, pil_kwargs={"quality": 82, "optimize": True})
    for photo, caption in zip(photos, captions, strict=True):
        print(f"| {photo.name} | {caption.caption} |")
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
