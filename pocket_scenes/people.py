"""The people of Pocket Scenes, standing on (0, 0) and looking right; and who and what can do what, and where."""

from __future__ import annotations

import math

from pocket_scenes.animals import eye
from pocket_scenes.pen import COLOURS, Colour, Pen, Point, dark, light, mix, reach
from pocket_scenes.places import INDOORS, OUTDOORS

ADULTS = ("man", "woman")
PEOPLE = (*ADULTS, "boy", "girl")
SKINS: list[Colour] = [(248, 212, 184), (236, 186, 150), (200, 142, 104), (140, 94, 68)]
HAIRS: dict[str, Colour] = {
    "dark": (70, 48, 42), "brown": (120, 76, 48), "blond": (236, 196, 108), "black": (52, 46, 54), "red": (188, 92, 50)}
TROUSERS = ("blue", "brown", "black", "tan", "gray")
# lean; thigh and shin, near and far; upper arm and forearm, near and far
POSES: dict[str, tuple] = {
    "stand": (0, (-4, -2), (6, 2), (-14, -6), (16, 12)),
    "walk": (4, (-24, -36), (26, 12), (26, 46), (-28, -8)),
    "run": (14, (-30, -88), (62, 2), (60, 128), (-52, 24)),
    "jump": (4, (-34, -84), (48, -24), (-150, -158), (146, 160)),
    "wave": (0, (-5, -2), (6, 2), (-16, -6), (114, 158)),
    "hold": (0, (-5, -2), (6, 2), (-14, -4), (40, 112)),
    "pull": (0, (-6, -3), (7, 2), (-14, -4), (96, 128)),
    "lead": (3, (-24, -36), (26, 12), (-30, -12), (38, 60)),
    "kick": (-8, (-6, -10), (64, 44), (-40, -20), (58, 84)),
    "sit": (0, (84, 4), (80, 2), (16, 54), (24, 60)),
    "ground": (-6, (74, 88), (84, 92), (-24, -10), (40, 66)),
    "bicycle": (24, (52, -14), (24, -30), (52, 66), (58, 70)),
    "horse": (0, (52, -4), (52, -4), (38, 78), (44, 82)),
}
SEATED = ("sit", "ground", "bicycle", "horse")


