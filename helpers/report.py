"""What a dataset holds and what is wrong with it: counts, lengths, vocabulary, broken and near-duplicate images.

`python -m helpers.report --dataset folder --data_dir DIR` prints it. Everything is a table; figures are in `plots.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from helpers.cores import usable_cores
from helpers.datasets import Dataset, load_dataset
from helpers.errors import CaptioningError
from helpers.images import open_image, shown
from helpers.text import normalise

SIDE, LOW = 32, 16  # a hash is the signs of the LOW x LOW lowest frequencies of a SIDE x SIDE grey copy
BITS = LOW * LOW - 1
MOST = 20_000  # pairs
NEAR = 40  # differing bits of 255 up to which two photos count as the same; see `near_duplicates`


@dataclass
class Report:
    """The tables of a dataset report.

    `counts`: a row a split (and "all"): images, captions, captions_per_image (mean), fewest, most, words (mean),
    longest, vocabulary (distinct words), new_words (share of word occurrences whose word train does not have, 0 to 1),
    repeated (captions that occur more than once in the split).
    `lengths`: split, words, captions: how many captions of a split have so many words.
    `growth`: captions, vocabulary, vocabulary_4: distinct words, and words seen at least 4 times, in so many captions
    of train drawn at random.
    `words`: word, count in train, most frequent first.
    `findings`: kind, image, detail. The kinds: "missing", "unreadable", "few captions", "near-duplicate" (of an image
    in another split: it makes scores look better than they are), "repeated image" (the same within a split).
    `notes`: what the reader of the dataset noted.
    """

    name: str
    counts: pd.DataFrame
    lengths: pd.DataFrame
    growth: pd.DataFrame
    words: pd.DataFrame
    findings: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"Dataset {self.name}", "", self.counts.to_string(float_format="{:.3g}".format), ""]
        lines += [f"- {note}" for note in self.notes]
        for kind, rows in self.findings.groupby("kind", sort=False):
            lines.append(f"- {kind}: {len(rows):,}")
            lines += [f"    {shown(row.image)}: {row.detail}" for row in rows.head(5).itertuples()]
            lines += ["    ..."] if len(rows) > 5 else []
        return "\n".join(lines)


def dataset_report(dataset: Dataset, check_images: bool = True, near: int = NEAR, workers: int | None = None) -> Report:
    """Returns the Report of a dataset.

    `check_images` decodes every image, in `workers` threads (as many as there are cores), to find the unreadable and
    the near-duplicates across splits; that takes 2 to 10 ms an image and a core. `near` is the largest distance, in
    bits of 255, at which two images count as near-duplicates.
    """
    words = {split: [normalise(caption) for caption in dataset.captions(split)] for split in dataset.splits()}
    findings = _few_captions(dataset)
    if check_images:
        findings += _image_findings(dataset, near, workers)
    return Report(
        name=dataset.name, counts=_counts(dataset, words), lengths=_lengths(words),
        growth=_growth(words.get("train", [])), words=_frequencies(words.get("train", [])),
        findings=pd.DataFrame(findings, columns=["kind", "image", "detail"]),
        notes=dataset.notes + ([] if findings or not check_images else [
            "Every image can be read, and no two are nearly the same."]),
    )


def _counts(dataset: Dataset, words: dict[str, list[list[str]]]) -> pd.DataFrame:
    known = {word for caption in words.get("train", []) for word in caption}
    rows = {}
    for split in [*dataset.splits(), "all"]:
        captions = sum(words.values(), []) if split == "all" else words[split]
        per_image = [len(found) for found in dataset.references(None if split == "all" else split).values()]
        occurrences = Counter(word for caption in captions for word in caption)
        total = max(1, occurrences.total())
        rows[split] = {
            "images": len(per_image), "captions": len(captions), "captions_per_image": np.mean(per_image),
            "fewest": min(per_image), "most": max(per_image), "words": np.mean([len(caption) for caption in captions]),
            "longest": max(map(len, captions)), "vocabulary": len(occurrences),
            "new_words": sum(count for word, count in occurrences.items() if word not in known) / total,
            "repeated": len(captions) - len(set(map(tuple, captions))),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("split")


def _lengths(words: dict[str, list[list[str]]]) -> pd.DataFrame:
    rows = [(split, length, count) for split, captions in words.items()
            for length, count in sorted(Counter(map(len, captions)).items())]
    return pd.DataFrame(rows, columns=["split", "words", "captions"])


def _growth(captions: list[list[str]], points: int = 40, seed: int = 0) -> pd.DataFrame:
    order = list(captions)
    random.Random(seed).shuffle(order)
    stops = set(np.linspace(0, len(order), min(points, len(order)) + 1).astype(int).tolist())
    seen: Counter[str] = Counter()
    often, rows = 0, []
    for number, caption in enumerate([[], *order]):
        for word in caption:
            seen[word] += 1
            often += seen[word] == 4
        if number in stops:
            rows.append((number, len(seen), often))
    return pd.DataFrame(rows, columns=["captions", "vocabulary", "vocabulary_4"])


def _frequencies(captions: list[list[str]]) -> pd.DataFrame:
    counts = Counter(word for caption in captions for word in caption)
    return pd.DataFrame(sorted(counts.items(), key=lambda item: (-item[1], item[0])), columns=["word", "count"])


def _few_captions(dataset: Dataset) -> list[tuple[str, str, str]]:
    per_image = {image: len(captions) for image, captions in dataset.references().items()}
    usual = Counter(per_image.values()).most_common(1)[0][0] if per_image else 0
    return [("few captions", image, f"{count}, where most images have {usual}")
            for image, count in per_image.items() if count < usual]


def _image_findings(dataset: Dataset, near: int, workers: int | None) -> list[tuple[str, str, str]]:
    images = list(dict.fromkeys(dataset.table["image"]))
    split_of = dict(zip(dataset.table["image"], dataset.table["split"], strict=True))

    def examine(image: str) -> np.ndarray | tuple[str, str]:
        path = dataset.path(image)
        if not path.exists():
            return "missing", f"there is no file {shown(path)}"
        try:
            return perceptual_hash(open_image(path))
        except CaptioningError as error:
            return "unreadable", str(error)

    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        results = list(tqdm(pool.map(examine, images), total=len(images), desc="images", leave=False))
    found = [(result[0], image, result[1]) for image, result in zip(images, results, strict=True)
             if isinstance(result, tuple)]
    readable = [(image, result) for image, result in zip(images, results, strict=True) if not isinstance(result, tuple)]
    if len(readable) > 1:
        names = [image for image, _ in readable]
        for one, other, distance in near_duplicates(np.stack([bits for _, bits in readable]), near):
            splits = split_of[names[one]] or "no split", split_of[names[other]] or "no split"
            kind = "repeated image" if splits[0] == splits[1] else "near-duplicate"
            detail = f"{splits[0]}; like {shown(names[other])} in {splits[1]} ({distance} of {BITS} bits differ)"
            found.append((kind, names[one], detail))
    return found


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Returns 32 bytes (uint8 [32]) that are alike for photos that look alike, whatever their size and compression.

    255 bits: whether each of the lowest frequencies of a small grey copy is above their median (Zauner 2010, 3.2.1).
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    low = (_COSINES @ grey @ _COSINES.T).ravel()[1:]  # [LOW, LOW] without the mean brightness
    return np.packbits(low > np.median(low))


_COSINES = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(LOW)[:, None]).astype(np.float32)  # [LOW, SIDE]


def near_duplicates(hashes: np.ndarray, near: int = NEAR) -> list[tuple[int, int, int]]:
    """Returns (i, j, distance) for all pairs i < j of hashes (uint8 [N, 32]) at most `near` bits apart, nearest first.

    Unrelated photos differ in about 127 of the 255 bits, and by chance hardly ever in fewer than 80. All pairs are
    compared, a block of rows at a time: memory does not grow with the square of N. Of more than `MOST` pairs (a folder
    of blank images) the rest is left out.
    """
    packed = np.ascontiguousarray(hashes).view(np.uint64)  # [N, 4]
    pairs = []
    for start in range(0, len(packed), 256):
        rows = packed[start:start + 256, None]
        columns = packed[None, start:]
        distance = sum(np.bitwise_count(rows[..., k] ^ columns[..., k]).astype(np.uint16) for k in range(4))  # [256, N]
        close = np.triu(distance <= near, 1)  # columns begin at `start` as well: above the diagonal is i < j
        pairs += [(int(start + i), int(start + j), int(distance[i, j])) for i, j in np.argwhere(close)[:MOST]]
        if len(pairs) > MOST:
            break
    return sorted(pairs, key=lambda pair: (pair[2], pair[:2]))


def main(arguments: list[str] | None = None) -> int:
    """Prints the report of a dataset; returns 1 when it cannot be read at all."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(description="What a dataset holds and what is wrong with it.")
    parser.add_argument("--dataset", default="folder", help="pocket, flickr8k, flickr30k, coco or folder")
    parser.add_argument("--data_dir", help="where its files lie")
    parser.add_argument("--skip_images", action="store_true", help="do not decode the images")
    options = parser.parse_args(arguments)
    try:
        print(dataset_report(load_dataset(options.dataset, options.data_dir), check_images=not options.skip_images))
    except CaptioningError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
