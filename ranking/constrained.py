"""Constrained beam search: the likeliest captions among those that say a given word.

Anderson et al. (2017, "Guided Open Vocabulary Image Captioning with Constrained Beam Search") keep one beam for each
state of an automaton. For "say one of these words" it has two: a bank of beams that have not said one yet, and a bank
that has. Each bank keeps its own K, so that a rare word is not crowded out by likelier captions without it.

Shapes: B images, A images still searched, K beams a bank, N = A * 2 * K rows, P phrases an image, L tokens a phrase,
C = 2 * K candidates, T tokens, t tokens so far, V vocabulary, R image regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.beam import NEVER, Paths, Rules
from helpers.files import CaptioningError

NONE = -1  # no token


def phrase_ids(model, words: Sequence[str]) -> list[list[int]]:
    """Returns the tokens of those words (or phrases) that the model can say."""
    unknown = getattr(getattr(model, "tokenizer", None), "unknown_id", None)
    encoded = (model.tokenizer.encode(word) for word in words)
    return [ids for ids in encoded if ids and (unknown is None or unknown not in ids)]


def padded(phrases: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Tensor:
    """Returns phrases [B, P, L], with NONE after the end of each. Raises CaptioningError where an image has none."""
    for image, some in enumerate(phrases):
        if not some:
            raise CaptioningError(f"Image {image + 1} has no word to include that the model knows.")
    P, L = max(map(len, phrases)), max(len(ids) for some in phrases for ids in some)
    out = torch.full((len(phrases), P, L), NONE)
    for image, some in enumerate(phrases):
        for place, ids in enumerate(some):
            out[image, place, : len(ids)] = torch.tensor(ids)
    return out.to(device)


@dataclass
class Constrained:
    """The search with the settings of one call; see `helpers.decoding.decode`."""

    end_id: int
    size: int  # K
    max_length: int  # T
    length_penalty: float

    def search(self, model, log_probs: Tensor, state, rules: Rules, history: Tensor, phrases: Tensor) -> Paths:
        """Returns the K best captions of each image that say one of its phrases, best first.

        log_probs: [B, V] of the first token; state: one row an image; history: [B, t] the prompt; phrases: [B, P, L].
        What the prompt says does not count.
        """
        B, K, T, device = len(log_probs), self.size, self.max_length, log_probs.device
        L = phrases.shape[2]
        alive = torch.arange(B, device=device)  # [A]
        rows = alive.repeat_interleave(2 * K)
        looked = getattr(state, "attention", None)
        looked = None if looked is None else looked[rows]  # [N, R] where the model looked for this token
        state, log_probs, history = model.reorder(state, rows), log_probs[rows], history[rows]
        totals = log_probs.new_full((B, 2, K), NEVER)
        totals[:, 0, 0] = 0.0  # one empty caption, which has not said it
        owed = torch.full((B, 2, K, L), NONE, device=device)  # what is left of a phrase that was begun
        steps: dict[str, Tensor] = {"token": owed.new_zeros(B, 2, K, 0), "log_prob": totals.new_zeros(B, 2, K, 0)}
        done: dict[str, Tensor] = {"score": totals.new_full((B, K), NEVER), "total": totals.new_full((B, K), NEVER)}
        done |= {"length": alive.new_zeros(B, K), "token": alive.new_zeros(B, K, T)}
        done["log_prob"] = totals.new_zeros(B, K, T)
        tokens = None
        for length in range(1, T + 1):
            if tokens is not None:
                log_probs, state = model.step(tokens, state)  # [N, V]
                looked = getattr(state, "attention", None)
            scores = rules(log_probs, history, length).unflatten(0, (-1, 2, K))  # [A, 2, K, V]
            if looked is not None:
                R = looked.shape[-1]
                steps.setdefault("map", looked.new_zeros(len(alive), 2, K, 0, R))
                done.setdefault("map", looked.new_zeros(B, K, T, R))
            found = self._candidates(scores, totals, owed, phrases[alive])
            # From here on every candidate carries its own past: [A, 2, C, t].
            own = log_probs.view(len(alive), 2 * K, -1)
            image = torch.arange(len(alive), device=device)[:, None, None]
            new = {"token": found["token"], "log_prob": own[image, found["parent"], found["token"].clamp(min=0)]}
            if looked is not None:
                new["map"] = looked.view(len(alive), 2 * K, R)[image, found["parent"]]
            for name, value in new.items():
                before = steps[name].flatten(1, 2)[image, found["parent"]]  # [A, 2, C, t - 1, ...]
                found["past " + name] = torch.cat([before, value.unsqueeze(3)], dim=3)
            running = self._choose(found, length, alive, done)
            totals, owed = running["total"], running["owed"]  # [A, 2, K], [A, 2, K, L]
            hope = totals.flatten(1).amax(1)
            stopped = (done["score"][alive].amin(1) >= hope / length**self.length_penalty) | (hope == NEVER)
            keep = (~stopped).nonzero().squeeze(1)
            if length == T or not len(keep):
                break
            rows = (keep[:, None] * 2 * K + running["parent"][keep].flatten(1)).flatten()  # [N]
            steps = {name: running["past " + name][keep] for name in new}
            totals, owed, alive = totals[keep], owed[keep], alive[keep]
            tokens = steps["token"][..., -1].flatten()
            if rules.need_history:
                history = torch.cat([history[rows], tokens[:, None]], dim=1)
            state = model.reorder(state, rows)
        return Paths(done["token"], done["log_prob"], done["total"], done["length"], done.get("map"))

    def _candidates(self, scores: Tensor, totals: Tensor, owed: Tensor, phrases: Tensor) -> dict[str, Tensor]:
        """Returns the C best continuations in each bank, [A, 2, C]: parent (a beam of 2 * K), token, total, owed."""
        A, _, K, V = scores.shape
        P, L, C = phrases.shape[1], phrases.shape[2], 2 * self.size
        first = phrases[:, :, 0]  # [A, P]
        real = first != NONE
        single = real & (phrases[:, :, 1] == NONE) if L > 1 else real  # phrases that are one token
        value = scores + totals[..., None]  # [A, 2, K, V]
        place = first.clamp(min=0)[:, None].expand(A, K, P)
        enter = value[:, 0].gather(2, place).masked_fill(~real[:, None], NEVER)  # [A, K, P]
        # The first bank does not end, nor say a whole word of the phrases: that leads to the second.
        before = value[:, 0].clone()
        before[:, :, self.end_id] = NEVER
        shut = torch.zeros(A, V, dtype=torch.bool, device=scores.device)
        shut.scatter_(1, place[:, 0].where(single, self.end_id), True)
        before.masked_fill_(shut[:, None], NEVER)
        # In the second bank a phrase that was begun goes on.
        after, due = value[:, 1], owed[:, 1, :, :1]  # [A, K, V], [A, K, 1]
        forced = torch.full_like(after, NEVER).scatter(2, due.clamp(min=0), after.gather(2, due.clamp(min=0)))
        after = torch.where(due == NONE, after, forced)
        total0, at0 = self._top(before.flatten(1), C)
        total1, at1 = self._top(torch.cat([after.flatten(1), enter.flatten(1)], dim=1), C)
        entered = at1 >= K * V
        which = (at1 - K * V).clamp(min=0)  # [A, C] a beam of the first bank and a phrase
        row = torch.arange(A, device=scores.device)[:, None]
        token1 = torch.where(entered, first[row, which % P], at1 % V)
        parent1 = torch.where(entered, which // P, K + (at1 // V).clamp(max=K - 1))
        rest = torch.nn.functional.pad(phrases[:, :, 1:], (0, 1), value=NONE)  # [A, P, L] what is owed after the first
        carried = torch.nn.functional.pad(owed[:, 1, :, 1:], (0, 1), value=NONE)  # [A, K, L]
        owed1 = torch.where(entered[..., None], rest[row, which % P], carried[row, (at1 // V).clamp(max=K - 1)])
        return {
            "total": torch.stack([total0, total1], 1),
            "token": torch.stack([at0 % V, token1], 1),
            "parent": torch.stack([at0 // V, parent1], 1),
            "owed": torch.stack([torch.full_like(owed1, NONE), owed1], 1),
        }

    @staticmethod
    def _top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns the `count` largest of each row and their columns, filled up with NEVER in a small vocabulary."""
        found, place = values.topk(min(count, values.shape[1]), dim=1)
        missing = count - found.shape[1]
        pad = torch.nn.functional.pad
        return (pad(found, (0, missing), value=NEVER), pad(place, (0, missing))) if missing else (found, place)

    def _choose(self, found: dict[str, Tensor], length: int, alive: Tensor, done: dict[str, Tensor]) -> dict:
        """Puts captions that end now into `done`, best first; returns the beams to go on with, each [A, 2, K, ...]."""
        K, valid = self.size, found["total"] > NEVER
        whole = found["owed"][..., 0] == NONE
        ended = valid & whole & (found["token"] == self.end_id)  # [A, 2, C]
        last = length == self.max_length  # then an open beam is a caption, too
        first = torch.arange(2 * K, device=alive.device) < (2 * K if last else K)  # see helpers.beam
        finished = (valid & whole if last else ended)[:, 1] & first
        score = (found["total"][:, 1] / length**self.length_penalty).masked_fill(~finished, NEVER)  # [A, C]
        new = {"score": score, "total": found["total"][:, 1].masked_fill(~finished, NEVER)}
        new["length"] = torch.full_like(found["token"][:, 1], length)
        row = torch.arange(len(alive), device=alive.device)[:, None]
        order = torch.cat([done["score"][alive], score], 1).topk(K).indices  # [A, K]
        for name, column in done.items():
            values = new[name] if name in new else found["past " + name][:, 1]
            if name not in new:  # as long as the longest caption may become
                room = column.shape[2] - values.shape[2]
                values = torch.cat([values, values.new_zeros(*values.shape[:2], room, *values.shape[3:])], dim=2)
            column[alive] = torch.cat([column[alive], values], 1)[row, order]
        values, order = found["total"].masked_fill(ended, NEVER).topk(K)  # [A, 2, K]
        image, bank = row[:, :, None], torch.arange(2, device=alive.device)[None, :, None]
        return {name: column[image, bank, order] for name, column in found.items()} | {"total": values}