def person(pen: Pen, kind: str, colour: str, pose: str, look: dict) -> Point:
    """Draws a man, woman, boy or girl and returns where the far hand is. Seated poses have the hips on (0, 0).

    `look` has `wear` (shirt, dress, coat), `skin` (index), `hair` and `legs` (names) and `beard`.
    """
    adult = kind in ADULTS
    leg, trunk, arm, r = ((13, 13), 18, (9.5, 9), 2.9) if adult else ((9, 9), 13.5, (7, 7), 2.6)
    head_r, w = (7.6, 5.6) if adult else (7.9, 4.9)
    skin, hair, cloth = SKINS[look["skin"]], HAIRS[look["hair"]], COLOURS[colour]
    trousers, wear, seated = COLOURS[look["legs"]], look["wear"], pose in SEATED
    lean, near_leg, far_leg, near_arm, far_arm = POSES[pose]
    down = max(leg[0] * math.cos(math.radians(a)) + leg[1] * math.cos(math.radians(b)) for a, b in (near_leg, far_leg))
    hip = (0.0, 0.0 if seated else -down - 1.6)
    neck = reach(hip, (180 - lean, trunk))[-1]
    head = (neck[0] + 1 + lean * 0.06, neck[1] - head_r + 0.4)
    shorts = wear == "shirt" and kind == "boy"
    bare = skin if wear == "dress" or shorts else trousers
    sleeve = cloth if wear == "coat" or adult else skin
    tilt = math.radians(lean)

    def at(u: float, v: float) -> Point:  # v down the back from the neck, u forward from it
        return (neck[0] + math.cos(tilt) * u - math.sin(tilt) * v, neck[1] + math.sin(tilt) * u + math.cos(tilt) * v)

    def draw_leg(angles: tuple, dx: float, shade: float) -> None:
        a, b, c = reach((hip[0] + dx, hip[1]), (angles[0], leg[0]), (angles[1], leg[1]))
        pen.chain([(*a, r * 1.25), (*b, r), (*c, r * 0.85)], dark(bare, shade))
        if wear != "dress":
            pen.limb(a, r * (1.45 if shorts else 1.3), b, r * (1.35 if shorts else 1.05), dark(trousers, shade))
        toe = reach(c, (min(96, max(angles[1], -60) + 84), 3.6))[-1]
        pen.limb(c, r * 0.95, toe, r * 0.72, dark((92, 66, 60), shade))

    def draw_arm(angles: tuple, dx: float, shade: float) -> Point:
        a, b, c = reach((neck[0] + dx, neck[1] + 3), (angles[0], arm[0]), (angles[1], arm[1]))
        pen.limb(b, r * 0.78, c, r * 0.72, dark(sleeve, shade), None if shade else dark(sleeve, 0.3))
        pen.oval(*c, r * 0.95, r * 0.95, dark(skin, shade / 2))
        pen.limb(a, r * 0.98, b, r * 0.86, dark(cloth, shade), None if shade else dark(cloth, 0.3))
        return c

    _back_hair(pen, kind, head, dark(hair, 0.12), pose in ("run", "jump"))
    hand = draw_arm(far_arm, 3.0, 0.16)
    draw_leg(far_leg, 1.8, 0.18)
    draw_leg(near_leg, -1.6, 0.0)
    pen.limb(at(0, 2), 2.6, (head[0] - 0.5, head[1] + 4), 2.4, dark(skin, 0.12))
    if wear == "dress" and not seated:
        hem = trunk + leg[0] * 0.62
        pen.blob([at(-w + 1, 1), at(w - 1, 1), at(w - 0.6, trunk * 0.6), at(w + 4.6, hem), at(0, hem + leg[0] * 0.18),
                  at(-w - 4.6, hem), at(-w + 0.6, trunk * 0.6)], cloth)
    elif wear == "dress":
        pen.chain([(*at(0, 4), w - 0.6), (*at(0, trunk), w)], cloth)
        for angles in (far_leg, near_leg):
            pen.limb(hip, w * 0.95, reach(hip, (angles[0], leg[0] * 0.85))[-1], w * 0.72, cloth)
    else:
        hem = trunk + (1.5 if wear == "coat" else -1.2)
        pen.blob([at(-w + 0.6, 0.6), at(0, 0), at(w - 0.6, 0.6), at(w, 5), at(w - 0.3, hem), at(0, hem + 1.4),
                  at(-w + 0.3, hem), at(-w, 5)], cloth)
    if wear == "coat":
        pen.line([at(1, 2), at(1, trunk + 1)], 0.7, dark(cloth, 0.3))
    elif wear == "dress" and adult:
        pen.limb(at(-w + 1.4, trunk * 0.62), 0.8, at(w - 1.4, trunk * 0.62), 0.8, dark(cloth, 0.35))
    _head(pen, kind, head, head_r, skin, hair, look["beard"])
    if wear == "coat":
        _hat(pen, head, cloth)
        pen.chain([(*at(-3.6, 0.6), 1.9), (*at(4, 0.8), 1.9)], light(cloth, 0.55), dark(cloth, 0.3))
    draw_arm(near_arm, -3.4, 0.0)
    return hand


def _back_hair(pen: Pen, kind: str, head: Point, hair: Colour, fast: bool) -> None:
    x, y = head
    if kind == "woman":
        pen.blob([(x - 3, y - 8), (x - 9, y - 2), (x - 9.5, y + 9), (x - 5, y + 12), (x + 3, y + 8), (x + 4, y - 4)],
                 hair)
    elif kind == "girl":
        up = -4 if fast else 0
        pen.chain([(x - 5, y - 2, 3), (x - 10 + up / 2, y + 1 + up, 3.6), (x - 11.5 + up, y + 7 + up * 2, 2)], hair)


def _head(pen: Pen, kind: str, head: Point, r: float, skin: Colour, hair: Colour, beard: bool) -> None:
    x, y = head
    blush = mix(skin, (236, 110, 110), 0.45)
    pen.oval(x - 5.5, y + 0.8, 1.9, 2.2, dark(skin, 0.12))
    pen.oval(x, y, r * 0.92, r, skin)
    pen.oval(x - 0.6, y + 2.6, 1.5, 1.0, blush)
    pen.oval(x + 5, y + 2.6, 1.3, 1.0, blush)
    if beard:
        pen.blob([(x - 6.8, y + 1), (x - 4, y + 3.6), (x + 2, y + 4.2), (x + 6.4, y + 2.6), (x + 5, y + 7.2),
                  (x - 1, y + 8.2), (x - 5.6, y + 5.4)], hair)
        pen.oval(x + 2.4, y + 4.8, 2.2, 1.0, (206, 96, 96))
    else:
        pen.line([(x + 0.4, y + 3.8), (x + 2.4, y + 4.7), (x + 4.4, y + 3.8)], 0.9, (176, 70, 74))
    eye(pen, x + 0.2, y - 0.2, 1.1)
    eye(pen, x + 4.6, y - 0.2, 1.1)
    top = [(x - 7.4, y + 2.5), (x - 7.8, y - 4), (x - 3, y - 9), (x + 4, y - 8.6), (x + 7.4, y - 3)]
    if kind == "woman":
        pen.blob([*top, (x + 6.6, y - 1.6), (x + 2, y - 5), (x - 4, y - 2), (x - 5.4, y + 7), (x - 8, y + 8)], hair)
    elif kind == "girl":
        pen.blob([*top, (x + 5, y - 3), (x, y - 3.2), (x - 5, y - 2.4)], hair)
        pen.oval(x - 5.6, y - 5, 2.4, 2.0, COLOURS["pink"])
    else:
        pen.blob([*top, (x + 5.4, y - 4), (x + 1, y - 4.4), (x - 4.6, y - 2)], hair)


