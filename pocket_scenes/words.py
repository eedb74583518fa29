"""What people would write under a Pocket Scene: five sentences that differ in wording, detail and order, all true."""

from __future__ import annotations

from random import Random

from pocket_scenes.people import PEOPLE
from pocket_scenes.places import INDOORS

# a name that stands twice is twice as likely
NAMES: dict[str, tuple[str, ...]] = {
    "man": ("man", "man", "man", "person"), "woman": ("woman", "woman", "lady", "person"),
    "boy": ("boy", "boy", "little boy", "young boy", "child", "kid"),
    "girl": ("girl", "girl", "little girl", "young girl", "child"),
    "bicycle": ("bicycle", "bike"), "boat": ("boat", "sailboat"), "sofa": ("sofa", "couch"),
    "bench": ("bench", "wooden bench"), "table": ("table", "wooden table"), "chair": ("chair", "wooden chair"),
    "tree": ("tree", "tree", "big tree"), "pine": ("tree", "pine tree"), "palm": ("tree", "palm tree"),
    "parasol": ("umbrella", "beach umbrella")}
PLURALS = {"man": "men", "woman": "women", "person": "people", "lady": "ladies", "child": "children", "sheep": "sheep"}
COLOUR_WORDS = {"gray": ("gray", "grey"), "tan": ("tan", "light brown")}
COATS = {("cow", "white"): ("white", "black and white"), ("cow", "brown"): ("brown", "brown and white"),
         ("dog", "white"): ("white", "brown and white"), ("cat", "orange"): ("orange", "orange", "ginger")}
# action: (she ..., they ..., -ing), the plainest first; {} is what it is done with
VERBS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "stand": (("stands", "stand", "standing"),), "walk": (("walks", "walk", "walking"),),
    "run": (("runs", "run", "running"), ("races", "race", "racing")),
    "jump": (("jumps", "jump", "jumping"), ("leaps", "leap", "leaping"),
             ("jumps in the air", "jump in the air", "jumping in the air")),
    "sit": (("sits", "sit", "sitting"),),
    "sleep": (("sleeps", "sleep", "sleeping"), ("naps", "nap", "napping"),
              ("lies asleep", "lie asleep", "lying asleep")),
    "graze": (("grazes", "graze", "grazing"), ("eats grass", "eat grass", "eating grass")),
    "wave": (("waves", "wave", "waving"), ("waves hello", "wave hello", "waving hello")),
    "fly": (("flies", "fly", "flying"), ("soars", "soar", "soaring")),
    "swim": (("swims", "swim", "swimming"), ("floats", "float", "floating")),
    "sail": (("sails", "sail", "sailing"), ("floats", "float", "floating")),
    "drive": (("drives", "drive", "driving"),), "park": (("is parked", "are parked", "parked"),),
    "kick": (("kicks {}", "kick {}", "kicking {}"), ("plays with {}", "play with {}", "playing with {}")),
    "chase": (("chases {}", "chase {}", "chasing {}"), ("runs after {}", "run after {}", "running after {}"),
              ("plays with {}", "play with {}", "playing with {}")),
    "kite": (("flies {}", "fly {}", "flying {}"), ("plays with {}", "play with {}", "playing with {}")),
    "hold": (("holds {}", "hold {}", "holding {}"), ("stands with {}", "stand with {}", "standing with {}")),
    "shelter": (("holds {}", "hold {}", "holding {}"), ("stands under {}", "stand under {}", "standing under {}")),
    "ride": (("rides {}", "ride {}", "riding {}"), ("is on {}", "are on {}", "sitting on {}")),
    "mount": (("rides {}", "ride {}", "riding {}"), ("is on {}", "are on {}", "sitting on {}")),
    "leash": (("walks {}", "walk {}", "walking {}"), ("walks with {}", "walk with {}", "walking with {}"))}
MOVING = ("run", "walk", "leash", "ride", "mount", "drive")
WHERE: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "on the beach", "at the beach", "on the sand", "by the sea", "near the ocean"),
    "park": ("in the park", "in the park", "on the grass", "in a grassy park"),
    "street": ("on the street", "on the street", "on the road", "in the city", "in front of some buildings"),
    "snow": ("in the snow", "in the snow", "in a snowy field", "on the snow"),
    "lake": ("by the lake", "by a lake", "near the water", "on the grass by the water", "beside a lake"),
    "hills": ("in the hills", "on a green hill", "on the grass", "in the green hills"),
    "forest": ("in the forest", "in the woods", "among the trees", "in a forest"),
    "meadow": ("in a field of flowers", "in the field", "among the flowers", "in a meadow"),
    "room": ("in the living room", "in a room", "indoors", "inside the house"),
    "kitchen": ("in the kitchen", "in a kitchen", "on the kitchen floor", "indoors")}
