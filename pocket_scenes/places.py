"""The places of Pocket Scenes: sky, land, water and rooms, with their textures and weather."""

from __future__ import annotations

import math
from functools import cache
from random import Random

from PIL import Image

from pocket_scenes.pen import COLOURS, OVERSAMPLE, WORLD, Colour, Pen, dark, gradient, light, mix, shine, shrink

SKIES: dict[str, list[Colour]] = {
    "day": [(112, 182, 232), (166, 214, 242), (228, 242, 246)],
    "sunset": [(116, 108, 172), (238, 150, 128), (254, 206, 132), (255, 232, 176)],
    "night": [(30, 38, 84), (54, 70, 126), (104, 116, 168)],
    "rain": [(126, 142, 160), (166, 178, 190), (200, 208, 212)],
    "snow": [(150, 176, 208), (196, 212, 230), (232, 238, 246)],
}
HAZE: dict[str, tuple[Colour, float]] = {
    "sunset": ((255, 140, 92), 0.11), "night": ((34, 46, 112), 0.3), "rain": ((112, 126, 150), 0.14)}
SHADOW: dict[str, Colour] = {
    "beach": (132, 96, 74), "park": (30, 74, 52), "street": (48, 46, 62), "snow": (112, 134, 184),
    "lake": (36, 78, 56), "hills": (40, 82, 50), "forest": (34, 52, 40), "meadow": (48, 88, 44), "room": (78, 48, 40),
    "kitchen": (84, 76, 88)}
MARKS = {"blades": 1500, "tufts": 150, "grains": 1500, "pebbles": 70, "sparkles": 260, "ripples": 190, "flowers": 90,
         "drifts": 26, "leaves": 260}
WATERS: dict[str, list[Colour]] = {
    "sunset": [(250, 190, 140), (150, 140, 178), (84, 120, 168)], "night": [(92, 108, 164), (48, 66, 122)],
    "rain": [(150, 170, 182), (96, 128, 150)]}
WALLS: list[Colour] = [(224, 160, 138), (236, 206, 160), (168, 186, 200), (198, 178, 206), (186, 204, 178)]
PETALS: list[Colour] = [(246, 206, 84), (240, 122, 116), (250, 248, 240), (186, 132, 206), (244, 160, 190)]


