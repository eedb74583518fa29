"""The environment that `make` builds: made once, mended when half made, and never stamped when it failed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import make_environment


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> list[str]:
    """The arguments for an environment with nothing to install, so that no test needs the network."""
    monkeypatch.setattr(make_environment, "PROOF", {"requirements.txt": "pip", "requirements-lab.txt": "venv"})
    (tmp_path / "requirements-lab.txt").write_text("# nothing else\n")
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    return [str(tmp_path / "env"), str(tmp_path / "requirements.txt")]


def test_made_once_updated_and_mended(place, capsys) -> None:
    env = Path(place[0])
    assert make_environment.main(place) == 0
    assert "Making the environment" in capsys.readouterr().out
    assert make_environment.main(place) == 0 and capsys.readouterr().out == ""
    Path(place[1]).write_text("# something else\n")
    assert make_environment.main(place) == 0
    assert "Updating the environment" in capsys.readouterr().out
    assert make_environment.main([*place, place[1].replace(".txt", "-lab.txt")]) == 0
    assert "Updating the environment" in capsys.readouterr().out
    assert make_environment.main(place) == 0 and capsys.readouterr().out == ""  # part of what is there
    shutil.rmtree(next(env.glob("lib/python*/site-packages/pip")))
    assert make_environment.main(place) == 0
    assert make_environment.runs(env, "import pip")


def test_a_failed_install_leaves_no_stamp(place, capsys, monkeypatch) -> None:
    Path(place[1]).write_text("./no-such-package\n")
    assert make_environment.main(place) == 1
    assert "Repeat the command" in capsys.readouterr().err
    assert not (Path(place[0]) / ".ready").exists()
    Path(place[1]).write_text("# fixed\n")
    monkeypatch.setitem(make_environment.PROOF, "requirements.txt", "a_module_that_is_not_there")
    assert make_environment.main(place) == 1 and not (Path(place[0]) / ".ready").exists()
