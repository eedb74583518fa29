"""Writes the course's address and release into whatever names them: `make address [ADDRESS=owner/name]`.

`pyproject.toml` holds both facts. From there they go into the first cell and the badge of every notebook, course.py,
the documents and CITATION.cff. `make` takes the address from `git remote get-url origin` where none is given; the
script alone leaves it as it is. Needs no package. In a new notebook write BADGE on a line of the first text cell and
BOOTSTRAP as the first code cell: both are filled in.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNSET = "https://github.com/OWNER/image-captioning-course"  # nobody has said yet where the course is hosted

CELL = """\
# Fetches course.py where it is not, as in Colab. Importing it goes to the course's folder and installs what is lacking.
!grep -qs prepare course.py || curl -fsLO {course}/raw/{release}/course.py || \
echo "raise SystemExit('{advice}')" > course.py
import course"""
ADVICE = "The course is not here: switch the network on, or type %env CAPTIONING_COURSE=ADDRESS_OF_A_COPY above."
FIRST_LINES = ("# Fetches course.py", "# Finds the course's folder", "BOOTSTRAP")  # of now, of earlier, of a new one
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"


def facts() -> tuple[str, str]:
    """Returns the course's address and the tag of its release, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"], f"v{project['version']}"


def normal(address: str) -> str:
    """Returns the address to clone from: `owner/name` and the forms of ssh become https, a path stays."""
    address = address.strip().rstrip("/")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", address):
        address = f"https://github.com/{address}"
    address = re.sub(r"^(?:ssh://)?(?:\w+@)([\w.-]+)(?::\d+/|[:/])", r"https://\1/", address)
    address = re.sub(r"^(https?://)[^/@]+@", r"\1", address)  # no token may end up in a notebook
    return address.removesuffix(".git") if address.startswith("http") else address


def slug(address: str) -> str:
    """Returns `owner/name`, the last two parts of an address."""
    return "/".join(address.removesuffix(".git").split("/")[-2:])


def cell(address: str, release: str) -> str:
    """Returns the source of a notebook's first code cell."""
    course = "$CAPTIONING_COURSE" if address == UNSET else f"${{CAPTIONING_COURSE:-{address}}}"
    return CELL.format(course=course, release=release, advice=ADVICE)


def badge(path: Path) -> str:
    """Returns the Markdown of the badge that opens the notebook at `path` in Colab."""
    address, release = facts()
    place = "notebooks/solutions" if path.parent.name == "solutions" else "notebooks"
    return f"{BADGE}(https://colab.research.google.com/github/{slug(address)}/blob/{release}/{place}/{path.name})"


def stamp(path: Path) -> str:
    """Returns a notebook's text with its cell and badge. Raises ValueError when it has no place for one."""
    book = json.loads(path.read_text(encoding="utf-8"))
    title, code = book["cells"][0], next(cell for cell in book["cells"] if cell["cell_type"] == "code")
    if not "".join(code["source"]).startswith(FIRST_LINES):
        raise ValueError(f"{path}: the first code cell is not the bootstrap cell")
    text, times = re.subn(re.escape(BADGE) + r"\([^)]*\)|^BADGE$", badge(path), "".join(title["source"]), flags=re.M)
    if not times:
        raise ValueError(f"{path}: the first cell has no Colab badge; write a line BADGE below the title")
    title["source"] = text.splitlines(keepends=True)
    code["source"] = cell(*facts()).splitlines(keepends=True)
    code["metadata"] = {"tags": ["hide-input"]}  # the web page folds it
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def rewrite(text: str, old: str, new: str, release: str) -> str:
    """Returns a document's text with the address `old` replaced by `new`, and the release in links."""
    owner, _, name = slug(old).partition("/")
    text = re.sub(rf"{re.escape(old)}(?![\w-])", new, text)
    text = re.sub(rf"(?<=/){owner}/{name}(?![\w-])", slug(new), text)
    pages = slug(new).replace("/", ".github.io/")
    text = re.sub(rf"(?<=/){owner}\.github\.io/{name}(?![\w-])", pages, text)
    text = re.sub(r'^(version: |RELEASE = "v)[\d.]+', rf"\g<1>{release[1:]}", text, flags=re.M)
    return re.sub(rf"(?<=/{re.escape(slug(new))})(/blob/|/)v\d[\w.]*(?=[/?])", rf"\g<1>{release}", text)


def main(arguments: list[str]) -> None:
    old, release = facts()
    new = normal("".join(arguments) or old)
    files = [ROOT / name for name in ("pyproject.toml", "CITATION.cff", "course.py")]
    documents = [*files, *ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
    for path in [*documents, *sorted(ROOT.glob("notebooks/**/[0-9]*.ipynb"))]:
        before = path.read_text(encoding="utf-8")
        after = stamp(path) if path.suffix == ".ipynb" else rewrite(before, old, new, release)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: rewritten")
    print(f"The course's address is {new}, its release {release}.")


if __name__ == "__main__":
    main(sys.argv[1:])
