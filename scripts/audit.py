"""Looks for known faults in what this course is built on: `python scripts/audit.py [ADVISORY_FOLDER]`.

Compares the installed packages, and the oldest ones that requirements.txt allows, with `scripts/advisories.json`, which
needs no network. With a folder of OSV files (a clone of github.com/pypa/advisory-database, say), every installed
package is compared with those, too. Where pip-audit is installed and reaches its service, it is run as well.

Exit status 1 when an installed package has a known fault that is not accepted with a reason.
"""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.version import InvalidVersion, Version

from oldest_versions import REQUIREMENTS, bounds, canonical

ADVISORIES = Path(__file__).with_name("advisories.json")


def advisories() -> list[dict]:
    """Returns the faults: package, id, fixed (the first version without it), what, and why it may be accepted."""
    return json.loads(ADVISORIES.read_text(encoding="utf-8"))


def installed() -> dict[str, str]:
    """Returns package -> version of everything in this environment."""
    return {canonical(found.metadata["Name"]): found.version for found in metadata.distributions()}


def affected(versions: dict[str, str], faults: list[dict]) -> list[dict]:
    """Returns the faults that these versions have."""
    return [fault for fault in faults
            if fault["package"] in versions and Version(versions[fault["package"]]) < Version(fault["fixed"])]


def read_osv(folder: Path, versions: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yields (package, id) of each fault in a folder of OSV files (JSON or YAML) that an installed version has.

    See https://ossf.github.io/osv-schema: a range goes from "introduced" to "fixed" (or to "last_affected").
    """
    import yaml

    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".json", ".yaml", ".yml"):
            continue
        text = path.read_text(encoding="utf-8")
        entry = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(entry, dict) or entry.get("withdrawn"):
            continue
        for part in entry.get("affected", []):
            name = canonical(part.get("package", {}).get("name", ""))
            if name in versions and _within(Version(versions[name]), part):
                yield name, entry["id"]


def _within(version: Version, part: dict) -> bool:
    if str(version) in part.get("versions", []):
        return True
    for span in part.get("ranges", []):
        if span.get("type") == "GIT":
            continue
        inside = False
        for event in span.get("events", []):
            try:
                (kind, since), *_ = event.items()
                reached = version > Version(str(since)) or kind != "last_affected" and version == Version(str(since))
            except InvalidVersion:
                continue
            if reached:
                inside = kind == "introduced"
        if inside:
            return True
    return False


def main(arguments: list[str]) -> int:
    """Prints what was found. Returns 1 when an installed package has a fault that is not accepted."""
    versions, bad = installed(), 0
    for fault in affected(versions, advisories()):
        accepted = fault.get("accepted")
        bad += not accepted
        print(f"{fault['package']} {versions[fault['package']]}: {fault['id']}, {fault['what']}; fixed in "
              f"{fault['fixed']}. {'Accepted: ' + accepted if accepted else 'Update it.'}")
    for fault in affected(bounds(REQUIREMENTS.read_text(encoding="utf-8")), advisories()):
        reason = fault.get("accepted", "Raise the bound.")
        print(f"allowed by requirements.txt: {fault['package']} with {fault['id']}. {reason}")
    for folder in arguments:
        known = {fault["id"] for fault in advisories()}
        for name, identity in read_osv(Path(folder), versions):
            if identity not in known:
                bad += 1
                print(f"{name} {versions[name]}: {identity}, see https://osv.dev/{identity}")
    if importlib.util.find_spec("pip_audit"):
        run = subprocess.run([sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--timeout", "20"])
        print("pip-audit found nothing." if run.returncode == 0 else "pip-audit: see above.")
    print(f"{len(versions)} packages, {len(advisories())} advisories" + (f" and {arguments}" if arguments else "")
          + f": {bad or 'no'} fault{'s' * (bad != 1)} that {'are' if bad != 1 else 'is'} not accepted.")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