ALONG: dict[str, tuple[str, ...]] = {
    "beach": ("along the beach", "across the sand", "on the beach", "along the shore"),
    "park": ("through the park", "through the grass", "across the grass", "in the park"),
    "street": ("down the street", "down the road", "along the street", "past some buildings"),
    "snow": ("through the snow", "across the snow", "in the snow", "across a snowy field"),
    "lake": ("along the lake", "across the grass by the lake", "near the water"),
    "hills": ("over the hills", "across the grass", "through the green hills", "up a hill"),
    "forest": ("through the forest", "through the woods", "through the trees"),
    "meadow": ("through the flowers", "across the field", "through a field of flowers", "through a meadow"),
    "room": ("across the living room", "through the room", "in the living room"),
    "kitchen": ("across the kitchen", "through the kitchen", "in the kitchen")}
AFLOAT = {"lake": ("on the lake", "on the water", "in the lake"),
          "beach": ("on the sea", "on the water", "on the ocean")}
ALOFT = {"beach": ("over the sea", "over the beach", "in the sky"), "snow": ("over the snow", "in the sky"),
         "lake": ("over the lake", "over the water", "in the sky"),
         "street": ("over the street", "in the sky", "over the city")}
SKYWARD = ("in the sky", "through the air", "in the air")
WHEN: dict[str, tuple[str, ...]] = {
    "sunset": ("at sunset", "at sunset", "as the sun sets", "in the evening"),
    "rain": ("in the rain", "on a rainy day"),
    "night": ("at night", "at night", "under the moon", "in the dark"), "winter": ("on a winter day", "in winter"),
    "day": ("on a sunny day", "under a blue sky", "in the sunshine")}
RELATIONS: dict[str, tuple[str, ...]] = {
    "beside": ("beside", "next to", "near", "beside"), "front": ("in front of",), "behind": ("behind",),
    "under": ("under", "underneath", "below"), "on": ("on", "on top of"), "seat": ("on",), "over": ("over", "above")}
NUMBERS = {2: ("two", "two", "a pair of", "a couple of"), 3: ("three", "three", "a group of", "some")}


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def phrase(group: dict, rng: Random, detail: bool) -> str:
    """Returns a noun phrase for a group: "two brown dogs", "a girl in a red coat", "a man with a beard"."""
    kind, colour, count = group["kind"], group["colour"], group["count"]
    name = rng.choice(NAMES.get(group["shape"] or kind, (kind,)))
    if count > 1:
        first, _, last = name.rpartition(" ")
        name = f"{first} {PLURALS.get(last, last + 's')}".strip()
    after = ""
    if detail and kind in PEOPLE:
        wear = rng.choice(("coat", "jacket")) if group["wear"] == "coat" else group["wear"]
        worn = f"{colour} {wear}{'es' if wear == 'dress' else 's'}" if count > 1 else article(f"{colour} {wear}")
        after = rng.choice((f"in {worn}", f"in {worn}", f"wearing {worn}", f"in {colour}"))
        if group["beard"] and rng.random() < 0.3:
            after = "with a beard"
        elif group["hair"] == "blond" and group["wear"] != "coat" and " " not in name and rng.random() < 0.35:
            name = f"blond {name}"
    elif detail and colour:
        words = COATS.get((kind, colour), COLOUR_WORDS.get(colour, (colour,)))
        name = f"{rng.choice(words)} {name}"
    return f"{article(name) if count == 1 else rng.choice(NUMBERS[count]) + ' ' + name} {after}".strip()


