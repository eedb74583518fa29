"""Image-caption datasets by name: every layout becomes one table with the columns image, caption and split."""

from __future__ import annotations

import hashlib
import os
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from helpers import caption_files as files
from helpers.caption_files import SPLITS, Faults, Row
from helpers.download import fetch_dataset
from helpers.files import ROOT, CaptioningError, cache_dir, unknown_name, usable_cores, writing
from helpers.images import SUFFIXES, open_image, shown
from helpers.text import normalise

ORDER = ("train", "dev", "test")
# Captions of images that were never published: the two are known faults of the official caption files.
NEVER_PUBLISHED = {"2258277193_586949ec62.jpg.1", "2258277193_586949ec62.jpg"}


@dataclass
class Dataset:
    """Captioned images: `table` has one row a caption with the columns image, caption and split, all text.

    `image` is the name used in the caption file, relative to `image_dir`. A split is "train", "dev" or "test", or ""
    for images that no split list names: those are in the table but in no split. `notes` says what the reader mended or
    left out. Raises CaptioningError when an image is in two splits or the table is empty.
    """

    name: str
    table: pd.DataFrame
    image_dir: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image_dir = Path(self.image_dir)
        if self.table.empty:
            raise CaptioningError(f"The dataset {self.name!r} has no captions.")
        if (twice := _in_two_splits(self.table)):
            raise CaptioningError(f"In {self.name!r} {len(twice)} images are in two splits, such as {shown(twice[0])}.")

    def splits(self) -> list[str]:
        """Returns the splits that have images: train, dev, test, in this order."""
        present = set(self.table["split"])
        return [split for split in ORDER if split in present]

    def images(self, split: str | None = None) -> list[str]:
        """Returns the image names of a split, each once, in the order of the caption file; None for all splits."""
        return list(dict.fromkeys(self._rows(split)["image"]))

    def captions(self, split: str | None = None) -> list[str]:
        """Returns the captions of a split, in the order of the caption file."""
        return self._rows(split)["caption"].tolist()

    def references(self, split: str | None = None) -> dict[str, list[str]]:
        """Returns image name -> its captions, for the images of a split in the order of `images(split)`."""
        rows, references = self._rows(split), {}
        for image, caption in zip(rows["image"], rows["caption"], strict=True):
            references.setdefault(image, []).append(caption)
        return references

    def path(self, image: str) -> Path:
        """Returns where the file of an image is."""
        return self.image_dir / image

    def fingerprint(self) -> str:
        """Returns a hash that changes with any name, caption, split, or size of an image file."""
        digest = hashlib.sha256()
        for row in self.table[["image", "caption", "split"]].itertuples(index=False):
            digest.update(repr(tuple(row)).encode("utf-8", "surrogatepass"))
        for image in dict.fromkeys(self.table["image"]):
            path = self.path(image)
            digest.update(f"{path.stat().st_size if path.exists() else -1} ".encode())
        return digest.hexdigest()[:32]

    def only(self, split: str) -> Dataset:
        """Returns the dataset with the rows of one split alone."""
        return Dataset(self.name, self._rows(split).reset_index(drop=True), self.image_dir, self.notes)

    def _rows(self, split: str | None) -> pd.DataFrame:
        if split is None:
            return self.table[self.table["split"] != ""]
        known = SPLITS.get(str(split).lower())
        if known is None:
            raise unknown_name("split", split, ORDER)
        rows = self.table[self.table["split"] == known]
        if rows.empty:
            present = ", ".join(f"{name} ({self.table.image[self.table.split == name].nunique():,} images)"
                                for name in self.splits()) or "no split at all"
            where = shown(self.image_dir.parent)
            raise CaptioningError(f"{self.name!r} in {where} has no {known!r} split; it has {present}.")
        return rows


def split_by_image(
    table: pd.DataFrame, seed: int = 0, parts: tuple[float, float, float] = (0.75, 0.125, 0.125)
) -> pd.DataFrame:
    """Returns a copy of `table` with a new `split`: whole images drawn at random, train, dev and test as in `parts`.

    All captions of an image fall into one split. The same images and seed give the same split whatever the order of the
    rows. From three images on every split with a part above zero gets at least one; fewer all go to train.
    """
    if len(parts) != 3 or min(parts) < 0 or parts[0] <= 0:
        raise CaptioningError(f"parts should be three shares (train, dev, test), train above 0, not {parts}.")
    images = sorted(set(table["image"]))
    random.Random(seed).shuffle(images)
    enough = len(images) >= 3
    dev, test = (max(1, round(len(images) * part / sum(parts))) if part and enough else 0 for part in parts[1:])
    names = dict.fromkeys(images, "train") | dict.fromkeys(images[:dev], "dev") \
        | dict.fromkeys(images[dev:dev + test], "test")
    return table.assign(split=table["image"].map(names))


