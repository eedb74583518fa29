"""Writes what README.md shows of the captioners, after one was trained anew: `python scripts/readme_figure.py`.

docs/captions.jpg and docs/captions.md have the captions of the sample photos, README's table the scores of the cards.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from PIL import ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.captioner import Captioner, available  # noqa: E402
from helpers.files import CHECKPOINTS, read_json  # noqa: E402
from helpers.images import list_images, open_image  # noqa: E402

photos = list_images([ROOT / "sample_images"])
captions = Captioner.load().caption(photos)
figure = Figure(figsize=(12, 8.85), layout="constrained")
axes = figure.subplots(3, 5, subplot_kw={"xticks": [], "yticks": [], "frame_on": False})
lines = [f"# What {available()[0]} says of the sample photos\n", "| photo | caption |", "| --- | --- |"]
for axis, photo, caption in zip(axes.flat, photos, captions, strict=False):
    axis.imshow(ImageOps.fit(open_image(photo), (320, 320)))
    axis.set_title("\n".join(textwrap.wrap(caption.caption, 32)), fontsize=10, y=-0.04, va="top")
    lines.append(f"| {photo.name} | {caption.caption} |")
figure.savefig(ROOT / "docs" / "captions.jpg", dpi=90, pil_kwargs={"quality": 82, "optimize": True})
(ROOT / "docs" / "captions.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

readme = (ROOT / "README.md").read_text(encoding="utf-8")
columns = re.search(r"^\| (\| BLEU-1.*) \|$", readme, re.M)[1].strip("| ").split(" | ")
for name in available():
    scores = next(iter(read_json(CHECKPOINTS / name / "config.json")["scores"].values()))
    row = " | ".join([f"| `{name}`", *(f"{scores[column]:.3f}".removesuffix(".000") for column in columns)]) + " |"
    readme = re.sub(rf"^\| `{name}` \|.*$", row, readme, flags=re.M)
(ROOT / "README.md").write_text(readme, encoding="utf-8")
