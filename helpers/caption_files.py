"""Caption files line by line: strict, and every fault of a file in one message."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.files import CaptioningError, read_json
from helpers.images import shown

MAX_WORDS = 500  # of one caption; the longest of Flickr30k and COCO have fewer than 100
MAX_FILE = 500_000_000  # bytes
SPLITS = {"train": "train", "training": "train", "restval": "train", "dev": "dev", "val": "dev", "valid": "dev",
          "validation": "dev", "test": "test", "testing": "test", "": ""}
_COLUMNS = {"image_name": "image", "comment": "caption"}  # as Flickr30k's copies call them
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Row(NamedTuple):
    """One caption: the image's name, the caption, its split ("" when the file names none), and its line."""

    image: str
    caption: str
    split: str
    where: str


class Faults:
    """Collects what is wrong with a caption file, by kind, so that a reader mends it once and not fault by fault.

    `lenient`: empty captions and control characters are mended and noted, since nobody will edit a published file.
    """

    def __init__(self, source: str | Path, lenient: bool = False) -> None:
        self.source, self.lenient = shown(source), lenient
        self.kinds: dict[str, list[str]] = {}
        self.mended: dict[str, list[str]] = {}

    def add(self, kind: str, where: object) -> None:
        self.kinds.setdefault(kind, []).append(shown(where))

    def mend(self, kind: str, where: object) -> None:
        self.mended.setdefault(kind, []).append(shown(where))

    def __len__(self) -> int:
        return sum(map(len, self.kinds.values()))

    def raise_if_any(self) -> None:
        """Raises CaptioningError with every kind of fault, how often it occurs, and its first five places."""
        if self.kinds:
            lines = [f"{self.source} cannot be used as it is: {len(self):,} fault{'s' * (len(self) > 1)}."]
            raise CaptioningError("\n".join([*lines, *(f"- {line}" for line in _listed(self.kinds))]))

    def notes(self) -> list[str]:
        """Returns a line for each kind of thing that was mended."""
        return _listed(self.mended)


def _listed(kinds: dict[str, list[str]]) -> list[str]:
    return [f"{kind}: {len(places):,} ({', '.join(places[:5])}"
            + (f" and {len(places) - 5:,} more)" if len(places) > 5 else ")") for kind, places in kinds.items()]


def read_text(path: str | Path) -> str:
    """Returns a text file without its byte-order mark, line ends as they are.

    UTF-8, or UTF-16 when a byte-order mark says so (Excel's "Unicode text").
    Raises CaptioningError when it is missing, not a regular file, too large, or in another encoding.
    """
    path = Path(path)
    try:
        if not path.is_file():  # before opening: a FIFO would wait for ever
            raise CaptioningError(f"There is no file {shown(path)}.")
        if path.stat().st_size > MAX_FILE:
            raise CaptioningError(f"{shown(path)} is larger than {MAX_FILE // 10**6} MB: not a caption file.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CaptioningError(f"Cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}.") from error
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CaptioningError(f"{shown(path)} is not UTF-8 (line {line}). Save it again as UTF-8.") from None