def make_dataset(
    name: str, rows: list[Row], images: Path, faults: Faults, splits: Mapping[str, str] | None,
    seed: int = 0, parts: tuple[float, float, float] = (0.75, 0.125, 0.125), partial: bool = True,
) -> Dataset:
    """Returns the checked Dataset; raises every fault of the files and of their match at once.

    `splits` names each image's split; empty or None has the images split at random. With `partial`, a split whose
    images are all absent is left out with a note (a published dataset of which only some splits were fetched).
    """
    splits, notes, rows = splits or {}, [], [row for row in rows if row.caption]
    present = names_in(images, {os.path.dirname(row.image) for row in rows})
    without: dict[str, list[Row]] = {}
    for row in rows:
        if row.image not in present:
            without.setdefault(row.image, []).append(row)
    all_names = {row.image for row in rows}
    absent = [split for split in ORDER if (of_split := {i for i in all_names if splits.get(i) == split})
              and of_split <= without.keys()]
    if not partial or len(absent) == len({*splits.values()} - {""}):  # no image at all: the wrong folder
        absent = []
    nearly = {_loose(image): image for image in sorted(present, reverse=True)}
    for image, of_image in without.items():
        if image in NEVER_PUBLISHED:
            notes.append(f"{len(of_image)} captions of {image} left out: the image was never published.")
        elif splits.get(image) not in absent:
            hint = nearly.get(_loose(image)) or nearly.get(_loose(image + ".jpg"))
            faults.add(f"captions for an image that is not in {shown(images)}",
                       f"{image}, {of_image[0].where}" + (f"; there is {hint}" if hint else ""))
    notes += [f"The images of the split {split!r} are not here; its captions are left out." for split in absent]
    for split in ORDER:
        listed = {image for image, of in splits.items() if of == split}
        if listed and not listed & all_names:
            notes.append(f"No captions here for the {len(listed):,} images of the split {split!r}.")
        else:
            for image in sorted(listed - all_names):
                faults.add(f"image in the list {split!r} without a caption", image)
    faults.raise_if_any()
    notes += faults.notes()
    kept = [row for row in rows if row.image not in without]
    table = pd.DataFrame({"image": [row.image for row in kept], "caption": [row.caption for row in kept],
                          "split": [splits.get(row.image, "") for row in kept]}, dtype="object")
    if table.empty:
        raise CaptioningError(f"{faults.source} has no captions.")
    if not splits:
        table = split_by_image(table, seed, parts)
        if table["image"].nunique() < 3:
            notes.append("Fewer than three images: all are in train, and there is no dev or test split.")
        else:
            notes.append(f"No split is given: split at random by image with seed {seed}.")
    elif (outside := table.loc[table["split"] == "", "image"].nunique()):
        notes.append(f"{outside:,} images are in no split list and are left out of the splits.")
    if (repeated := int(table.duplicated(["image", "caption"]).sum())):
        notes.append(f"{repeated:,} rows repeat a caption of the same image (kept).")
    if (bare := sorted(name for name in present - all_names if name.lower().endswith(SUFFIXES))):
        more = ", ..." if len(bare) > 5 else ""
        notes.append(f"{len(bare):,} images have no caption: {', '.join(map(shown, bare[:5]))}{more}")
    return Dataset(name, table, images, notes)


def names_in(folder: Path, below: Iterable[str] = ("",)) -> set[str]:
    """Returns the files in `folder` and in the folders `below` it, as names relative to it."""
    names: set[str] = set()
    for place in {"", *below}:
        try:
            with os.scandir(folder / place) as entries:  # one listing, not a look-up an image: fast on a mounted drive
                names |= {f"{place}/{entry.name}" if place else entry.name for entry in entries
                          if not entry.name.startswith(".")}
        except (OSError, ValueError):
            continue
    return names


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _in_two_splits(table: pd.DataFrame) -> list[str]:
    counts = table.drop_duplicates(["image", "split"])["image"]
    return sorted(set(counts[counts.duplicated()]))
__all__ = ["Dataset", "load_dataset", "read_coco", "read_flickr30k", "read_flickr8k", "read_folder", "split_by_image"]


