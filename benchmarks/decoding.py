"""Speed of beam search on a GPT-2, against `transformers.generate` and bare forward passes, in one run.

    python benchmarks/decoding.py --shapes pocket --repeats 10 --clock cpu --threads 1

Weights are random, so no caption ends early and every way does the same work. The best of several interleaved repeats
counts, by the clock on the wall or, on a busy machine, of the processor.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.clipcap import ClipCap  # noqa: E402
from helpers.decoding import decode  # noqa: E402
from helpers.language_models import GPT2  # noqa: E402

SHAPES = {
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
    "pocket": {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 4000, "n_positions": 128},
}


class Prefixed(ClipCap):
    """A ClipCap whose features are the prefix itself."""

    def __init__(self, theirs: nn.Module):
        """`theirs`: a GPT-2 of transformers, whose weights ours takes."""
        nn.Module.__init__(self)
        self.language_model, self.theirs = GPT2(theirs.config.to_dict()), [theirs]
        self.language_model.load_weights(theirs.state_dict())
        self.language_model.to(theirs.dtype)
        self.end_id, self.tokenizer = theirs.config.eos_token_id, None
        self.config = {"tune": "full"}

    def prefix(self, features: Tensor) -> Tensor:
        return features


def ours(model: Prefixed, prefix: Tensor, beams: int, length: int) -> list[list[tuple[list[int], float]]]:
    groups = decode(model, prefix, beam_size=beams, max_length=length, length_penalty=1.0)
    return [[(h.tokens, h.score) for h in group] for group in groups]


def theirs(model: Prefixed, prefix: Tensor, beams: int, length: int) -> list[list[tuple[list[int], float]]]:
    out = model.theirs[0].generate(
        inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long), num_beams=beams,
        max_new_tokens=length, length_penalty=1.0, do_sample=False, num_return_sequences=beams,
        pad_token_id=model.end_id, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = list(zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True))
    return [found[i : i + beams] for i in range(0, len(found), beams)]


def forward_passes(model: Prefixed, prefix: Tensor, beams: int, length: int) -> None:
    """The calls of the model that our beam search makes, and nothing else."""
    state = model.start(prefix)
    state = model.reorder(state, torch.arange(len(prefix)).repeat_interleave(beams))
    tokens = torch.arange(len(prefix) * beams)
    _, state = model.step(tokens, state)
    for _ in range(length - 1):
        _, state = model.step(tokens, state)


def agreement(one: list, other: list) -> str:
    """Says how far two results agree."""
    pairs = list(zip(one, other, strict=False))
    same = sum([tokens for tokens, _ in a] == [tokens for tokens, _ in b] for a, b in pairs)
    gap = max(abs(x[1] - y[1]) for a, b in pairs for x, y in zip(a, b, strict=True))
    return f"{same} of {len(pairs)} images with equal captions, scores within {gap:.0e}"


def measure(ways: dict[str, Callable], repeats: int, clock: Callable[[], float]) -> tuple[dict, dict]:
    """Returns the best time of each way, in seconds, and what it gave. Ways take turns, in the same weather."""
    times: dict[str, float] = {}
    results = {}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, way in ways.items():
            begin = clock()
            results[name] = way()
            if turn:
                times[name] = min(times.get(name, float("inf")), clock() - begin)
    return times, results


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    p.add_argument("--prefix", nargs="+", type=int, default=[10, 49], help="prefix lengths: one vector's, a grid's")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--beams", type=int, default=5)
    p.add_argument("--length", type=int, default=20)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[a.clock]
    for shape in a.shapes:
        end = SHAPES[shape]["vocab_size"] - 1
        torch.manual_seed(0)
        config = GPT2Config(**SHAPES[shape], eos_token_id=end, bos_token_id=end)
        model = Prefixed(GPT2LMHeadModel(config).eval()).eval()
        for length in a.prefix:
            given = model, 0.1 * torch.randn(a.batch, length, SHAPES[shape]["n_embd"]), a.beams, a.length
            ways = {"ours": partial(ours, *given), "theirs": partial(theirs, *given)}
            ways["bare"] = partial(forward_passes, *given)
            with torch.inference_mode():
                times, results = measure(ways, a.repeats, clock)
            t = times["ours"]
            print(f"{shape}, prefix of {length}: {a.batch / t:.1f} captions a second")
            same = agreement(results["ours"], results["theirs"])
            print(f"  transformers.generate: {times['theirs'] / t:.2f} times ours; {same}")
            print(f"  ours over the bare forward passes: {t / times['bare']:.2f}", flush=True)


if __name__ == "__main__":
    main()
