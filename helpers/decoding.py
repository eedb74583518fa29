"""From a captioner to captions: greedy, beam search, sampling, batched over images and beams.

A captioner is anything with `start(features) -> state`, `step(tokens, state) -> (log_probs, state)` and
`reorder(state, index) -> state`; nothing else of a model is known here, and no past step is computed twice.

Shapes: B images, A images still running, K beams or samples an image, N = A * K rows, T tokens, L tokens of the
prompt, V vocabulary, R image regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from helpers.beam import NEVER, Beams, Paths, Rules, spread
from helpers.files import CaptioningError, unknown_name

METHODS = ("greedy", "beam", "sample")


@dataclass(frozen=True)
class Draw:
    """Ancestral sampling: each token is drawn from the model's distribution, sharpened or cut as asked.

    `temperature` divides the log-probabilities; `top_k` keeps the k likeliest tokens (Fan et al. 2018, section 5.4);
    `top_p` keeps the likeliest ones that together reach probability p (Holtzman et al. 2020, section 3.1), of what
    top_k left. Notebook 07, section 7.
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
        values, ids = scores.topk(min(self.top_k or scores.shape[1], scores.shape[1]))
        if self.top_p is None:
            return values, ids
        probabilities = values.softmax(1)
        before = probabilities.cumsum(1) - probabilities  # [N, k] what is likelier than this token
        cut = before >= self.top_p
        cut[:, 0] = False
        return values.masked_fill(cut, NEVER), ids


def inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Returns columns [N] drawn in proportion to `weights` [N, V] >= 0: the cumulative sum inverted at `uniform` [N].

    One random number a row, where the usual way (`torch.multinomial`) takes one a column. Notebook 07, section 7.
    """
    sums = weights.cumsum(1, dtype=torch.float64)
    below_all = sums[:, -1].nextafter(sums.new_zeros(()))  # rounding must not reach past the last weight
    column = torch.searchsorted(sums, (uniform * sums[:, -1]).minimum(below_all)[:, None], right=True).squeeze(1)
    return column.clamp_(max=sums.shape[1] - 1)  # past the end only when a weight is no number


@dataclass
class Hypothesis:
    """One decoded caption. `tokens` begins with the prompt's, and ends with the end token when it is `finished`.

    Notebook 07, section 5.
    """

    tokens: list[int]
    log_prob: float  # sum over the new tokens, the end token included
    token_log_probs: list[float]  # one a token; 0 for those of the prompt, which were given
    score: float  # what is ranked: log_prob (after penalties, if any) / new tokens ** length_penalty
    finished: bool
    prompt_length: int = 0  # how many of the tokens were given
    attention: list[Tensor] = field(default_factory=list, repr=False)  # where the model looked, one [R] a token
    text: Callable[[list[int]], str] | None = field(default=None, repr=False, compare=False)

    @property
    def caption(self) -> str:
        """The words. Only for a model with a tokenizer."""
        return self.text(self.tokens)


@torch.inference_mode()
def decode(
    model,
    features: Tensor,
    method: str = "beam",
    *,
    beam_size: int = 5,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    max_length: int = 24,
    min_length: int = 1,
    length_penalty: float = 0.7,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    banned: Sequence[int] = (),
    prompt: str = "",
    generator: torch.Generator | None = None,
    seed: int | None = None,
    trace: list | None = None,
) -> list[list[Hypothesis]]:
    """Returns for each image its captions, best first. features: [B, R, D] float.

    method              "greedy" (the likeliest token each time), "beam" (the `beam_size` best captions of a search that
                        keeps so many) or "sample" (`samples` random captions).
    temperature, top_k, top_p, seed (or generator)    see `Draw`; used by "sample".
    max_length, min_length    bounds on the new tokens; the end token counts.
    length_penalty      0 ranks by log-probability, 1 by its mean over the tokens; above 1 favours long captions.
    repetition_penalty, no_repeat_ngram, banned    see `helpers.beam.Rules`.
    prompt              text that the caption begins with; it counts as said.
    trace               a list that receives, in a beam search, for each image the candidates of each step, best first:
                        columns total, parent (a place among those kept before), token, log_prob, finished, kept.

    Raises CaptioningError on an unknown method, a setting out of range, a prompt with words that the model does not
    know, or a model whose outputs are no numbers. Notebook 07, sections 2 to 10.
    """
    if method not in METHODS:
        raise unknown_name("decoding method", method, METHODS)
    wrong = {
        "beam_size, samples and max_length: at least 1": min(beam_size, samples, max_length) < 1,
        "temperature and repetition_penalty: above 0": not min(temperature, repetition_penalty) > 0,
        "top_k: at least 1": top_k is not None and top_k < 1,
        "top_p: above 0, and at most 1": top_p is not None and not 0 < top_p <= 1,
        "min_length: at most max_length": min_length > max_length,
        "no_repeat_ngram: 0 or more": no_repeat_ngram < 0,
    }
    if any(wrong.values()):
        needed = "; ".join(rule for rule, broken in wrong.items() if broken)
        raise CaptioningError(f"Decoding settings are out of range. They must be {needed}.")
    if not len(features):
        return []
    ids = _prompt_ids(model, prompt)
    # Tokens that are no words (padding, start, unknown) are in no caption that a person wrote
    banned = [*getattr(getattr(model, "tokenizer", None), "unsayable", ()), *banned]
    rules = Rules(model.end_id, repetition_penalty, no_repeat_ngram, min_length, banned)
    training = [module for module in model.modules() if module.training]  # a frozen part may be in another mode
    model.eval()
    try:
        log_probs, state, looked = _begin(model, features, ids)
        history = torch.tensor(ids, dtype=torch.long, device=log_probs.device).expand(len(features), -1)  # [B, L]
        if method == "beam":
            beams = Beams(model.end_id, beam_size, max_length, length_penalty)
            paths = beams.search(model, log_probs, state, rules, history, trace)
        elif method == "greedy":
            paths = _walk(model, log_probs, state, 1, max_length, rules, history)
        else:  # all random numbers at once: a caption does not depend on its batch
            if generator is None and seed is not None:
                generator = torch.Generator().manual_seed(seed)
            place = generator.device if generator else None
            uniform = torch.rand(len(features), samples, max_length, generator=generator, device=place)
            chance = (Draw(temperature, top_k, top_p), uniform.to(features.device))
            paths = _walk(model, log_probs, state, samples, max_length, rules, history, *chance)
        return _hypotheses(model, paths, ids, looked, length_penalty)
    finally:
        for module in training:
            module.training = True


def _prompt_ids(model, prompt: str) -> list[int]:
    ids = model.tokenizer.encode(prompt) if prompt.strip() else []
    unknown = getattr(getattr(model, "tokenizer", None), "unknown_id", None)
    if unknown in ids:
        named = ", ".join(repr(word) for word in prompt.split() if unknown in model.tokenizer.encode(word))
        raise CaptioningError(f"The model does not know {named} of the prompt; use words of its training captions.")
    return ids


def _begin(model, features: Tensor, prompt: list[int]) -> tuple[Tensor, object, Tensor | None]:
    """Feeds the prompt. Returns log-probabilities [B, V] of the first new token, the state, and where the model looked
    for each token of the prompt [B, L, R]."""
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
    draw: Draw | None = None, uniform: Tensor | None = None,
) -> Paths:  # fmt: skip
    """Greedy (draw=None) or ancestral sampling: every row goes its own way and stops at its own end token.

    log_probs: [B, V] of the first token; history: [B, L]; uniform: [B, K, T] one random number a token.
    """
    B, device = len(log_probs), log_probs.device
    alive = torch.arange(B, device=device)  # [A]
    if K > 1:
        rows = alive.repeat_interleave(K)
        state, log_probs, history = model.reorder(state, rows), log_probs[rows], history[rows]
    running = torch.ones(B, K, dtype=torch.bool, device=device)  # [A, K]
    out_tokens = torch.full((B, K, max_length), model.end_id, dtype=torch.long, device=device)
    out_log_probs, totals = log_probs.new_zeros(B, K, max_length), log_probs.new_zeros(B, K)
    lengths, maps, tokens = torch.zeros(B, K, dtype=torch.long, device=device), [], None
    for t in range(max_length):
        if t:
            log_probs, state = model.step(tokens, state)  # [N, V]
        scores = rules(log_probs, history, t + 1)
        tokens = scores.argmax(1) if draw is None else draw(scores, uniform[alive, :, t].flatten())  # [N]
        tokens = tokens.where(running.flatten(), model.end_id)
        out_tokens[alive, :, t] = tokens.view(-1, K)
        out_log_probs[alive, :, t] = log_probs.gather(1, tokens[:, None]).view(-1, K).where(running, 0.0)
        totals[alive] += scores.gather(1, tokens[:, None]).view(-1, K).where(running, 0.0)
        lengths[alive] += running
        looked = getattr(state, "attention", None)
        if looked is not None:
            maps.extend(spread(alive, B, looked.unflatten(0, (-1, K))))
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
    model, paths: Paths, prompt: list[int], looked: Tensor | None, length_penalty: float
) -> list[list[Hypothesis]]:
    """Returns the captions of each image as objects, best first."""
    if paths.totals.isnan().any() or (paths.totals.amax(1) == NEVER).any():
        raise CaptioningError("The model's outputs are no numbers: its weights are damaged, or its training diverged.")
    scores = paths.totals / paths.lengths.clamp(min=1) ** length_penalty  # [B, K]
    maps, L = paths.maps, len(prompt)
    if maps is not None and looked is not None:
        maps = torch.cat([looked[:, None].expand(-1, maps.shape[1], -1, -1), maps], dim=2)  # [B, K, L + T, R]
    text = model.tokenizer.decode if getattr(model, "tokenizer", None) is not None else None
    columns = (scores, paths.log_probs.sum(2), paths.lengths, paths.tokens, paths.log_probs)
    out: list[list[Hypothesis]] = []
    for image, rows in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        out.append([])
        for k, (score, log_prob, length, tokens, log_probs) in enumerate(zip(*rows, strict=True)):
            if score == NEVER:  # the vocabulary has fewer captions than the beam has places
                continue
            seen = [] if maps is None else list(maps[image, k, : L + length].unbind())
            said, each = prompt + tokens[:length], [0.0] * L + log_probs[:length]
            out[-1].append(Hypothesis(said, log_prob, each, score, said[-1] == model.end_id, L, seen, text))
        out[-1].sort(key=lambda hypothesis: -hypothesis.score)
    return out
