"""The things of Pocket Scenes, each standing on (0, 0); `look` gives what varies from one to another of a kind."""

from __future__ import annotations

import math

from pocket_scenes.pen import COLOURS, INK, Colour, Pen, dark, light

WHITE = COLOURS["white"]
WOOD: Colour = (164, 112, 72)
GLASS: Colour = (186, 220, 236)


def ball(pen: Pen, colour: Colour, look: int) -> None:
    pen.oval(0, -6.5, 6.5, 6.5, colour)
    other = light(colour, 0.75) if colour != WHITE else (92, 92, 104)
    for turn in (0, 120, 240):
        a = math.radians(turn + 40 * look)
        pen.oval(3.6 * math.cos(a), -6.5 + 3.6 * math.sin(a), 1.9, 1.9, other)
    pen.oval(-2.6, -9.4, 1.3, 0.9, WHITE, -30)


def car(pen: Pen, colour: Colour, look: int) -> None:
    edge = dark(colour, 0.3)
    pen.blob([(-31, -9), (-30, -17), (-21, -19), (-13, -29), (8, -29), (18, -19), (29, -16.5), (32, -9), (28, -5),
              (-28, -5)], colour)
    pen.blob([(-17.5, -19.2), (-11.6, -26.6), (-3, -26.8), (-3, -19)], GLASS)
    pen.blob([(0, -19), (0, -26.8), (7, -26.6), (14, -19)], GLASS)
    pen.line([(-14, -20.5), (-10.5, -25.5)], 1.2, WHITE)
    pen.line([(-1.5, -18), (-1.5, -8)], 0.7, edge)
    pen.line([(-28, -12.4), (30, -12.4)], 0.9, light(colour, 0.5))
    pen.limb((2.5, -15.5), 0.7, (5.5, -15.5), 0.7, edge)
    pen.oval(29.2, -13, 2.4, 2.6, (255, 236, 168))
    pen.oval(-30, -14, 1.6, 2.4, (206, 70, 60))
    for x in (-18, 18):
        pen.oval(x, -6, 7.6, 7.4, dark(colour, 0.5))
        pen.oval(x, -6, 6.4, 6.4, (62, 60, 70))
        pen.oval(x, -6, 3.4, 3.4, (206, 208, 214))
        pen.oval(x, -6, 1.3, 1.3, (120, 120, 130))


def bicycle(pen: Pen, colour: Colour, look: int) -> None:
    tyre, steel = (66, 62, 72), (150, 154, 164)
    for x in (-15, 15):
        rim = [2 * math.pi * i / 16 for i in range(17)]
        pen.chain([(x + 9.4 * math.cos(t), -10 + 9.4 * math.sin(t), 1.05) for t in rim], tyre)
        for i in range(4):
            u, v = 8.6 * math.cos(math.pi * i / 4), 8.6 * math.sin(math.pi * i / 4)
            pen.line([(x - u, -10 - v), (x + u, -10 + v)], 0.35, steel)
    pen.line([(-15, -10), (-6, -23), (9, -22), (-1, -9), (-15, -10)], 2.0, colour)
    pen.line([(-7.4, -26), (-1, -9)], 2.0, colour)
    pen.line([(15, -10), (9, -22), (8, -28), (13, -29)], 2.0, dark(colour, 0.2))
    pen.limb((-11, -26.5), 1.7, (-4.5, -26.5), 1.2, (84, 62, 56))
    pen.oval(-1, -9, 2.6, 2.6, steel)


def boat(pen: Pen, colour: Colour, look: int) -> None:
    pen.line([(0, -8), (0, -60)], 1.8, WOOD)
    sail = (252, 246, 232)
    pen.blob([(2, -57), (12, -40), (24, -18), (12, -15.5), (2, -16)], sail)
    pen.blob([(-2, -52), (-8, -34), (-18, -18), (-9, -15.5), (-2, -16)], dark(sail, 0.08))
    pen.poly([(2.3, -44), (10.4, -42), (13.4, -36), (2.3, -37)], light(colour, 0.1))
    pen.poly([(0, -60), (-9, -57.5), (0, -55)], colour)
    pen.blob([(-27, -12), (0, -10.5), (29, -13), (24, -3), (18, 2), (-18, 2), (-24, -3)], colour)
    pen.line([(-25, -10.5), (0, -9.2), (26, -11)], 1.6, light(colour, 0.6))


