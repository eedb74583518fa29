"""The one place where a captioner meets the ranking of its candidates: `helpers.captioner` calls nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from helpers.encoders import load_encoder
from helpers.files import CaptioningError
from ranking.rerank import FROZEN, FROZEN_KIND, WEIGHTS, image_vectors, rerank
from ranking.tags import add_candidates, find_tags


class Judges:
    """Ranks the candidates of a beam search by four weights beside the search's own score, see `ranking.rerank`; 0 is
    off. `clip_weight`: how much the likeness of photo and caption counts; `consensus_weight`: how much the likeness
    with what people say of such photos does; `tag_weight`: how much it counts to name what a classifier is sure of;
    `flaw_weight`: how much a flaw costs, such as a word said twice. The second and the third need the vectors of a
    frozen encoder."""

    def __init__(self, captioner):
        self.captioner = captioner

    @cached_property
    def frozen(self):
        """The encoder by whose vectors candidates are judged. Loaded when it is first needed."""
        return load_encoder(FROZEN, self.captioner.device)

    @cached_property
    def _prepared_alike(self) -> bool:
        """Whether one small copy of a photo serves both encoders."""
        return self.captioner.encoder.preprocessing == self.frozen.preprocessing

    def asks(self, options: Mapping) -> bool:
        """Returns whether decoding with these options takes the frozen encoder's vectors."""
        chosen = {**self.captioner.decoding, **options}
        return chosen["method"] == "beam" and bool(chosen.get("consensus_weight") or chosen.get("tag_weight"))

    def prepare(self, image, pixels: Tensor, options: Mapping) -> Tensor | None:
        """Returns a photo as the frozen encoder takes it; None where it is not asked. pixels: as the other takes it."""
        if not self.asks(options):
            return None
        return pixels if self._prepared_alike else self.frozen.prepare(image)

    def see(self, pixels: Sequence[Tensor | None]) -> Tensor | None:
        """Returns the frozen encoder's vectors [B, 1280] of prepared photos."""
        if not pixels or pixels[0] is None:
            return None
        return self.frozen.features(torch.stack(list(pixels)), FROZEN_KIND)

    def split(self, options: dict) -> tuple[dict, dict]:
        """Returns the options of the search, and the weights of the ranking."""
        search = {name: value for name, value in options.items() if name not in WEIGHTS}
        return search, {name: options.get(name) or 0.0 for name in WEIGHTS}

    def choose(self, groups: list[list], features: Tensor, frozen: Tensor | None, options: dict, weights: dict) -> list:
        """Returns the groups of hypotheses that the search found with `options`, ranked anew by `weights`.

        Raises CaptioningError when a weight needs `frozen` and it is not given.
        """
        if not any(weights.values()) or options["method"] != "beam":
            return groups
        if self.asks(options | weights) and frozen is None:
            raise CaptioningError(
                "consensus_weight and tag_weight judge captions by the frozen encoder's vectors: pass both of what "
                "`encode` returns, or set both weights to 0."
            )
        model, encoder = self.captioner.model, self.captioner.encoder
        seen, sizes = [], [len(group) for group in groups]
        if weights["tag_weight"]:
            seen = find_tags(self.frozen.classify(frozen))
            groups = add_candidates(model, features, groups, seen, options)
        captions = [[model.tokenizer.decode(h.tokens) for h in group] for group in groups]
        vectors = image_vectors(encoder, features) if weights["clip_weight"] else None
        ranked = rerank(groups, captions, vectors, encoder, frozen, **weights, seen=seen)
        return [group[:size] for group, size in zip(ranked, sizes, strict=True)]
