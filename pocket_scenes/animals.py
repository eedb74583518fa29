"""The animals of Pocket Scenes, each standing on (0, 0) and looking to the right.

One unit is a pixel of a 128-pixel picture at scale 1. Angles of limbs are degrees from straight down, positive forward.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from pocket_scenes.pen import COLOURS, INK, Colour, Joints, Pen, Point, dark, light, mix, reach

WHITE, BLACK = COLOURS["white"], COLOURS["black"]


class Build(NamedTuple):
    """The proportions of a four-legged animal that stands."""

    hip: Point
    shoulder: Point
    hip_r: float
    shoulder_r: float
    leg: tuple[float, float]
    leg_r: float
    head: Point
    head_r: float
    nose: Point
    nose_r: float
BUILDS: dict[str, Build] = {
    "dog": Build((-12, -20), (10, -21), 7.0, 8.0, (9.5, 9.0), 3.0, (19, -34), 7.4, (27.5, -31.5), 3.6),
    "cat": Build((-10, -15), (8, -15.5), 6.4, 5.8, (7, 7), 2.6, (15, -25), 7.8, (19, -22.5), 3.0),
    "horse": Build((-16, -36), (14, -36), 10.2, 9.8, (15.5, 17), 2.7, (29, -61), 5.8, (39, -52), 3.9),
    "cow": Build((-18, -29), (15, -29), 11.2, 11.2, (12, 12.5), 3.3, (30, -38), 6.8, (37, -32), 4.8),
    "sheep": Build((-11, -23), (9, -23), 9.5, 9.5, (9, 10), 2.4, (21, -31), 5.6, (26.5, -27.5), 3.4),
}
# thigh and shin of the near hind, far hind, near fore and far fore leg
GAITS: dict[str, tuple] = {
    "stand": ((12, -14), (22, -8), (-4, 0), (5, 2)),
    "walk": ((-24, -20), (32, -4), (26, 4), (-18, -38)),
    "run": ((-48, -66), (-22, -78), (52, 34), (76, 52)),
    "jump": ((-42, -62), (-56, -72), (70, -20), (92, 10)),
}


def eye(pen: Pen, x: float, y: float, r: float = 1.25, closed: bool = False) -> None:
    """Draws an eye with its glint, or the line of a closed one."""
    if closed:
        return pen.line([(x - 1.6, y), (x, y + 0.8), (x + 1.6, y)], 0.8, INK)
    pen.oval(x, y, r, r * 1.2, (40, 32, 42))
    return pen.oval(x + 0.3 * r, y - 0.4 * r, r * 0.4, r * 0.4, WHITE)


def animal(pen: Pen, kind: str, colour: str, action: str) -> None:
    """Draws a dog, cat, horse, cow or sheep that stands, walks, runs, jumps, sits, sleeps or grazes."""
    build = _posed(kind, action)
    coat, resting = COLOURS[colour], action in ("sit", "sleep")
    gait = GAITS.get(action, GAITS["stand"])
    hind, fore = (build.hip[0] - 1, build.hip[1] + 2), (build.shoulder[0] + 1, build.shoulder[1] + 2)
    if not resting:
        _leg(pen, kind, coat, build, (hind[0] + 4, hind[1]), gait[1], hind=True, near=False)
        _leg(pen, kind, coat, build, (fore[0] + 3, fore[1]), gait[3], hind=False, near=False)
    _tail(pen, kind, coat, build, action)
    if action == "sit":
        _sitting(pen, coat, build)
    elif action == "sleep":
        _sleeping(pen, coat, build)
    elif kind != "sheep":
        pen.limb(build.hip, build.hip_r, build.shoulder, build.shoulder_r, coat)
    if not resting or colour == "white" or (kind, action) == ("cat", "sleep"):
        _markings(pen, kind, colour, build)
    if not resting:
        _leg(pen, kind, coat, build, hind, gait[0], hind=True, near=True)
        _leg(pen, kind, coat, build, fore, gait[2], hind=False, near=True)
    if kind == "sheep":
        x, y = build.hip[0] + 10, build.hip[1]
        for i in range(9):
            t = 2 * math.pi * i / 9
            pen.oval(x + 13.5 * math.cos(t), y - 0.5 + 7.5 * math.sin(t), 6, 5.5, coat)
        pen.oval(x, y, 13, 8, coat)
        for dx, dy in ((-8, -3), (-1, 2), (6, -4), (9, 3), (-3, -7)):
            pen.line([(x + dx - 1.6, y + dy), (x + dx, y + dy + 1.1), (x + dx + 1.6, y + dy)], 0.7, dark(coat, 0.16))
    heads = {"horse": _horse_head, "cow": _cow_head, "sheep": _sheep_head, "dog": _dog_head, "cat": _cat_head}
    heads[kind](pen, colour, build, action)


def _posed(kind: str, action: str) -> Build:
    """Returns the proportions with trunk and head where the action has them."""
    build = BUILDS[kind]
    (hx, hy), (nx, ny) = build.head, build.nose
    if action == "sit":
        hip, shoulder = (-8, -8.5), (4, -23) if kind == "dog" else (2.5, -18)
        back = 9 if kind == "dog" else 8
        return build._replace(hip=hip, shoulder=shoulder, hip_r=build.hip_r + 1.6,
                              head=(hx - back, hy - 4.5), nose=(nx - back, ny - 4.5))
    if action == "sleep":
        return build._replace(hip=(-9, -8), shoulder=(7, -7), hip_r=8 if kind == "dog" else 7.5,
                              head=(16, -7.5), nose=(16 + nx - hx, -6 + ny - hy))
    if action == "graze":
        dx, dy = {"horse": (3, 48), "cow": (1, 25), "sheep": (0, 19)}[kind]
        return build._replace(head=(hx + dx, hy + dy), nose=(hx + dx + 5, hy + dy + 8.5))
    if action == "run":
        return build._replace(head=(hx + 2, hy + 2.5), nose=(nx + 2, ny + 2.5))
    return build


def _leg(pen: Pen, kind: str, coat: Colour, build: Build, start: Point, angles: tuple, hind: bool, near: bool) -> None:
    skin = coat if kind != "sheep" else (92, 78, 80)
    fill, r = skin if near else dark(skin, 0.26), build.leg_r
    a, b, c = reach(start, (angles[0], build.leg[0]), (angles[1], build.leg[1]))
    thick = {"horse": 2.3, "cow": 2.0, "sheep": 1.3}.get(kind, 1.75) if hind else 1.45
    pen.chain([(*a, r * thick), (*b, r), (*c, r * 0.9)], fill)
    if kind in ("dog", "cat"):
        pen.limb(c, r * 0.9, (c[0] + r * 0.8, c[1] + 0.1), r * 0.8, light(coat, 0.15) if near else fill)
    else:
        hoof = (84, 66, 66) if near else (70, 54, 58)
        pen.limb((c[0] - 0.2, c[1] - 1.2), r * 0.95, (c[0] + 0.6, c[1] + 0.2), r * 1.15, hoof)


def _sitting(pen: Pen, coat: Colour, build: Build) -> None:
    (hx, _), (sx, sy), r = build.hip, build.shoulder, build.leg_r
    line, paw = dark(coat, 0.35), light(coat, 0.15)
    pen.limb((sx + 5, sy + 6), r, (sx + 6.5, -2.2), r * 0.9, dark(coat, 0.26))
    pen.limb(build.hip, build.hip_r, build.shoulder, build.shoulder_r * 0.85, coat)
    pen.limb((sx + 2, sy + 6), r * 1.15, (sx + 2.5, -2.4), r, coat, line)
    pen.oval(sx + 4, -2, r * 1.35, r * 0.75, paw)
    pen.oval(hx + 1.5, -8, build.hip_r * 0.78, build.hip_r * 0.88, coat)
    pen.limb((hx + 1, -2.2), 2.2, (hx + 8, -2), 2.0, paw, line)


def _sleeping(pen: Pen, coat: Colour, build: Build) -> None:
    line, paw = dark(coat, 0.35), light(coat, 0.12)
    pen.limb(build.hip, build.hip_r, build.shoulder, build.shoulder_r, coat)
    pen.limb((5, -2.6), 2.6, (20, -2.2), 2.2, paw, line)
    pen.limb((-9, -2.4), 2.4, (-1, -2.2), 2.2, paw, line)


def _markings(pen: Pen, kind: str, colour: str, build: Build) -> None:
    (hx, hy), (sx, sy), coat = build.hip, build.shoulder, COLOURS[colour]
    x, y = (hx + sx) / 2, (hy + sy) / 2
    if kind == "cow":
        patch = BLACK if colour == "white" else WHITE
        pen.blob([(x - 10, y - 9), (x - 2, y - 10.4), (x + 1, y - 1), (x - 7, y + 5)], patch)
        pen.blob([(x + 8, y - 1), (x + 12, y - 10), (x + 18, y - 9), (x + 19, y), (x + 12, y + 6)], patch)
        pen.blob([(x - 26, y + 1), (x - 20, y - 5), (x - 15, y + 1), (x - 19, y + 8)], patch)
        pen.oval(hx + 8, hy + 11, 4, 2.6, COLOURS["pink"])
    elif kind == "dog" and colour == "white":
        pen.blob([(x - 7, y - 6), (x + 1, y - 7.6), (x + 2, y), (x - 5, y + 4)], COLOURS["brown"])
    elif kind == "dog":
        pen.limb((sx + 3, sy + 3.5), build.shoulder_r * 0.5, (sx + 4, sy - 2), build.shoulder_r * 0.4, light(coat, 0.3))
    elif kind == "cat":
        for i in range(3):
            pen.line([(-6 + 5 * i, hy - build.hip_r + 1.3), (-5 + 5 * i, hy - 1.5)], 1.4, dark(coat, 0.26))


def _tail(pen: Pen, kind: str, coat: Colour, build: Build, action: str) -> None:
    x, y = build.hip[0] - build.hip_r * 0.8, build.hip[1] - build.hip_r * 0.4
    low = action in ("sleep", "sit")
    path: Joints = [(x, y, 2.6), (x - 3, y + 3, 2.2)]
    if kind == "dog":
        path = [(x + 1, y + 4, 2.6), (x - 5, -3.4, 2.2), (x - 10, -4.5, 1.5)] if low else [
            (x, y, 2.6), (x - 5, y - 5, 2.3), (x - 6, y - 11, 1.4)]
    elif kind == "cat":
        path = [(x + 2, -4, 2.2), (x - 6, -3, 2.1), (x - 10, -7, 1.9), (x - 9, -11, 1.6)] if low else [
            (x, y + 1, 2.0), (x - 7, y - 2, 2.0), (x - 9, y - 10, 1.9), (x - 6, y - 16, 1.7)]
    elif kind == "horse":
        fly = -10 if action in ("run", "jump") else -2
        path = [(x, y, 2.2), (x - 5 + fly / 2, y + 3, 3.2), (x - 6 + fly, y + 13 + fly, 3.4),
                (x - 6 + 1.4 * fly, y + 23 + fly, 1.2)]
        coat = _mane(coat)
    elif kind == "cow":
        pen.oval(x - 3.6, y + 19, 1.8, 3, (52, 46, 56))
        path = [(x, y, 1.3), (x - 3, y + 6, 1.1), (x - 3.6, y + 17, 1.0)]
    pen.chain(path, coat)


def _mane(coat: Colour) -> Colour:
    return (206, 196, 190) if coat == WHITE else dark(coat, 0.5)


def _horse_head(pen: Pen, colour: str, build: Build, action: str) -> None:
    coat, (x, y), nose, mane = COLOURS[colour], build.head, build.nose, _mane(COLOURS[colour])
    down = action == "graze"
    neck = (build.shoulder[0] + (5 if down else 2), build.shoulder[1] + (0 if down else -3))
    back = (1.5, -6) if down else (-5, -2)
    middle = ((neck[0] + x) / 2 + back[0], (neck[1] + y) / 2 + back[1], 4.5)
    pen.chain([(neck[0] - 3 + back[0], neck[1] - 6, 2.6), middle, (x - 2 + back[0] / 3, y - 3, 3.6)], mane)
    pen.limb(neck, build.shoulder_r * (0.72 if down else 0.85), (x, y), build.head_r, coat)
    pen.poly([(x - 3, y - 4), (x - 1.5, y - 11), (x + 2, y - 4.5)], coat)
    pen.limb((x, y), build.head_r, nose, build.nose_r, coat)
    pen.oval(nose[0] + 0.8, nose[1] + 0.3, build.nose_r * 0.85, build.nose_r * 0.8, mix(coat, (120, 92, 92), 0.55))
    pen.oval(nose[0] + 1.8, nose[1] - 1, 0.8, 0.8, INK)
    pen.chain([(x - 1, y - 6, 2), (x + 3, y - 3.5, 1.4)], mane)
    if colour in ("brown", "black"):
        pen.limb((x + 4, y - 1.5), 1.2, (nose[0] - 0.5, nose[1] - 2.5), 0.9, WHITE)
    eye(pen, x + 1.5, y - 0.5, 1.2)


def _sheep_head(pen: Pen, colour: str, build: Build, action: str) -> None:
    (x, y), face = build.head, (92, 78, 80)
    pen.limb((x - 2, y), build.head_r, build.nose, build.nose_r, face)
    pen.limb((x - 4, y - 1), 1.9, (x - 8, y + 2), 1.3, face, dark(face, 0.5))
    for dx, dy in ((-4, -4), (0, -5.5), (-2, -2.5)):
        pen.oval(x + dx, y + dy, 3.4, 3, COLOURS[colour])
    pen.oval(x + 1.8, y - 0.8, 1.5, 1.6, WHITE)
    eye(pen, x + 2, y - 0.6, 0.9)


def _cow_head(pen: Pen, colour: str, build: Build, action: str) -> None:
    coat, (x, y), nose, r = COLOURS[colour], build.head, build.nose, build.head_r
    pen.limb((build.shoulder[0] + 2, build.shoulder[1] - 2), build.shoulder_r * 0.72, (x - 1, y + 1), r * 0.9, coat)
    pen.chain([(x - 1, y - 5, 1.5), (x - 2, y - 9, 1.2), (x + 1, y - 11, 0.6)], (232, 220, 196))
    pen.limb((x - 4, y - 3), 2.4, (x - 9, y - 1.5), 1.5, coat, dark(coat, 0.35))
    pen.limb((x, y), r, nose, build.nose_r, coat)
    pen.limb((x - 0.5, y - 3.5), 2.6, (x + 1, y + 1), 2.2, BLACK if colour == "white" else WHITE)
    pen.oval(nose[0] + 0.6, nose[1] + 0.4, build.nose_r, build.nose_r * 0.9, (240, 176, 176))
    pen.oval(nose[0] + 2, nose[1] - 0.6, 0.8, 0.9, INK)
    pen.oval(x + 1, y - 0.8, 1.7, 1.8, WHITE)
    eye(pen, x + 1.3, y - 0.6, 1.1)


def _dog_head(pen: Pen, colour: str, build: Build, action: str) -> None:
    coat, (x, y), nose, r = COLOURS[colour], build.head, build.nose, build.head_r
    sx, sy = build.shoulder
    ear = dark(coat, 0.32) if colour != "white" else COLOURS["brown"]
    pen.limb((sx + 1, sy - 1), build.shoulder_r * 0.72, (x - 2, y + 2), r * 0.75, coat)
    pen.limb((x + 1, y - 4), 2.4, (x + 3.5, y - 6.2), 1.6, dark(ear, 0.2))
    pen.oval(x, y, r, r * 0.95, coat)
    pen.limb((x + 4, y + 1.5), build.nose_r * 1.1, nose, build.nose_r, light(coat, 0.22))
    if action != "sleep":
        pen.limb((nose[0] - 1.2, nose[1] + 3.2), 1.4, (nose[0] - 0.6, nose[1] + 5), 1.3, (232, 110, 120))
        pen.limb((nose[0] - 4, nose[1] + 2.7), 0.5, (nose[0] + 1.2, nose[1] + 2.4), 0.5, INK)
        pen.limb((sx + 5, sy - 6.5), 1.3, (sx + 8.6, sy - 2.5), 1.3, (206, 66, 66))
    pen.oval(nose[0] + 2.4, nose[1] - 1.6, 1.9, 1.6, (48, 40, 48))
    flying = action in ("run", "jump")
    pen.chain([(x - 3, y - 4, 2.2), (x - 9, y - 4.5, 3.2), (x - 13, y - 2, 1.8)] if flying else
              [(x - 3.5, y - 4, 2.2), (x - 6, y + 1.5, 3.2), (x - 5.5, y + 6, 2)], ear, dark(ear, 0.3))
    eye(pen, x + 3, y - 1.8, 1.35, action == "sleep")


def _cat_head(pen: Pen, colour: str, build: Build, action: str) -> None:
    coat, (x, y), r = COLOURS[colour], build.head, build.head_r
    inside = (240, 160, 160)
    pen.limb((build.shoulder[0] + 1, build.shoulder[1] - 1), build.shoulder_r * 0.72, (x - 2, y + 2), r * 0.75, coat)
    pen.poly([(x - 7.2, y - 2), (x - 6.2, y - 12), (x - 0.6, y - 6)], coat)
    pen.poly([(x + 7.4, y - 2), (x + 7.4, y - 11.6), (x + 1.2, y - 6.4)], coat)
    pen.poly([(x - 5.6, y - 5), (x - 5.3, y - 9.6), (x - 2.4, y - 6.4)], inside)
    pen.poly([(x + 6.2, y - 5), (x + 6.4, y - 9.2), (x + 3.2, y - 6.4)], inside)
    pen.oval(x, y, r, r * 0.86, coat)
    pen.oval(x + 2.6, y + 2.8, 4, 2.8, light(coat, 0.45))
    for dx in (-2.4, 0.6, 3.4):
        pen.line([(x + dx, y - 6), (x + dx, y - 3.8)], 1.0, dark(coat, 0.26))
    pen.poly([(x + 1.6, y + 1), (x + 4.2, y + 1), (x + 2.9, y + 2.6)], (224, 120, 128))
    for side in (-1, 1):
        pen.line([(x + 2.9 + side * 3, y + 2.8), (x + 2.9 + side * 9, y + 1.6)], 0.5, light(coat, 0.7))
    for ex in (x - 1.6, x + 6):
        if action != "sleep":
            pen.oval(ex, y - 1.2, 1.9, 2.1, (178, 206, 96))
        eye(pen, ex, y - 1.1, 1.1, action == "sleep")


def bird(pen: Pen, kind: str, colour: str, action: str) -> None:
    """Draws a bird that flies or stands, or a duck that stands or swims, with (0, 0) under its feet or its belly."""
    coat = COLOURS[colour]
    line, wing, bill = dark(coat, 0.35), dark(coat, 0.2), COLOURS["orange"]
    if action == "fly":
        pen.blob([(3, -6), (6, -18), (16, -30), (20, -19), (14, -9), (9, -4)], dark(coat, 0.3))
        pen.blob([(-9, -4), (-25, -8), (-23, -4), (-27, 1), (-12, 3)], wing)
        pen.limb((-8, -2), 4.6, (7, -4), 6.2, coat)
        pen.oval(3, -0.4, 7, 3.6, light(coat, 0.5))
        pen.oval(14, -8, 6.2, 5.8, coat)
        pen.poly([(19, -10), (26, -7), (19, -5)], bill)
        pen.blob([(7, -6), (-2, -14), (-17, -32), (-19, -22), (-14, -9), (-3, -1.5)], line)
        pen.blob([(6.2, -6), (-2, -13), (-16.2, -30), (-18, -22), (-13.4, -9.4), (-3, -2.4)], light(coat, 0.12))
        return eye(pen, 15.6, -9, 1.3)
    if kind == "duck":
        if action == "stand":
            for x in (-2, 4):
                pen.line([(x, 1), (x + 0.4, 6.4), (x + 4, 6.8)], 1.7, bill)
        pen.blob([(-20, -13), (-14, -8), (0, -9), (11, -10), (15, -3), (8, 3), (-8, 3.5), (-17, -3)], coat)
        pen.limb((10, -7), 5, (12, -19), 4, coat)
        pen.oval(12, -20, 6.6, 6.2, (44, 118, 96) if colour == "brown" else coat)
        if colour == "brown":
            pen.limb((8.6, -13), 1, (15, -13), 1, WHITE)
        pen.blob([(17, -21.5), (25, -18.6), (24, -16.6), (17, -16.6)], bill)
        pen.blob([(-13, -7), (-2, -9.5), (6, -5), (0, 0), (-10, -1)], line)
        pen.blob([(-12.4, -6.6), (-2, -8.8), (5.2, -5), (0, -0.8), (-9.6, -1.6)], wing)
        return eye(pen, 13.6, -21, 1.3)
    for x in (0, 4):
        pen.line([(x, -8), (x + 0.6, -0.8), (x + 3.4, -0.5)], 1.1, (196, 120, 60))
    pen.blob([(-8, -12), (-22, -7), (-23, -4), (-8, -7)], wing)
    pen.limb((-4, -11), 6.2, (6, -17), 6.4, coat)
    pen.oval(5, -12, 5.2, 5.2, light(coat, 0.5))
    pen.oval(9, -23, 6.6, 6.2, coat)
    pen.poly([(14.5, -25), (21, -22), (14.5, -20)], bill)
    pen.blob([(4, -18), (-4, -19), (-16, -9), (-6, -7.4), (2, -10)], line)
    pen.blob([(3.2, -17.4), (-4, -18), (-14.6, -9.2), (-6, -8.2), (1.4, -10.6)], wing)
    return eye(pen, 10.8, -24.2, 1.3)