def kite(pen: Pen, colour: Colour, look: int) -> None:
    """Draws a kite around (0, 0)."""
    other = light(colour, 0.55)
    tail = [(0, 15), (-3, 19), (1, 23), (-2, 27), (1, 31)]
    pen.line(tail, 0.8, dark(colour, 0.2))
    for x, y in tail[1:]:
        pen.poly([(x - 3, y - 1.4), (x + 3, y + 1.4), (x + 3, y - 1.4), (x - 3, y + 1.4)], colour)
    pen.poly([(0, -16), (11, -3), (0, 15), (-11, -3)], colour)
    pen.poly([(0, -16), (11, -3), (0, -3)], other)
    pen.poly([(0, 15), (-11, -3), (0, -3)], other)
    pen.line([(-11, -3), (11, -3)], 0.7, dark(colour, 0.4))
    pen.line([(0, -16), (0, 15)], 0.7, dark(colour, 0.4))


def balloon(pen: Pen, colour: Colour, look: int) -> None:
    """Draws a balloon whose knot is at (0, 0)."""
    pen.poly([(-1.8, 1.2), (1.8, 1.2), (0, -2)], dark(colour, 0.2))
    pen.blob([(0, -0.6), (-7, -8), (-8, -15), (0, -21.5), (8, -15), (7, -8)], colour)
    pen.oval(-3.4, -15.4, 1.6, 2.8, light(colour, 0.75), 25)


def umbrella(pen: Pen, colour: Colour, look: int) -> None:
    """Draws an umbrella whose handle is at (0, 0); look 1 is the parasol of a beach, on its pole."""
    tall, wide, high, pole = (22, 22, 15, (116, 88, 72)) if look == 0 else (46, 32, 19, (236, 226, 206))
    pen.line([(0, 0), (0, -tall - high + 1)], 1.4 if look == 0 else 2.0, pole)
    dome = [(wide * math.cos(math.pi * i / 12), -tall - high * math.sin(math.pi * i / 12)) for i in range(13)]
    hem = [(-wide + wide * (2 * i + 1) / 8, -tall - (3.4 if i % 2 == 0 else 0)) for i in range(8)]
    pen.poly(dome + hem, colour)
    if look == 0:
        pen.line([(0, 0), (1.2, 2.4), (3.4, 1.4)], 1.4, pole)
        for i in (-1, 1):
            pen.line([(0, -tall - high), (i * wide * 0.5, -tall - 1)], 0.7, dark(colour, 0.3))
    else:
        for i in range(4):
            a, b = -wide + i * wide / 2, -wide + i * wide / 2 + wide / 4
            pen.poly([(a * 0.96, -tall - 1), (a * 0.7, -tall - high * 0.66), (0, -tall - high),
                      (b * 0.7, -tall - high * 0.7), (b * 0.97, -tall - 3)], light(colour, 0.6))
    pen.line([(0, -tall - high), (0, -tall - high - 2.6)], 1.2, dark(colour, 0.3))


def palm(pen: Pen) -> None:
    pen.chain([(-5, 0, 3.6), (-2, -22, 2.8), (3, -42, 2.3), (9, -60, 2.0)], (164, 124, 86))
    for i in range(6):
        pen.line([(-7 + 1.9 * i, -8 - 9 * i), (-1.2 + 1.7 * i, -9 - 9 * i)], 0.6, (130, 94, 66))
    for k, (dx, dy) in enumerate(((-24, 6), (-22, -10), (-6, -20), (14, -17), (24, -4), (19, 12), (-12, 16))):
        side = 0.2 if dx < 0 else -0.2
        leaf = (72 + 9 * (k % 3), 146 + 8 * (k % 2), 84)
        pen.blob([(9, -60), (9 + dx * 0.5 - dy * side, -64 + dy * 0.4), (9 + dx, -60 + dy),
                  (9 + dx * 0.5, -59 + dy * 0.55)], leaf)
    pen.oval(9, -58, 2.2, 2.2, (126, 84, 56))


