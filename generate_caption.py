"""Captions photos: `python generate_caption.py --image_path PHOTO_OR_FOLDER ...` prints a line `PATH<TAB>CAPTION` each.

Exit status: 0 when every image got a caption, 1 when some did not (named on standard error, the others still printed),
2 for wrong usage or a model that cannot be loaded. Nothing heavy is imported until the arguments are known to be right.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence

BATCH = 16  # images decoded together; after each batch its captions are printed
SAMPLING = ("top_p", "top_k", "temperature")
DECODING = ("beam_size", *SAMPLING, "repetition_penalty", "length_penalty", "clip_weight", "consensus_weight",
            "prompt", "max_length")


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


def parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    p = argparse.ArgumentParser(description="Write a caption for each photo.")
    p.add_argument("--image_path", nargs="+", required=True, metavar="PATH", help="photos, or folders of photos")
    p.add_argument("--json", action="store_true", help="print a JSON object a line, with alternatives")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="NAME", help="a captioner in data/checkpoints/ (default: the best one)")
    which.add_argument("--checkpoint", metavar="FOLDER", help="a captioner of your own: the folder that training wrote")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    how = p.add_argument_group("decoding", "Beam search unless --top_p, --top_k or --temperature asks for sampling.")
    how.add_argument("--beam_size", type=number(int, 1), help="hypotheses kept at each step; 1 is greedy")
    how.add_argument("--top_p", type=number(float, 0, 1, above=True), help="sample from the likeliest words, P in all")
    how.add_argument("--top_k", type=number(int, 1), help="sample from the K likeliest words")
    how.add_argument("--temperature", type=number(float, 0, above=True), help="sample; below 1 safer, above 1 wilder")
    how.add_argument("--repetition_penalty", type=number(float, 0, above=True), help="above 1: fewer repeats")
    how.add_argument("--length_penalty", type=number(float, -10, 10), help="0 favours short captions")
    how.add_argument("--clip_weight", type=number(float, 0), help="how much the likeness of photo and caption counts")
    how.add_argument("--consensus_weight", type=number(float, 0), help="how much usual wording for such photos counts")
    how.add_argument("--prompt", help="the words the caption begins with")
    how.add_argument("--max_length", type=number(int, 1), help="tokens at most, the end included")
    how.add_argument("--seed", type=number(int, 0, 2**63 - 1), help="makes sampling repeatable")
    return p


def decoding_options(arguments: argparse.Namespace) -> dict[str, object]:
    """Returns the decoding options that were given, as `helpers.decoding.decode` takes them; the rest have defaults."""
    options = {name: getattr(arguments, name) for name in DECODING if getattr(arguments, name) is not None}
    if arguments.seed is not None:
        import torch

        options["generator"] = torch.Generator().manual_seed(arguments.seed)
    if any(name in options for name in SAMPLING):
        options["method"] = "sample"
    elif options.get("beam_size") == 1:
        options["method"] = "greedy"
        del options["beam_size"]
    return options


def device(name: str) -> str:
    """Returns the device to run on; "auto" is the GPU where there is one. Raises CaptioningError if it is missing."""
    import torch

    from helpers.errors import CaptioningError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a PyTorch without CUDA raises AssertionError
        raise CaptioningError(f"Device {name!r} cannot be used here. Use auto or cpu.") from error
    return name


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
    from helpers.errors import CaptioningError
    from helpers.images import list_images, shown

    images = list_images(arguments.image_path)
    failures: list[tuple[str, str]] = []
    done = 0
    try:
        from helpers.captioner import Captioner

        options = decoding_options(arguments)
        model = Captioner.load(arguments.checkpoint or arguments.model, device=device(arguments.device))
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
    if arguments.beam_size not in (None, 1) and any(getattr(arguments, name) is not None for name in SAMPLING):
        p.error("--beam_size searches for the likeliest caption, --top_p, --top_k and --temperature draw one: choose.")
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
