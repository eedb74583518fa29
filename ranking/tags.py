"""Tags: what an ImageNet classifier is sure to see, in words that a caption can say.

A captioner trained on a few thousand photos says what it has read most often: to it, a sheep is a dog. The classifier
that its encoder began as has seen a thousand kinds of things, a thousand photos of each. Where it is sure and the best
caption does not say so, candidates that do are searched for (`ranking.constrained`) and ranked with the others
(`tag_weight` in `ranking.rerank`), as in Anderson et al. (2017).

Shapes: B images, 1000 classes of ImageNet-1k in their usual order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from helpers.files import CaptioningError, command
from helpers.text import normalise

SURE = 0.7  # probability from which a tag counts
UNLIKELY = 0.05  # below it, another animal than the tagged one is ruled out
# From this probability, an animal fills the photo, and people are ruled out, too: a captioner trained on photos of
# people sees them everywhere, two children where chickens are. Not beside those that are often walked or ridden.
ALONE = 0.95
COMPANIONS = frozenset(["dog", "horse", "camel", "elephant"])
PEOPLE = (
    "man", "men", "woman", "women", "boy", "boys", "girl", "girls", "child", "children", "kid", "kids", "people",
    "person", "player", "players",
)  # fmt: skip


@dataclass(frozen=True)
class Tag:
    """A kind of thing: words of which a caption should say one, and ImageNet's classes for it."""

    words: tuple[str, ...]
    classes: frozenset[int]
    animal: bool = False

    def said_in(self, caption: str) -> bool:
        """Returns whether the caption says one of the words."""
        return _says(caption, self.words)


def _says(caption: str, words: Sequence[str]) -> bool:
    return not set(normalise(caption)).isdisjoint(words)


def _tag(words: str, *classes: int | range) -> Tag:
    numbers = {n for part in classes for n in ([part] if isinstance(part, int) else part)}
    return Tag(tuple(words.split()), frozenset(numbers))
# Which kinds are in: animals, since none but dogs are common in Flickr8k, and things that people mention when they are
# there: `python -m ranking.tags --data_dir DIR` prints how often. Kinds that the classifier often imagines (a unicycle,
# a snorkel, a balance beam) are out.
ANIMALS = [
    _tag("dog dogs puppy puppies poodle dalmatian greyhound greyhounds", range(151, 269)),
    _tag("cat cats kitten kittens", range(281, 286)),
    _tag("bird birds owl eagle parrot seagull seagulls pigeon pigeons", range(10, 25), range(80, 97), range(127, 147)),
    _tag("chicken chickens hen hens rooster", 7, 8),
    _tag("duck ducks", 97, 98),
    _tag("goose geese swan bird birds", 99, 100),
    _tag("ostrich ostriches", 9),
    _tag("horse horses pony ponies", 339),
    _tag("cow cows bull bulls cattle", 345, 346, 347),
    _tag("sheep lamb lambs ram", 348, 349),
    _tag("goat goats", 350),
    _tag("deer antelope", 351, 352, 353),
    _tag("camel camels", 354),
    _tag("llama llamas", 355),
    _tag("pig pigs boar", 341, 342),
    _tag("zebra zebras", 340),
    _tag("elephant elephants", 101, 385, 386),
    _tag("monkey monkeys ape", range(365, 385)),
    _tag("panda pandas", 387, 388),
    _tag("bear bears", range(294, 298)),
    _tag("lion lions", 291),
    _tag("tiger tigers", 292),
    _tag("leopard leopards cheetah", 288, 289, 290, 293),
    _tag("fox foxes", range(277, 281)),
    _tag("wolf wolves dog dogs", range(269, 273)),
    _tag("rabbit rabbits bunny", 330, 331, 332),
    _tag("squirrel squirrels", 335),
    _tag("hamster hamsters", 333, 338),
    _tag("kangaroo kangaroos", 104),
    _tag("koala koalas", 105),
    _tag("turtle turtles tortoise", range(33, 38)),
    _tag("frog frogs", 30, 31, 32),
    _tag("lizard lizards iguana", range(38, 49)),
    _tag("crocodile crocodiles alligator", 49, 50),
    _tag("snake snakes", range(52, 69)),
    _tag("crab crabs", range(118, 122)),
    _tag("butterfly butterflies", range(321, 327)),
    _tag("bee bees", 309),
    _tag("spider spiders", range(72, 78)),
]
THINGS = [
    _tag("bike bikes bicycle bicycles bicyclist biker cyclist cyclists", 444, 671),
    _tag("motorcycle motorcycles motorbike scooter moped", 665, 670),
    _tag("car cars", 436, 468, 511, 609, 627, 656, 661, 751, 817),
    _tag("bus buses", 654, 779, 874),
    _tag("truck trucks", 555, 569, 864, 867),
    _tag("train trains", 466, 547, 820),
    _tag("airplane airplanes plane planes jet", 404, 895),
    _tag("boat boats canoe kayak canoes kayaks sailboat sailboats ship", 472, 484, 554, 625, 628, 780, 814, 871, 914),
    _tag("rocket rockets shuttle", 657, 812),
    _tag("guitar guitars", 402, 546),
    _tag("piano pianos", 579, 881),
    _tag("violin violins", 889),
    _tag("drum drums drummer", 541),
    _tag("camera cameras tripod photographer photographers", 732, 759, 872),
    _tag("laptop laptops computer", 527, 620, 681),
    _tag("umbrella umbrellas", 879),
    _tag("bench", 703),
    _tag("fountain fountains water", 562),
    _tag("bridge bridges", 839, 821),
    _tag("pizza pizzas", 963),
    _tag("basketball basketballs", 430),
    _tag("football", 560),
    _tag("soccer ball football", 805),
    _tag("tennis", 752, 852),
    _tag("hat hats cowboy", 515, 808),
    _tag("bride groom wedding", 982),
    _tag("diver divers scuba", 983),
    _tag("mountain mountains mountainside hill", 970),
    _tag("cliff cliffs rock rocks", 972),
    _tag("beach ocean sea shore sand water", 977, 978),
]
TAGS: list[Tag] = [Tag(tag.words, tag.classes, True) for tag in ANIMALS] + THINGS


