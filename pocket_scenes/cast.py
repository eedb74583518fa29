"""Who and what appears in Pocket Scenes: colours, sizes, what each can do, and where."""

from __future__ import annotations

from pocket_scenes.people import PEOPLE
from pocket_scenes.places import INDOORS, OUTDOORS

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