def lines_of(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (line number, text) of the lines of a text file that are not blank."""
    # not splitlines(): it also cuts at U+2028 and form feeds, which may stand inside a caption
    for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(path)), 1):
        if line.strip():
            yield number, line


def check_caption(caption: str, where: str, faults: Faults) -> str:
    """Returns the caption with white space runs as single spaces; notes in `faults` what makes it unusable.

    The caption is "" when the row is to be left out.
    """
    if _CONTROL.search(caption):  # before the white space goes: some control characters count as white space
        if faults.lenient:
            faults.mend("control characters in a caption replaced by a space", where)
            caption = _CONTROL.sub(" ", caption)
        else:
            faults.add("control characters in the caption; delete them", where)
    caption = " ".join(caption.split())
    if not caption and faults.lenient:
        faults.mend("row without a caption left out", where)
    elif not caption:
        faults.add("empty caption; write one or delete the row", where)
    elif (words := caption.count(" ") + 1) > MAX_WORDS:
        faults.add(f"caption of more than {MAX_WORDS} words; is a quote or a line end missing?", f"{where}: {words:,}")
    return caption


def check_name(name: str, where: str, faults: Faults) -> str:
    """Returns the image name without surrounding spaces; a name that leads out of the image folder is a fault."""
    name = name.strip()
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name:
        faults.add("no image name", where)
    elif ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:", name):
        faults.add("image name that leads out of the image folder", f"{where}: {name}")
    return name


def check_split(split: str | None, where: str, faults: Faults) -> str:
    """Returns "train", "dev", "test" or "" (none given) for the names in use ("val", "validation", "restval", ...)."""
    known = SPLITS.get((split or "").strip().lower())
    if known is None:
        faults.add("unknown split (train, dev and test are known)", f"{where}: {split}")
    return known or ""


def parse_tokens(path: Path, faults: Faults) -> list[Row]:
    """Returns the rows of Flickr8k.token.txt or Flickr30k's results_20130124.token: `image#n TAB caption`."""
    rows = []
    for number, line in lines_of(path):
        where = f"line {number}"
        match = re.fullmatch(r"([^\t]+?)#[0-9]+[ ]*\t(.*)", line, re.DOTALL)
        if match is None:
            faults.add("not `image#number<TAB>caption`", where)
        else:
            rows.append(Row(check_name(match[1], where, faults), check_caption(match[2], where, faults), "", where))
    return rows


def parse_csv(path: Path, faults: Faults, delimiters: str = ",;\t") -> list[Row]:
    """Returns the rows of a CSV with the columns `image`, `caption` and optionally `split`; others are ignored.

    The delimiter is the one that makes both columns appear in the first line (spreadsheets in half of Europe write
    semicolons). A caption that holds the delimiter must be in double quotes.
    """
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    first = text.lstrip("\n").split("\n", 1)[0].strip()
    for delimiter in delimiters:
        columns = [c.strip().strip('"').strip().lower() for c in first.split(delimiter)]
        columns = [_COLUMNS.get(column, column) for column in columns]
        if "image" in columns and "caption" in columns:
            break
    else:
        raise CaptioningError(
            f"{shown(path)} needs the columns image and caption in its first line; it has: {shown(first[:200])}"
        )
    if len(set(columns)) < len(columns):
        raise CaptioningError(f"{shown(path)} names a column twice in its first line: {shown(first[:200])}")
    rows: list[Row] = []
    reader = csv.reader(re.split(r"(?<=\n)", text), delimiter=delimiter, strict=True)
    start, header = 1, True
    try:
        for fields in reader:
            where, start = f"line {start}", reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            if header:
                header = False
                continue
            if len(fields) != len(columns):
                faults.add(f"not {len(columns)} fields; put a caption that holds `{delimiter}` in double quotes", where)
                continue
            row = dict(zip(columns, fields, strict=True))
            if "\n" in row["caption"].strip() or "\n" in row["image"]:
                faults.add("runs over several lines; is a double quote missing?", where)
                continue
            rows.append(Row(check_name(row["image"], where, faults), check_caption(row["caption"], where, faults),
                            check_split(row.get("split"), where, faults), where))
    except csv.Error as error:
        faults.add(f"not CSV from here on: {error}; is a double quote missing?", f"line {start}")
    return rows


def parse_pipes(path: Path, faults: Faults) -> list[Row]:
    """Returns the rows of Flickr30k's results.csv: `image| number| caption` under a first line of column names.

    In the file as published the row of 2199200615.jpg number 4 lacks its second bar; such a row is mended and noted.
    """
    rows = []
    for count, (number, line) in enumerate(lines_of(path)):
        where, fields = f"line {number}", line.split("|", 2)
        if count == 0 and "comment" in line:
            continue
        if len(fields) == 2 and (match := re.fullmatch(r"\s*([0-9])\s+(.+)", fields[1])):
            faults.mend("row without the bar after the number mended", where)
            fields = [fields[0], match[1], match[2]]
        if len(fields) != 3 or not fields[1].strip().isdigit():
            faults.add("not `image| number| caption`", where)
        else:
            rows.append(Row(check_name(fields[0], where, faults), check_caption(fields[2], where, faults), "", where))
    return rows


def parse_list(path: Path) -> list[str]:
    """Returns the names in a split list, one a line, in order, without repetitions."""
    return list(dict.fromkeys(line.strip() for _, line in lines_of(path)))


def load_json(path: Path) -> dict:
    """Returns the object in a JSON file; raises CaptioningError for anything else."""
    try:
        if not path.is_file():
            raise CaptioningError(f"There is no file {shown(path)}.")
        value = read_json(path)
    except (RecursionError, MemoryError) as error:
        raise CaptioningError(f"{shown(path)} is nested too deeply or is too large.") from error
    if not isinstance(value, dict):
        raise CaptioningError(f"{shown(path)} should hold a JSON object, not {type(value).__name__}.")
    return value


def parse_coco(path: Path, faults: Faults) -> list[tuple[int, Row]]:
    """Returns (COCO image id, row) for each annotation of a COCO `captions_*.json`."""
    content = load_json(path)
    names: dict[int, str] = {}
    for number, entry in enumerate(_entries(content, "images", path)):
        where = f"images[{number}]"
        if isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("file_name"), str):
            names[entry["id"]] = check_name(entry["file_name"], where, faults)
        else:
            faults.add("no whole-number `id` or no `file_name`", where)
    rows = []
    for number, entry in enumerate(_entries(content, "annotations", path)):
        where = f"annotations[{number}]"
        image = entry.get("image_id") if isinstance(entry, dict) else None
        if type(image) is not int or not isinstance(entry.get("caption"), str):
            faults.add("no `image_id` or no `caption`", where)
        elif image not in names:
            faults.add("caption for an image that `images` does not list", f"{where}: {image}")
        else:
            rows.append((image, Row(names[image], check_caption(entry["caption"], where, faults), "", where)))
    return rows


def parse_karpathy(path: Path, faults: Faults) -> list[tuple[int | None, str, str, list[str]]]:
    """Returns (COCO id or None, file name, split, raw captions) for each image of a Karpathy `dataset_*.json`."""
    images = []
    for number, entry in enumerate(_entries(load_json(path), "images", path)):
        where = f"images[{number}]"
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("filename", "split")):
            faults.add("no `filename` or no `split`", where)
            continue
        cocoid = entry.get("cocoid")
        sentences = entry.get("sentences")
        raw = [s["raw"] for s in sentences if isinstance(s, dict) and isinstance(s.get("raw"), str)] \
            if isinstance(sentences, list) else []
        images.append((cocoid if type(cocoid) is int else None, check_name(entry["filename"], where, faults),
                       check_split(entry["split"], where, faults), raw))
    return images


def _entries(content: dict, key: str, path: Path) -> Iterable:
    if not isinstance(content.get(key), list):
        raise CaptioningError(f"{shown(path)} should hold a list named {key!r}.")
    return content[key]
