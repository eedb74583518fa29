"""What the course is built on: licences listed, known faults looked for, the oldest versions stated right."""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
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


def test_advisories_are_of_what_is_required_and_say_everything(root: Path) -> None:
    bounds = oldest_versions.bounds((root / "requirements.txt").read_text(encoding="utf-8"))
    for fault in audit.advisories():
        assert fault["package"] in bounds and {"id", "fixed", "what"} <= set(fault)


def test_osv_files_are_read(tmp_path: Path) -> None:
    def entry(name: str, events: list[dict], **more) -> None:
        part = {"package": {"name": "Some.Package"}, "ranges": [{"type": "ECOSYSTEM", "events": events}], **more}
        (tmp_path / f"{name}.json").write_text(json.dumps({"id": name, "affected": [part]}))

    entry("old", [{"introduced": "0"}, {"fixed": "1.4"}])
    entry("now", [{"introduced": "1.2"}, {"fixed": "1.6"}])
    entry("again", [{"introduced": "0"}, {"fixed": "1.0"}, {"introduced": "1.5"}])
    entry("last", [{"introduced": "0"}, {"last_affected": "1.5"}])
    entry("later", [{"introduced": "1.5.1"}])
    entry("listed", [], versions=["1.5"])
    (tmp_path / "plain.yaml").write_text("id: yaml\naffected:\n- package: {name: some_package}\n  versions: ['1.5']\n")
    (tmp_path / "gone.json").write_text(json.dumps({"id": "gone", "withdrawn": "2026-01-01", "affected": [
        {"package": {"name": "some-package"}, "versions": ["1.5"]}]}))
    found = {identity for _, identity in audit.read_osv(tmp_path, {"some-package": "1.5"})}
    assert found == {"now", "again", "last", "listed", "yaml"}


def test_a_fault_fails_the_audit(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: None)
    assert audit.main([]) == 0
    monkeypatch.setattr(audit, "installed", lambda: {"torch": "2.5.1"})
    assert audit.main([]) == 1 and "CVE-2025-32434" in capsys.readouterr().out


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
