"""Draws docs/captions.jpg, the sample photos with their captions: `python scripts/readme_figure.py`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from PIL import ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.captioner import Captioner  # noqa: E402
from helpers.images import list_images, open_image  # noqa: E402

photos = list_images([ROOT / "sample_images"])
captions = Captioner.load().caption(photos)
figure = Figure(figsize=(12, 8.85), layout="constrained")
axes = figure.subplots(3, 5)
for axis in axes.flat:
    axis.set_axis_off()
for axis, photo, caption in zip(axes.flat, photos, captions, strict=False):
    axis.imshow(ImageOps.fit(open_image(photo), (320, 320)))
    axis.set_title("\n".join(textwrap.wrap(caption.caption, 32)), fontsize=10, y=-0.04, va="top")
    print(f"| {photo.name} | {caption.caption} |")
figure.savefig(ROOT / "docs" / "captions.jpg", dpi=90, pil_kwargs={"quality": 82, "optimize": True})
