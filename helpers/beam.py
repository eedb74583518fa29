"""Beam search over all images at once, with tensors of tokens and back-pointers instead of a list for every beam.

Shapes: B images, A images still searched, G groups, K beams an image (all groups), M = K / G beams a group, N = A * K
rows, C = 2 * M candidates a group, T tokens, V vocabulary, R image regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from helpers.files import CaptioningError

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


@dataclass
class Paths:
    """What a search or a walk found, as tensors: K captions for each of B images."""

    tokens: Tensor  # [B, K, T]
    log_probs: Tensor  # [B, K, T] the model's own log-probability of each token
    totals: Tensor  # [B, K] what was ranked, before the length penalty; -inf where there is no caption
    lengths: Tensor  # [B, K]
    maps: Tensor | None  # [B, K, T, R] where the model looked


@dataclass
class BeamNode:
    """One candidate that a beam search looked at: a token behind a beam."""

    step: int  # 0 for the first token
    parent: int | None  # the place in `BeamTrace.nodes` of the token before
    token: int
    log_prob: float  # of this token
    total: float  # of the whole path
    kind: str  # "kept" (searched on), "finished" (a caption ends here) or "dropped"
    group: int = 0


@dataclass
class BeamTrace:
    """Everything a beam search looked at for one image: a tree to draw."""

    nodes: list[BeamNode] = field(default_factory=list)

    def path(self, node: int) -> list[int]:
        """Returns the places in `nodes` from the first token to `node`."""
        places = [node]
        while (parent := self.nodes[places[-1]].parent) is not None:
            places.append(parent)
        return places[::-1]

    def find(self, tokens: list[int]) -> list[int] | None:
        """Returns the places in `nodes` of a finished caption, token by token, or None when it is none of them."""
        for place, node in enumerate(self.nodes):
            if node.kind == "finished" and [self.nodes[p].token for p in self.path(place)] == tokens:
                return self.path(place)
        return None


@dataclass
class Beams:
    """Beam search with the settings of one call; see `helpers.decoding.decode`."""

    end_id: int
    size: int  # K
    groups: int  # G
    diversity: float
    max_length: int  # T
    length_penalty: float
    early_stopping: bool | str
    done: dict[str, Tensor] = field(init=False, repr=False)
    open: list[list[int | None]] = field(init=False, repr=False)

    def search(
        self, model, log_probs: Tensor, state, rules: Rules, history: Tensor, traces: list[BeamTrace] | None = None
    ) -> Paths:
        """Returns the K best captions of each image, best first in each group.

        log_probs: [B, V] of the first token; state: one row an image; history: [B, L] the tokens of the prompt.
        """
        B, K, G, T, device = len(log_probs), self.size, self.groups, self.max_length, log_probs.device
        M, width = K // G, 1  # width: rows an image, one until the first word is chosen
        alive = torch.arange(B, device=device)  # [A]
        totals = log_probs.new_zeros(B, G, 1)
        self.done = {"score": log_probs.new_full((B, G, M), NEVER)}  # the finished captions, best first
        self.done |= {name: log_probs.new_zeros(B, G, M) for name in ("total", "log_prob")}
        self.done |= {name: alive.new_zeros(B, G, M) for name in ("length", "parent", "token")}
        self.open = [[None] * K for _ in range(B)]  # the trace's node of each running beam
        steps, tokens = [], None
        for length in range(1, T + 1):
            if length > 1:
                log_probs, state = model.step(tokens, state)  # [N, V]
            scores = rules(log_probs, history, length)
            looked = getattr(state, "attention", None)  # [A * width, R]
            found = self._candidates(log_probs, scores, totals)  # each [A, G, C]
            running, stopped = self._choose(found, length, alive)
            if traces is not None:
                self._record(traces, found, alive, length)
            tokens, parents = running["token"].flatten(1), running["parent"].flatten(1)  # [A, K]
            if looked is not None:
                looked = spread(alive, B, looked.unflatten(0, (len(alive), -1)))[0]  # [B, width, R]
            steps.append((spread(alive, B, tokens, parents, running["log_prob"].flatten(1)), looked))
            keep = (~stopped.all(1)).nonzero().squeeze(1)  # images that are searched on
            if length == T or not len(keep):
                break
            totals = running["total"].masked_fill(stopped[:, :, None], NEVER)[keep]  # [A, G, M]
            rows = (keep[:, None] * width + parents[keep]).flatten()  # [N]
            tokens, alive, width = tokens[keep].flatten(), alive[keep], K
            if rules.need_history:
                history = torch.cat([history[rows], tokens[:, None]], dim=1)
            state = model.reorder(state, rows)
        return self._read_back(steps)

    def _candidates(self, log_probs: Tensor, scores: Tensor, totals: Tensor) -> dict[str, Tensor]:
        """Returns the best C continuations in each group: beam, token, log_prob, total, and the rank's own value."""
        A, G, width = totals.shape
        M, V = self.size // G, scores.shape[-1]
        rows = len(scores) // A  # 1 at the first step, when all groups look at the same row; else G * M
        C = 2 * M  # M may end here and M still go on
        found: dict[str, list[Tensor]] = {name: [] for name in ("value", "parent", "token", "log_prob", "total")}
        said = None  # [A, V] how many beams of the groups before have just said each token
        for g in range(G):
            first = 0 if rows == 1 else g * M
            mine = scores.view(A, rows, V)[:, first : first + width]  # [A, width, V]
            ranked = mine if said is None or not self.diversity else mine - self.diversity * said[:, None]
            value, beam, token = best(ranked, C, totals[:, g])  # each [A, C]
            row = torch.arange(A, device=beam.device)[:, None]
            true = totals[:, g].gather(1, beam) + mine[row, beam, token] if ranked is not mine else value
            own = log_probs.view(A, rows, V)[row, first + beam, token]
            for name, column in zip(found, (value, first + beam, token, own, true), strict=True):
                missing = C - column.shape[1]  # a vocabulary smaller than the beam
                fill = NEVER if name in ("value", "total") else 0
                found[name].append(torch.nn.functional.pad(column, (0, missing), value=fill) if missing else column)
            if g + 1 < G and self.diversity:
                said = mine.new_zeros(A, V) if said is None else said
                alive = (found["token"][g] != self.end_id) & (found["value"][g] > NEVER)
                alive &= alive.cumsum(1) <= M
                said.scatter_add_(1, found["token"][g], alive.to(said.dtype))
        return {name: torch.stack(columns, 1) for name, columns in found.items()}

    def _choose(self, found: dict[str, Tensor], length: int, alive: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Sorts candidates; returns the beams to go on with [A, G, M], and which groups stop [A, G]."""
        M, C = self.size // self.groups, found["value"].shape[2]
        valid = found["value"] > NEVER
        ended = valid & (found["token"] == self.end_id)
        # An end that is not among the M best candidates is no caption; at the last step an open beam is one.
        first = torch.arange(C, device=alive.device) < M
        found["finished"] = valid & first if length == self.max_length else ended & first
        new = {name: found[name] for name in ("total", "log_prob", "parent", "token")}
        new["score"] = (found["total"] / length**self.length_penalty).masked_fill(~found["finished"], NEVER)
        new["length"] = torch.full_like(found["token"], length)
        merged = {name: torch.cat([self.done[name][alive], new[name]], 2) for name in self.done}
        order = merged["score"].topk(M).indices  # [A, G, M]
        for name in self.done:
            self.done[name][alive] = merged[name].gather(2, order)
        values, order = found["value"].masked_fill(ended, NEVER).topk(M)  # [A, G, M]
        running = {name: found[name].gather(2, order) for name in ("total", "log_prob", "parent", "token")}
        running["total"] = running["total"].masked_fill(values == NEVER, NEVER)
        found["kept"] = torch.zeros_like(ended).scatter(2, order, values > NEVER)
        worst = self.done["score"][alive].amin(2)  # [A, G] -inf while there are fewer than M
        full = worst > NEVER
        hope = running["total"].amax(2)
        bound = self.max_length if self.early_stopping == "never" and self.length_penalty > 0 else length
        # A beam of one is greedy search: its first end is the end.
        enough = full if self.early_stopping is True or M == 1 else full & (hope / bound**self.length_penalty <= worst)
        return running, enough | (hope == NEVER)

    def _read_back(self, steps: list) -> Paths:
        """Follows the back-pointers from the end of every caption to its first token."""
        done = {name: value.flatten(1) for name, value in self.done.items()}  # [B, K]
        lengths, cursor, columns = done["length"], done["parent"], []
        for t in reversed(range(len(steps))):
            (tokens, parents, log_probs), looked = steps[t]
            last = lengths == t + 1
            inside = lengths > t
            here = torch.where(last, 0, cursor)  # a beam's place at step t
            token = torch.where(last, done["token"], tokens.gather(1, here))
            log_prob = torch.where(last, done["log_prob"], log_probs.gather(1, here))
            parent = torch.where(last, done["parent"], parents.gather(1, here))  # its row when the token was predicted
            seen = None if looked is None else looked[torch.arange(len(parent), device=parent.device)[:, None], parent]
            columns.append((token * inside, log_prob.masked_fill(~inside, 0.0), seen))
            cursor = torch.where(inside, parent, cursor)
        tokens, log_probs, maps = zip(*columns[::-1], strict=True)
        totals = torch.where(done["score"] > NEVER, done["total"], NEVER)
        return Paths(
            torch.stack(tokens, 2), torch.stack(log_probs, 2), totals, lengths,
            torch.stack(maps, 2) if maps[0] is not None else None,
        )  # fmt: skip

    def _record(self, traces: list[BeamTrace], found: dict[str, Tensor], alive: Tensor, length: int) -> None:
        """Adds the candidates of this step to the traces of their images."""
        names = ("value", "parent", "token", "log_prob", "total", "finished", "kept")
        columns = [found[name].tolist() for name in names]  # [A][G][C]
        M = self.size // self.groups
        for image, *groups in zip(alive.tolist(), *columns, strict=True):
            nodes, opened = traces[image].nodes, [None] * self.size
            for g, candidates in enumerate(zip(*groups, strict=True)):
                beam = g * M
                for value, parent, token, log_prob, total, finished, kept in zip(*candidates, strict=True):
                    if value == NEVER:
                        continue
                    kind = "finished" if finished else "kept" if kept and length < self.max_length else "dropped"
                    if kind == "kept":
                        opened[beam], beam = len(nodes), beam + 1
                    above = None if length == 1 else self.open[image][parent]
                    nodes.append(BeamNode(length - 1, above, token, log_prob, total, kind, g))
            self.open[image] = opened


def spread(alive: Tensor, B: int, *columns: Tensor) -> tuple[Tensor, ...]:
    """Returns columns [A, ...] as [B, ...]: images that have left hold zeros."""
    if len(alive) == B:
        return columns
    return tuple(column.new_zeros(B, *column.shape[1:]).index_copy(0, alive, column) for column in columns)
