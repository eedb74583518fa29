"""Pocket Scenes: small drawn pictures with five captions each, made anew from a seed, in Flickr8k's own layout.

`draw_scene(seed)` draws one; `generate(folder)` writes a data set that `load_dataset("pocket")` reads. A seed gives the
same captions and facts everywhere, and the same bytes with Pillow's wheels from 11.2.1 to 13.0: only whole-number
coordinates, and those of Pillow's operations that round alike in all of these versions.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from random import Random

from filelock import FileLock
from PIL import Image

from pocket_scenes import people
from pocket_scenes.animals import animal, bird
from pocket_scenes.pen import COLOURS, INK, OVERSAMPLE, WORLD, Pen, Point, shine, sprite
from pocket_scenes.places import INDOORS, SHADOW, paint, weather
from pocket_scenes.things import THINGS
from pocket_scenes.words import captions

VERSION = 5  # raised with every change of a picture or a caption, so that an older cached set is made again
MARKER = "pocket.json"
WOOD = (178, 126, 84)
LEAVES = ((112, 166, 92), (96, 154, 90), (132, 174, 86))


class Scene:
    """Decides what is in a picture, draws it three times too large on `canvas`, and keeps the facts."""

    def __init__(self, rng: Random, size: int):
        self.rng = rng
        self.canvas = Image.new("RGB", (size * OVERSAMPLE, size * OVERSAMPLE))
        self.act, actors, places, self.most, _ = rng.choices(people.ACTS, [act[4] for act in people.ACTS])[0]
        self.kind, self.place = rng.choice(actors.split()), rng.choice(places.split())
        times = ("day",) if self.place in INDOORS else ("day",) * 6 + ("sunset",) * 3 + ("night",)
        self.time = "rain" if self.act == "shelter" and rng.random() < 0.6 else rng.choice(times)
        self.groups: list[dict] = []
        self.objects: list[dict] = []
        self.relations: list[dict] = []
        self.flip = rng.random() < 0.5
        self.way = -1 if self.flip else 1  # the side to which everybody looks
        self.water = rng.uniform(101, 106) if self.act in ("swim", "sail") else rng.uniform(66, 74)
        paint(self.canvas, self.place, self.time, rng, self.water)
        if self.act in people.PROPS:
            self.with_prop(people.PROPS[self.act])
        elif self.act == "fly":
            self.in_the_air()
        elif self.act in ("swim", "sail"):
            self.on_the_water()
        elif self.kind == "car":
            self.on_the_road()
        else:
            still = self.act in ("sit", "sleep", "stand", "wave")
            rng.choices((self.crowd, self.pair, self.by_thing), (24, 22, 54) if still else (40, 30, 30))[0]()
        for relation in self.relations:
            a, b = (next(o["box"] for o in self.objects if o["group"] == relation[k]) for k in ("subject", "object"))
            relation["side"] = "left" if a[0] + a[2] < b[0] + b[2] else "right"

    def group(self, kind: str, action: str = "", count: int = 1, shape: str = "") -> int:
        """Adds what a caption speaks of as one, and returns its index."""
        rng, hues = self.rng, people.HUES.get(kind, ("",))
        taken = [group["colour"] for group in self.groups]
        group = {"kind": kind, "colour": rng.choice([hue for hue in hues if hue not in taken] or hues), "count": count,
                 "action": action, "shape": shape}  # fmt: skip
        if kind in people.PEOPLE:
            dress = kind in ("woman", "girl") and rng.random() < 0.5
            group["wear"] = "coat" if self.place == "snow" else "dress" if dress else "shirt"
            group["hair"] = rng.choice(sorted(people.HAIRS)) if count == 1 else ""
            group["beard"] = kind == "man" and count == 1 and rng.random() < 0.5
        self.groups.append(group)
        return len(self.groups) - 1

    def relate(self, subject: int, relation: str, target: int) -> None:
        self.relations.append({"subject": subject, "relation": relation, "object": target})

    def width(self, index: int, count: int = 1) -> float:
        """Returns how much room a group asks for at factor 1, in world units."""
        group = self.groups[index]
        scale, half = people.SIZE[group["kind"]]
        seated = group["kind"] in people.PEOPLE and group["action"] == "sit"
        return 2 * count * scale * half * (1.5 if seated else people.STRETCH.get(group["action"], 1.0))

    def put(self, index: int, x: float, y: float, factor: float = 1.0, pose: str = "", flip: bool | None = None,
            shadow: bool = True, floor: float | None = None, turn: float = 0) -> Point:  # fmt: skip
        """Draws one of a group with its shadow, notes its box, and returns where its far hand is."""
        group, rng = self.groups[index], self.rng
        kind, action = group["kind"], group["action"]
        tint = COLOURS.get(group["colour"], WOOD)
        scale, half = people.SIZE[kind][0] * factor, people.SIZE[kind][1]
        flip = self.flip if flip is None else flip
        x -= people.AHEAD.get(kind, 0) * scale * (-1 if flip else 1)
        lift = 13.0 * factor if action == "jump" else 0.0
        if kind == "duck" and action == "stand":
            lift = 6.5 * scale  # it is drawn from the waterline up
        if shadow:
            high = action == "jump"
            shine(self.canvas, x + 2, y - 0.5, half * scale * (0.7 if high else 0.95), 4.4 * scale, SHADOW[self.place],
                  90 if high else 180)  # fmt: skip
        hand: list[Point] = []

        def draw(pen: Pen) -> None:
            if kind in people.PEOPLE:
                skin, legs = rng.randrange(len(people.SKINS)), rng.choice(people.TROUSERS)
                hair = group["hair"] or rng.choice(sorted(people.HAIRS))
                look = {"wear": group["wear"], "beard": group["beard"], "skin": skin, "legs": legs, "hair": hair}
                stance = pose or people.POSE_OF.get(action, "ground" if action == "sit" else action)
                stance = stance if stance in people.POSES else "stand"
                hand.append(people.person(pen, kind, group["colour"], stance, look))
            elif kind in ("bird", "duck"):
                bird(pen, kind, group["colour"], action)
            elif kind == "tree":
                pines = 3 if self.place == "snow" else 1
                THINGS[kind](pen, rng.choice(LEAVES), {"palm": 2, "pine": pines}.get(group["shape"], 0))
            elif kind == "snowman":
                THINGS[kind](pen, COLOURS[rng.choice(("red", "blue", "green", "purple"))], 0)
            elif kind in THINGS:
                look = rng.randrange(3) if kind != "umbrella" else int(group["shape"] == "parasol")
                THINGS[kind](pen, tint, look)
            else:
                animal(pen, kind, group["colour"], {"chase": "run", "": "stand"}.get(action, action))

        left, top, right, bottom = sprite(self.canvas, draw, (x, y - lift), scale, flip, turn, floor)
        box = [left // OVERSAMPLE, top // OVERSAMPLE, -(-right // OVERSAMPLE), -(-bottom // OVERSAMPLE)]
        self.objects.append({"kind": kind, "colour": group["colour"], "action": action, "group": index, "box": box})
        if not hand:
            return (x, y)
        return (x + hand[0][0] * scale * (-1 if flip else 1), y - lift + hand[0][1] * scale)

    def thread(self, a: Point, b: Point, sag: float) -> None:
        """Draws a string that hangs a little."""
        steps = [i / 8 for i in range(9)]
        points = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t + 4 * sag * t * (1 - t)) for t in steps]
        Pen(self.canvas).line(points, 0.7, INK)

    def backdrop(self, main: int, relation: str = "background", kinds: tuple[str, ...] = ()) -> float:
        """Draws something large and far away, which some people would mention, and returns where it is."""
        rng = self.rng
        kind = rng.choice(kinds or people.FAR.get(self.place, ("house", "tree")))
        far = self.group(kind, shape=self.tree() if kind == "tree" else "")
        y = {"boat": self.water - 8, "car": 96, "house": 84}.get(kind, 88)
        x = rng.choice((rng.uniform(20, 32), rng.uniform(96, 108)))
        self.put(far, x, y, 0.5 if kind == "boat" else 0.62, shadow=kind != "boat")
        self.relate(main, relation, far)
        return x

    def tree(self) -> str:
        return people.TREES.get(self.place, self.rng.choice(("", "", "pine")))

    def crowd(self) -> None:
        """One to three of a kind that do the same."""
        rng = self.rng
        count = min(self.most, rng.choice((1, 1, 2, 2, 3)))
        main = self.group(self.kind, self.act, count)
        if rng.random() < 0.35 and self.place not in INDOORS:
            self.backdrop(main)
        factor = min({1: 1.14, 2: 0.95, 3: 0.85}[count], (112 if count == 1 else 136) / self.width(main, count))
        spots = [64 + (i - (count - 1) / 2) * 112 / count + rng.uniform(-4, 4) for i in range(count)]
        rng.shuffle(spots)
        for i, x in enumerate(spots):
            y = rng.uniform(108, 114) if count == 1 else 101 + 13 * i / (count - 1) + rng.uniform(-1, 2)
            self.put(main, x, y, factor * (0.94 + (y - 98) / 150))

    def pair(self) -> None:
        """Two different ones side by side, each with its own action."""
        rng = self.rng
        main = self.group(self.kind, self.act)
        other = self.group(*rng.choice(people.companions(self.kind, self.act, self.place)))
        order = rng.sample((main, other), 2)
        left, right = (self.width(index) for index in order)
        factor = min(1.0, 122 / (left + right))
        start = (WORLD - factor * (left + right)) / 2
        spots = (start + factor * left / 2, WORLD - start - factor * right / 2)
        still = not {"run", "walk"} & {self.act, self.groups[other]["action"]}
        toward = still and rng.random() < 0.5
        for i, (x, index) in enumerate(zip(spots, order, strict=True)):
            self.put(index, x, rng.uniform(106, 114), factor, flip=i == 1 if toward else None)
        self.relate(main, "beside", other)
        self.relate(other, "beside", main)

    def by_thing(self) -> None:
        """One beside, in front of, behind, under or on a thing."""
        rng = self.rng
        relation, kind = rng.choice(people.neighbours(self.kind, self.act, self.place))
        shape = self.tree() if kind == "tree" else "parasol" if kind == "umbrella" else ""
        if kind == "tree" and shape != "palm":  # under a round tree, in front of a pine: the two must look different
            shape = {"under": "", "front": "pine"}.get(relation, shape)
        main, other = self.group(self.kind, self.act), self.group(kind, shape=shape)
        x, y, size = rng.uniform(56, 72), 112.0, people.SIZE[kind][0]
        if relation == "beside":
            left, right = self.width(main), self.width(other)
            factor = min(1.0, 118 / (left + right))
            side = rng.choice((-1, 1))
            self.put(other, 64 + side * (60 - factor * right / 2), rng.uniform(98, 106), factor)
            self.put(main, 64 - side * (60 - factor * left / 2), rng.uniform(107, 114), factor)
        elif relation == "front":
            self.put(other, x, rng.uniform(92, 96), 1.25 if kind == "bench" else 1.15)
            self.put(main, x + rng.uniform(-12, 12), rng.uniform(114, 118), min(0.9, 100 / self.width(main)))
        elif relation == "behind":
            self.put(main, x + rng.uniform(-12, 12), 101, 1.12)
            self.put(other, x, 115, 1.1)
        elif relation == "under" and kind == "table":
            self.put(other, x, 106, 1.5)
            self.put(main, x + rng.uniform(-4, 4), 110, 0.9 if self.act == "sleep" else 0.66)
        elif relation == "under":
            self.put(other, x, 104, 1.22)
            self.put(main, x + rng.choice((-1, 1)) * rng.uniform(10, 16), 113, 0.8)
        elif relation == "seat":
            factor = {"bench": 1.25, "sofa": 1.05, "chair": 1.3}[kind]
            facing = False if kind == "chair" else None
            self.put(other, x, y, factor, flip=facing)
            top = y - {"bench": 16.5, "sofa": 19, "chair": 18.5}[kind] * size * factor
            if self.kind in people.PEOPLE:
                self.put(main, x - (2 if kind == "chair" else 0), top - 1, pose="sit", shadow=False, flip=facing)
            else:
                down, factor = {"chair": (2, 0.8), "bench": (2, 0.9), "sofa": (6, 1.0)}[kind]
                self.put(main, x, top + down, factor, shadow=False)
        else:
            self.put(other, x, y, 1.15)
            top = y - (29 if kind == "car" else 28) * size * 1.15
            self.put(main, x - 3 * self.way * (kind == "car"), top + 2.4, 0.9, shadow=False)
        self.relate(main, relation, other)

    def in_the_air(self) -> None:
        rng = self.rng
        count = rng.choice((1, 1, 2, 3))
        main = self.group(self.kind, self.act, count)
        if count == 1 and rng.random() < 0.8 and self.place in ("park", "hills", "meadow", "snow"):
            spots = [(0.8 * self.backdrop(main, "over", ("house",)) + 13, 32)]
        else:
            if rng.random() < 0.35:
                self.backdrop(main)
            spots = {1: [(64, 58)], 2: [(36, 44), (92, 62)], 3: [(27, 62), (64, 36), (101, 58)]}[count]
        for x, y in spots:
            at, factor = (x + rng.uniform(-4, 4), y + rng.uniform(-3, 3)), {1: 1.3, 2: 0.95, 3: 0.75}[count]
            self.put(main, *at, 0.95 if y == 32 else factor, shadow=False, turn=rng.uniform(-12, 4) * self.way)

    def on_the_water(self) -> None:
        rng = self.rng
        count = min(self.most, rng.choice((1, 1, 2, 3)))
        main = self.group(self.kind, self.act, count)
        factor = {1: 1.15, 2: 0.88, 3: 0.68}[count]
        for i, x in enumerate({1: [64 + rng.uniform(-10, 10)], 2: [36, 92], 3: [26, 64, 102]}[count]):
            y, wide = self.water - 9 - (i % 2) * 7, people.SIZE[self.kind][1] * factor
            shine(self.canvas, x, y + 1, wide * 1.2, 6 * factor, (40, 84, 120), 130)
            self.put(main, x, y + 1, factor, shadow=False, floor=y + 1.6)
            shine(self.canvas, x, y + 2.4, wide * 1.3, 1.8, (240, 250, 255), 190)

    def on_the_road(self) -> None:
        rng = self.rng
        main = self.group(self.kind, self.act)
        if self.act == "park" and rng.random() < 0.6:
            kind = "tree" if self.place == "street" else rng.choice(("tree", "house"))
            other = self.group(kind)
            self.put(other, 64 + rng.choice((-24, 24)), 94, 1.05)
            self.relate(main, "front", other)
        for i in range(4 if self.act == "drive" else 0):  # dust behind the wheels
            shine(self.canvas, 64 - (40 + 7 * i) * self.way, 109 - 3 * i, 8 - i, 6 - i, (240, 240, 244), 235)
        self.put(main, rng.uniform(60, 68) + (6 * self.way if self.act == "drive" else 0), rng.uniform(110, 116), 1.1)

    def with_prop(self, prop: str) -> None:
        """People and animals that play with, hold, fly, ride or lead something."""
        rng, way, act = self.rng, self.way, self.act
        main = self.group(self.kind, act)
        thing = self.group(prop, "walk" if prop in ("horse", "dog") else "")
        self.groups[main]["prop"] = thing
        if rng.random() < 0.3 and self.place not in INDOORS and act != "kite":
            self.backdrop(main)
        y = rng.uniform(109, 114)
        if act == "kick":
            self.put(main, 64 - way * 13, y, 1.1)
            self.put(thing, 64 + way * 22, y + 1, 1.15)
        elif act == "chase":
            self.put(main, 64 - way * 15, y, 1.02)
            self.put(thing, 64 + way * 34, y + 2, 1.15)
        elif act == "kite":
            hand, at = self.put(main, 64 - way * 25, y, 1.05), (64 + way * rng.uniform(18, 34), rng.uniform(26, 36))
            self.thread(hand, at, 4)
            self.put(thing, *at, 1.3, shadow=False, turn=14 * way)
        elif act == "hold":
            hand = self.put(main, 64, y, 1.12, pose="hold")
            at = (hand[0] + way * 5, hand[1] - 26)
            self.thread(hand, at, 0)
            self.put(thing, *at, 1.2, shadow=False)
        elif act == "shelter":
            hand = self.put(main, 64, y, 1.1)
            self.put(thing, hand[0] - way * 3, hand[1] + 4, 1.2, shadow=False)
        elif act == "leash":
            hand = self.put(main, 64 - way * 30, y, 1.02)
            self.put(thing, 64 + way * 26, y + 1, 0.9)
            self.thread(hand, (64 + way * 40, y - 28), 3)
        elif act == "ride":
            self.put(thing, 64, y, 1.1)
            self.put(main, 64 - way * 8, y - 27.5 * people.SIZE[prop][0] * 1.1, 0.98, shadow=False)
        else:
            self.put(thing, 64, y + 2)
            self.put(main, 64 - way * 6, y + 2 - 46 * people.SIZE[prop][0], 0.88, shadow=False)
        self.relate(main, act, thing)


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


def sharp(path: str | Path, size: int = 224) -> Image.Image | Path:
    """Returns what to show of an image: a scene that `generate` drew is drawn again, larger; other paths come back.

    The pictures of a set are as small as the models need them, and look blurred on a page.
    """
    name = re.fullmatch(r"scene_(\d+)_(\d+)\.jpg", Path(path).name)
    return draw_scene(f"{name[1]}/{int(name[2])}", size)[0] if name else Path(path)


def generate(folder: str | Path, images: int = 1500, size: int = WORLD, seed: int = 0) -> Path:
    """Writes a data set in the layout of Flickr8k's Kaggle edition (8 : 1 : 1) and returns its folder.

    `facts.jsonl` beside it has one object a line: image and what draw_scene calls facts. The folder appears whole or
    not at all, and stays as it is when it was made with the same parameters. Raises ValueError when it holds something
    else or the numbers make no sense, OSError when it cannot be written.
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
    names, truth = [f"scene_{seed}_{number:05d}.jpg" for number in range(count)], []
    with open(part / "captions.txt", "w", encoding="utf-8", newline="") as text:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("image", "caption"))
        for number, name in enumerate(names):
            picture, sentences, facts = draw_scene(f"{seed}/{number}", wanted["size"])
            picture.save(part / "Images" / name, "JPEG", quality=92, subsampling=0, optimize=False)
            rows.writerows((name, sentence) for sentence in sentences)
            truth.append(json.dumps({"image": name, **facts}) + "\n")
    (part / "facts.jsonl").write_text("".join(truth), encoding="utf-8")
    held = max(1, count // 10)
    ends = {"train": (0, count - 2 * held), "dev": (count - 2 * held, count - held), "test": (count - held, count)}
    for split, (start, end) in ends.items():
        (part / f"Flickr_8k.{split}Images.txt").write_text("\n".join([*names[start:end], ""]), encoding="utf-8")
    (part / MARKER).write_text(json.dumps(wanted) + "\n", encoding="utf-8")
