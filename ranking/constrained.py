"""Constrained beam search: the likeliest captions among those that say a given word.

Anderson et al. (2017, "Guided Open Vocabulary Image Captioning with Constrained Beam Search") keep one beam for each
state of an automaton. For "say one of these words" it has two: a bank of beams that have not said one yet, and a bank
that has. Each bank keeps its own K, so that a rare word is not crowded out by likelier captions without it.

Shapes: B images, A images still searched, K beams a bank (1 at the first step), P phrases an image, L tokens a phrase
and NONE after it, C candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from helpers.beam import NEVER, NONE
from helpers.decoding import phrase_ids
from helpers.files import CaptioningError


class Include:
    """What `decode` takes as `constraint`: for each image words of which a caption must say one.

    What a prompt says does not count. Raises CaptioningError where an image has no word that the model knows.
    """

    def __init__(self, model, words: Sequence[Sequence[str]]):
        phrases = [phrase_ids(model, some) for some in words]
        if not all(phrases):
            raise CaptioningError(f"Image {phrases.index([]) + 1} has no word to include that the model knows.")
        P, L = max(map(len, phrases)), 1 + max(len(ids) for some in phrases for ids in some)
        self.phrases = torch.full((len(phrases), P, L), NONE)  # [B, P, L]
        for image, some in enumerate(phrases):
            for place, ids in enumerate(some):
                self.phrases[image, place, : len(ids)] = torch.tensor(ids)

    def candidates(
        self, scores: Tensor, totals: Tensor, owed: Tensor, alive: Tensor, end_id: int, count: int
    ) -> dict[str, Tensor]:
        """Returns the best `count` continuations of each bank, [A, 2, C]: parent (a beam of both banks), token, total,
        and where in the phrases the next token stands that is owed to one that was begun, or NONE.

        scores: [A, 2, K, V]; totals, owed: [A, 2, K]; alive: [A] the images.
        """
        phrases = self.phrases.to(scores.device)[alive]
        A, _, K, V = scores.shape
        P, L = phrases.shape[1:]
        flat, first = phrases.flatten(1), phrases[:, :, 0]  # [A, P * L], [A, P]
        real, single = first != NONE, (first != NONE) & (phrases[:, :, 1] == NONE)
        value = scores + totals[..., None]  # [A, 2, K, V]
        place = first.clamp(min=0)[:, None].expand(A, K, P)
        enter = value[:, 0].gather(2, place).masked_fill(~real[:, None], NEVER)  # [A, K, P]
        # The first bank does not end, nor say a whole word of the phrases: that leads to the second.
        before = value[:, 0].clone()
        before[:, :, end_id] = NEVER
        shut = torch.zeros(A, V, dtype=torch.bool, device=scores.device)
        shut.scatter_(1, place[:, 0].where(single, end_id), True)
        before.masked_fill_(shut[:, None], NEVER)
        # In the second bank a phrase that was begun goes on.
        after, owing = value[:, 1], owed[:, 1] != NONE  # [A, K, V], [A, K]
        due = flat.gather(1, owed[:, 1].clamp(min=0)).clamp(min=0)[..., None]  # [A, K, 1]
        forced = torch.full_like(after, NEVER).scatter(2, due, after.gather(2, due))
        after = torch.where(owing[..., None], forced, after)
        count = min(count, K * V)
        total0, at0 = before.flatten(1).topk(count)  # [A, C]
        total1, at1 = torch.cat([after.flatten(1), enter.flatten(1)], dim=1).topk(count)
        entered = at1 >= K * V
        which = (at1 - K * V).clamp(min=0)  # a beam of the first bank and a phrase
        beam = (at1 // V).clamp(max=K - 1)  # a beam of the second
        token1 = torch.where(entered, first.gather(1, which % P), at1 % V).clamp(min=0)
        following = torch.where(entered, which % P * L, owed[:, 1].gather(1, beam)) + 1
        goes_on = (entered | owing.gather(1, beam)) & (flat.gather(1, following) != NONE)
        owed1 = following.where(goes_on, NONE)
        return {
            "total": torch.stack([total0, total1], 1),
            "token": torch.stack([at0 % V, token1], 1),
            "parent": torch.stack([at0 // V, torch.where(entered, which // P, K + beam)], 1),
            "owed": torch.stack([torch.full_like(owed1, NONE), owed1], 1),
        }