def _hat(pen: Pen, head: Point, cloth: Colour) -> None:
    (x, y), wool, rim = head, light(cloth, 0.25), light(cloth, 0.6)
    pen.blob([(x - 8, y - 3), (x - 6.6, y - 9.6), (x, y - 12), (x + 6.4, y - 9.4), (x + 7.8, y - 3.4), (x, y - 4.6)],
             wool)
    pen.limb((x - 7, y - 3.6), 1.7, (x + 7, y - 4), 1.7, rim)
    pen.oval(x - 0.4, y - 12.4, 2.6, 2.6, rim)


CLOTHES = ("red", "blue", "green", "yellow", "orange", "purple", "pink", "white")
HUES: dict[str, tuple[str, ...]] = {
    "dog": ("brown", "black", "white", "tan", "gray"), "cat": ("orange", "gray", "black", "white"),
    "horse": ("brown", "black", "white", "tan"), "cow": ("white", "brown"), "sheep": ("white",),
    "bird": ("blue", "red", "yellow", "white"), "duck": ("white", "brown", "yellow"),
    "car": ("red", "blue", "green", "yellow", "white", "black"), "bicycle": ("red", "blue", "green", "yellow"),
    "boat": ("red", "blue", "green", "yellow"), "ball": ("red", "blue", "yellow", "green", "orange", "purple"),
    "kite": ("red", "blue", "yellow", "green", "purple", "pink"), "house": ("white", "yellow", "blue", "red", "pink"),
    "balloon": ("red", "blue", "yellow", "green", "purple", "pink"), "sofa": ("red", "blue", "green", "purple", "gray"),
    "umbrella": ("red", "blue", "yellow", "green", "purple", "pink"), **dict.fromkeys(PEOPLE, CLOTHES)}
# kind: how large it is drawn, and half its width at scale 1
SIZE: dict[str, tuple[float, float]] = {
    "dog": (1.3, 27), "cat": (1.35, 22), "horse": (1.02, 38), "cow": (1.15, 36), "sheep": (1.35, 24),
    "bird": (1.25, 24), "duck": (1.4, 23), "man": (1.2, 13), "woman": (1.2, 13),
    "boy": (1.25, 12), "girl": (1.25, 12), "car": (1.25, 33),
    "bicycle": (1.25, 25), "boat": (1.15, 28), "ball": (1.25, 7), "tree": (1.2, 26), "house": (1.2, 36),
    "bench": (1.15, 27), "sofa": (1.4, 38), "chair": (1.3, 12), "table": (1.3, 32), "snowman": (1.15, 24),
    "umbrella": (1.2, 32), "kite": (1.1, 12), "balloon": (1.15, 9)}
AHEAD = {"dog": 3, "cat": 2, "horse": 4, "cow": 5, "sheep": 4, "duck": 2}  # how far the middle lies before the feet
STRETCH = {"run": 1.22, "jump": 1.18, "chase": 1.22, "kick": 1.5}  # how much wider an action makes a body
ANYWHERE, INSIDE = " ".join(OUTDOORS), " room kitchen" * 3
FARM = "hills meadow lake snow"
# what happens: action, who, where, how many at most, weight
ACTS: list[tuple[str, str, str, int, float]] = [
    ("run", "dog dog boy girl man woman", "beach park snow lake hills forest meadow", 3, 10),
    ("run", "horse", "beach snow hills meadow", 3, 3),
    ("run", "boy girl dog cat", "street room", 1, 2),
    ("jump", "dog cat boy girl", "beach park snow lake hills meadow street room", 2, 8),
    ("jump", "horse", "hills meadow beach", 1, 1),
    ("walk", "dog cat man woman boy girl", ANYWHERE, 3, 4),
    ("walk", "sheep cow horse", FARM, 3, 3),
    ("sit", "dog cat boy girl man woman", ANYWHERE + INSIDE, 2, 11),
    ("sleep", "dog cat", "park beach meadow street" + INSIDE, 2, 8),
    ("stand", "dog cat man woman boy girl", ANYWHERE + INSIDE, 3, 7),
    ("stand", "horse cow sheep", FARM, 3, 3),
    ("wave", "man woman boy girl", ANYWHERE + INSIDE, 2, 6),
    ("graze", "horse cow sheep", "hills meadow lake park", 3, 6),
    ("fly", "bird", "beach park lake hills meadow snow street", 3, 7),
    ("stand", "bird duck", "beach park lake hills meadow snow", 3, 3),
    ("swim", "duck", "lake", 3, 4),
    ("sail", "boat", "lake beach", 2, 5),
    ("drive", "car", "street", 1, 3),
    ("park", "car", "street hills park", 1, 3),
    ("kick", "boy girl man woman", "park beach street snow meadow", 1, 6),
    ("chase", "dog cat", "park beach snow meadow room", 1, 6),
    ("kite", "boy girl man woman", "beach park hills meadow", 1, 6),
    ("hold", "boy girl man woman", "park beach street meadow room kitchen", 1, 5),
    ("shelter", "woman man girl boy", "street park lake", 1, 6),
    ("ride", "boy girl man woman", "street park beach hills forest", 1, 7),
    ("mount", "man woman girl", "beach meadow hills snow forest", 1, 5),
    ("leash", "man woman girl boy", "park street beach snow forest", 1, 4),
]
PROPS = {"kick": "ball", "chase": "ball", "kite": "kite", "hold": "balloon", "shelter": "umbrella", "ride": "bicycle",
         "mount": "horse", "leash": "dog"}
