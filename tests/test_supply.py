"""What the course is built on: licences listed, known faults looked for, the oldest versions stated right."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

import audit
import list_licences
import make_environment
import oldest_versions

CODE = {".css", ".html", ".ipynb", ".py", ".sbatch", ".sh"}
TEXT = CODE | {"", ".cfg", ".csv", ".json", ".md", ".toml", ".txt", ".yaml", ".yml"}


# -- licences -----------------------------------------------------------------------------------------------------


def test_every_requirement_has_its_licence_listed(root: Path) -> None:
    """Made anew by `python scripts/list_licences.py > LICENSES.md`."""
    text = (root / "LICENSES.md").read_text(encoding="utf-8")
    direct = text.split("## What it is built on")[1].split("## What those need")[0]
    listed = dict(line.strip("| ").split(" | ") for line in direct.splitlines() if line.startswith("| "))
    wanted = {list_licences.canonical(requirement.name) for requirement in list_licences.requirements()}
    assert wanted == set(listed) - {"package", "---"}
    for name in wanted:
        assert list_licences.licence(name) != "not stated" != listed[name], name


def test_what_requirements_need_is_listed_too(root: Path) -> None:
    text = (root / "LICENSES.md").read_text(encoding="utf-8")
    rest = text.split("## What those need in turn")[1]
    rows = [line.split("|")[2].strip() for line in rest.splitlines() if line.startswith("| ")]
    names = {name for row in rows for name in row.split(", ")}
    direct = {list_licences.canonical(requirement.name) for requirement in list_licences.requirements()}
    here = list_licences.closure(direct) - direct
    strangers = {name for name in here - names if not name.startswith(("nvidia", "cuda", "triton"))}
    assert len(names) > 80 and len(strangers) <= len(here) // 5, strangers  # versions and systems differ a little


def test_no_licence_forbids_teaching_with_it(root: Path) -> None:
    text = (root / "LICENSES.md").read_text(encoding="utf-8")
    for line in text.split("## What it is built on")[1].splitlines():
        assert not any(word in line for word in ("AGPL", "| GPL", "non-commercial", "SSPL")), line


def test_every_file_that_is_not_text_falls_under_a_listed_term(root: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git here")
    text = (root / "LICENSES.md").read_text(encoding="utf-8")
    patterns = [pattern for pattern in list_licences.SHIPPED if pattern != "*"]
    assert all(f"| `{pattern}` |" in text for pattern in list_licences.SHIPPED)
    for name in listed.stdout.splitlines():
        if Path(name).suffix.lower() not in TEXT:
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), f"{name}: under which terms?"


# -- known faults -------------------------------------------------------------------------------------------------


def test_nothing_installed_has_a_known_fault_that_matters() -> None:
    found = [fault for fault in audit.affected(audit.installed(), audit.advisories()) if not fault.get("accepted")]
    assert not found


def test_no_lower_bound_allows_a_known_fault_without_a_reason(root: Path) -> None:
    bounds = oldest_versions.bounds((root / "requirements.txt").read_text(encoding="utf-8"))
    for fault in audit.affected(bounds, audit.advisories()):
        assert len(fault.get("accepted", "")) > 15, f"{fault['package']}>={bounds[fault['package']]}: {fault['id']}"


def test_advisories_are_of_what_pip_installs_and_say_everything(root: Path) -> None:
    """Of what is required and what that needs in turn, as LICENSES.md lists it."""
    listed = (root / "LICENSES.md").read_text(encoding="utf-8").split("## What it is built on")[1]
    names = {name for line in listed.splitlines() for cell in line.split("|") for name in cell.strip().split(", ")}
    for fault in audit.advisories():
        assert fault["package"] in names and {"id", "what"} <= set(fault), fault
        assert audit.Version(fault["fixed"] if "fixed" in fault else fault["last"])
        assert audit.IDENTITY.match(fault["id"]), f"{fault['id']} is no CVE, GHSA or PYSEC number"
    assert date(2026, 9, 1) <= date.fromisoformat(audit.as_of()) <= date.today()


def test_a_fault_may_have_a_last_version_instead_of_a_fixed_one() -> None:
    fault = {"package": "torch", "id": "CVE-2025-3000", "last": "2.12.0", "what": "it"}
    for version, has in {"2.12.0": True, "2.12.0+cpu": True, "2.12.1": False, "2.12.1+cpu": False}.items():
        assert (audit.affected({"torch": version}, [fault]) == [fault]) is has, version


def osv(name: str, events: list[dict], **more) -> dict:
    package = {"name": "Some.Package", "ecosystem": more.pop("ecosystem", "PyPI")}
    part = {"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}], **more}
    return {"id": name, "modified": "2026-11-20T09:11:12Z", "affected": [part]}


@pytest.mark.parametrize("packed", [False, True], ids=["a folder", "a zip file"])
def test_osv_files_are_read(tmp_path: Path, packed: bool) -> None:
    entries = [
        osv("old", [{"introduced": "0"}, {"fixed": "1.4"}]), osv("now", [{"introduced": "1.2"}, {"fixed": "1.6"}]),
        osv("again", [{"introduced": "0"}, {"fixed": "1.0"}, {"introduced": "1.5"}]),
        osv("last", [{"introduced": "0"}, {"last_affected": "1.5"}]), osv("later", [{"introduced": "1.5.1"}]),
        osv("listed", [], versions=["1.5"]), osv("npm", [{"introduced": "0"}], ecosystem="npm"),
        {**osv("same", [{"introduced": "0"}]), "aliases": ["now"]},
        {**osv("gone", [{"introduced": "0"}]), "withdrawn": "2026-01-01"},
    ]  # fmt: skip
    folder = tmp_path / "dump"
    folder.mkdir()
    for entry in entries:
        (folder / f"{entry['id']}.json").write_text(json.dumps(entry))
    (folder / "plain.yaml").write_text("id: yaml\naffected:\n- package: {name: some_package}\n  versions: ['1.5']\n")
    (folder / "about.json").write_text('{"title": "no advisory"}')
    place = Path(shutil.make_archive(str(tmp_path / "all"), "zip", folder)) if packed else folder
    dump = audit.read_osv(place, {"some-package": "1.5"})
    found = {min(names) for _, names in dump.found}
    assert found == {"now", "again", "last", "listed", "yaml"}  # "same" is "now" under another name
    assert (dump.entries, dump.newest, dump.packages) == (9, "2026-11-20", {"some-package"}) and not dump.unreadable


@pytest.fixture
def alone(monkeypatch):
    """No pip-audit, whether or not it is installed here."""
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: None)


def test_what_is_not_known_is_said(alone, capsys) -> None:
    assert audit.main([]) == 0
    said = capsys.readouterr().out
    count, covered, total = map(int, re.search(r"has (\d+) advisories, on (\d+) of the (\d+) packages", said).groups())
    assert count == len(audit.advisories()) and total == len(audit.installed()) and 30 <= covered < total
    assert f"list of {audit.as_of()}" in said and f"of the other {total - covered} it knows nothing" in said


@pytest.mark.parametrize("package, version, identity", [
    ("torch", "2.5.1", "CVE-2025-32434"), ("tornado", "6.5.7", "CVE-2026-82397"), ("h11", "0.14.0", "CVE-2025-43859"),
    ("pip", "23.2.1", "CVE-2025-8869"),
])
def test_a_fault_fails_the_audit(alone, monkeypatch, capsys, package, version, identity) -> None:
    monkeypatch.setattr(audit, "installed", lambda: {package: version})
    assert audit.main([]) == 1 and identity in capsys.readouterr().out


def test_a_vulnerable_package_that_is_really_installed_is_found(root: Path, tmp_path: Path) -> None:
    """Planted where Python looks first: that one would be imported, whatever stands behind it."""
    planted = tmp_path / "jinja2-3.1.2.dist-info"
    planted.mkdir()
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: Jinja2\nVersion: 3.1.2\n")
    (tmp_path / "half_removed-1.0.dist-info").mkdir()
    run = subprocess.run([sys.executable, root / "scripts" / "audit.py"], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert run.returncode == 1 and "jinja2 3.1.2: CVE-2025-27516" in run.stdout, run.stderr


def test_a_dump_fails_the_audit_unless_its_fault_is_accepted(alone, monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(audit, "installed", lambda: {"some-package": "1.5", "pillow": "12.2.0"})
    (tmp_path / "new.json").write_text(json.dumps(osv("GHSA-aaaa-bbbb-cccc", [{"introduced": "0"}])))
    assert audit.main([str(tmp_path)]) == 1
    assert "some-package 1.5: GHSA-aaaa-bbbb-cccc, see https://osv.dev/GHSA-aaaa-bbbb-cccc" in capsys.readouterr().out
    entry = {**osv("GHSA-4rm8-3hmm-39fg", [{"introduced": "0"}, {"fixed": "13.0.0"}]), "aliases": ["CVE-2026-96641"]}
    entry["affected"][0]["package"]["name"] = "Pillow"
    (tmp_path / "new.json").write_text(json.dumps(entry))
    assert audit.main([str(tmp_path)]) == 0  # the list accepts it, under the number that it has there
    said = capsys.readouterr().out
    assert "1 advisories, the newest of 2026-11-20, on 1 of the packages" in said


@pytest.mark.parametrize("kind", ["nothing there", "no zip file", "an empty folder", "a broken entry", "a text"])
def test_a_dump_that_cannot_be_read_is_no_clean_bill(alone, tmp_path: Path, capsys, kind: str) -> None:
    place = tmp_path / "dump.zip"
    if kind == "no zip file":
        place.write_bytes(b"PK\x03\x04 cut short")
    elif kind != "nothing there":
        place.mkdir()
    if kind == "a broken entry":
        (place / "good.json").write_text(json.dumps(osv("good", [{"introduced": "9"}])))
        (place / "bad.json").write_text('{"id": 7, "affected": [{"package": "pillow"}]}')
    if kind == "a text":
        (place / "bad.yaml").write_text("id: [unclosed")
    assert audit.main([str(place)]) == 1
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize("answer, status, said", [
    ({"dependencies": [{"name": "six", "version": "1.0", "vulns": []}]}, 0, "looked at 1 packages and skipped 0"),
    ({"dependencies": [{"name": "six", "skip_reason": "not found"}]}, 0, "looked at 0 packages and skipped 1"),
    ({"dependencies": [{"name": "six", "version": "1.0", "vulns": [{"id": "PYSEC-2026-1", "aliases": []}]}]}, 1,
     "six 1.0: PYSEC-2026-1"),
    (None, 0, "pip-audit looked at nothing: no network"),
], ids=["clean", "skipped", "a fault", "no service"])  # fmt: skip
def test_pip_audit_is_believed_only_as_far_as_it_looked(monkeypatch, capsys, answer, status, said) -> None:
    """It ends with "No known vulnerabilities found" when its service skipped every package."""
    class Done:
        stdout, stderr = (json.dumps(answer), "") if answer else ("", "a long trace\nno network\n")

    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(audit.subprocess, "run", lambda *args, **options: Done())
    assert audit.main([]) == status and said in capsys.readouterr().out


# -- the oldest versions ------------------------------------------------------------------------------------------


def test_bounds_are_read_and_compared() -> None:
    text = "# pillow>=1\ntorch>=2.8,<3   # a reason >=9\nPyYAML>=6.0.2\nuvicorn[standard]>=0.30\nhuggingface_hub>=1.0\n"
    wanted = {"torch": "2.8", "pyyaml": "6.0.2", "uvicorn": "0.30", "huggingface-hub": "1.0"}
    assert oldest_versions.bounds(text) == wanted
    had = {"torch": "2.8.0+cpu", "pyyaml": "6.0.2", "uvicorn": "0.31.0", "huggingface-hub": "1.0.0"}
    assert oldest_versions.unmet(wanted, had) == ["uvicorn>=0.30 should be >=0.31.0"]


def test_the_script_installs_once_and_runs_the_tests_there(monkeypatch, tmp_path: Path, capsys) -> None:
    calls = []

    class Done:
        returncode = 0
        stdout = json.dumps([{"name": name, "version": "9"} for name in ("torch", "numpy")])

    def run(command, **options):
        calls.append([str(part) for part in command])
        if "venv" in command:
            tmp_path.joinpath("build", Path(command[-1]).name).mkdir(parents=True, exist_ok=True)
        return Done()

    (tmp_path / "requirements.txt").write_text("torch>=9\nnumpy>=8\n")
    monkeypatch.setattr(oldest_versions, "ROOT", tmp_path)
    monkeypatch.setattr(oldest_versions, "REQUIREMENTS", tmp_path / "requirements.txt")
    monkeypatch.setattr(oldest_versions.subprocess, "run", run)
    monkeypatch.setattr(make_environment.subprocess, "run", run)
    assert oldest_versions.main(["tests/test_text.py"]) == 1  # numpy 8 cannot be had
    assert "numpy>=8 should be >=9" in capsys.readouterr().err
    assert any("lowest-direct" in call for call in calls) and calls[-1][-1] == "tests/test_text.py"
    (tmp_path / "requirements.txt").write_text("torch>=9\nnumpy>=9\n")
    before = len(calls)
    assert oldest_versions.main([]) == 0 and len(calls) - before == 5  # made anew: make, uv, install, list, pytest
    assert oldest_versions.main([]) == 0 and len(calls) - before == 7  # then list and pytest alone
    assert sys.executable  # nothing of this environment was touched
