"""The pen of Pocket Scenes: smooth shapes on a canvas three times too large, then shaded, outlined and made small.

Only whole-number coordinates reach Pillow, randomness comes from `random.Random`, and there is no font and no NumPy, so
that the same seed gives the same picture on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from PIL import Image, ImageChops, ImageDraw, ImageFilter

WORLD = 128  # width and height of the picture in the units every drawing function uses
OVERSAMPLE = 3
Colour = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[int, int, int, int]
Joints = list[tuple[float, float, float]]  # x, y, radius
COLOURS: dict[str, Colour] = {
    "red": (214, 74, 68), "blue": (66, 120, 200), "green": (84, 160, 88), "yellow": (245, 201, 66),
    "orange": (238, 140, 52), "purple": (146, 98, 184), "pink": (243, 150, 184), "white": (247, 244, 238),
    "black": (58, 56, 66), "brown": (146, 94, 58), "gray": (152, 156, 166), "tan": (222, 180, 122),
}  # fmt: skip
INK: Colour = (62, 46, 56)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """Returns the colour `t` of the way from a to b."""
    return (round(a[0] + (b[0] - a[0]) * t), round(a[1] + (b[1] - a[1]) * t), round(a[2] + (b[2] - a[2]) * t))


def dark(colour: Colour, t: float = 0.2) -> Colour:
    return mix(colour, (46, 34, 64), t)  # towards violet, as shadows are, and not towards black


def light(colour: Colour, t: float = 0.3) -> Colour:
    return mix(colour, (255, 250, 236), t)


def reach(start: Point, *pieces: tuple[float, float]) -> list[Point]:
    """Returns the joints of a limb of (angle, length) pieces; degrees from straight down, positive forward."""
    points = [start]
    for angle, length in pieces:
        x, y = points[-1]
        points.append((x + length * math.sin(math.radians(angle)), y + length * math.cos(math.radians(angle))))
    return points


class Pen:
    """Draws in world units, y down, through a place, a scale, a mirror and a turn (degrees, clockwise)."""

    def __init__(self, image: Image.Image, at: Point = (0, 0), scale: float = 1.0, flip: bool = False, turn: float = 0):
        self.draw = ImageDraw.Draw(image)
        self.unit = image.width / WORLD
        self.size = scale * self.unit
        angle, mirror = math.radians(turn), -1 if flip else 1
        self.a, self.b = self.size * math.cos(angle) * mirror, -self.size * math.sin(angle) * mirror
        self.c, self.d = self.size * math.sin(angle), self.size * math.cos(angle)
        self.x, self.y = at[0] * self.unit, at[1] * self.unit

    def poly(self, points: list[Point], fill: Colour) -> None:
        a, b, c, d, x0, y0 = self.a, self.b, self.c, self.d, self.x, self.y
        self.draw.polygon([(round(x0 + a * x + b * y), round(y0 + c * x + d * y)) for x, y in points], fill)

    def rect(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        self.poly([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour, turn: float = 0) -> None:
        s, c = math.sin(math.radians(turn)), math.cos(math.radians(turn))
        corners = 12 if (rx + ry) * self.size < 12 else 24
        angles = [2 * math.pi * i / corners for i in range(corners)]
        circle = [(rx * math.cos(t), ry * math.sin(t)) for t in angles]
        self.poly([(x + u * c - v * s, y + u * s + v * c) for u, v in circle], fill)

    def limb(self, p: Point, r1: float, q: Point, r2: float, fill: Colour, edge: Colour | None = None) -> None:
        """Draws the skin around two circles: a leg, an arm, a trunk. `edge` draws a thin line around it first."""
        if edge is not None:
            self.limb(p, r1 + 0.55, q, r2 + 0.55, edge)
        dx, dy = q[0] - p[0], q[1] - p[1]
        length = math.hypot(dx, dy)
        if length <= abs(r1 - r2) + 1e-6:
            x, y, r = (*p, r1) if r1 > r2 else (*q, r2)
            return self.oval(x, y, r, r, fill)
        axis, half = math.atan2(dy, dx), math.acos((r1 - r2) / length)
        points = []
        for (x, y), r, start, sweep in ((q, r2, axis - half, 2 * half), (p, r1, axis + half, 2 * math.pi - 2 * half)):
            for i in range(8):
                t = start + sweep * i / 7
                points.append((x + r * math.cos(t), y + r * math.sin(t)))
        self.poly(points, fill)

    def chain(self, joints: Joints, fill: Colour, edge: Colour | None = None) -> None:
        """Draws limbs through joints (x, y, radius)."""
        if edge is not None:
            self.chain([(x, y, r + 0.55) for x, y, r in joints], edge)
        for (x1, y1, r1), (x2, y2, r2) in zip(joints, joints[1:], strict=False):
            self.limb((x1, y1), r1, (x2, y2), r2, fill)

    def blob(self, points: list[Point], fill: Colour, steps: int = 5) -> None:
        """Draws a closed Catmull-Rom curve through the points."""
        n, curve = len(points), []
        for i in range(n):
            (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (points[(i + j - 1) % n] for j in range(4))
            for k in range(steps):
                t = k / steps
                w0, w1 = ((2 - t) * t - 1) * t / 2, ((3 * t - 5) * t * t + 2) / 2
                w2, w3 = ((4 - 3 * t) * t + 1) * t / 2, (t - 1) * t * t / 2
                curve.append((w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3))
        self.poly(curve, fill)

    def line(self, points: list[Point], width: float, fill: Colour) -> None:
        self.chain([(x, y, width / 2) for x, y in points], fill)


def sprite(
    canvas: Image.Image, paint: Callable[[Pen], None], at: Point, scale: float, flip: bool, turn: float,
    floor: float | None,
) -> Box:  # fmt: skip
    """Paints a figure on the canvas with a soft outline and light from the upper left; returns its box in pixels.

    `floor` (world units) cuts off what lies below it, as water does. The box is left, top, right, bottom on the canvas.
    """
    layer = Image.new("RGBA", canvas.size)
    paint(Pen(layer, at, scale, flip, turn))
    unit = canvas.width / WORLD
    if floor is not None:
        layer.paste((0, 0, 0, 0), (0, round(floor * unit), canvas.width, canvas.height))
    box = layer.getbbox()
    if box is None:
        return (0, 0, 0, 0)
    wide = (max(0, box[0] - 4), max(0, box[1] - 4), min(canvas.width, box[2] + 4), min(canvas.height, box[3] + 4))
    layer = layer.crop(wide)
    mask = layer.getchannel("A")
    layer = layer.convert("RGB")  # Pillow mixes colours into it several times faster than beside an alpha channel
    canvas.paste(INK, wide, mask.filter(ImageFilter.BoxBlur(1)).point([min(255, value * 3) for value in range(256)]))
    # A blurred silhouette, shifted: dark where it is missing on the lower right, bright on the upper left.
    small = mask.reduce(3)
    reach = max(1, round(2.2 * scale * unit / 3))
    blurred = small.filter(ImageFilter.BoxBlur(reach)).filter(ImageFilter.BoxBlur(reach))
    for colour, shift, strength in (((52, 34, 82), -reach, 105), ((255, 246, 220), reach, 100)):
        moved = Image.new("L", blurred.size)
        moved.paste(blurred, (shift, shift))
        softer = [(255 - value) * strength // 255 for value in range(256)]
        fringe = moved.resize(mask.size, Image.Resampling.BILINEAR).point(softer)
        layer.paste(colour, (0, 0), ImageChops.multiply(fringe, mask))
    canvas.paste(layer, wide, mask)
    return box


def shrink(mask: Image.Image, width: int, height: int) -> Image.Image:
    """Returns the mask in another size. Pillow's own resize rounds differently from version to version when it makes an
    image smaller; its reduce and its enlarging do not."""
    mask = mask.reduce((-(-mask.width // width), -(-mask.height // height)))
    return mask.resize((width, height), Image.Resampling.BILINEAR)


def shine(canvas: Image.Image, x: float, y: float, rx: float, ry: float, colour: Colour, strength: int) -> None:
    """Lays a soft round patch of light or shadow on the canvas."""
    unit = canvas.width / WORLD
    away = [min(1.0, value / 180) for value in range(256)]  # Pillow's gradient is 181 where it meets the sides
    disc = Image.radial_gradient("L").point([round(strength * (1 - t) ** 2 * (1 + 2 * t)) for t in away])
    mask = shrink(disc, max(1, 4 * round(0.62 * rx * unit)), max(1, 4 * round(0.62 * ry * unit)))
    canvas.paste(colour, (round(x * unit) - mask.width // 2, round(y * unit) - mask.height // 2), mask)


def gradient(canvas: Image.Image, top: float, bottom: float, stops: list[Colour]) -> None:
    """Fills the rows from `top` to `bottom` with colours that run into each other."""
    unit = canvas.width / WORLD
    start, end = round(top * unit), round(bottom * unit)
    strip = Image.new("RGB", (1, len(stops)))
    strip.putdata(stops)
    column = strip.resize((1, end - start), Image.Resampling.BILINEAR)
    canvas.paste(column.resize((canvas.width, end - start), Image.Resampling.NEAREST), (0, start))
