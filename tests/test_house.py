"""The house stays small and can be read from top to bottom: its budget, its layers, no import inside a function."""

import ast
from pathlib import Path

import pytest

LAYERS = (
    ("files", "ptb"),
    ("images", "text", "download", "trunks", "beam", "loop"),
    ("caption_files",),
    ("datasets", "clips", "cnn_lstm", "language_models", "decoding", "plots", "metrics"),
    ("encoders", "clipcap", "losses"),
    ("official",),
    ("captioner",),
    ("training", "evaluate"),
)  # a file imports only from rows above its own, so there is no circle
LINES, TESTS, LONGEST = 5_500, 8_500, 350  # lines at most: of helpers, of tests, of one file of helpers
ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "helpers").glob("**/*.py"))


def test_the_budget_holds() -> None:
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    long = {name: count for name, count in lines.items() if count > LONGEST}
    assert not long and len(lines) <= 25 and sum(lines.values()) <= LINES, (long, len(lines), sum(lines.values()))
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "tests").glob("**/*.py")) <= TESTS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_go_upwards_and_stand_at_the_top(path: Path) -> None:
    row = {name: number for number, names in enumerate(LAYERS) for name in names}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
            modules = [node.module] if node.module != "helpers" else [f"helpers.{alias.name}" for alias in node.names]
        for module in (module.split(".")[1] for module in modules if module.startswith("helpers.")):
            assert node in tree.body, f"helpers.{module} is imported in line {node.lineno}, not at the top"
            assert row[module] < row[path.stem], f"helpers.{module} stands no higher than {path.stem}"
