"""Pocket Scenes: small drawn pictures with five captions each, made anew from a seed, in Flickr8k's own layout.

`draw_scene(seed)` draws one; `generate(folder)` writes a data set that `load_dataset("pocket")` reads. A seed gives the
same captions and facts everywhere, and the same pixels and JPEG bytes with Pillow's wheels from 11.2.1 to 13.0 (older
ones differ in a few pixels at sharp corners): whole-number coordinates, no fonts, `random.Random`, fixed JPEG options,
and only those of Pillow's operations that round alike in all of these versions.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from random import Random

from filelock import FileLock
from PIL import Image

from pocket_scenes.pen import OVERSAMPLE, WORLD
from pocket_scenes.places import weather
from pocket_scenes.plot import Scene
from pocket_scenes.words import captions

VERSION = 5  # raised with every change of a picture or a caption, so that an older cached set is made again
MARKER = "pocket.json"


def draw_scene(seed: int | str | Random, size: int = WORLD) -> tuple[Image.Image, list[str], dict]:
    """Draws one scene; returns the picture (RGB, size x size), five captions, and the facts.

    Facts: `place` and `time`; `groups`, what a caption speaks of as one (kind, colour, count, action, for people wear,
    hair, beard); `objects`, every single one (kind, colour, action, its group, its box [left, top, right, bottom] in
    pixels of the picture); `relations` between groups by index (subject, relation, object, and on which side of the
    object the subject is: left or right). The colour of a person is that of the clothes.
    """
    rng = seed if isinstance(seed, Random) else Random(f"pocket scene {seed}")
    scene = Scene(rng, size)
    picture = weather(scene.canvas, scene.place, scene.time, rng).reduce(OVERSAMPLE)
    facts = {"place": scene.place, "time": scene.time}
    facts |= {"groups": scene.groups, "objects": scene.objects, "relations": scene.relations}
    return picture, captions(facts, rng), facts


def generate(folder: str | Path, images: int = 1500, size: int = WORLD, seed: int = 0) -> Path:
    """Writes a data set in the layout of Flickr8k's Kaggle edition and returns its folder.

    `Images/`, `captions.txt` (CSV image,caption), Flickr_8k.{train,dev,test}Images.txt (8 : 1 : 1), `facts.jsonl` (one
    object a line: image and what draw_scene calls facts), and a marker that names the parameters. The folder appears
    whole or not at all, and stays as it is when it was made with the same parameters. Raises ValueError when the folder
    holds something else or the numbers make no sense, OSError when it cannot be written.
    """
    folder = Path(folder)
    wanted = {"version": VERSION, "images": images, "size": size, "seed": seed}
    if not (3 <= images <= 99999 and 32 <= size <= 1024):
        raise ValueError(f"Pocket Scenes has 3 to 99,999 images of 32 to 1,024 pixels, not {images} of {size}.")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and _made(folder) is None)):
        raise ValueError(f"{folder} holds something that is not Pocket Scenes. Name an empty or a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if _made(folder) == wanted:
            return folder
        shutil.rmtree(part, ignore_errors=True)  # of a killed run
        try:
            _write(part, wanted)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _made(folder: Path) -> dict | None:
    """Returns the parameters of a complete set, else None."""
    try:
        made = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return made if len(os.listdir(folder / "Images")) == made["images"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(part: Path, wanted: dict) -> None:
    """Draws the pictures into `part` and writes the lists beside them; the marker comes last."""
    count, seed = wanted["images"], wanted["seed"]
    (part / "Images").mkdir(parents=True)
    names = [f"scene_{seed}_{number:05d}.jpg" for number in range(count)]
    with (
        open(part / "captions.txt", "w", encoding="utf-8", newline="") as text,
        open(part / "facts.jsonl", "w", encoding="utf-8") as truth,
    ):
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("image", "caption"))
        for number, name in enumerate(names):
            picture, sentences, facts = draw_scene(f"{seed}/{number}", wanted["size"])
            picture.save(part / "Images" / name, "JPEG", quality=92, subsampling=0, optimize=False)
            rows.writerows((name, sentence) for sentence in sentences)
            truth.write(json.dumps({"image": name, **facts}) + "\n")
    held = max(1, count // 10)
    ends = {"train": (0, count - 2 * held), "dev": (count - 2 * held, count - held), "test": (count - held, count)}
    for split, (start, end) in ends.items():
        lines = "".join(f"{name}\n" for name in names[start:end])
        (part / f"Flickr_8k.{split}Images.txt").write_text(lines, encoding="utf-8")
    (part / MARKER).write_text(json.dumps(wanted) + "\n", encoding="utf-8")
