"""The documents: what they name is there, what they link to exists, what they tell to type can be typed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from bootstrap_cell import badge
from helpers.files import ROOT
from notebook_tools import find_notebooks

DOCUMENTS = sorted(
    path for pattern in ("*.md", "*/README.md", "configs/**/*.md", "data/checkpoints/*/README.md")
    for path in ROOT.glob(pattern) if not {"build", ".venv"} & set(path.relative_to(ROOT).parts)
)  # fmt: skip
OURS = ("helpers", "scripts", "tests", "benchmarks", "notebooks", "configs", "sample_images")
MADE = ("data/runs", "data/cache", "data/cc3m", "build/", ".venv", "notebooks/09_topic")  # by whoever works here
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a document's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@documents
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        place, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            assert not re.search(r"localhost|127\.0|\s", link)
            continue
        target = (document.parent / place) if place else document
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@documents
def test_paths_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w/.-])((?:{'|'.join(OURS)})/[\w./*-]*\w)", text)
    named += re.findall(r"`([\w.-]+\.(?:md|yml|toml))`", text)
    for name in named:
        places = [ROOT, document.parent, ROOT / "notebooks"]
        assert name.startswith(MADE) or any(list(place.glob(name)) for place in places), f"there is no {name}"


@documents
def test_modules_and_make_targets_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for module in set(re.findall(r"-m (helpers\.\w+)", text)):
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert path.is_file() and "__main__" in path.read_text(encoding="utf-8"), f"{module} is no command"
    for name in set(re.findall(r"`(helpers(?:\.\w+)+)`", text)):
        parts = name.split(".")
        module = importlib.import_module(".".join(parts[:2]))
        assert all(hasattr(module, part) for part in parts[2:3]), f"there is no {name}"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for target in re.findall(r"(?:^|`)make ([a-z]+)(?=`|\s{2}|$)", text, re.M):
        assert target in targets, f"make has no {target}"


def test_the_table_of_notebooks_has_them_all() -> None:
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for path in find_notebooks():
        assert f"]({path.name})" in text and badge(path) in text
