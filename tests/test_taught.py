"""Whatever the helpers offer says where the course teaches it, and the course has that place."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def sections() -> set[tuple[str, str]]:
    """Returns (notebook, section) numbers as in the headings "## 4 Splits that leak"."""
    found = set()
    for path in ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            found |= {(path.name[:2], number) for number in re.findall(r"^## (\d+) ", text, re.MULTILINE)}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "helpers").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_helper_says_where_it_is_taught(path: Path) -> None:
    kinds = (ast.ClassDef, ast.FunctionDef)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            place = re.search(r"Notebook\s+(\d\d),\s+sections?\s+(\d+)", ast.get_docstring(node) or "")
            assert place, f"{node.name}: its docstring ends with a place such as 'Notebook 03, section 4.'"
            assert place.groups() in sections(), f"{node.name}: there is no {place[0]}"
