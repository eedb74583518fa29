"""The environment that `make` builds: made once, mended when half made, and never stamped when it failed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

import make_environment


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> list[str]:
    """The arguments for an environment with nothing to install, so that no test needs the network."""
    monkeypatch.setattr(make_environment, "PROOF", "import pip")
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    return [str(tmp_path / "env"), str(tmp_path / "requirements.txt")]


def test_made_once_and_then_left_alone(place, capsys) -> None:
    assert make_environment.main(place) == 0
    assert "Making the environment" in capsys.readouterr().out
    stamp = Path(place[0]) / ".ready"
    before = stamp.stat().st_mtime_ns
    assert make_environment.main(place) == 0
    assert capsys.readouterr().out == "" and stamp.stat().st_mtime_ns == before


def test_new_requirements_update_it(place, capsys) -> None:
    make_environment.main(place)
    Path(place[1]).write_text("# something else\n")
    capsys.readouterr()
    assert make_environment.main(place) == 0
    assert "Updating the environment" in capsys.readouterr().out
    assert make_environment.is_ready(*map(Path, place))


@pytest.mark.parametrize("damage", ["no stamp and no pip", "no interpreter", "an empty folder"])
def test_a_half_made_one_is_mended(place, damage: str) -> None:
    env = Path(place[0])
    if damage == "an empty folder":
        env.mkdir()
    else:
        make_environment.main(place)
        if damage == "no interpreter":  # the system's Python was upgraded and the old one removed
            for link in (env / "bin").glob("python*"):
                link.unlink()
        else:
            (env / ".ready").unlink()
            shutil.rmtree(next(env.glob("lib/python*/site-packages/pip")))
    assert not make_environment.is_ready(*map(Path, place))
    assert make_environment.main(place) == 0
    assert make_environment.runs(env, "import pip")


def test_a_failed_install_leaves_no_stamp(place, capsys) -> None:
    Path(place[1]).write_text("./no-such-package\n")
    assert make_environment.main(place) == 1
    assert "Repeat the command" in capsys.readouterr().err
    assert not (Path(place[0]) / ".ready").exists()
    Path(place[1]).write_text("# fixed\n")
    assert make_environment.main(place) == 0


def test_an_install_that_does_not_import_is_a_failure(place, monkeypatch) -> None:
    monkeypatch.setattr(make_environment, "PROOF", "import a_module_that_is_not_there")
    assert make_environment.main(place) == 1
    assert not make_environment.is_ready(*map(Path, place))


def run_chromium_script(root: Path, folder: Path, **commands: str) -> subprocess.CompletedProcess:
    """Runs get_chromium.sh where only the given commands (name -> shell lines) and the basic ones exist."""
    for name in ("sh", "tail", "rm", "mktemp"):
        (folder / name).symlink_to(shutil.which(name))
    for name, lines in commands.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!{shutil.which('sh')}\n{lines}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"PATH": str(folder)}
    script = root / "scripts/get_chromium.sh"
    return subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ({"chromium": "exit 0"}, ""),
        ({"google_chrome": "exit 0"}, ""),
        ({"id": "echo 1000"}, "needs root"),
        ({"id": "echo 1000", "sudo": "exit 1"}, "needs root"),
        ({"id": "echo 0"}, "no apt-get"),
        ({"id": "echo 0", "apt_get": "echo E: no network; exit 100"}, "E: no network"),
        ({"id": "echo 0", "apt_get": "exit 0"}, "Installing Chromium"),
        ({"id": "echo 1000", "sudo": '[ "$1" = -n ] || exit 1; shift; "$@"', "true": "exit 0", "apt_get": "exit 0"},
         "Installing Chromium"),
    ],
)  # fmt: skip
def test_a_missing_browser_never_stops_the_tests(root: Path, tmp_path: Path, commands, said: str) -> None:
    result = run_chromium_script(root, tmp_path, **commands)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout and (said or not result.stdout)