def load_dataset(
    name: str, data_dir: str | os.PathLike | None = None, download: bool = False, split: str | None = None, **options
) -> Dataset:
    """Returns the dataset `name`: "pocket", "flickr8k", "flickr30k", "coco" or "folder".

    `data_dir` is where its files lie (data/NAME if not given; for "folder" it must be). "pocket" is generated on first
    use into the cache folder; `options` go to the generator (images, size, seed) or to the reader. With `download`,
    files that are not there are fetched (see downloads.py). With `split`, only its rows are kept.
    Raises CaptioningError when the name is unknown, files are missing or faulty (all faults in one message), or the
    split is empty.
    """
    readers = {"flickr8k": read_flickr8k, "flickr30k": read_flickr30k, "coco": read_coco, "folder": read_folder}
    if name == "pocket":
        dataset = _pocket(data_dir, **options)
    elif name not in readers:
        raise unknown_name("dataset", name, ["pocket", *readers])
    elif name == "folder" and data_dir is None:
        raise CaptioningError('load_dataset("folder", ...) needs data_dir, the folder with the photos and the CSV.')
    else:
        folder = Path(data_dir) if data_dir is not None else ROOT / "data" / name
        if download and name != "folder":
            folder = fetch_dataset(name, folder, readers[name])
        if not folder.is_dir():
            offer = f' Call load_dataset("{name}", download=True), or see data/README.md.' if name != "folder" else ""
            raise CaptioningError(f"There is no folder {shown(folder)} with the dataset {name!r}.{offer}")
        dataset = readers[name](folder, **options)
    return dataset.only(split) if split is not None else dataset


def _pocket(data_dir: str | os.PathLike | None, **options) -> Dataset:
    from pocket_scenes import scenes

    named = "".join(f"-{name}{value}" for name, value in sorted(options.items()))
    folder = Path(data_dir) if data_dir is not None else cache_dir() / f"pocket{named}"
    if options or data_dir is None or not (folder / "captions.txt").is_file():
        try:
            with writing(folder):
                scenes.generate(folder, **options)  # does nothing when the same set is there already
        except ValueError as error:
            raise CaptioningError(str(error)) from error
    return read_flickr8k(folder, name="pocket")