@cache
def _texture(kind: str, width: int) -> Image.Image:
    """Returns a mask twice as wide as the picture: marks that grow towards the viewer."""
    rng = Random(f"texture {kind}")
    mask = Image.new("L", (2 * width, width))
    pen = Pen(mask)
    pen.unit = pen.a = pen.d = width / WORLD  # the mask is wider than a picture
    for _ in range(MARKS[kind]):
        depth = rng.random() ** (0.8 if kind in ("blades", "grains") else 0.9)
        x, y, near = rng.uniform(0, 2 * WORLD), WORLD * depth, 0.3 + 0.9 * depth
        ink = rng.randint(70, 190)
        if kind == "blades":
            ends = (x, y, x + rng.uniform(-1.2, 1.2) * near, y - 4.2 * near)
            pen.draw.line([round(v * pen.unit) for v in ends], ink, 1 if near < 0.8 else 2)
        elif kind == "tufts":
            for lean in (-2.2, -0.8, 0.8, 2.2):
                ends = (x + 0.3 * lean * near, y, x + lean * near, y - 5.4 * near)
                pen.draw.line([round(v * pen.unit) for v in ends], ink, 1 if near < 0.6 else 2)
        elif kind in ("grains", "sparkles"):
            pen.oval(x, y, 0.55 * near, 0.4 * near, ink)
        elif kind in ("pebbles", "flowers", "leaves"):
            long, turn = (2.2, rng.uniform(0, 180)) if kind == "leaves" else (1.5, 0)
            pen.oval(x, y, long * near, 1.2 * near, ink + 60, turn)
        else:
            long = rng.uniform(5, 12) * near * (3 if kind == "drifts" else 1)
            pen.oval(x, y, long, (0.45 if kind == "ripples" else 3.4) * near, ink // (1 if kind == "ripples" else 3))
    return mask


def _strew(canvas: Image.Image, rng: Random, kind: str, colour: Colour, top: float, bottom: float = WORLD) -> None:
    """Lays a texture over the rows between `top` and `bottom`, nearer marks lower."""
    width = canvas.width
    unit = width / WORLD
    left = rng.randrange(WORLD * OVERSAMPLE) * width // (WORLD * OVERSAMPLE)  # the same scene at every size
    start, end = round(top * unit), round(bottom * unit)
    mask = _texture(kind, width).crop((left, 0, left + width, width))
    mask = shrink(mask, width, end - start) if bottom < WORLD else mask.crop((0, start, width, width))
    canvas.paste(colour, (0, start), mask)


@cache
def _cloud(number: int, width: int) -> Image.Image:
    rng = Random(f"cloud {number}")
    mask = Image.new("L", (width // 2, width // 5))
    pen = Pen(mask)
    pen.a = pen.d = width / WORLD
    for _ in range(9):
        x, r = rng.uniform(12, 52), rng.uniform(3, 7)
        pen.oval(x, 19 - r * 0.7 - rng.uniform(0, 5) * (1 - abs(x - 32) / 24), r * 1.25, r, 225)
    pen.limb((9, 19.5), 2.6, (55, 19.5), 2.6, 225)
    return mask.reduce(4)


def sky(canvas: Image.Image, rng: Random, time: str, horizon: float) -> None:
    """Paints the sky with its clouds and its sun, or its moon and stars, down to the horizon."""
    pen, unit = Pen(canvas), canvas.width / WORLD
    gradient(canvas, 0, horizon + 2, SKIES[time])
    if time == "night":
        for _ in range(34):
            r = rng.uniform(0.3, 0.75)
            pen.oval(rng.uniform(0, WORLD), rng.uniform(0, horizon * 0.8), r, r, (236, 240, 255))
        x = rng.choice((rng.uniform(12, 34), rng.uniform(94, 116)))
        shine(canvas, x, 18, 26, 26, (220, 226, 255), 110)
        pen.oval(x, 18, 8, 8, (250, 246, 222))
        for dx, dy, r in ((-2, -2, 1.8), (3, 1, 1.3), (-1, 4, 1.1)):
            pen.oval(x + dx, 18 + dy, r, r, (232, 226, 200))
    elif time == "sunset":
        x, y = rng.uniform(18, 110), horizon - rng.uniform(6, 16)
        shine(canvas, x, y, 46, 40, (255, 240, 190), 190)
        pen.oval(x, y, 9, 9, (255, 246, 214))
    elif time == "day" and rng.random() < 0.55:
        x, y = rng.choice((rng.uniform(8, 26), rng.uniform(102, 120))), rng.uniform(10, 22)
        shine(canvas, x, y, 30, 30, (255, 250, 214), 200)
        pen.oval(x, y, 7.5, 7.5, (255, 244, 190))
    tint = {"sunset": (255, 214, 196), "night": (120, 132, 178), "rain": (184, 192, 202)}.get(time, (255, 255, 255))
    for _ in range(4 if time == "rain" else rng.randint(1, 3)):
        cloud = _cloud(rng.randrange(5), canvas.width)
        size = rng.uniform(0.6, 1.15)
        cloud = cloud.resize((round(4 * cloud.width * size), round(4 * cloud.height * size)), Image.Resampling.BILINEAR)
        place = (round(rng.uniform(-16, 100) * unit), round(rng.uniform(0, max(4, horizon - 34)) * unit))
        canvas.paste(dark(tint, 0.1), (place[0], place[1] + 2), cloud)
        canvas.paste(tint, place, cloud)


def _ridge(pen: Pen, rng: Random, y: float, high: float, fill: Colour, sharp: bool = False) -> None:
    a, b, c = rng.uniform(0, 6), rng.uniform(0, 6), rng.uniform(1.4, 2.6)
    points: list = []
    for i in range(25):
        t = i / 24 * 2 * math.pi
        rise = 0.55 * math.sin(t * c / 2 + a) + 0.3 * math.sin(t * c + b)
        points.append((WORLD * i / 24, y - high * (0.5 + (abs(rise) if sharp else rise * 0.5))))
    pen.poly([*points, (WORLD, WORLD), (0, WORLD)], fill)


def _trees(canvas: Image.Image, rng: Random, y: float, colour: Colour, pines: bool = False) -> None:
    """Draws a far row of trees, small and pale, that nobody would mention."""
    pen, x = Pen(canvas), -4.0
    while x < WORLD + 6:
        r = rng.uniform(4, 8)
        fill = mix(colour, (255, 255, 255), rng.uniform(0, 0.1))
        if pines:
            pen.poly([(x - r * 0.6, y + 1), (x, y - r * 2.2), (x + r * 0.6, y + 1)], fill)
        else:
            pen.oval(x, y - r * 0.6, r, r, fill)
        x += r * rng.uniform(0.8, 1.3)


def _lawn(canvas: Image.Image, rng: Random, top: float, near: Colour, far: Colour) -> None:
    gradient(canvas, top, WORLD, [far, mix(far, near, 0.6), near])
    _strew(canvas, rng, "blades", light(far, 0.25), top)
    _strew(canvas, rng, "tufts", dark(near, 0.22), top)


def _water(canvas: Image.Image, rng: Random, top: float, bottom: float, time: str) -> None:
    gradient(canvas, top, bottom, WATERS.get(time, [(150, 208, 226), (82, 164, 206), (58, 138, 190)]))
    _strew(canvas, rng, "ripples", (236, 248, 252), top, bottom)


def _bank(canvas: Image.Image, rng: Random, y: float, near: Colour, far: Colour) -> None:
    """Lays a lawn whose far edge is a gentle curve."""
    lawn = Image.new("RGB", canvas.size)
    _lawn(lawn, rng, y - 4, near, far)
    mask = Image.new("1", canvas.size)
    a = rng.uniform(0, 6)
    brow = [(WORLD * i / 12, y + 2.4 * math.sin(i * 0.5 + a)) for i in range(13)]
    Pen(mask).poly([*brow, (WORLD, WORLD), (0, WORLD)], 1)
    canvas.paste(lawn, (0, 0), mask)


def _beach(canvas: Image.Image, pen: Pen, rng: Random, time: str, horizon: float, water: float) -> None:
    if rng.random() < 0.5:
        _ridge(pen, rng, horizon, 9, mix((110, 150, 150), SKIES[time][-1], 0.5))
    _water(canvas, rng, horizon, water + 2, time)
    wave = [(WORLD * i / 16, water + 2.2 * math.sin(i * 0.9 + water)) for i in range(17)]
    for rise, fill in ((-1.6, (250, 252, 250)), (0.8, (196, 166, 126))):
        pen.poly([*[(x, y + rise) for x, y in wave], (WORLD, WORLD), (0, WORLD)], fill)
    sand, mask = Image.new("RGB", canvas.size), Image.new("1", canvas.size)
    gradient(sand, 0, WORLD, [(236, 208, 160), (246, 222, 176), (238, 206, 154)])
    Pen(mask).poly([*[(x, y + 4.5) for x, y in wave], (WORLD, WORLD), (0, WORLD)], 1)
    canvas.paste(sand, (0, 0), mask)
    _strew(canvas, rng, "grains", (196, 154, 106), water + 8)
    _strew(canvas, rng, "pebbles", (255, 244, 220), water + 10)


def _snow(canvas: Image.Image, pen: Pen, rng: Random, time: str, horizon: float, water: float) -> None:
    haze = SKIES[time][-1]
    _ridge(pen, rng, horizon + 2, 22, mix((150, 172, 206), haze, 0.35), sharp=True)
    _trees(canvas, rng, horizon + 2, mix((92, 128, 136), haze, 0.35), pines=True)
    gradient(canvas, horizon, WORLD, [(226, 234, 246), (244, 248, 254), (232, 240, 252)])
    _ridge(pen, rng, horizon + 6, 8, (234, 241, 251))
    _strew(canvas, rng, "drifts", (196, 212, 238), horizon + 8)
    _strew(canvas, rng, "sparkles", (255, 255, 255), horizon + 4)


def _forest(canvas: Image.Image, pen: Pen, rng: Random, time: str, horizon: float, water: float) -> None:
    haze = SKIES[time][-1]
    for depth, tone in ((0.62, (112, 156, 124)), (0.3, (78, 124, 90))):
        bark = mix((112, 86, 70), haze, depth)
        _ridge(pen, rng, 60 - 22 * depth, 40, mix(mix(tone, haze, depth * 0.7), haze, 0.2))
        for _ in range(7):
            x, w = rng.uniform(0, WORLD), rng.uniform(1.6, 3.2) * (1.3 - depth)
            pen.poly([(x - w, 0), (x + w, 0), (x + w * 1.3, horizon + 6), (x - w * 1.3, horizon + 6)], bark)
    for _ in range(11):
        x, y, r = rng.uniform(-4, WORLD + 4), rng.uniform(-4, 12), rng.uniform(10, 17)
        pen.oval(x, y, r, r * 0.8, mix((82, 140, 86), (150, 190, 110), rng.random() * 0.6))
    _lawn(canvas, rng, horizon, (84, 126, 72), (122, 158, 92))
    _strew(canvas, rng, "leaves", (176, 132, 84), horizon + 2)
    for x in (rng.uniform(20, 50), rng.uniform(70, 110)):
        shine(canvas, x, rng.uniform(88, 112), 24, 7, (236, 238, 160), 110)


def _hills(canvas: Image.Image, pen: Pen, rng: Random, time: str, horizon: float, water: float) -> None:
    _ridge(pen, rng, horizon + 2, 26, mix((118, 160, 150), SKIES[time][-1], 0.45))
    _ridge(pen, rng, horizon + 4, 20, (150, 192, 118))
    _ridge(pen, rng, horizon + 12, 16, (132, 182, 102))
    _strew(canvas, rng, "blades", (176, 208, 130), horizon + 6)
    _bank(canvas, rng, horizon + 16, (106, 164, 82), (142, 192, 106))


def _lake(canvas: Image.Image, pen: Pen, rng: Random, time: str, horizon: float, water: float) -> None:
    haze = SKIES[time][-1]
    _ridge(pen, rng, horizon + 2, 26, mix((118, 160, 150), haze, 0.45), sharp=True)
    _trees(canvas, rng, horizon, mix((84, 138, 98), haze, 0.25), pines=rng.random() < 0.6)
    _water(canvas, rng, horizon, water + 3, time)
    _bank(canvas, rng, water, (112, 168, 88), (140, 190, 110))


def _park(canvas: Image.Image, pen: Pen, rng: Random, time: str, horizon: float, water: float) -> None:
    haze = SKIES[time][-1]
    _ridge(pen, rng, horizon + 2, 12, mix((118, 160, 150), haze, 0.45))
    _trees(canvas, rng, horizon, mix((98, 154, 96), haze, 0.25))
    _lawn(canvas, rng, horizon, (104, 170, 84), (150, 200, 112))
    y, path = rng.uniform(76, 82), (232, 212, 172)
    for low, fill in ((1, dark(path, 0.1)), (0, path)):
        pen.blob([(-12, y), (30, y + 2), (70, y - 2), (140, y + 1), (140, y + 6 + low), (70, y + 2 + low),
                  (30, y + 7 + low), (-12, y + 5 + low)], fill)


def _meadow(canvas: Image.Image, pen: Pen, rng: Random, time: str, horizon: float, water: float) -> None:
    _ridge(pen, rng, horizon + 2, 12, mix((118, 160, 150), SKIES[time][-1], 0.45))
    _lawn(canvas, rng, horizon, (140, 178, 84), (196, 208, 120))
    for colour in rng.sample(PETALS, 3):
        _strew(canvas, rng, "flowers", colour, horizon + 2)


def _street(canvas: Image.Image, pen: Pen, rng: Random, time: str, horizon: float, water: float) -> None:
    x = -rng.uniform(0, 12)
    while x < WORLD:
        w, h = rng.uniform(20, 32), rng.uniform(34, 58)
        wall, top = mix(rng.choice(WALLS), SKIES[time][-1], 0.22), horizon - h
        pen.rect(x, top, x + w, horizon, wall)
        pen.rect(x - 1, top, x + w + 1, top + 2.4, dark(wall, 0.25))
        columns = 3 if w > 25 else 2
        for i in range(columns):
            for j in range(int(h // 13)):
                u, v = x + w * (i + 0.5) / columns, top + 7 + 12.5 * j
                glass = (206, 226, 236) if time != "night" else rng.choice(((255, 222, 140), (96, 108, 150)))
                pen.rect(u - 2.9, v, u + 2.9, v + 7, light(wall, 0.5))
                pen.rect(u - 2.2, v + 0.7, u + 2.2, v + 6.3, glass)
        x += w + rng.choice((0, 0, 3))
    gradient(canvas, horizon, horizon + 14, [(206, 200, 194), (222, 216, 208)])
    for i in range(-4, 16):
        pen.line([(i * 12, horizon + 14), (i * 12 + 5, horizon)], 0.4, (178, 170, 166))
    pen.rect(0, horizon + 14, WORLD, horizon + 16, (168, 162, 162))
    gradient(canvas, horizon + 16, WORLD, [(122, 122, 134), (140, 140, 150)])
    _strew(canvas, rng, "grains", (112, 112, 124), horizon + 16)
    for i in range(6):
        x = 30 * i - rng.uniform(8, 10)
        pen.poly([(x, 123), (x + 17, 123), (x + 15.6, 125.6), (x - 1.4, 125.6)], (244, 238, 214))


def paint_room(canvas: Image.Image, place: str, rng: Random) -> None:
    """Paints a room or a kitchen with its window."""
    pen = Pen(canvas)
    floor, x = rng.uniform(82, 86), rng.choice((20.0, 104.0))
    wall = rng.choice([(240, 222, 196), (206, 224, 222), (236, 208, 204), (214, 216, 234), (222, 230, 200)])
    gradient(canvas, 0, floor, [light(wall, 0.2), wall, dark(wall, 0.08)])
    (_room if place == "room" else _kitchen)(canvas, pen, rng, wall, floor, WORLD - x)
    pen.rect(0, floor - 2.4, WORLD, floor, (250, 244, 234))
    pen.rect(x - 17, 8, x + 17, 46, (250, 246, 238))
    view, mask = Image.new("RGB", canvas.size), Image.new("1", canvas.size)
    gradient(view, 0, 60, [(132, 192, 234), (196, 226, 240), (150, 196, 130)])
    Pen(mask).rect(x - 15, 10, x + 15, 44, 1)
    canvas.paste(view, (0, 0), mask)
    pen.line([(x, 9), (x, 45)], 1.4, (250, 246, 238))
    pen.line([(x - 16, 26), (x + 16, 26)], 1.4, (250, 246, 238))
    drape = light(COLOURS[rng.choice(("red", "orange", "purple", "green"))], 0.4)
    for side in (-1, 1):
        pen.blob([(x + side * u, v) for u, v in ((20, 4), (10, 5), (13, 28), (12, 52), (21, 52))], drape)
    shine(canvas, x, floor + 18, 30, 12, (255, 246, 206), 90)


def _room(canvas: Image.Image, pen: Pen, rng: Random, wall: Colour, floor: float, x: float) -> None:
    for i in range(16):
        pen.rect(8 * i, 0, 8 * i + 3, floor, mix(wall, light(wall, 0.5), 0.5))
    gradient(canvas, floor, WORLD, [(186, 134, 92), (206, 154, 108), (192, 140, 96)])
    for y, k in ((floor + 7, 0), (floor + 17, 1), (floor + 30, 0)):
        pen.line([(0, y), (WORLD, y)], 0.5, (156, 108, 76))
        for i in range(5):
            pen.line([(i * 34 + 14 * k, y), (i * 34 + 14 * k, y + 9)], 0.5, (156, 108, 76))
    rug = light(COLOURS[rng.choice(("blue", "red", "green", "purple"))], 0.4)
    for rx, ry, fill in ((56, 13, rug), (49, 10.4, light(rug, 0.3)), (45, 9.2, rug)):
        pen.oval(64, 111, rx, ry, fill)
    picture = rng.choice([(190, 216, 226), (244, 214, 160), (198, 216, 176)])
    pen.rect(x - 13, 14, x + 13, 34, (150, 108, 78))
    pen.rect(x - 11, 16, x + 11, 32, picture)
    pen.poly([(x - 11, 32), (x - 4, 22), (x + 2, 28), (x + 6, 25), (x + 11, 32)], dark(picture, 0.3))


def _kitchen(canvas: Image.Image, pen: Pen, rng: Random, wall: Colour, floor: float, x: float) -> None:
    for i in range(12):
        pen.line([(i * 11, 34), (i * 11, floor)], 0.5, light(wall, 0.7))
    for y in (34, 42, 50):
        pen.line([(0, y), (WORLD, y)], 0.5, light(wall, 0.7))
    units = rng.choice([(120, 162, 176), (150, 176, 140), (196, 150, 120), (226, 220, 208)])
    pen.rect(0, 58, WORLD, floor, units)
    pen.rect(0, 55, WORLD, 59, (236, 228, 216))
    for i in range(6):
        pen.line([(i * 22 + 4, 60), (i * 22 + 4, floor)], 0.6, dark(units, 0.25))
        pen.limb((i * 22 + 9, 64), 0.7, (i * 22 + 14, 64), 0.7, (246, 238, 220))
    pen.limb((x - 5, 51), 3.6, (x + 5, 51), 3.6, (200, 84, 76))
    pen.limb((x - 8, 47.4), 0.8, (x + 8, 47.4), 0.8, (146, 60, 60))
    pen.rect(x - 24, 4, x + 24, 24, units)
    pen.line([(x, 4), (x, 24)], 0.8, dark(units, 0.25))
    gradient(canvas, floor, WORLD, [(222, 212, 204), (238, 230, 222)])
    for row in range(4):
        a, b = (row / 4) ** 1.3, ((row + 1) / 4) ** 1.3
        y0, y1, s0, s1 = floor + (WORLD - floor) * a, floor + (WORLD - floor) * b, 12 + 9 * a, 12 + 9 * b
        for i in range(-7 + row % 2, 8, 2):
            pen.poly([(64 + i * s0, y0), (64 + (i + 1) * s0, y0), (64 + (i + 1) * s1, y1), (64 + i * s1, y1)],
                     (198, 190, 192))


HORIZONS = {"beach": 50, "lake": 52, "hills": 62, "forest": 62, "street": 78, "park": 66, "snow": 66, "meadow": 66}
PAINTERS = {"beach": _beach, "lake": _lake, "hills": _hills, "forest": _forest, "street": _street, "park": _park,
            "snow": _snow, "meadow": _meadow}
OUTDOORS, INDOORS = tuple(PAINTERS), ("room", "kitchen")


def paint(canvas: Image.Image, place: str, time: str, rng: Random, water: float) -> None:
    """Paints a place; `water` is the row where the water of a lake or a sea ends."""
    if place in INDOORS:
        return paint_room(canvas, place, rng)
    horizon = HORIZONS[place] + rng.uniform(-3, 3)
    sky(canvas, rng, "snow" if (place, time) == ("snow", "day") else time, horizon)
    return PAINTERS[place](canvas, Pen(canvas), rng, time, horizon, water)


def weather(canvas: Image.Image, place: str, time: str, rng: Random) -> Image.Image:
    """Returns the picture under its light, with rain, or with the snowflakes of a snowy place."""
    if time in HAZE and place not in INDOORS:
        colour, strength = HAZE[time]
        canvas = Image.blend(canvas, Image.new("RGB", canvas.size, colour), strength)
    pen = Pen(canvas)
    if time == "rain":
        for _ in range(80):
            x, y, n = rng.uniform(0, WORLD + 10), rng.uniform(-6, WORLD), rng.uniform(3, 6)
            pen.draw.line([round(v * pen.unit) for v in (x, y, x - n * 0.35, y + n)], (214, 226, 236), 1)
    elif place == "snow" and rng.random() < 0.7:
        for _ in range(60):
            r = rng.uniform(0.4, 1.1)
            pen.oval(rng.uniform(0, WORLD), rng.uniform(0, WORLD), r, r, (255, 255, 255))
    return canvas