POSE_OF = {"kick": "kick", "kite": "pull", "shelter": "hold", "leash": "lead", "ride": "bicycle", "mount": "horse"}
# what stands far away; what one can be beside, in front of, behind, under or on
FAR = {"beach": ("boat",), "lake": ("boat",), "street": ("car",), "forest": ("house",),
       "snow": ("house", "tree", "snowman")}
NEAR = {"street": ("car", "bench", "bicycle"), "beach": ("tree", "umbrella", "umbrella"), "lake": ("tree", "bench"),
        "snow": ("tree", "house", *("snowman",) * 4), "park": ("bench", "tree", "bicycle", "house"),
        "forest": ("tree", "bicycle")}
TREES = {"beach": "palm", "snow": "pine", "hills": "", "forest": "pine"}


def neighbours(kind: str, act: str, place: str) -> list[tuple[str, str]]:
    """Returns the (relation, thing) pairs that suit somebody who does `act` in a place; likelier ones more often."""
    person, pet, still = kind in PEOPLE, kind in ("dog", "cat"), act in ("sit", "sleep", "stand", "wave", "graze")
    pairs: list[tuple[str, str]] = []
    if place in INDOORS:
        seat = "sofa" if place == "room" else "chair"
        pairs += [("beside", "chair"), ("beside", "table"), ("front", "sofa" if place == "room" else "table")]
        pairs += [("seat", seat)] * (4 if act in ("sit", "sleep") else 0)
        pairs += [("under", "table")] * (2 if pet and act in ("sit", "sleep", "stand") else 0)
        pairs += [("on", "table")] * (kind == "cat" and act in ("sit", "sleep"))
        return pairs + [("behind", "table")] * (2 if person and act in ("stand", "wave") else 0)
    for thing in NEAR.get(place, ("tree", "house", "bicycle")):
        pairs += [("beside", thing)]
        pairs += [("front", thing)] * (thing in ("house", "car", "bench", "tree"))
        shade = thing == "tree" or thing == "umbrella" and (pet or act == "sit")
        pairs += [("under", thing)] * (3 if shade and still and kind not in ("horse", "cow") else 0)
        pairs += [("seat", thing)] * (5 if thing == "bench" and act in ("sit", "sleep") else 0)
        pairs += [("behind", thing)] * (2 if thing in ("bench", "car") and person and act in ("stand", "wave") else 0)
        pairs += [("on", thing)] * (3 if thing == "car" and kind == "cat" and act in ("sit", "sleep") else 0)
    return pairs


def companions(kind: str, act: str, place: str) -> list[tuple[str, str]]:
    """Returns the (kind, action) pairs that can be beside somebody who does `act`; the same action likelier."""
    farm = place in FARM.split()
    kinds = [k for k in (*PEOPLE, *("dog", "cat") * 2, *(("horse", "sheep", "cow") if farm else ())) if k != kind]
    together = ("run", "walk", "jump", "sit", "sleep", "stand", "wave", "graze")
    can = {k: {a for a, who, *_ in ACTS if a in together and k in who.split()} for k in kinds}
    calm = [(k, a) for k in kinds for a in ("stand", "sit", "sleep", "wave") if a in can[k] and a != act]
    same = [(k, act) for k in kinds if act in can[k]]
    return calm + same * (1 + len(calm) // max(1, len(same)))