class Writer:
    """Writes sentences about one scene from its facts (see scenes.draw_scene)."""

    def __init__(self, facts: dict, rng: Random):
        self.rng, self.place, self.groups = rng, facts["place"], facts["groups"]
        self.time = "winter" if (facts["place"], facts["time"]) == ("snow", "day") else facts["time"]
        self.main = self.groups[0]
        links = [r for r in facts["relations"] if r["subject"] == 0 and (r["relation"] in (*RELATIONS, "background"))]
        self.link = links[0] if links else None
        self.other = self.groups[links[0]["object"]] if links else None

    def verb(self, group: dict, form: int, detail: bool) -> str:
        """Returns the verb and what it is done with; form 0: runs or run, 1: is or are running, 2: running."""
        forms, many = VERBS[group["action"]], group["count"] > 1
        word = forms[0] if self.rng.random() < 0.6 else self.rng.choice(forms)
        text = word[2] if form else word[1] if many else word[0]
        if form == 1:
            text = ("are " if many else "is ") + text
        return text.format(phrase(self.groups[group["prop"]], self.rng, detail)) if "{}" in text else text

    def where(self, verb: str, linked: bool) -> str:
        action = self.main["action"]
        if action in ("swim", "sail"):
            return self.rng.choice(AFLOAT[self.place])
        if action == "fly":
            return "" if linked else self.rng.choice(ALOFT.get(self.place, SKYWARD))
        along = action in MOVING and not linked and " on " not in verb and self.rng.random() < 0.75
        return self.rng.choice((ALONG if along else WHERE)[self.place])

    def relation(self, detail: bool) -> str:
        """Returns "beside a red car", at times with what the other one does."""
        rng, kind, other = self.rng, self.link["relation"], self.other
        thing = phrase(other, rng, detail)
        if kind == "background":
            return f"with {thing} in the background"
        if kind == "beside" and rng.random() < 0.1:
            return f"to the {self.link['side']} of {thing}"
        text = f"{rng.choice(RELATIONS[kind])} {thing}"
        if detail and other["action"] not in ("", self.main["action"]) and rng.random() < 0.4:
            text += " " + self.verb(other, 2, False)
        return text

    def sentence(self, order: str, colour: bool, second: bool, place: bool, when: bool) -> str:
        """Returns one sentence without its full stop; the flags say which details it may give."""
        rng, main = self.rng, self.main
        linked = second and self.link is not None
        form = {"is": 1, "ing": 2, "there": 2}.get(order, rng.choice((0, 1)))
        verb = self.verb(main, form, colour or rng.random() < 0.4)
        spot = self.where(verb, linked) if place else ""
        time = rng.choice(WHEN[self.time]) if when and self.place not in INDOORS else ""
        hidden = self.place == "forest" and time.startswith("under")  # the leaves hide the sky
        if hidden or (spot and time.startswith("in") and spot.startswith("in")):
            time = ""
        if linked and order == "swap" and self.link["relation"] == "beside" and self.other["action"]:
            return self.together(colour, spot, time)
        subject = phrase(main, rng, colour)
        if linked and order == "swap" and self.link["relation"] != "background":
            back = {"seat": "on it"}.get(self.link["relation"], f"{RELATIONS[self.link['relation']][0]} it")
            words = [phrase(self.other, rng, colour), "with", subject, self.verb(main, 2, False), back, spot]
            return " ".join(word for word in words if word)
        link = self.relation(colour or rng.random() < 0.5) if linked else ""
        words = [subject, verb, link, spot, time]
        if order == "there":
            words = [f"there {'are' if main['count'] > 1 else 'is'}", *words]
        elif order == "first" and (spot or time):
            words = [spot or time, ",", subject, verb, link, time if spot else ""]
        return " ".join(word for word in words if word)

    def together(self, colour: bool, spot: str, time: str) -> str:
        """Returns both at once: "a dog and a cat are sleeping", "a dog is running while a cat is sitting"."""
        rng = self.rng
        pair = rng.sample((self.main, self.other), 2)
        first, second = (phrase(group, rng, colour) for group in pair)
        if pair[0]["action"] == pair[1]["action"]:
            words = [first, "and", second, self.verb({**self.main, "count": 2}, rng.choice((0, 1)), False), spot, time]
        else:
            verbs = [self.verb(group, 1, False) for group in pair]
            words = [first, verbs[0], rng.choice(("while", "and")), second, verbs[1], spot, time]
        return " ".join(word for word in words if word)
# the chances that a sentence gives: colour, second thing, place, time; and the orders it may take
LEVELS = (((0.95, 1.0, 0.9, 0.35), ("plain", "is", "is", "swap")),
          ((0.9, 0.9, 0.75, 0.2), ("plain", "ing", "there", "swap")),
          ((0.6, 0.7, 0.6, 0.15), ("plain", "is", "first", "ing")),
          ((0.5, 0.35, 0.7, 0.1), ("plain", "is", "ing", "first")),
          ((0.25, 0.15, 0.35, 0.0), ("plain", "is", "ing")))


def captions(facts: dict, rng: Random) -> list[str]:
    """Returns five different true captions in the style of Flickr8k's, from the fullest to the barest, shuffled."""
    writer, done = Writer(facts, rng), []
    for chances, orders in LEVELS:
        text = ""
        while not text or text in done:
            text = writer.sentence(rng.choice(orders), *(rng.random() < chance for chance in chances))
            text = text[0].upper() + text[1:] + " ."
        done.append(text)
    rng.shuffle(done)
    return done
