"""What may be said next, and how one word is drawn: rules on the scores, and random draws.

Shapes: N rows (a row is one caption in the making), V vocabulary, t tokens so far, k candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.errors import CaptioningError

CHUNK = 64  # columns whose largest value stands for all of them in a first look
NEVER = float("-inf")


@dataclass
class Rules:
    """Rules that change or forbid next tokens, applied to log-probabilities before a search or a draw sees them.

    `repetition_penalty` multiplies the log-probability of every token said before (Keskar et al. 2019, section 4.1, on
    log-probabilities); `no_repeat_ngram` n forbids a token that would complete an n-gram for the second time (Paulus
    et al. 2017, section 2.5); `min_length` forbids the end token before it; `banned` are sequences of ids of which the
    last is forbidden after the others. A row with nothing left to say ends.
    """

    end_id: int
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    min_length: int = 1
    banned: Sequence[Sequence[int]] = ()

    def __post_init__(self):
        self.words = sorted({sequence[0] for sequence in self.banned if len(sequence) == 1})
        self.phrases = [list(sequence) for sequence in self.banned if len(sequence) > 1]
        self.need_history = self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0 or bool(self.phrases)

    def __call__(self, log_probs: Tensor, history: Tensor | None, length: int) -> Tensor:
        """Returns scores [N, V]: `log_probs` [N, V] itself where no rule applies, else a changed copy.

        history: [N, t] the tokens so far, the prompt included, needed if `need_history`. `length` counts the new
        tokens, the one about to be chosen included.
        """
        early = length < self.min_length
        if not (self.need_history or self.words or early):
            return log_probs
        scores = log_probs.clone()
        if self.repetition_penalty != 1.0 and history.shape[1]:
            said = scores.gather(1, history)  # [N, t]
            said = torch.where(said < 0, said * self.repetition_penalty, said / self.repetition_penalty)
            scores.scatter_(1, history, said)
        if self.no_repeat_ngram:
            self._forbid_ngrams(scores, history)
        if self.words:
            if max(self.words) >= scores.shape[1]:
                known = f"the model's {scores.shape[1]} tokens"
                raise CaptioningError(f"The banned token {max(self.words)} is none of {known}.")
            scores[:, self.words] = NEVER
        for phrase in self.phrases:
            before = torch.tensor(phrase[:-1], device=scores.device)
            if history.shape[1] >= len(before):
                said = (history[:, history.shape[1] - len(before) :] == before).all(1)  # [N]
                scores[:, phrase[-1]] = scores[:, phrase[-1]].masked_fill(said, NEVER)
        if early:
            scores[:, self.end_id] = NEVER
        stuck = scores.amax(1) == NEVER  # [N] nothing is left to say
        scores[:, self.end_id] = torch.where(stuck, log_probs[:, self.end_id], scores[:, self.end_id])
        return scores

    def _forbid_ngrams(self, scores: Tensor, history: Tensor) -> None:
        n = self.no_repeat_ngram
        if history.shape[1] < n:
            return
        grams = history.unfold(1, n, 1)  # [N, t - n + 1, n]
        begun = (grams[:, :, :-1] == history[:, None, history.shape[1] - n + 1 :]).all(2)  # [N, t - n + 1]
        cap = torch.full(begun.shape, float("inf"), dtype=scores.dtype, device=scores.device).masked_fill(begun, NEVER)
        scores.scatter_reduce_(1, grams[:, :, -1], cap, "amin")  # a token may stand in several windows: the lowest wins


def best(values: Tensor, k: int, offset: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the k largest of each block, largest first: values [A, k], their rows in the block and columns [A, k].

    values: [A, M, V], with `offset` [A, M] added to each row; k is cut to M * V. A row is looked at in chunks: the k
    largest lie in the k chunks with the largest maxima, and only those are searched. No sum of the whole is made.
    """
    A, M, V = values.shape
    whole = V // CHUNK  # chunks that are full
    if whole * M < 4 * k:
        found = values if offset is None else values + offset[:, :, None]
        found, place = found.flatten(1).topk(min(k, M * V))
        return found, place // V, place % V
    maxima = values[:, :, : whole * CHUNK].unflatten(2, (whole, CHUNK)).amax(3)  # [A, M, chunks]
    if V % CHUNK:
        maxima = torch.cat([maxima, values[:, :, whole * CHUNK :].amax(2, keepdim=True)], dim=2)
    chunks = maxima.shape[2]
    maxima = maxima if offset is None else maxima + offset[:, :, None]
    place = maxima.flatten(1).topk(k, sorted=False).indices  # [A, k]
    row, first = place // chunks, place % chunks * CHUNK
    columns = first[:, :, None] + torch.arange(CHUNK, device=values.device)  # [A, k, CHUNK]
    block = torch.arange(A, device=values.device)[:, None, None]
    found = values[block, row[:, :, None], columns.clamp(max=V - 1)]
    found = found if offset is None else found + offset.gather(1, row)[:, :, None]
    found, place = found.masked_fill(columns >= V, NEVER).flatten(1).topk(k)
    return found, row.gather(1, place // CHUNK), columns.flatten(1).gather(1, place)


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
