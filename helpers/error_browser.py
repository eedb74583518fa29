"""The best, the worst and the most different photos of two models, as a figure and as one HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.files import CaptioningError, atomic_write, unknown_name
from helpers.images import open_image
from helpers.metrics import score_images
from helpers.plots import photo_grid

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
section > ul { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); padding: 0; }
section > ul > li { list-style: none; border: 1px solid #8888; border-radius: .5rem; overflow: hidden; }
img { display: block; width: 100%; height: auto; }
dl { margin: .6rem; }
dt { font-weight: 600; }
dd { margin: 0 0 .4rem; }
details { margin: .6rem; font-size: .9rem; }
.score { font-variant-numeric: tabular-nums; float: right; padding-left: .5rem; }
"""


def browse(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, Mapping[str, str]],
    metric: str = "CIDEr",
    count: int = 8,
) -> dict[str, list[dict]]:
    """Returns {"best", "worst", "most different"} -> `count` photos, the strongest case first.

    predictions: model -> image -> caption, of one or two models on the same images; of the first model are the best and
    the worst, and "most different" is only there for two. A photo is {"image", "captions", "scores", "references"},
    captions and scores by model. Raises CaptioningError on an unknown metric, other images, or more than two models.
    """
    if not 1 <= len(predictions) <= 2:
        raise CaptioningError(f"The browser shows one or two models, not {len(predictions)}.")
    scores: dict[str, dict[str, float]] = {}
    for model, captions in predictions.items():
        scored = score_images(references, captions, [metric])
        values = scored.per_image()
        if metric not in values:
            known = ", ".join(values) or "none"
            raise CaptioningError(
                scored.skipped.get(metric, f"{metric} has no one score an image; use one of {known}.")
            )
        scores[model] = dict(zip(scored.images, values[metric].tolist(), strict=True))
    first, *others = scores.values()
    images = sorted(first, key=lambda image: (-first[image], image))  # the name settles ties, so a run repeats itself
    groups = {"best": images[:count], "worst": images[::-1][:count]}
    if others:
        apart = {image: abs(first[image] - others[0][image]) for image in first}
        groups["most different"] = sorted(first, key=lambda image: (-apart[image], image))[:count]
    return {
        title: [
            {
                "image": image,
                "captions": {model: captions[image] for model, captions in predictions.items()},
                "scores": {model: values[image] for model, values in scores.items()},
                "references": list(references[image]),
            }
            for image in chosen
        ]
        for title, chosen in groups.items()
    }


def browser_figure(groups: Mapping[str, Sequence[dict]], images: Mapping[str, Any], group: str, columns: int = 4):
    """Returns a matplotlib figure of one group: each photo with every model's caption and score below it.

    images: name -> path, PIL image or pixels. Raises CaptioningError on a group that is not there.
    """
    if group not in groups:
        raise unknown_name("group", group, groups)
    texts = [
        [f"{model} ({photo['scores'][model]:.2f}): {caption}" for model, caption in photo["captions"].items()]
        for photo in groups[group]
    ]
    return photo_grid([images[photo["image"]] for photo in groups[group]], texts, columns)


def browser_page(
    path: str | Path,
    groups: Mapping[str, Sequence[dict]],
    images: Mapping[str, Any],
    metric: str = "CIDEr",
    title: str = "Best, worst, most different",
    pixels: int = 320,
) -> Path:
    """Writes one HTML file with everything in it, the photos at most `pixels` wide; returns its path.

    images: name -> path, PIL image or uint8 pixels. Captions are text, whatever they contain. A photo that cannot be
    read is named in its place.
    """
    sections = []
    for group, photos in groups.items():
        cards = "\n".join(_card(photo, images.get(photo["image"]), pixels) for photo in photos)
        sections.append(f"<section><h2>{html.escape(group.capitalize())}</h2>\n<ul>\n{cards}\n</ul></section>")
    body = f"<p>Scores are {html.escape(metric)} of each photo.</p>\n" + "\n".join(sections)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return Path(path)


def _card(photo: dict, source: Any, pixels: int) -> str:
    lines = "".join(
        f'<dt>{html.escape(model)} <span class="score">{photo["scores"][model]:.2f}</span></dt>'
        f"<dd>{html.escape(caption) or '<i>no words</i>'}</dd>"
        for model, caption in photo["captions"].items()
    )
    people = "".join(f"<li>{html.escape(caption)}</li>" for caption in photo["references"])
    return (
        f"<li>{_picture(photo, source, pixels)}<dl>{lines}</dl>"
        f"<details><summary>What people wrote</summary><ol>{people}</ol></details></li>"
    )


def _picture(photo: dict, source: Any, pixels: int) -> str:
    name = html.escape(photo["image"])
    if source is None:
        return f"<p>{name} is missing.</p>"
    try:
        picture = open_image(source)
    except CaptioningError as error:
        return f"<p>{html.escape(str(error))}</p>"
    picture = picture.copy()
    picture.thumbnail((pixels, pixels * 2))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=82)
    data = base64.b64encode(packed.getvalue()).decode()
    alt = html.escape(next(iter(photo["captions"].values())) or photo["image"], quote=True)
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{picture.width}" height="{picture.height}" '
        f'alt="{alt}" title="{name}" loading="lazy">'
    )