def pine(pen: Pen, snow: bool) -> None:
    green = (72, 128, 96)
    pen.limb((0, 0), 4.4, (0, -20), 3.4, (134, 96, 70))
    for i, (y, w) in enumerate(((-12, 24), (-28, 20), (-44, 15), (-58, 10))):
        pen.blob([(-w, y), (-w * 0.45, y - 10), (0, y - 24 + i), (w * 0.45, y - 10), (w, y), (w * 0.4, y + 2.4),
                  (0, y + 1), (-w * 0.4, y + 2.4)], light(green, 0.05 * i))
        if snow:
            pen.blob([(-w * 0.5, y - 9), (0, y - 24 + i), (w * 0.5, y - 9), (w * 0.22, y - 8.5), (0, y - 11),
                      (-w * 0.26, y - 8)], (246, 250, 255))
        else:
            pen.line([(-w * 0.6, y - 2), (-w * 0.25, y - 8)], 1.2, light(green, 0.3))


def tree(pen: Pen, colour: Colour, look: int) -> None:
    """Draws a round tree (0), a pine (1), a palm (2) or a pine under snow (3)."""
    if look == 2:
        return palm(pen)
    if look in (1, 3):
        return pine(pen, look == 3)
    bark = (134, 96, 70)
    pen.limb((0, 0), 4.4, (0, -30), 2.8, bark)
    pen.line([(-1.6, -4), (-0.8, -22)], 0.8, dark(bark, 0.3))
    pen.line([(0, -24), (-9, -36)], 2.6, bark)
    pen.line([(0, -22), (9, -36)], 2.4, bark)
    puffs = ((0, -48, 22), (-16, -42, 13), (16, -43, 14), (-11, -58, 14), (11, -60, 13), (0, -67, 12))
    for x, y, r in puffs:
        pen.oval(x, y, r, r * 0.9, colour)
    for x, y, r in puffs:
        pen.oval(x - r * 0.24, y - r * 0.3, r * 0.55, r * 0.42, light(colour, 0.16))
    for x, y in ((9, -40), (-6, -38), (17, -50), (3, -52)):
        pen.oval(x, y, 5, 2.4, dark(colour, 0.14))
    return None


def house(pen: Pen, colour: Colour, look: int) -> None:
    roof: Colour = ((178, 92, 76), (104, 112, 134), (146, 100, 82))[look % 3]
    pen.rect(14, -56, 21, -38, (172, 118, 100))
    pen.rect(-28, -34, 28, 0, colour)
    for y in (-8, -16, -24):
        pen.line([(-27.6, y), (27.6, y)], 0.5, dark(colour, 0.12))
    pen.poly([(-35, -32), (0, -62), (35, -32), (31, -30), (-31, -30)], roof)
    pen.poly([(-35, -32), (0, -62), (0, -58.5), (-31.5, -30)], light(roof, 0.25))
    pen.oval(0, -43, 4.6, 4.6, WHITE)
    pen.oval(0, -43, 3.2, 3.2, GLASS)
    pen.rect(-6, -19, 6, 0, WHITE)
    pen.rect(-4.6, -17.6, 4.6, 0, dark(roof, 0.15))
    pen.oval(2.8, -8.6, 0.9, 0.9, (250, 214, 110))
    for x in (-18, 18):
        pen.rect(x - 6.6, -24.6, x + 6.6, -9, WHITE)
        pen.rect(x - 5, -23, x + 5, -10.6, GLASS)
        pen.line([(x, -11), (x, -23)], 1.0, WHITE)
        pen.line([(x - 5, -17), (x + 5, -17)], 1.0, WHITE)
    for x, tint in ((-22, 0.0), (-13, 0.12), (14, 0.1), (23, 0.0)):
        pen.oval(x, -2.4, 6, 4.2, light((92, 150, 92), tint))