@dataclass(frozen=True)
class Seen:
    """What a classifier is sure of in one image: a tag, and words of animals and people that it rules out."""

    tag: Tag
    probability: float
    banned: tuple[str, ...] = ()


def find_tags(probabilities: Tensor) -> list[Seen | None]:
    """Returns for each image the tag that the classifier is surest of, or None where it is not sure of any.

    probabilities: [B, 1000]. Raises CaptioningError when they are of another shape.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != 1000:
        raise CaptioningError(f"Tags need probabilities [B, 1000] of ImageNet's classes, not {[*probabilities.shape]}.")
    sums = [probabilities[:, sorted(tag.classes)].sum(1).tolist() for tag in TAGS]
    out: list[Seen | None] = []
    for values in zip(*sums, strict=True):
        place = max(range(len(TAGS)), key=values.__getitem__)
        tag = TAGS[place]
        if values[place] < SURE:
            out.append(None)
            continue
        rivals = [t for t, p in zip(TAGS, values, strict=True) if tag.animal and t.animal and p < UNLIKELY]
        banned = {word for rival in rivals for word in rival.words} - set(tag.words)
        if tag.animal and values[place] >= ALONE and COMPANIONS.isdisjoint(tag.words):
            banned.update(PEOPLE)
        out.append(Seen(tag, values[place], tuple(sorted(banned))))
    return out


def add_candidates(
    model: nn.Module, features: Tensor, groups: Sequence[Sequence], seen: Sequence[Seen | None], options: Mapping
) -> list[list]:
    """Returns the groups of Hypothesis, with more candidates where the best one does not say what is seen: the best
    ones that do, as many again, without the animals and people that are ruled out.

    features: [B, R, D]; options: those of `helpers.decoding.decode` that the groups were found with.
    """
    from helpers.decoding import decode, phrase_ids
    from ranking.constrained import Include

    out = [list(group) for group in groups]
    silent: dict[tuple, list[int]] = {}  # images by what is missing and banned; those alike are searched together
    for image, known in enumerate(seen):
        if known is not None and not known.tag.said_in(out[image][0].caption) and phrase_ids(model, known.tag.words):
            silent.setdefault((known.tag.words, known.banned), []).append(image)
    options = {name: value for name, value in options.items() if name != "trace"}
    for (words, ruled_out), images in silent.items():
        banned = [*options.get("banned", ()), *ruled_out]
        constraint = Include(model, [words] * len(images))
        found = decode(model, features[images], **{**options, "banned": banned}, constraint=constraint)
        for image, group in zip(images, found, strict=True):
            out[image] += group
    return out


def mentions(
    seen: Mapping[str, Seen | None], references: Mapping[str, Sequence[str]]
) -> dict[str, tuple[int, float, float]]:
    """Returns for each tag that was seen, by its first word, in how many images, in what share of their captions one of
    its words is said, and in what share one of PEOPLE."""
    shares: dict[str, list[tuple[float, float]]] = {}
    for image, known in seen.items():
        if known is not None:
            captions = references[image]
            said = sum(known.tag.said_in(caption) for caption in captions) / len(captions)
            people = sum(_says(caption, PEOPLE) for caption in captions) / len(captions)
            shares.setdefault(known.tag.words[0], []).append((said, people))
    return {
        word: (len(values), *(sum(column) / len(values) for column in zip(*values, strict=True)))
        for word, values in sorted(shares.items())
    }


@command
def main(arguments: list[str] | None = None) -> None:
    import argparse

    from helpers.datasets import load_dataset
    from helpers.encoders import cache_features, load_encoder
    from ranking.rerank import FROZEN, FROZEN_KIND

    parser = argparse.ArgumentParser(
        prog="python -m ranking.tags", description="Print how often people say what the classifier is sure of."
    )
    parser.add_argument("--dataset", default="flickr8k")
    parser.add_argument("--data_dir")
    parser.add_argument("--split", default="train")
    options = parser.parse_args(arguments)
    dataset, encoder = load_dataset(options.dataset, options.data_dir), load_encoder(FROZEN)
    features = cache_features(encoder, {n: dataset.path(n) for n in dataset.images(options.split)}, FROZEN_KIND)
    seen = dict(zip(features.names, find_tags(encoder.classify(features[features.names])), strict=True))
    for title, least in (("sure", SURE), ("so sure that an animal is alone", ALONE)):
        print(f"\n{title}: probability {least} or more")
        some = {name: known for name, known in seen.items() if known is not None and known.probability >= least}
        for word, (images, share, people) in mentions(some, dataset.references(options.split)).items():
            print(f"{word:12} {images:5} images, in {share:.2f} of their captions; people in {people:.2f}")


if __name__ == "__main__":
    raise SystemExit(main())
