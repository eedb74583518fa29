"""From a captioner to captions: greedy, beam search, sampling, batched over images and beams.

A captioner is anything with `start(features) -> state`, `step(tokens, state) -> (log_probs, state)` and
`reorder(state, index) -> state`; nothing else of a model is known here, and no past step is computed twice.

Shapes: B images, A images still running, K beams or samples an image, N = A * K rows, T tokens, L tokens of the
prompt, V vocabulary, R image regions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from helpers.beam import CHUNK, NEVER, Beams, BeamTrace, Paths, Rules, best, spread
from helpers.files import CaptioningError, unknown_name
from ranking.constrained import Constrained, padded, phrase_ids


@dataclass(frozen=True)
class Draw:
    """Ancestral sampling: each token is drawn from the model's distribution, sharpened or cut as asked.

    `temperature` divides the log-probabilities; `top_k` keeps the k likeliest tokens (Fan et al. 2018, section 5.4);
    `top_p` keeps the likeliest ones that together reach probability p (Holtzman et al. 2020, section 3.1), of what
    top_k left.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __call__(self, scores: Tensor, uniform: Tensor) -> Tensor:
        """Returns tokens [N] for scores [N, V], which need not sum to one, and `uniform` [N] in [0, 1)."""
        scores = scores / self.temperature if self.temperature != 1.0 else scores
        if self.top_k is None and (self.top_p is None or self.top_p >= 1.0):
            return inverse((scores - scores.amax(1, keepdim=True)).exp_(), uniform)
        values, ids = self.likeliest(scores)  # [N, k]
        place = inverse((values - values[:, :1]).exp_(), uniform)
        return ids.gather(1, place[:, None]).squeeze(1)

    def likeliest(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what may be drawn: scores [N, k], best first, -inf where cut, and token ids [N, k]."""
        V = scores.shape[1]
        if self.top_k is not None:
            values, _, ids = best(scores[:, None], self.top_k)
            whole = values.logsumexp(1, keepdim=True)  # [N, 1]
        else:
            whole, k = scores.logsumexp(1, keepdim=True), 0
            while True:  # the nucleus is mostly small: sorting the whole vocabulary is left for when it is not
                k = min(V, max(64, 8 * k))
                values, _, ids = best(scores[:, None], k)
                if k == V or bool(((values - whole).exp().sum(1) >= self.top_p).all()):
                    break
        if self.top_p is None:
            return values, ids
        probabilities = (values - whole).exp()
        before = probabilities.cumsum(1) - probabilities  # [N, k] what is likelier than this token
        cut = before >= self.top_p
        cut[:, 0] = False
        return values.masked_fill(cut, NEVER), ids


def inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Returns columns [N] drawn in proportion to `weights` [N, V] >= 0: the cumulative sum inverted at `uniform` [N].

    One random number a row, where the usual way (`torch.multinomial`) takes one a column. On long rows the sum goes
    over chunks first, then inside the chosen chunk, which is faster, and more exact than one long sum.
    """
    V = weights.shape[1]
    if V <= 4 * CHUNK:
        sums = weights.cumsum(1)
        return _column(sums, uniform * sums[:, -1])
    chunks = V // CHUNK
    tail = weights[:, chunks * CHUNK :]
    parts = weights[:, : chunks * CHUNK].unflatten(1, (chunks, CHUNK)).sum(2)
    parts = torch.cat([parts, tail], dim=1)  # [N, chunks + tail]
    sums = parts.cumsum(1)
    target = uniform * sums[:, -1]
    part = _column(sums, target)  # [N]
    begin = (sums.gather(1, part[:, None]) - parts.gather(1, part[:, None])).squeeze(1)
    in_chunk = part < chunks
    columns = part.clamp(max=chunks - 1)[:, None] * CHUNK + torch.arange(CHUNK, device=weights.device)  # [N, CHUNK]
    inner = _column(weights.gather(1, columns).cumsum(1), target - begin)
    return torch.where(in_chunk, part * CHUNK + inner, part - chunks + chunks * CHUNK)


def _column(sums: Tensor, target: Tensor) -> Tensor:
    """Returns the first column [N] whose running sum [N, V] is above `target` [N]; never one that adds nothing."""
    below_all = sums[:, -1].nextafter(torch.zeros_like(target))  # rounding must not reach past the last weight
    column = torch.searchsorted(sums, target.clamp(min=0).minimum(below_all)[:, None], right=True).squeeze(1)
    return column.clamp_(max=sums.shape[1] - 1)  # past the end only when a weight is no number
METHODS = ("greedy", "beam", "sample")


@dataclass
class Hypothesis:
    """One decoded caption. `tokens` begins with the prompt's, and ends with the end token when it is `finished`."""

    tokens: list[int]
    log_prob: float  # sum over the new tokens, the end token included
    token_log_probs: list[float]  # one a token; 0 for those of the prompt, which were given
    score: float  # what is ranked: log_prob (after penalties, if any) / new tokens ** length_penalty
    finished: bool
    prompt_length: int = 0  # how many of the tokens were given
    maps: Tensor | None = field(default=None, repr=False)  # [T, R] where the model looked for each token
    text: Callable[[list[int]], str] | None = field(default=None, repr=False, compare=False)

    @property
    def caption(self) -> str:
        """The words. Only for a model with a tokenizer."""
        return self.text(self.tokens)

    @property
    def attention(self) -> list[Tensor]:
        """Where the model looked, one [R] a token; empty where it has no such map."""
        return [] if self.maps is None else list(self.maps.unbind())


@torch.inference_mode()
def decode(
    model,
    features: Tensor,
    method: str = "beam",
    *,
    beam_size: int = 5,
    groups: int = 1,
    diversity: float = 0.5,
    early_stopping: bool | str = False,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    max_length: int = 24,
    min_length: int = 1,
    length_penalty: float = 0.7,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    banned: Sequence[str | int] = (),
    include: Sequence[Sequence[str]] | None = None,
    prompt: str = "",
    generator: torch.Generator | None = None,
    seed: int | None = None,
    max_rows: int | None = None,
    trace: list[BeamTrace] | None = None,
) -> list[list[Hypothesis]]:
    """Returns for each image its captions, best first. features: [B, R, D] float.

    method              "greedy" (the likeliest token each time), "beam" or "sample" (`samples` random captions).
    beam_size, groups   the `beam_size` best captions of a search that keeps so many, in `groups` equal groups: each
                        group takes `diversity` off what the groups before it have just said (Vijayakumar et al. 2018).
    early_stopping      when an image with `beam_size` finished captions is done: True, at once; False, when no beam at
                        its length beats the last of them; "never", when none could at any length.
    temperature, top_k, top_p, seed (or generator)    see `helpers.sampling.Draw`; used by "sample".
    max_length, min_length    bounds on the new tokens; the end token counts.
    length_penalty      0 ranks by log-probability, 1 by its mean over the tokens; above 1 favours long captions.
    repetition_penalty, no_repeat_ngram    see `helpers.sampling.Rules`; the prompt counts as said.
    banned              words, or token ids, that must not be said.
    include             for each image words of which a caption must say one: the beam search is a constrained one, see
                        `helpers.constrained`. An image that no such caption was found for gets an empty list.
    prompt              text that the caption begins with.
    max_rows            how many rows (images times beams or samples) may run at once: a larger batch is split. It is
                        also halved as often as needed when memory runs out.
    trace               a list that receives, in a beam search, one BeamTrace an image.

    Raises CaptioningError on an unknown method, a setting out of range, a prompt with words that the model does not
    know, or a model whose outputs are no numbers.
    """
    if method not in METHODS:
        raise unknown_name("decoding method", method, METHODS)
    wrong = {
        "beam_size, samples and max_length: at least 1": min(beam_size, samples, max_length) < 1,
        "max_rows: at least 1": max_rows is not None and max_rows < 1,
        "groups: a divisor of beam_size": groups < 1 or beam_size % groups,
        "early_stopping: True, False or 'never'": early_stopping not in (True, False, "never"),
        "temperature and repetition_penalty: above 0": not min(temperature, repetition_penalty) > 0,
        "top_k: at least 1": top_k is not None and top_k < 1,
        "top_p: above 0, and at most 1": top_p is not None and not 0 < top_p <= 1,
        "min_length: at most max_length": min_length > max_length,
        "diversity and no_repeat_ngram: 0 or more": not min(diversity, no_repeat_ngram) >= 0,
        "include: words for each image, with method 'beam', one group and no trace": include is not None
        and (len(include) != len(features) or method != "beam" or groups > 1 or trace is not None),
    }
    if any(wrong.values()):
        needed = "; ".join(rule for rule, broken in wrong.items() if broken)
        raise CaptioningError(f"Decoding settings are out of range. They must be {needed}.")
    ids = _prompt_ids(model, prompt)
    rules = Rules(model.end_id, repetition_penalty, no_repeat_ngram, min_length, _banned_ids(model, banned))
    draw = Draw(temperature, top_k, top_p) if method == "sample" else None
    K = {"greedy": 1, "beam": beam_size, "sample": samples}[method]
    B, uniform = len(features), None
    if draw:  # all random numbers at once: a caption does not depend on its batch, nor on how that is split
        if generator is None and seed is not None:
            generator = torch.Generator().manual_seed(seed)
        place = generator.device if generator else None
        uniform = torch.rand(B, samples, max_length, generator=generator, device=place).to(features.device)

    def run(first: int, last: int) -> list[list[Hypothesis]]:
        log_probs, state, looked = _begin(model, features[first:last], ids)
        history = torch.tensor(ids, dtype=torch.long, device=log_probs.device).expand(last - first, -1)  # [B, L]
        new_traces = None
        if include is not None:
            words = padded([phrase_ids(model, some) for some in include[first:last]], log_probs.device)
            paths = Constrained(model.end_id, beam_size, max_length, length_penalty).search(
                model, log_probs, state, rules, history, words
            )
        elif method == "beam":
            new_traces = [BeamTrace() for _ in range(first, last)] if trace is not None else None
            beams = Beams(model.end_id, beam_size, groups, diversity, max_length, length_penalty, early_stopping)
            paths = beams.search(model, log_probs, state, rules, history, new_traces)
        else:
            chance = None if uniform is None else uniform[first:last]
            paths = _walk(model, log_probs, state, K, max_length, rules, history, draw, chance)
        found = _hypotheses(model, paths, ids, looked, length_penalty, may_lack=include is not None)
        if new_traces is not None:
            trace.extend(new_traces)
        return found

    training = [module for module in model.modules() if module.training]  # a frozen part may be in another mode
    model.eval()
    try:
        return _split(run, B, B if max_rows is None else max(1, max_rows // K))
    finally:
        for module in training:
            module.training = True


def _split(run: Callable[[int, int], list], count: int, size: int) -> list:
    """Returns `run` over all of `count` images, `size` at a time, and fewer when memory does not suffice for that."""
    out: list = []
    while len(out) < count:
        try:
            out += run(len(out), min(count, len(out) + size))
        except RuntimeError as error:  # a GPU has an error of its own for this, the CPU's allocator has not
            full = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
            if size == 1 or not full:
                raise
            size = min(size, count - len(out)) // 2 or 1
    return out


def _prompt_ids(model, prompt: str) -> list[int]:
    ids = model.tokenizer.encode(prompt) if prompt.strip() else []
    unknown = getattr(model.tokenizer, "unknown_id", None) if ids else None
    if unknown is not None and unknown in ids:
        words = [word for word in prompt.split() if unknown in model.tokenizer.encode(word)]
        named = ", ".join(map(repr, words))
        raise CaptioningError(f"The model does not know {named} of the prompt; use words of its training captions.")
    return ids


def _banned_ids(model, banned: Sequence[str | int]) -> list[list[int]]:
    """Returns one sequence of ids for each banned token, word or phrase; what the model cannot say needs no ban.

    Tokens that are no words (padding, start, unknown) are always banned: they are in no caption that a person wrote.
    """
    tokenizer = getattr(model, "tokenizer", None)
    out = [[item] for item in (*getattr(tokenizer, "unsayable", ()), *banned) if not isinstance(item, str)]
    return out + phrase_ids(model, [item for item in banned if isinstance(item, str)])


def _begin(model, features: Tensor, prompt: list[int]) -> tuple[Tensor, object, Tensor | None]:
    """Feeds the prompt, once an image. Returns log-probabilities [B, V] of the first new token, the state, and where
    the model looked for each token of the prompt [B, L, R]."""
    state, maps = model.start(features), []
    # A model with a prefix needs no start token: its first step reads none, so any will do.
    first = model.end_id if model.start_id is None else model.start_id
    for token in [first, *prompt]:
        tokens = torch.full((len(features),), token, dtype=torch.long, device=features.device)
        log_probs, state = model.step(tokens, state)
        maps.append(getattr(state, "attention", None))
    looked = torch.stack(maps[:-1], 1) if prompt and maps[0] is not None else None
    return log_probs, state, looked


def _walk(
    model, log_probs: Tensor, state, K: int, max_length: int, rules: Rules, history: Tensor,
    draw: Draw | None, uniform: Tensor | None,
) -> Paths:  # fmt: skip
    """Greedy (draw=None) or ancestral sampling: every row goes its own way and stops at its own end token.

    log_probs: [B, V] of the first token; history: [B, L]; uniform: [B, K, T] one random number a token.
    """
    B, device = len(log_probs), log_probs.device
    alive = torch.arange(B, device=device)  # [A]
    looked = getattr(state, "attention", None)
    if K > 1:
        rows = alive.repeat_interleave(K)
        state, log_probs, history = model.reorder(state, rows), log_probs[rows], history[rows]
        looked = None if looked is None else looked[rows]
    running = torch.ones(B, K, dtype=torch.bool, device=device)  # [A, K]
    out_tokens = torch.full((B, K, max_length), model.end_id, dtype=torch.long, device=device)
    out_log_probs, totals = log_probs.new_zeros(B, K, max_length), log_probs.new_zeros(B, K)
    lengths, maps, tokens = torch.zeros(B, K, dtype=torch.long, device=device), [], None
    for t in range(max_length):
        if t:
            log_probs, state = model.step(tokens, state)  # [N, V]
            looked = getattr(state, "attention", None)
        scores = rules(log_probs, history, t + 1)
        tokens = scores.argmax(1) if draw is None else draw(scores, uniform[alive, :, t].flatten())  # [N]
        tokens = tokens.where(running.flatten(), model.end_id)
        chosen = log_probs.gather(1, tokens[:, None]).view(-1, K).where(running, 0.0)  # [A, K]
        ranked = chosen if scores is log_probs else scores.gather(1, tokens[:, None]).view(-1, K).where(running, 0.0)
        out_tokens[alive, :, t], out_log_probs[alive, :, t] = tokens.view(-1, K), chosen
        totals[alive] += ranked
        lengths[alive] += running
        if looked is not None:
            looked = looked.unflatten(0, (-1, K))
            maps.extend(spread(alive, B, looked))
        running = running & (tokens.view(-1, K) != model.end_id)
        left = running.any(1)
        count = int(left.sum())
        if not count:
            break
        if rules.need_history:
            history = torch.cat([history, tokens[:, None]], dim=1)
        if count <= 0.75 * len(alive):  # images whose captions have all ended leave, when enough do to be worth a copy
            keep = left.nonzero().squeeze(1)
            rows = (keep[:, None] * K + torch.arange(K, device=device)).flatten()
            state, tokens, alive, running = model.reorder(state, rows), tokens[rows], alive[keep], running[keep]
            history = history[rows]
    return Paths(out_tokens, out_log_probs, totals, lengths, torch.stack(maps, 2) if maps else None)


def _hypotheses(
    model, paths: Paths, prompt: list[int], looked: Tensor | None, length_penalty: float, may_lack: bool = False
) -> list[list[Hypothesis]]:
    """Returns the captions of each image as objects, best first."""
    scores = paths.totals / paths.lengths.clamp(min=1) ** length_penalty  # [B, K]
    none = (paths.totals.amax(1) == NEVER).any() and not may_lack
    if paths.totals.isnan().any() or none:
        raise CaptioningError("The model's outputs are no numbers: its weights are damaged, or its training diverged.")
    order = scores.argsort(dim=1, descending=True, stable=True)
    sums = paths.log_probs.sum(2)
    tokens, log_probs = paths.tokens.tolist(), paths.log_probs.tolist()
    scores, sums, lengths, totals = scores.tolist(), sums.tolist(), paths.lengths.tolist(), paths.totals.tolist()
    maps = paths.maps
    if maps is not None and looked is not None:
        maps = torch.cat([looked[:, None].expand(-1, maps.shape[1], -1, -1), maps], dim=2)  # [B, K, L + T, R]
    L, given = len(prompt), [0.0] * len(prompt)
    text = model.tokenizer.decode if getattr(model, "tokenizer", None) is not None else None
    out: list[list[Hypothesis]] = []
    for image, places in enumerate(order.tolist()):
        out.append([])
        for k in places:
            if totals[image][k] == NEVER:  # the vocabulary has fewer captions than the beam has places
                continue
            length = lengths[image][k]
            said = tokens[image][k][:length]
            seen = None if maps is None else maps[image, k, : L + length]
            out[-1].append(
                Hypothesis(
                    prompt + said, sums[image][k], given + log_probs[image][k][:length], scores[image][k],
                    said[-1] == model.end_id, L, seen, text,
                )
            )  # fmt: skip
    return out


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
