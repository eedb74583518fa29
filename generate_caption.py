"""Captions photos: `python generate_caption.py --image_path PHOTO_OR_FOLDER ...` prints a line `PATH<TAB>CAPTION` each.

Exit status: 0 when every image got a caption, 1 when some did not (named on standard error, the others still printed),
2 for wrong usage or a model that cannot be loaded. Nothing heavy is imported until the arguments are known to be right.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BATCH = 16  # images decoded together; after each batch its captions are printed


@dataclass(frozen=True)
class Option:
    """An option of `helpers.decoding.decode`, as a command line and a form take it. `above`: more than
    `low`, not just `low` itself."""

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


def parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    p = argparse.ArgumentParser(description="Write a caption for each photo.")
    p.add_argument("--image_path", nargs="+", required=True, metavar="PATH", help="photos, or folders of photos")
    p.add_argument("--json", action="store_true", help="print a JSON object a line, with alternatives")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="NAME", help="in data/checkpoints/ (default: the best), or clipcap-coco")
    which.add_argument("--checkpoint", metavar="FOLDER", help="a captioner of your own: the folder that training wrote")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    add_options(p, "Beam search unless --top_p, --top_k or --temperature asks for sampling.")
    p.add_argument("--seed", type=number(int, 0, 2**63 - 1), help="makes sampling repeatable")
    return p


def batches(items: Sequence, size: int) -> Iterator[Sequence]:
    """Yields runs of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def line(result, as_json: bool) -> str:
    """Returns what is printed for one captioned image, always a single line."""
    from helpers.images import shown

    if as_json:
        return json.dumps(result.as_dict())  # ASCII: a name that is not UTF-8 stays an escape that JSON can carry
    return f"{shown(result.image)}\t{' '.join(result.caption.split())}"


def run(arguments: argparse.Namespace) -> int:
    """Captions the images and prints the results. Returns the exit status."""
    from helpers.files import CaptioningError, pick_device
    from helpers.images import list_images, shown

    images = list_images(arguments.image_path)
    failures: list[tuple[str, str]] = []
    done = 0
    try:
        from helpers.captioner import Captioner

        options = decoding_options(vars(arguments))
        model = Captioner.load(arguments.checkpoint or arguments.model, device=pick_device(arguments.device))
        for batch in batches(images, BATCH):
            for result in model.caption(list(batch), **options):
                if result.error is None:
                    print(line(result, arguments.json))
                    done += 1
                else:
                    failures.append((shown(result.image), result.error))
            sys.stdout.flush()
    except CaptioningError as error:  # not one image: the model, or an option that it does not have
        print(f"generate_caption.py: error: {error}", file=sys.stderr)
        return 2
    for name, reason in failures:
        print(reason if name in reason else f"{name}: {reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(images)} images got no caption.", file=sys.stderr)
    return 1 if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and runs it. Returns the exit status; wrong usage exits with 2."""
    p = parser()
    arguments = p.parse_args(argv)
    if clash(vars(arguments)):
        p.error(CLASH)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 is no reason to stop
    try:
        return run(arguments)
    except BrokenPipeError:  # the reader, for example `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
