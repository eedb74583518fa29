"""Runs the tests with the oldest versions that requirements.txt allows: `python scripts/oldest_versions.py [ARGUMENT]`.

Makes build/oldest-3.XX with the interpreter it is called with (3.11 to 3.13), checks that every lower bound is a
version that can be had together with the others, and runs pytest there with the arguments given (all tests if none).
Installing takes a few minutes and 7 GB; it is repeated only when requirements.txt has changed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from make_environment import create, fingerprint, python_of

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements.txt"


def bounds(text: str) -> dict[str, str]:
    """Returns package -> lower bound, as requirements.txt states them; names in the registry's own spelling."""
    found = re.findall(r"^([A-Za-z][\w.-]*)(?:\[[^\]]*\])?>=([0-9][0-9.]*)", text, re.MULTILINE)
    return {canonical(name): version for name, version in found}


def canonical(name: str) -> str:
    """Returns a package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unmet(wanted: dict[str, str], installed: dict[str, str]) -> list[str]:
    """Returns a line for each bound below the oldest version that fits with the rest: nobody can have that version."""
    def numbers(version: str) -> list[int]:
        plain = [int(part) for part in re.match(r"[0-9.]*[0-9]", version)[0].split(".")]
        return plain + [0] * (4 - len(plain))

    return [f"{name}>={bound} should be >={installed[name]}" for name, bound in wanted.items()
            if numbers(installed[name]) != numbers(bound)]


def install(folder: Path, requirements: Path) -> bool:
    """Returns whether the oldest versions are in the environment `folder`; makes it when it is not there."""
    stamp = folder / ".ready"
    if stamp.is_file() and stamp.read_text().strip() == fingerprint(requirements):
        return True
    stamp.unlink(missing_ok=True)
    python = python_of(folder)
    # pip always takes the newest; uv can be asked for the oldest of what is named, and the newest of the rest
    steps = ([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"],
             [python, "-m", "uv", "pip", "install", "--python", python, "--resolution", "lowest-direct",
              "-r", requirements])
    if not create(folder) or any(subprocess.run(step).returncode for step in steps):
        return False
    stamp.write_text(fingerprint(requirements) + "\n")
    return True


def main(arguments: list[str]) -> int:
    """Returns pytest's exit status; 1 as well when a bound is wrong or the environment could not be made."""
    folder = ROOT / "build" / f"oldest-{sys.version_info[0]}.{sys.version_info[1]}"
    folder.parent.mkdir(exist_ok=True)
    print(f"The oldest versions, in {folder} …", flush=True)
    if not install(folder, REQUIREMENTS):
        print("The oldest versions cannot be installed together; the reason stands above.", file=sys.stderr)
        return 1
    listed = subprocess.run([python_of(folder), "-m", "uv", "pip", "list", "--format", "json", "--python",
                             python_of(folder)], capture_output=True, text=True, check=True).stdout
    installed = {canonical(entry["name"]): entry["version"] for entry in json.loads(listed)}
    wanted = bounds(REQUIREMENTS.read_text(encoding="utf-8"))
    print("  ".join(f"{name} {installed[name]}" for name in wanted))
    wrong = unmet(wanted, installed)
    for line in wrong:
        print(f"wrong bound: {line}", file=sys.stderr)
    tests = subprocess.run([python_of(folder), "-m", "pytest", *arguments], cwd=ROOT).returncode
    return tests or bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