def bench(pen: Pen, colour: Colour, look: int) -> None:
    """Draws a bench whose seat is 15 above the ground."""
    iron = (74, 72, 82)
    for x in (-22, 22):
        pen.line([(x, 0), (x, -16), (x * 1.03, -31)], 2.2, iron)
        pen.line([(x - 4, 0), (x + 3, 0)], 2.0, iron)
    for y in (-29.5, -24):
        pen.limb((-25, y), 1.9, (25, y), 1.9, colour)
    pen.limb((-26, -15), 2.4, (26, -15), 2.4, light(colour, 0.15))


def sofa(pen: Pen, colour: Colour, look: int) -> None:
    """Draws a sofa whose seat is 16 above the floor."""
    for x in (-30, 30):
        pen.limb((x, -3), 1.8, (x, 0), 1.4, (116, 82, 62))
    pen.blob([(-33, -12), (-32, -36), (0, -40), (32, -36), (33, -12), (0, -9)], dark(colour, 0.12))
    pen.limb((-14, -15), 5, (14, -15), 5, light(colour, 0.12))
    pen.limb((-26, -14), 5, (-2, -14), 4.6, light(colour, 0.14))
    pen.limb((2, -14), 4.6, (26, -14), 5, light(colour, 0.14))
    pen.rect(-33, -11, 33, -3, colour)
    for x in (-33, 33):
        pen.limb((x, -22), 5, (x, -7), 4.6, light(colour, 0.05), dark(colour, 0.3))


def chair(pen: Pen, colour: Colour, look: int) -> None:
    """Draws a chair whose seat is 17 above the floor."""
    for x in (-10, 10):
        pen.limb((x * 0.9, -16), 1.6, (x, 0), 1.2, dark(colour, 0.2))
    pen.line([(-10, -16), (-11.5, -38)], 2.6, colour)
    pen.line([(-11.6, -36), (-8.8, -36)], 2.4, colour)
    pen.limb((-11.3, -34), 2.3, (-10.6, -24), 2.3, light(colour, 0.12))
    pen.limb((-10, -17), 2.4, (11, -17), 2.4, light(colour, 0.15))


def table(pen: Pen, colour: Colour, look: int) -> None:
    """Draws a table whose top is 27 above the floor."""
    for x in (-24, 24):
        pen.limb((x, -24), 2.2, (x * 1.05, 0), 1.6, dark(colour, 0.15))
    pen.limb((-30, -26), 2.6, (30, -26), 2.6, light(colour, 0.1))


def snowman(pen: Pen, colour: Colour, look: int) -> None:
    snow = (248, 250, 255)
    for side in (-1, 1):
        pen.line([(side * 9, -28), (side * 21, -36), (side * 24, -41)], 1.4, (120, 84, 62))
        pen.line([(side * 21, -36), (side * 26, -36)], 1.1, (120, 84, 62))
    pen.oval(0, -12, 15, 13.5, snow)
    pen.oval(0, -30, 11, 10, snow)
    pen.oval(0, -45, 8.4, 8, snow)
    pen.limb((-6.6, -38), 2.0, (6.6, -38), 2.0, colour)
    pen.limb((4.6, -37), 1.9, (6, -28), 1.7, dark(colour, 0.12))
    pen.poly([(1.5, -46.2), (10.5, -43.6), (1.5, -43)], COLOURS["orange"])
    for x, y in ((-1.8, -48), (3, -48), (0.8, -32), (0.8, -27), (0.8, -18)):
        pen.oval(x, y, 1.1, 1.1, INK)
    pen.limb((-9, -51.5), 1.3, (9, -51.5), 1.3, (74, 70, 84))
    pen.poly([(-6, -51), (-5.4, -61), (5.4, -61), (6, -51)], (74, 70, 84))
    pen.limb((-5, -53.4), 1.0, (5, -53.4), 1.0, colour)
ALL = (ball, car, bicycle, boat, kite, balloon, umbrella, tree, house, bench, sofa, chair, table, snowman)
THINGS = {draw.__name__: draw for draw in ALL}
