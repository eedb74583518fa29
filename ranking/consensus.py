"""Consensus: of several candidate captions, which is most like what people said of similar photos?

Devlin et al. (2015, "Exploring Nearest Neighbor Approaches for Image Captioning") and Mao et al. (2015, "Learning like
a Child") compare each candidate with the captions of the nearest training photos. Here nobody's captions are kept:
anchors among the photos hold the mean n-grams of the photos around each, rare n-grams left out. Photos are compared by
an encoder that never read the captions, since one that did remembers the training photos, see `ranking.rerank`.

    python -m ranking.consensus --dataset flickr8k --data_dir DIR

Shapes: B photos, D width of the encoder, E width in which photos are compared, A anchors, M n-grams kept an anchor, F
different n-grams, P training photos.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.files import CaptioningError, command, read_json, save_tensors, sha256_file, write_json
from helpers.text import ORDERS, ngrams, normalise

FILE = "consensus.safetensors"
ANCHORS_READ = 20  # a photo reads this many anchors, the nearer the more
SHARPNESS = 0.07  # difference in cosine at which a neighbour counts e times less
Gram = tuple[str, ...]


def grams(caption: str) -> list[Counter]:
    """Returns how often each n-gram occurs in a caption, a Counter for each order."""
    return ngrams(normalise(caption))


@dataclass
class Consensus:
    """What people say around each anchor, as mean TF-IDF weights of n-grams."""

    anchors: Tensor  # [A, E], of length 1
    rows: Tensor  # [A, M] which n-grams
    weights: Tensor  # [A, M] their mean weight in a caption
    grams: list[Gram]  # the F n-grams
    seen: Tensor  # [F] in the captions of how many training photos
    photos: int  # P
    projection: Tensor | None = None  # [D, E] from an encoder's vectors, see `whitening`; without it E is D
    offset: Tensor | None = None  # [E]

    @cached_property
    def number(self) -> dict[Gram, int]:
        return {gram: number for number, gram in enumerate(self.grams)}

    def tfidf(self, caption: str) -> list[dict[Gram, float]]:
        """Returns each order's n-grams with weights of length 1; what is rare elsewhere is heavy."""
        return [unit(order, self.idf) for order in grams(caption)]

    def idf(self, gram: Gram) -> float:
        number = self.number.get(gram)
        return math.log(self.photos / (1 if number is None else int(self.seen[number])))

    def expected(self, vectors: Tensor) -> Tensor:
        """Returns the weights [B, F] that n-grams have in captions of photos like these. vectors: [B, D]."""
        vectors = vectors.float().cpu()
        placed = vectors if self.projection is None else vectors @ self.projection + self.offset
        likeness = F.normalize(placed, dim=-1) @ self.anchors.T
        cosine, near = likeness.topk(min(ANCHORS_READ, len(self.anchors)))  # [B, k]
        share = torch.softmax(cosine / SHARPNESS, dim=-1)[..., None] * self.weights[near]  # [B, k, M]
        return torch.zeros(len(vectors), len(self.grams)).scatter_add_(1, self.rows[near].flatten(1), share.flatten(1))

    def score(self, vectors: Tensor, captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """Returns for each candidate about the CIDEr it would have if people's captions of similar photos were the
        references: ten times the mean cosine of their n-grams. vectors: [B, D], captions: the candidates of each."""
        out = []
        for said, candidates in zip(self.expected(vectors).numpy(), captions, strict=True):
            out.append([])
            for candidate in candidates:
                known = ((self.number.get(g), w) for order in self.tfidf(candidate) for g, w in order.items())
                out[-1].append(10 / ORDERS * float(sum(w * said[n] for n, w in known if n is not None)))
        return out

    def save(self, folder: Path) -> None:
        """Writes the file beside the encoder's, and its hash into the encoder's configuration."""
        words = sorted({word for gram in self.grams for word in gram})
        place = {word: number for number, word in enumerate(words)}
        padded = [[place[word] for word in gram] + [-1] * (ORDERS - len(gram)) for gram in self.grams]
        tensors = {
            "anchors": self.anchors.half(),
            "rows": self.rows.to(torch.int16 if len(self.grams) < 1 << 15 else torch.int32),
            "weights": self.weights.half(),
            "grams": torch.tensor(padded, dtype=torch.int32),
            "seen": self.seen.to(torch.int32),
            "words": torch.tensor(list("\n".join(words).encode()), dtype=torch.uint8),
            "photos": torch.tensor([self.photos]),
        }
        if self.projection is not None:
            tensors |= {"projection": self.projection.half(), "offset": self.offset}
        save_tensors(folder / FILE, tensors)
        config = read_json(folder / "config.json")
        config["sha256"][FILE] = sha256_file(folder / FILE)
        write_json(folder / "config.json", config)

    @classmethod
    def load(cls, folder: Path) -> Consensus:
        """Returns what `save` wrote. Raises CaptioningError when it is missing or does not belong to this encoder."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = folder / FILE
        if not file.is_file():
            raise CaptioningError(
                f"{folder} has no {FILE}, so candidates cannot be ranked by consensus. Set consensus_weight to 0, or "
                "make the file: python -m ranking.consensus --help."
            )
        if sha256_file(file) != read_json(folder / "config.json")["sha256"].get(FILE):
            raise CaptioningError(f"{file} is not the file that config.json was written with. Fetch both again.")
        try:
            t = load_file(file)
            words = bytes(t["words"].tolist()).decode().split("\n")
            rows, seen, photos = t["rows"].long(), t["seen"].long(), int(t["photos"])
            made = [tuple(words[i] for i in gram if i >= 0) for gram in t["grams"].tolist()]
            projection, offset = (t[name].float() if name in t else None for name in ("projection", "offset"))
            fits = rows.shape == t["weights"].shape and len(rows) == len(t["anchors"]) and len(seen) == len(made)
            if projection is not None:
                fits &= projection.shape[1:] == offset.shape == t["anchors"].shape[1:]
            if not fits or rows.min() < 0 or rows.max() >= len(made) or seen.min() < 1 or seen.max() > photos:
                raise ValueError("its tables do not fit each other")
            return cls(t["anchors"].float(), rows, t["weights"].float(), made, seen, photos, projection, offset)
        except (SafetensorError, AttributeError, KeyError, IndexError, ValueError, RuntimeError) as error:
            raise CaptioningError(f"{file} cannot be used: {str(error)[:200]}. Fetch it again.") from error


def unit(order: Counter, idf) -> dict[Gram, float]:
    """Returns counts times `idf`, divided by their length."""
    weights = {gram: count * idf(gram) for gram, count in order.items()}
    length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
    return {gram: weight / length for gram, weight in weights.items()}


def whitening(vectors: Tensor, width: int = 256) -> tuple[Tensor, Tensor]:
    """Returns (projection [D, width], offset [width]) to the main components of vectors [P, D], partly whitened.

    Each channel counts alike, and each component by the root of its deviation: raw vectors would be compared by a few
    strong ones, and wholly whitened ones by noise.
    """
    mean, deviation = vectors.mean(0), vectors.std(0) + 1e-4
    scaled = (vectors - mean) / deviation
    variance, components = torch.linalg.eigh(scaled.T @ scaled / len(scaled))  # smallest first
    width = min(width, len(variance))
    projection = components[:, -width:] / variance[-width:].clamp(min=1e-6) ** 0.25 / deviation[:, None]
    return projection, -mean @ projection


def find_anchors(vectors: Tensor, count: int, seed: int = 0, rounds: int = 15) -> Tensor:
    """Returns `count` means [A, E] of length 1 among vectors [P, E] of length 1: k-means by cosine."""
    generator = torch.Generator().manual_seed(seed)
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:count]].clone()
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, (vectors @ centres.T).argmax(1), vectors)
        centres = F.normalize(torch.where(sums.norm(dim=1, keepdim=True) > 0, sums, centres), dim=1)
    return centres


def build(
    vectors: Tensor, references: Sequence[Sequence[str]], anchors: int = 1500, neighbours: int = 60, keep: int = 320,
    min_photos: int = 5, seed: int = 0,
) -> Consensus:  # fmt: skip
    """Returns the consensus of training photos: vectors [P, E], and the captions of each.

    Each anchor takes the mean over its `neighbours`, the nearer the more, and keeps its `keep` heaviest n-grams. An
    n-gram of fewer than `min_photos` photos is dropped, so that no caption can be put together again.
    """
    vectors = F.normalize(vectors.float(), dim=-1)
    counted = [[grams(caption) for caption in captions] for captions in references]
    seen = Counter(g for photo in counted for g in {g for caption in photo for order in caption for g in order})
    kept = sorted(gram for gram, photos in seen.items() if photos >= min_photos)
    if not kept:
        raise CaptioningError(f"No n-gram occurs in the captions of {min_photos} photos; there is no consensus.")
    number = {gram: place for place, gram in enumerate(kept)}
    consensus = Consensus(
        find_anchors(vectors, min(anchors, len(vectors)), seed), torch.zeros(0), torch.zeros(0), kept,
        torch.tensor([seen[gram] for gram in kept]), len(vectors),
    )  # fmt: skip
    places, weights = [], []  # of each photo's n-grams
    for photo in counted:
        mean = Counter()
        for caption in photo:
            for order in caption:
                for gram, weight in unit(order, consensus.idf).items():
                    if gram in number:
                        mean[number[gram]] += weight / len(photo)
        places.append(np.fromiter(mean.keys(), np.int64, len(mean)))
        weights.append(np.fromiter(mean.values(), np.float64, len(mean)))
    keep, rows, values = min(keep, len(kept)), [], []
    for anchor in consensus.anchors.split(256):
        cosine, near = (anchor @ vectors.T).topk(min(neighbours, len(vectors)))
        for share, photos in zip(torch.softmax(cosine / SHARPNESS, 1).tolist(), near.tolist(), strict=True):
            where = np.concatenate([places[photo] for photo in photos])
            heavy = np.concatenate([weights[photo] * s for photo, s in zip(photos, share, strict=True)])
            mean, heaviest = torch.from_numpy(np.bincount(where, heavy, len(kept))).float().topk(keep)
            rows.append(heaviest)
            values.append(mean)
    consensus.rows, consensus.weights = torch.stack(rows), torch.stack(values)
    return consensus


@command
def main(arguments: list[str] | None = None) -> None:
    import argparse

    from helpers.datasets import load_dataset
    from helpers.encoders import cache_features, load_encoder
    from ranking.rerank import FROZEN, FROZEN_KIND

    parser = argparse.ArgumentParser(
        prog="python -m ranking.consensus", description="Write the consensus of a dataset's training captions."
    )
    parser.add_argument("--dataset", default="flickr8k")
    parser.add_argument("--data_dir")
    parser.add_argument("--encoder", default="pocket-clip", help="beside which to write: pocket-clip[:FOLDER]")
    parser.add_argument("--anchors", type=int, default=1500)
    options = parser.parse_args(arguments)
    encoder, dataset = load_encoder(options.encoder), load_dataset(options.dataset, options.data_dir)
    names = dataset.images("train")
    vectors = cache_features(load_encoder(FROZEN), {name: dataset.path(name) for name in names}, FROZEN_KIND)
    references = dataset.references("train")
    names = [name for name in names if name in vectors]
    projection, offset = whitening(vectors[names])
    placed = vectors[names] @ projection + offset
    consensus = build(placed, [references[name] for name in names], options.anchors)
    consensus.projection, consensus.offset = projection, offset
    consensus.save(encoder.folder)
    print(f"{encoder.folder / FILE}: {len(consensus.grams)} n-grams around {len(consensus.anchors)} anchors")


if __name__ == "__main__":
    raise SystemExit(main())
