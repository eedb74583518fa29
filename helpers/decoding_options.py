"""The decoding options that the command line, the evaluation and the service take: names, bounds and what they do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of `helpers.decoding.decode` or of re-ranking. `above`: more than `low`, not just `low` itself."""

    kind: type
    text: str
    low: float = float("-inf")
    high: float = float("inf")
    above: bool = False


SAMPLING = ("top_p", "top_k", "temperature")
OPTIONS = {
    "beam_size": Option(int, "hypotheses kept at each step; 1 is greedy", 1),
    "top_p": Option(float, "sample from the likeliest words, P in all", 0, 1, above=True),
    "top_k": Option(int, "sample from the K likeliest words", 1),
    "temperature": Option(float, "sample; below 1 safer, above 1 wilder", 0, above=True),
    "repetition_penalty": Option(float, "above 1: fewer repeats", 0, above=True),
    "length_penalty": Option(float, "0 favours short captions", -10, 10),
    "clip_weight": Option(float, "how much the likeness of photo and caption counts", 0),
    "consensus_weight": Option(float, "how much usual wording for such photos counts", 0),
    "tag_weight": Option(float, "how much it counts to name what a classifier is sure of", 0),
    "flaw_weight": Option(float, "how much it costs to say a word twice, or to end on \"a\"", 0),
    "prompt": Option(str, "the words the caption begins with"),
    "max_length": Option(int, "tokens at most, the end included", 1),
}
CLASH = "beam_size searches for the likeliest caption; top_p, top_k and temperature draw one: choose."


def number(kind: type, low: float, high: float = float("inf"), *, above: bool = False) -> Callable[[str], float]:
    """Returns an argument type that accepts a number from `low` (or above it) to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not (value > low if above else value >= low) or not value <= high:
            bounds = f"{'above' if above else 'at least'} {low:g}" + (f" and at most {high:g}" if high < 1e9 else "")
            what = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} {bounds}, not {text!r}")
        return value

    return parse


def add_options(parser: argparse.ArgumentParser, text: str) -> None:
    """Gives a command line one argument an option, in a group that `text` introduces."""
    group = parser.add_argument_group("decoding", text)
    for name, option in OPTIONS.items():
        kind = str if option.kind is str else number(option.kind, option.low, option.high, above=option.above)
        group.add_argument(f"--{name}", type=kind, help=option.text)


def clash(given: Mapping[str, Any]) -> bool:
    """Returns whether the options ask for searching and for drawing at once."""
    return given.get("beam_size") not in (None, 1) and any(given.get(name) is not None for name in SAMPLING)


def decoding_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `helpers.decoding.decode` takes: the options that were given, and the method they ask for.

    `given` may hold more than options, None for what was not given, and a `seed`.
    """
    options = {name: given[name] for name in OPTIONS if given.get(name) is not None}
    if given.get("seed") is not None:
        import torch

        options["generator"] = torch.Generator().manual_seed(given["seed"])
    if any(name in options for name in SAMPLING):
        options["method"] = "sample"
    elif options.get("beam_size") == 1:
        options["method"] = "greedy"
        del options["beam_size"]
    return options
