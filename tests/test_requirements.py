"""requirements.txt: reasons, bounds, agreement with environment.yml, with Colab, and with what the code imports."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

# What Google Colab had preinstalled in August 2026 (Python 3.13): a plain install must not replace it.
COLAB = {
    "torch": "2.11", "torchvision": "0.26", "transformers": "5.15", "numpy": "2.1", "nltk": "3.9.1",
    "ipywidgets": "7.7",
}  # fmt: skip
OURS = {
    "helpers", "pocket_scenes", "ranking", "configs", "scripts", "tests", "app", "course", "serve", "generate_caption",
}  # fmt: skip
# Used when present, and said so in a message when not.
OPTIONAL = {"pillow_heif", "kagglehub", "google", "datasets"}


def lines(root: Path) -> list[str]:
    """Returns the lines of requirements.txt that name a package."""
    text = (root / "requirements.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def requirements(root: Path) -> dict[str, Requirement]:
    """The packages by name."""
    found = [Requirement(line.split("#")[0]) for line in lines(root)]
    return {requirement.name.lower(): requirement for requirement in found}


def test_every_line_has_a_lower_bound_and_a_reason(root: Path) -> None:
    for line in lines(root):
        assert re.search(r">=\d", line.split("#")[0]), f"no lower bound: {line}"
        assert re.search(r"  # [\w`].{9,}", line), f"no reason: {line}"


def test_colab_keeps_what_it_has(requirements) -> None:
    for name, version in COLAB.items():
        assert requirements[name].specifier.contains(version), f"{requirements[name]} excludes Colab's {version}"


def test_what_is_installed_meets_the_bounds(requirements) -> None:
    for name, requirement in requirements.items():
        version = importlib.metadata.version(name)
        assert requirement.specifier.contains(version, prereleases=True), f"{name} {version} is outside {requirement}"


def test_environment_yml_has_the_same_content(root: Path, requirements) -> None:
    content = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))
    pip = next(entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    conda = {requirement.name.lower(): requirement for requirement in map(Requirement, pip)}
    assert conda.pop("clip").url == "git+https://github.com/openai/CLIP.git"
    others = {name: requirement for name, requirement in requirements.items() if name != "rf-clip"}
    assert {n: str(r.specifier) for n, r in conda.items()} == {n: str(r.specifier) for n, r in others.items()}
    python = next(entry for entry in content["dependencies"] if str(entry).startswith("python>="))
    assert f'requires-python = "{python.removeprefix("python")}"' in (root / "pyproject.toml").read_text()


def modules_of(tree: ast.AST) -> set[str]:
    """Returns the top-level names that the code imports, at any depth."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def imported(root: Path) -> set[str]:
    """Returns every top-level module that a Python file or a notebook of the repository imports."""
    found = set()
    for folder in (".", "helpers", "pocket_scenes", "ranking", "configs/cluster", "scripts", "tests", "benchmarks"):
        for path in (root / folder).glob("*.py"):
            found |= modules_of(ast.parse(path.read_text(encoding="utf-8")))
    for path in root.glob("notebooks/**/*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                source = "".join(cell["source"])
                plain = re.sub(r"^\s*[%!].*$", "pass", source, flags=re.M)  # IPython's own lines
                found |= modules_of(ast.parse(plain))
    return found


def test_what_the_code_imports_is_required(root: Path, requirements) -> None:
    """Only what is asked for is sure to be there: a dependency's dependency may go with its next version."""
    known = importlib.metadata.packages_distributions()
    folders = ("scripts", "tests", "benchmarks", "configs/cluster")
    local = OURS | {path.stem for folder in folders for path in (root / folder).glob("*.py")}
    missing = []
    for module in sorted(imported(root) - set(sys.stdlib_module_names) - local - OPTIONAL):
        owners = {name.lower().replace("_", "-") for name in known.get(module, [])}
        if not owners & set(requirements):
            missing.append(f"{module} ({', '.join(sorted(owners)) or 'not installed'})")
    assert not missing, f"imported but not in requirements.txt: {', '.join(missing)}"
