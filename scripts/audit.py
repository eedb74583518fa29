"""Looks for known faults in what this course is built on: `python scripts/audit.py [OSV_FOLDER_OR_ZIP]`.

Compares every installed package, and the oldest ones that requirements.txt allows, with `scripts/advisories.json`,
which needs no network and knows the packages that matter, up to its date. Who has the network names a dump of all
faults of PyPI's packages as well, https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip, or a folder of such
files (a clone of github.com/pypa/advisory-database, say). Where pip-audit is installed, it is run, too.

Exit status 1 when an installed package has a known fault that is not accepted with a reason, or a dump cannot be read.
"""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import InvalidVersion, Version

from oldest_versions import REQUIREMENTS, bounds, canonical

ADVISORIES = Path(__file__).with_name("advisories.json")
IDENTITY = re.compile(r"CVE-\d{4}-\d{4,}|GHSA(?:-[0-9a-z]{4}){3}|PYSEC-\d{4}-\d+")
KINDS = (".json", ".yaml", ".yml")


def advisories() -> list[dict]:
    """Returns the faults: package, id, fixed (the first version without it) or last (the last with it), what, and why
    it may be accepted."""
    return json.loads(ADVISORIES.read_text(encoding="utf-8"))["advisories"]


def as_of() -> str:
    """Returns the day, YYYY-MM-DD, of the newest entry in the list: what became known later is not in it."""
    return json.loads(ADVISORIES.read_text(encoding="utf-8"))["as_of"]


def installed() -> dict[str, str]:
    """Returns package -> version of everything in this environment; of two of a name, the one that is imported."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a package that was half removed has none
            found.setdefault(canonical(name), distribution.version)
    return found


def affected(versions: dict[str, str], faults: list[dict]) -> list[dict]:
    """Returns the faults that these versions have."""
    def has(version: Version, fault: dict) -> bool:
        return version <= Version(fault["last"]) if "last" in fault else version < Version(fault["fixed"])

    return [fault for fault in faults
            if fault["package"] in versions and has(_plain(versions[fault["package"]]), fault)]


def _plain(version: str) -> Version:
    """Returns a version without what a build adds: 2.12.0+cpu is later than 2.12.0, but has the same faults."""
    return Version(Version(version).public)


# -- dumps in OSV's format ----------------------------------------------------------------------------------------


@dataclass
class Dump:
    """What was read of a folder or zip file of OSV entries, and what of it concerns the installed versions."""

    entries: int = 0
    newest: str = ""  # the last day on which an entry was changed
    packages: set[str] = field(default_factory=set)
    found: list[tuple[str, set[str]]] = field(default_factory=list)  # package, all names of the fault, its own first
    unreadable: list[str] = field(default_factory=list)


def texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of each JSON and YAML file in a folder or zip file.

    Raises FileNotFoundError when it is neither.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix in KINDS and file.is_file():
                yield str(file), file.read_bytes()
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(KINDS):
                    yield name, archive.read(name)
    else:
        raise FileNotFoundError(f"{path} is neither a folder nor a zip file.")


def read_osv(path: Path, versions: dict[str, str]) -> Dump:
    """Returns what a folder or zip file of OSV entries says of these versions.

    See https://ossf.github.io/osv-schema: a range goes from "introduced" to "fixed" (or to "last_affected"). The same
    fault may be there under several names; it is given once a package. Raises FileNotFoundError when there is no dump.
    """
    import yaml

    dump = Dump()
    for place, text in texts(path):
        try:
            entry = json.loads(text) if place.endswith(".json") else yaml.safe_load(text)
            if not isinstance(entry, dict) or "affected" not in entry or entry.get("withdrawn"):
                continue
            dump.entries += 1
            dump.newest = max(dump.newest, str(entry.get("modified", ""))[:10])
            names = {entry["id"], *entry.get("aliases", [])}
            for part in entry["affected"]:
                package = part.get("package", {})
                name = canonical(package.get("name", ""))
                if name not in versions or package.get("ecosystem", "PyPI") != "PyPI":
                    continue  # other registries have packages of the same names
                dump.packages.add(name)
                if _within(_plain(versions[name]), part):
                    _note(dump.found, name, names)
        except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
            dump.unreadable.append(place)
    return dump


def _note(found: list[tuple[str, set[str]]], name: str, names: set[str]) -> None:
    for package, known in found:
        if package == name and known & names:
            known |= names
            return
    found.append((name, names))


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


# -- pip-audit ----------------------------------------------------------------------------------------------------


def run_pip_audit(known: set[str]) -> int:
    """Runs pip-audit and prints what it found and how much it could look at; returns the number of faults not `known`.

    Without its service, pip-audit skips packages and still says that it found nothing: so that is counted here.
    """
    run = subprocess.run([sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--timeout", "20",
                          "--format", "json"], capture_output=True, text=True)
    try:
        packages = json.loads(run.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = run.stderr.strip().splitlines() or ["it said nothing"]
        print(f"pip-audit looked at nothing: {lines[-1]}")
        return 0
    bad = 0
    for package in packages:
        for fault in package.get("vulns", []):
            if not {fault["id"], *fault.get("aliases", [])} & known:
                bad += 1
                print(f"{package['name']} {package['version']}: {fault['id']}, says pip-audit.")
    skipped = sum("skip_reason" in package for package in packages)
    print(f"pip-audit looked at {len(packages) - skipped} packages and skipped {skipped}.")
    return bad


def main(arguments: list[str]) -> int:
    """Prints what was found. Returns 1 when an installed package has a fault that is not accepted."""
    versions, faults, bad = installed(), advisories(), 0
    has = affected(versions, faults)
    known = {identity for fault in has for identity in IDENTITY.findall(fault["id"])}  # what has been said already
    for fault in has:
        accepted = fault.get("accepted")
        bad += not accepted
        until = f"fixed in {fault['fixed']}" if "fixed" in fault else f"up to {fault['last']}"
        print(f"{fault['package']} {versions[fault['package']]}: {fault['id']}, {fault['what']}; {until}. "
              f"{'Accepted: ' + accepted if accepted else 'Update it.'}")
    for fault in affected(bounds(REQUIREMENTS.read_text(encoding="utf-8")), faults):
        reason = fault.get("accepted", "Raise the bound.")
        print(f"allowed by requirements.txt: {fault['package']} with {fault['id']}. {reason}")
    covered = {fault["package"] for fault in faults} & set(versions)
    print(f"The list of {as_of()} has {len(faults)} advisories, on {len(covered)} of the {len(versions)} packages "
          f"installed here; of the other {len(versions) - len(covered)} it knows nothing.")
    for argument in arguments:
        try:
            dump = read_osv(Path(argument), versions)
        except (OSError, zipfile.BadZipFile) as error:
            bad += 1
            print(f"{argument} could not be read: {error}")
            continue
        for name, names in dump.found:
            if not names & known:
                bad += 1
                identity = min(names)
                print(f"{name} {versions[name]}: {identity}, see https://osv.dev/{identity}")
        for place in dump.unreadable:
            print(f"{place} in {argument} is no advisory in OSV's format.")
        bad += len(dump.unreadable) + (not dump.entries)
        print(f"{argument} has {dump.entries} advisories, the newest of {dump.newest or 'no day'}, on "
              f"{len(dump.packages)} of the packages installed here.")
    if importlib.util.find_spec("pip_audit"):
        bad += run_pip_audit(known)
    print(f"{bad or 'No'} fault{'s' * (bad != 1)} that {'are' if bad != 1 else 'is'} not accepted.")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