def read_flickr8k(folder: str | os.PathLike, name: str = "flickr8k", seed: int = 0) -> Dataset:
    """Returns Flickr8k from `folder` in either layout, with the official splits where their lists are present.

    Kaggle's layout: captions.txt (a CSV) and Images/. The original one: Flickr8k.token.txt, Flickr_8k.trainImages.txt
    and its sisters, and Flicker8k_Dataset/; the text files may also be in Flickr8k_text/. Without any list the images
    are split at random, 6,000 to 1,000 to 1,000 in proportion (`seed`). Hodosh et al. 2013, JAIR 47.
    """
    folder = Path(folder)
    captions = _find(folder, ["captions.txt", "Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "captions.csv"])
    images = _find(folder, ["Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset",
                            "Flickr8k_Dataset"], directory=True)
    lists = {split: [folder / f"Flickr_8k.{split}Images.txt", folder / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt"]
             for split in ORDER}
    faults = Faults(captions, lenient=True)
    parse = files.parse_csv if captions.name.startswith("captions") else files.parse_tokens
    rows = parse(captions, faults)
    splits = _official(lists, folder / "dataset_flickr8k.json", faults) or _named_in(rows, faults)
    return make_dataset(name, rows, images, faults, splits, seed)


def read_flickr30k(folder: str | os.PathLike, seed: int = 0) -> Dataset:
    """Returns Flickr30k from `folder`: results.csv with bars, or results_20130124.token; images in a folder beside it.

    Splits come from train.txt, val.txt and test.txt (names with or without .jpg), or else from Karpathy's
    dataset_flickr30k.json; without them the images are split at random, 29,000 to 1,014 to 1,000 in proportion.
    Young et al. 2014, TACL 2.
    """
    folder = Path(folder)
    images = _find(folder, ["flickr30k_images/flickr30k_images", "flickr30k_images", "flickr30k-images", "Images",
                            "images"], directory=True)
    captions = _find(folder, [deep + name for name in ("results.csv", "results_20130124.token", "captions.txt")
                              for deep in ("", "flickr30k_images/", "flickr30k/")])
    faults = Faults(captions, lenient=True)
    if captions.suffix == ".token":
        rows = files.parse_tokens(captions, faults)
    elif "|" in files.read_text(captions).split("\n", 1)[0]:
        rows = files.parse_pipes(captions, faults)
    else:
        rows = files.parse_csv(captions, faults)
    lists = {split: [folder / f"{stem}.txt", folder / "splits" / f"{stem}.txt"]
             for split, stem in zip(ORDER, ("train", "val", "test"), strict=True)}
    splits = _official(lists, folder / "dataset_flickr30k.json", faults, suffix=".jpg") or _named_in(rows, faults)
    return make_dataset("flickr30k", rows, images, faults, splits, seed, parts=(29000, 1014, 1000))


def read_coco(folder: str | os.PathLike) -> Dataset:
    """Returns COCO captions from `folder`: captions_*.json (there or in annotations/) and the image folders.

    With Karpathy's dataset_coco.json, its splits (restval counts as train), matched by image id, so that it serves the
    2014 and the 2017 files. Without it captions_train* is train and captions_val* is dev. An image's name is its path
    below `folder`, such as val2017/000000000139.jpg. Chen et al. 2015; Karpathy and Fei-Fei 2015.
    """
    folder = Path(folder)
    found = sorted([*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")])
    if not found:
        raise CaptioningError(f"There is no captions_*.json in {shown(folder)} or in its folder annotations/.")
    faults, rows = Faults(folder, lenient=True), []
    karpathy = folder / "dataset_coco.json"
    by_id = None
    if karpathy.is_file():
        by_id = {cocoid: split for cocoid, _, split, _ in files.parse_karpathy(karpathy, faults)}
    for path in found:
        part = path.stem.removeprefix("captions_")  # train2014, val2017, ...
        place = next((p for p in (part, f"images/{part}", "images") if (folder / p).is_dir()), ".")
        usual = "train" if part.startswith("train") else "dev" if part.startswith("val") else ""
        for identity, row in files.parse_coco(path, faults):
            image = row.image if place == "." else f"{place}/{row.image}"
            split = usual if by_id is None else by_id.get(identity, "")
            rows.append(row._replace(image=image, split=split, where=f"{part} {row.where}"))
    return make_dataset("coco", rows, folder, faults, {row.image: row.split for row in rows})


def read_folder(folder: str | os.PathLike, csv: str | os.PathLike | None = None, seed: int = 0) -> Dataset:
    """Returns any folder of photos with a CSV of the columns image, caption and, if wanted, split (train, dev, test).

    `csv` is looked for in the folder when not named. Photos lie in the folder or in its folder images/. Without a split
    column the images are split at random, 80 to 10 to 10. Photos without a caption are named in `notes`.
    """
    folder = Path(folder)
    path = folder / csv if csv is not None else _only_csv(folder)
    faults = Faults(path)
    rows = files.parse_csv(path, faults)
    places = [folder / place for place in ("", "images", "Images") if (folder / place).is_dir()]
    if not places:
        raise CaptioningError(f"There is no folder {shown(folder)}.")
    names = {row.image for row in rows}
    images = max(places, key=lambda place: len(names & names_in(place)))
    splits = _named_in(rows, faults)
    return make_dataset("folder", rows, images, faults, splits, seed, parts=(0.8, 0.1, 0.1), partial=False)


def _official(lists: Mapping[str, Iterable[Path]], karpathy: Path, faults: Faults, suffix: str = "") -> dict[str, str]:
    """Returns image -> split from the list files, or else from Karpathy's JSON file; empty when there are neither."""
    splits: dict[str, str] = {}
    for split, places in lists.items():
        path = next((place for place in places if place.is_file()), None)
        for image in files.parse_list(path) if path else ():
            image = image if image.lower().endswith(SUFFIXES) or not suffix else image + suffix
            if splits.setdefault(image, split) != split:
                faults.add(f"image in the lists {splits[image]!r} and {split!r}", image)
    if not splits and karpathy.is_file():
        splits = {image: split for _, image, split, _ in files.parse_karpathy(karpathy, faults)}
    return splits


def _named_in(rows: list[Row], faults: Faults) -> dict[str, str]:
    """Returns image -> split as the rows themselves name it; empty when no row does."""
    splits = {row.image: row.split for row in rows if row.split}
    for image in sorted({row.image for row in rows if splits and splits.get(row.image, "") != row.split}):
        faults.add("image whose rows name different splits", image)
    return splits


def _find(folder: Path, names: Iterable[str], directory: bool = False) -> Path:
    names = list(names)
    for name in names:
        path = folder / name
        if path.is_dir() if directory else path.is_file():
            return path
    raise CaptioningError(f"{shown(folder)} holds none of {', '.join(dict.fromkeys(names))}. See data/README.md.")


def _only_csv(folder: Path) -> Path:
    if (folder / "captions.csv").is_file():
        return folder / "captions.csv"
    found = sorted([*folder.glob("*.csv"), *folder.glob("captions.txt")])
    if len(found) != 1:
        what = "no CSV file" if not found else f"{len(found)} CSV files; name one with csv="
        raise CaptioningError(f"{shown(folder)} holds {what}. Expected: captions.csv with the columns image, caption.")
    return found[0]
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
