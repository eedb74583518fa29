"""Caption files of every kind as rows: strict, and every fault of a file in one message."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from helpers.files import CaptioningError
from helpers.images import SUFFIXES, shown

MAX_WORDS = 500  # of one caption; the longest of Flickr30k and COCO have fewer than 100
SPLITS = {"train": "train", "training": "train", "restval": "train", "dev": "dev", "val": "dev", "valid": "dev",
          "validation": "dev", "test": "test", "testing": "test", "": ""}
# As Flickr30k's copies and Hugging Face's metadata files call the two columns
COLUMNS = {"image_name": "image", "file_name": "image", "comment": "caption", "text": "caption"}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Row(NamedTuple):
    """One caption; `split` is "" when the file names none, `where` is its line. Notebook 01, section 2."""

    image: str
    caption: str
    split: str
    where: str


class Faults:
    """Collects what is wrong with a caption file, by kind, so that a reader mends it once and not fault by fault.

    `lenient`: empty captions and control characters are mended and noted, since nobody will edit a published file.
    Notebook 01, section 2.
    """

    def __init__(self, source: str | Path, lenient: bool = False) -> None:
        self.source, self.lenient = shown(source), lenient
        self.kinds: dict[str, list[str]] = {}
        self.mended: dict[str, list[str]] = {}

    def add(self, kind: str, where: object) -> None:
        """Notes a fault."""
        self.kinds.setdefault(kind, []).append(shown(where))

    def mend(self, kind: str, where: object) -> None:
        """Notes something that was put right."""
        self.mended.setdefault(kind, []).append(shown(where))

    def raise_if_any(self) -> None:
        """Raises CaptioningError with every kind of fault, how often it occurs, and its first five places."""
        if self.kinds:
            count = sum(map(len, self.kinds.values()))
            lines = [f"- {line}" for line in listed(self.kinds)]
            first = f"{self.source} cannot be used as it is: {count:,} fault{'s' * (count > 1)}."
            raise CaptioningError("\n".join([first, *lines]))


def listed(kinds: dict[str, list[str]]) -> list[str]:
    """Returns a line for each kind: how often it occurs, and its first five places. Notebook 01, section 2."""
    lines = []
    for kind, places in kinds.items():
        more = f" and {len(places) - 5:,} more" if len(places) > 5 else ""
        lines.append(f"{kind}: {len(places):,} ({', '.join(places[:5])}{more})")
    return lines


def read_text(path: str | Path, faults: Faults | None = None) -> tuple[str, str]:
    """Returns the text of a file, each line end a newline, and its encoding. A byte-order mark is left out.

    UTF-8; UTF-16 when a byte-order mark says so (Excel's "Unicode text"); else Windows-1252, as Excel writes a CSV in
    western Europe, which is noted. Raises CaptioningError for anything else. Notebook 01, section 1.
    """
    path = Path(path)
    try:
        if not path.is_file():  # before opening: a FIFO would wait for ever
            raise CaptioningError(f"There is no file {shown(path)}.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CaptioningError(f"Cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}.") from error
    for encoding in ["utf-16"] if data.startswith((b"\xff\xfe", b"\xfe\xff")) else ["utf-8-sig", "cp1252"]:
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
            if encoding == "cp1252" and faults is not None:
                faults.mend("read as Windows-1252; save it as UTF-8 if letters look wrong", path.name)
            return text, encoding
    raise CaptioningError(f"{shown(path)} is not UTF-8. Save it again as UTF-8.")


def lines_of(path: str | Path, faults: Faults | None = None) -> Iterator[tuple[int, str]]:
    """Yields (line number, text) of the lines of a text file that are not blank. Notebook 01, section 1."""
    # not splitlines(): it also cuts at U+2028 and form feeds, which may stand inside a caption
    for number, line in enumerate(read_text(path, faults)[0].split("\n"), 1):
        if line.strip():
            yield number, line


def checked_row(image: object, caption: object, split: object, where: str, faults: Faults) -> Row:
    """Returns the row with its white space in order; what makes it unusable goes to `faults`. Notebook 01, section 2.

    The caption may be "": whether that is a fault depends on the image's other captions.
    """
    image, caption, split = (value if isinstance(value, str) else "" for value in (image, caption, split))
    if _CONTROL.search(caption):  # before the white space goes: some control characters count as white space
        (faults.mend if faults.lenient else faults.add)("control characters in the caption", where)
        caption = _CONTROL.sub(" ", caption)
    caption, image = " ".join(caption.split()), image.strip()
    words, split = caption.count(" ") + 1, split.strip().lower()
    if words > MAX_WORDS:
        faults.add(f"caption of more than {MAX_WORDS} words; is a quote or a line end missing?", f"{where}: {words:,}")
    parts = image.replace("\\", "/").split("/")
    if not image or "\0" in image:
        faults.add("no image name", where)
    elif ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:", image):
        faults.add("image name that leads out of the image folder", f"{where}: {image}")
    if split not in SPLITS:
        faults.add("unknown split (train, dev and test are known)", f"{where}: {split}")
    return Row(image, caption, SPLITS.get(split, ""), where)


def parse(path: Path, faults: Faults) -> list[Row]:
    """Returns the rows of a caption file of any kind; the name's ending and the first line tell which.

    Karpathy's JSON, Hugging Face's JSON lines, Flickr's `image#n TAB caption`, Flickr30k's lines with bars, or a CSV.
    Raises CaptioningError when it is none of them. Notebook 01, section 2.
    """
    if path.suffix == ".json":
        return [row for _, row in _parse_karpathy(path, faults)]
    if path.suffix == ".jsonl":
        return _parse_jsonl(path, faults)
    first = read_text(path)[0].split("\n", 1)[0]
    if path.name.endswith(".token.txt") or path.suffix == ".token":
        return _parse_lines(path, faults, r"([^\t]+?)#[0-9]+ *\t(.*)", "image#number<TAB>caption")
    if re.search(r"\|.*comment", first):
        # in the file as published the row of 2199200615.jpg number 4 lacks its second bar
        return _parse_lines(path, faults, r"([^|]*)\|\s*[0-9]+(?:\s*\||\s)(.*)", "image| number| caption", skip=1)
    return parse_csv(path, faults)


def _parse_lines(path: Path, faults: Faults, pattern: str, form: str, skip: int = 0) -> list[Row]:
    """Returns the rows of a file with one caption a line; `pattern` finds image and caption."""
    rows = []
    for number, line in list(lines_of(path, faults))[skip:]:
        match = re.fullmatch(pattern, line, re.DOTALL)
        if match is None:
            faults.add(f"not `{form}`", f"line {number}")
        else:
            rows.append(checked_row(match[1], match[2], "", f"line {number}", faults))
    return rows


def csv_form(path: Path, text: str) -> tuple[str, list[str], int]:
    """Returns a CSV's delimiter, the columns by our names, and the number of the line that names them.

    The delimiter is the one by which image and caption appear in that line (spreadsheets in half of Europe write
    semicolons); Excel's own first line `sep=;` is passed over. Raises CaptioningError when there is none.
    Notebook 09, section 4.
    """
    lines = text.split("\n")
    start = next((n for n, line in enumerate(lines) if line.strip() and not re.fullmatch("sep=.", line.strip())), 0)
    for delimiter in ",;\t":
        names = [name.strip().strip('"').strip().lower() for name in lines[start].split(delimiter)]
        columns = [name if COLUMNS.get(name, name) in names else COLUMNS.get(name, name) for name in names]
        if columns.count("image") == columns.count("caption") == 1:
            return delimiter, columns, start + 1
    has = shown(lines[start].strip()[:200])
    raise CaptioningError(f"{shown(path)} needs the columns image and caption in its first line; it has: {has}")


def parse_csv(path: Path, faults: Faults) -> list[Row]:
    """Returns the rows of a CSV with the columns `image`, `caption` and optionally `split`; others are ignored.

    A caption that holds the delimiter must be in double quotes. Notebook 01, section 2.
    """
    text, _ = read_text(path, faults)
    delimiter, columns, line = csv_form(path, text)
    rows = []
    reader = csv.reader(re.split(r"(?<=\n)", text)[line:], delimiter=delimiter, strict=True)
    start = line + 1
    try:
        for fields in reader:
            where, start = f"line {start}", line + reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            row = dict(zip(columns, fields, strict=False))
            if len(fields) != len(columns):
                faults.add(f"not {len(columns)} fields; put a caption that holds `{delimiter}` in double quotes", where)
            elif "\n" in row["caption"].strip() or "\n" in row["image"]:
                faults.add("runs over several lines; is a double quote missing?", where)
            else:
                rows.append(checked_row(row["image"], row["caption"], row.get("split"), where, faults))
    except csv.Error as error:
        faults.add(f"not CSV from here on: {error}; is a double quote missing?", f"line {start}")
    return rows


@contextlib.contextmanager
def expecting(path: str | Path, form: str) -> Iterator[None]:
    """Turns what foreign JSON raises into one CaptioningError that names the form. Notebook 01, section 2."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CaptioningError(f"{shown(path)} is not {form}: {type(error).__name__}, {shown(error)}.") from error


def _parse_jsonl(path: Path, faults: Faults) -> list[Row]:
    """Returns the rows of Hugging Face's metadata.jsonl."""
    rows = []
    for number, line in lines_of(path, faults):
        with expecting(path, f"a JSON object with `file_name` and `text` in line {number}"):
            entry = {COLUMNS.get(key, key): value for key, value in json.loads(line).items()}
            rows.append(checked_row(entry["image"], entry["caption"], entry.get("split"), f"line {number}", faults))
    return rows


def _parse_coco(path: Path, faults: Faults) -> list[tuple[int, Row]]:
    """Returns (COCO image id, row) for each annotation of a COCO `captions_*.json`."""
    rows = []
    with expecting(path, "a COCO captions file (`images` and `annotations`)"):
        content = json.loads(read_text(path)[0])
        names = {entry["id"]: entry["file_name"] for entry in content["images"]}
        for number, entry in enumerate(content["annotations"]):
            identity, where = entry["image_id"], f"annotations[{number}]"
            rows.append((identity, checked_row(names[identity], entry["caption"], "", where, faults)))
    return rows


def _parse_karpathy(path: Path, faults: Faults) -> list[tuple[int | None, Row]]:
    """Returns (COCO id or None, row) for each caption of a Karpathy `dataset_*.json` (Karpathy and Fei-Fei 2015).

    An image without sentences has one row with the caption "", for its split.
    """
    rows = []
    with expecting(path, "a Karpathy file (`images` with `filename`, `split` and `sentences`)"):
        for number, entry in enumerate(json.loads(read_text(path)[0])["images"]):
            image = "/".join(entry[key] for key in ("filepath", "filename") if key in entry)
            for caption in [sentence["raw"] for sentence in entry.get("sentences", ())] or [""]:
                row = checked_row(image, caption, entry["split"], f"images[{number}]", faults)
                rows.append((entry.get("cocoid"), row))
    return rows


def find(folder: Path, names: Iterable[str]) -> list[Path]:
    """Returns what the first name that is there stands for (with a * for several), or []. Notebook 01, section 1."""
    return next(filter(None, (sorted(folder.glob(name)) for name in names)), [])


def official_splits(folder: Path, lists: Mapping[str, Iterable[str]], karpathy: str, faults: Faults) -> dict[str, str]:
    """Returns image -> split from the list files, else from Karpathy's JSON, else nothing. Notebook 01, section 4."""
    splits: dict[str, str] = {}
    for split, names in lists.items():
        for path in find(folder, names):
            for _, line in lines_of(path):
                image = line.strip() if line.strip().lower().endswith(SUFFIXES) else f"{line.strip()}.jpg"
                if splits.setdefault(image, split) != split:
                    faults.add(f"image in the lists {splits[image]!r} and {split!r}", image)
    if not splits and (folder / karpathy).is_file():
        splits = {row.image: row.split for _, row in _parse_karpathy(folder / karpathy, faults)}
    return splits


def coco_rows(folder: Path, found: list[Path], faults: Faults) -> list[Row]:
    """Returns the rows of COCO's captions_*.json; Karpathy's splits match by id, 2017 too. Notebook 01, section 1."""
    karpathy = folder / "dataset_coco.json"
    official = _parse_karpathy(karpathy, faults) if karpathy.is_file() else []
    if found == [karpathy]:
        place = "images/" if (folder / "images").is_dir() else ""
        return [row._replace(image=place + row.image) for _, row in official]
    by_id, rows = {identity: row.split for identity, row in official}, []
    for path in found:
        part = path.stem.removeprefix("captions_")  # train2014, val2017, ...
        place = next((f"{p}/" for p in (part, f"images/{part}", "images") if (folder / p).is_dir()), "")
        usual = "train" if part.startswith("train") else "dev" if part.startswith("val") else ""
        for identity, row in _parse_coco(path, faults):
            split = by_id.get(identity, "") if official else usual
            rows.append(row._replace(image=place + row.image, split=split, where=f"{path.name} {row.where}"))
    return rows


def names_in(folder: Path, names: Iterable[str] = ()) -> set[str]:
    """Returns what is in `folder`, and in folders below it that `names` lead to. Notebook 09, section 1."""
    ways = {match_key(name).rpartition("/")[0] + "/" for name in names}
    found = set()
    for place, folders, inside in os.walk(folder, followlinks=True):
        below = os.path.relpath(place, folder).replace(os.sep, "/") + "/" if Path(place) != folder else ""
        found |= {below + name for name in [*inside, *folders] if not name.startswith(".")}
        folders[:] = [name for name in folders if any(way.startswith(match_key(f"{below}{name}/")) for way in ways)]
    return found


def match_key(name: str) -> str:
    """Returns a name in the one form by which names are matched: composed accents, slashes, the ending in small.

    macOS decomposes accents, Windows writes backslashes, cameras write .JPG. Notebook 09, section 1.
    """
    name = unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")
    stem, ending = os.path.splitext(name)
    return stem + ending.lower()
