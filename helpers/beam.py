"""Beam search over all images at once, with tensors of tokens and back-pointers instead of a list for every beam.

Shapes: B images, A images still searched, K beams an image (1 at the first step), N = A * K rows, C = 2 * K candidates,
T tokens, V vocabulary, R image regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.files import CaptioningError

NEVER = float("-inf")


@dataclass
class Rules:
    """Rules that change or forbid next tokens, applied to log-probabilities before a search or a draw sees them.

    `repetition_penalty` multiplies the log-probability of every token said before (Keskar et al. 2019, section 4.1, on
    log-probabilities); `no_repeat_ngram` n forbids a token that would complete an n-gram for the second time (Paulus
    et al. 2017, section 2.5); `min_length` forbids the end token before it; `banned` tokens are never said. A row with
    nothing left to say ends. Notebook 07, section 8.
    """

    end_id: int
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    min_length: int = 1
    banned: Sequence[int] = ()

    @property
    def need_history(self) -> bool:
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0

    def __call__(self, log_probs: Tensor, history: Tensor, length: int) -> Tensor:
        """Returns scores [N, V]: `log_probs` [N, V] itself where no rule applies, else a changed copy.

        history: [N, t] the tokens so far with the prompt, read if `need_history`; length: the new tokens and the next.
        """
        early = length < self.min_length
        if not (self.need_history or self.banned or early):
            return log_probs
        scores = log_probs.clone()
        if self.repetition_penalty != 1.0 and history.shape[1]:
            said = scores.gather(1, history) * self.repetition_penalty  # [N, t]
            scores.scatter_(1, history, said)
        if 0 < self.no_repeat_ngram <= history.shape[1]:
            self._forbid_ngrams(scores, history)
        if self.banned:
            if max(self.banned) >= scores.shape[1]:
                raise CaptioningError(f"The banned token {max(self.banned)} is none of the model's {scores.shape[1]}.")
            scores[:, self.banned] = NEVER
        if early:
            scores[:, self.end_id] = NEVER
        stuck = scores.amax(1) == NEVER  # [N] nothing is left to say
        scores[:, self.end_id] = torch.where(stuck, log_probs[:, self.end_id], scores[:, self.end_id])
        return scores

    def _forbid_ngrams(self, scores: Tensor, history: Tensor) -> None:
        n = self.no_repeat_ngram
        grams = history.unfold(1, n, 1)  # [N, t - n + 1, n]
        begun = (grams[:, :, :-1] == history[:, None, history.shape[1] - n + 1 :]).all(2)  # [N, t - n + 1]
        cap = torch.full(begun.shape, float("inf"), dtype=scores.dtype, device=scores.device).masked_fill(begun, NEVER)
        scores.scatter_reduce_(1, grams[:, :, -1], cap, "amin")  # a token may stand in several windows: the lowest wins


@dataclass
class Paths:
    """What a search or a walk found, as tensors: K captions for each of B images. Notebook 07, section 3."""

    tokens: Tensor  # [B, K, T]
    log_probs: Tensor  # [B, K, T] the model's own log-probability of each token
    totals: Tensor  # [B, K] what was ranked, before the length penalty; -inf where there is no caption
    lengths: Tensor  # [B, K]
    maps: Tensor | None  # [B, K, T, R] where the model looked


@dataclass
class Beams:
    """Beam search with the settings of one call; see `helpers.decoding.decode`. Notebook 07, section 3."""

    end_id: int
    size: int  # K
    max_length: int  # T
    length_penalty: float
    done: dict[str, Tensor] = field(init=False, repr=False)  # the finished captions, each [B, K], best first

    def search(self, model, log_probs: Tensor, state, rules: Rules, history: Tensor, trace=None) -> Paths:
        """Returns the K best captions of each image, best first.

        log_probs: [B, V] of the first token; state: one row an image; history: [B, L] the prompt; trace: see `decode`.
        """
        B, K, C, device = len(log_probs), self.size, 2 * self.size, log_probs.device
        alive, steps, tokens = torch.arange(B, device=device), [], None  # alive: [A]
        beams = {"total": log_probs.new_zeros(B, 1)}
        traces: list[list[dict[str, list]]] = [[] for _ in range(B)]
        self.done = {"score": log_probs.new_full((B, K), NEVER)}
        self.done |= {name: log_probs.new_zeros(B, K) for name in ("total", "log_prob")}
        self.done |= {name: alive.new_zeros(B, K) for name in ("length", "parent", "token")}
        for length in range(1, self.max_length + 1):
            if length > 1:
                log_probs, state = model.step(tokens, state)  # [N, V]
            A, W = len(alive), len(log_probs) // len(alive)  # W: 1, later K
            scores = rules(log_probs, history, length).view(A, W, -1)
            looked = getattr(state, "attention", None)  # [A * W, R]
            V = scores.shape[2]
            total, place = (scores + beams["total"][:, :, None]).flatten(1).topk(min(C, W * V))  # [A, C]
            parent, token = place // V, place % V
            image = torch.arange(A, device=device)[:, None]
            found = {"total": total, "parent": parent, "token": token}
            found["log_prob"] = log_probs.view(A, W, -1)[image, parent, token]
            missing = C - total.shape[1]  # a vocabulary smaller than the beam
            if missing:
                found = {name: F.pad(column, (0, missing), value=NEVER if name == "total" else 0)
                         for name, column in found.items()}  # fmt: skip
            beams, stopped = self._choose(found, length, alive)
            for place, image in enumerate(alive.tolist() if trace is not None else ()):
                traces[image].append({name: column[place].tolist() for name, column in found.items()})
            tokens, parents = beams["token"], beams["parent"]  # [A, K]
            if looked is not None:
                looked = spread(alive, B, looked.unflatten(0, (A, W)))[0]  # [B, W, R]
            steps.append((spread(alive, B, tokens, parents, beams["log_prob"]), looked))
            keep = (~stopped).nonzero().squeeze(1)  # images that are searched on
            if length == self.max_length or not len(keep):
                break
            rows = (keep[:, None] * W + parents[keep]).flatten()  # [N]
            beams = {name: column[keep] for name, column in beams.items()}
            tokens, alive = tokens[keep].flatten(), alive[keep]
            if rules.need_history:
                history = torch.cat([history[rows], tokens[:, None]], dim=1)
            state = model.reorder(state, rows)
        if trace is not None:
            trace.extend(traces)
        return self._read_back(steps)

    def _choose(self, found: dict[str, Tensor], length: int, alive: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Sorts candidates; returns the beams to go on with, each [A, K], and which images stop [A]."""
        K = self.size
        valid = found["total"] > NEVER  # [A, C]
        ended = valid & (found["token"] == self.end_id)
        # An end that is not among the K best candidates is no caption; at the last step an open beam is one.
        among = torch.arange(2 * K, device=alive.device) < K
        finished = (valid if length == self.max_length else ended) & among
        new = {name: found[name] for name in ("total", "log_prob", "parent", "token")}
        new["score"] = (new["total"] / length**self.length_penalty).masked_fill(~finished, NEVER)
        new["length"] = torch.full_like(new["token"], length)
        merged = {name: torch.cat([self.done[name][alive], new[name]], 1) for name in self.done}
        order = merged["score"].topk(K).indices  # [A, K]
        for name in self.done:
            self.done[name][alive] = merged[name].gather(1, order)
        values, order = found["total"].masked_fill(ended, NEVER).topk(K)  # [A, K]
        beams = {name: column.gather(1, order) for name, column in found.items()} | {"total": values}
        found["finished"] = finished
        found["kept"] = torch.zeros_like(ended).scatter(1, order, values > NEVER) & (length < self.max_length)
        worst, hope = self.done["score"][alive].amin(1), values.amax(1)  # [A]; -inf: fewer than K are done
        enough = (worst > NEVER) & (hope / length**self.length_penalty <= worst)
        if K == 1:  # a beam of one is greedy search: its first end is the end
            enough = worst > NEVER
        return beams, enough | (hope == NEVER)

    def _read_back(self, steps: list) -> Paths:
        """Follows the back-pointers from the end of every caption to its first token."""
        lengths, cursor, columns = self.done["length"], self.done["parent"], []  # [B, K]
        for t in reversed(range(len(steps))):
            (tokens, parents, log_probs), looked = steps[t]
            last = lengths == t + 1
            inside = lengths > t
            here = torch.where(last, 0, cursor)  # a beam's place at step t
            token = torch.where(last, self.done["token"], tokens.gather(1, here))
            log_prob = torch.where(last, self.done["log_prob"], log_probs.gather(1, here))
            parent = torch.where(last, cursor, parents.gather(1, here))  # its row when the token was predicted
            seen = None if looked is None else looked[torch.arange(len(parent), device=parent.device)[:, None], parent]
            columns.append((token * inside, log_prob.masked_fill(~inside, 0.0), seen))
            cursor = torch.where(inside, parent, cursor)
        tokens, log_probs, maps = zip(*columns[::-1], strict=True)
        totals = torch.where(self.done["score"] > NEVER, self.done["total"], NEVER)
        maps = None if maps[0] is None else torch.stack(maps, 2)
        return Paths(torch.stack(tokens, 2), torch.stack(log_probs, 2), totals, lengths, maps)


def spread(alive: Tensor, B: int, *columns: Tensor) -> tuple[Tensor, ...]:
    """Returns columns [A, ...] as [B, ...]: images that have left hold zeros. Notebook 07, section 3."""
    if len(alive) == B:
        return columns
    return tuple(column.new_zeros(B, *column.shape[1:]).index_copy(0, alive, column) for column in columns)
