"""Speed of beam search on a GPT-2, against two others on the same weights and images, in one run.

    python benchmarks/decoding.py                     GPT-2 small's shape and PocketGPT2's, fp32 and bf16
    python benchmarks/decoding.py --shapes pocket --repeats 10

(a) recomputes the whole sequence at every step, one image at a time, as ClipCap's authors' script does;
(b) is `transformers.generate`. The bare forward passes are the same calls of the model with no search between them.
Weights are random, so no caption ends early and every way does the same work. The best of several interleaved repeats
counts, by the clock on the wall; on a busy machine `--clock cpu --threads 1` is fairer.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.clipcap import ClipCap  # noqa: E402
from helpers.decoding import decode  # noqa: E402

SHAPES = {
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
    "pocket": {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 4000, "n_positions": 128},
}


class Prefixed(ClipCap):
    """A ClipCap whose features are the prefix itself."""

    def __init__(self, language_model: nn.Module):
        nn.Module.__init__(self)
        self.language_model, self.end_id, self.tokenizer = language_model, language_model.config.eos_token_id, None
        self.config = {"tune": "full"}

    def prefix(self, features: Tensor) -> Tensor:
        return features


def ours(model: Prefixed, prefix: Tensor, beams: int, length: int) -> list[list[tuple[list[int], float]]]:
    groups = decode(model, prefix, beam_size=beams, max_length=length, length_penalty=1.0)
    return [[(h.tokens, h.score) for h in group] for group in groups]


def theirs(model: Prefixed, prefix: Tensor, beams: int, length: int) -> list[list[tuple[list[int], float]]]:
    out = model.language_model.generate(
        inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long), num_beams=beams,
        max_new_tokens=length, length_penalty=1.0, do_sample=False, num_return_sequences=beams,
        pad_token_id=model.end_id, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = list(zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True))
    return [found[i : i + beams] for i in range(0, len(found), beams)]


def recomputing(model: Prefixed, prefix: Tensor, beams: int, length: int) -> list[list[tuple[list[int], float]]]:
    """One image at a time, every step over the whole sequence, with the logits of every position."""
    words, out = model.language_model.get_input_embeddings(), []
    for image in prefix:
        tokens, totals = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1)
        for _ in range(length):
            embeddings = torch.cat([image.expand(len(tokens), -1, -1), words(tokens).to(image.dtype)], dim=1)
            logits = model.language_model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
            scores = totals[:, None] + logits.float().log_softmax(-1)
            totals, place = scores.flatten().topk(beams)
            tokens = torch.cat([tokens[place // scores.shape[1]], (place % scores.shape[1])[:, None]], dim=1)
        out.append(list(zip(tokens.tolist(), (totals / length).tolist(), strict=True)))
    return out


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
            if name == "(a)" and turn:
                continue  # slow enough to be timed well in one turn
            begin = clock()
            results[name] = way()
            spent = clock() - begin
            times[name] = min(times.get(name, spent), spent) if turn > 1 or name == "(a)" else spent
    return times, results


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    p.add_argument("--types", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    p.add_argument("--prefix", nargs="+", type=int, default=[10, 49], help="prefix lengths: one vector's, a grid's")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--beams", type=int, default=5)
    p.add_argument("--length", type=int, default=20)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--slow_images", type=int, default=2, help="images that (a) is timed on; its time is proportional")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[a.clock]
    print(f"batch {a.batch}, beam {a.beams}, {a.length} tokens, {torch.get_num_threads()} threads, {a.clock} clock")
    for shape in a.shapes:
        end = SHAPES[shape]["vocab_size"] - 1
        torch.manual_seed(0)
        plain = GPT2LMHeadModel(GPT2Config(**SHAPES[shape], eos_token_id=end, bos_token_id=end)).eval()
        for kind in a.types:
            language_model = plain if kind == "fp32" else copy.deepcopy(plain).bfloat16()
            model = Prefixed(language_model).eval()
            for length in a.prefix:
                prefix = 0.1 * torch.randn(a.batch, length, SHAPES[shape]["n_embd"]).to(language_model.dtype)
                few, rest = prefix[: a.slow_images], (a.beams, a.length)
                ways = {"ours": partial(ours, model, prefix, *rest), "(b)": partial(theirs, model, prefix, *rest)}
                ways["bare"] = partial(forward_passes, model, prefix, *rest)
                if kind == "fp32":
                    ways["(a)"] = partial(recomputing, model, few, *rest)
                with torch.inference_mode():
                    times, results = measure(ways, a.repeats, clock)
                t, found = times["ours"], results["ours"]
                print(f"\n{shape} {kind}, prefix of {length}: {t:.2f} s, {a.batch / t:.1f} captions a second")
                if "(a)" in times:
                    slow = times["(a)"] * a.batch / len(few)
                    same = agreement(found, results["(a)"])
                    print(f"  (a) one image at a time, recomputed: {slow / t:5.1f} times ours; {same}")
                same = agreement(found, results["(b)"])
                print(f"  (b) transformers.generate: {times['(b)'] / t:5.2f} times ours; {same}")
                print(f"  ours over the bare forward passes: {t / times['bare']:.2f}", flush=True)


if __name__ == "__main__":
    main()
