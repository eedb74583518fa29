"""The rooms of Pocket Scenes: a living room and a kitchen."""

from __future__ import annotations

from random import Random

from PIL import Image

from pocket_scenes.pen import COLOURS, WORLD, Colour, Pen, dark, gradient, light, mix, shine


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
