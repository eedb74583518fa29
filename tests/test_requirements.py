"""The requirement files: reasons, bounds, agreement with environment.yml, Colab, and what the code imports."""

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
COLAB = {"torch": "2.11", "torchvision": "0.26", "transformers": "5.15", "numpy": "2.1", "nltk": "3.9.1"}
COLAB["ipywidgets"] = "7.7"
OURS = {"helpers", "pocket_scenes", "configs", "scripts", "tests", "app", "course", "serve", "generate_caption"}
# Used when present, and said so in a message when not.
OPTIONAL = {"pillow_heif", "kagglehub", "google", "datasets"}


PARTS = {"": "a reader", "-lab": "notebooks at home", "-page": "page and service", "-dev": "tests"}


def lines(root: Path, *parts: str) -> list[str]:
    """Returns the lines of the files that name a package: of all, or of `requirements{part}.txt`."""
    text = "\n".join((root / f"requirements{part}.txt").read_text(encoding="utf-8") for part in parts or PARTS)
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def requirements(root: Path) -> dict[str, Requirement]:
    """The packages by name."""
    found = [Requirement(line.split("#")[0]) for line in lines(root)]
    return {requirement.name.lower(): requirement for requirement in found}


def test_every_line_has_a_lower_bound_and_a_reason(root: Path) -> None:
    names = [re.split(r"[<>=]", line)[0] for line in lines(root)]
    assert len(names) == len(set(names)), "a package stands in one file alone"
    for line in lines(root, *PARTS, "-site"):
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
    assert {n: str(r.specifier) for n, r in conda.items()} == {n: str(r.specifier) for n, r in requirements.items()}
    python = next(entry for entry in content["dependencies"] if str(entry).startswith("python>="))
    assert f'requires-python = "{python.removeprefix("python")}"' in (root / "pyproject.toml").read_text()


# Who imports what, by the files that have to bring it; each file needs requirements.txt as well.
READS = {
    ("",): ["[cg]*.py", "configs/pocket/*.py", "helpers/*.py", "pocket_scenes/*.py", "notebooks/**/*.ipynb"],
    ("", "-page"): ["app.py", "serve.py"],
    ("", "-lab"): ["scripts/run_all.py", "scripts/student_versions.py"],
    ("", "-lab", "-page", "-dev"): ["scripts/*.py", "tests/*.py", "benchmarks/*.py", "configs/cluster/*.py"],
}


def imported(path: Path) -> set[str]:
    """Returns the top-level modules that a Python file or a notebook imports, at any depth."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        code = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = re.sub(r"^\s*[%!].*$", "pass", "\n".join(code), flags=re.M)  # IPython's own lines
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("parts", READS, ids=lambda parts: PARTS[parts[-1]])
def test_what_the_code_imports_is_required(root: Path, parts: tuple[str, ...]) -> None:
    """Only what is asked for is sure to be there: a dependency's dependency may go with its next version."""
    known = importlib.metadata.packages_distributions()
    brought = {Requirement(line.split("#")[0]).name.lower() for line in lines(root, *parts)}
    folders = ("scripts", "tests", "benchmarks", "configs/cluster")
    local = OURS | {path.stem for folder in folders for path in (root / folder).glob("*.py")}
    modules = {module for pattern in READS[parts] for path in root.glob(pattern) for module in imported(path)}
    missing = []
    for module in sorted(modules - set(sys.stdlib_module_names) - local - OPTIONAL):
        owners = {name.lower().replace("_", "-") for name in known.get(module, [])}
        if not owners & brought:
            missing.append(f"{module} ({', '.join(sorted(owners)) or 'not installed'})")
    assert not missing, f"imported but not in requirements{parts[-1]}.txt: {', '.join(missing)}"
