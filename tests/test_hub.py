"""The hub: what is asked of its client, what is not whole is neither pushed nor loaded, refusals say why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from helpers.captioner import FILES, Captioner, pull_from_hub, push_to_hub, save_checkpoint
from helpers.cnn_lstm import ShowAndTell
from helpers.encoders import load_encoder
from helpers.files import CaptioningError
from helpers.text import Vocabulary


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint as training leaves it: small, untrained, of the encoder's width."""
    words = Vocabulary.build(["a dog runs", "a cat sits"], min_count=1)
    width = load_encoder("efficientnet-lite0").width
    model = ShowAndTell(len(words), width, embedding=4, hidden=4).eval()
    model.tokenizer, model.end_id = words, words.end_id
    config = {"name": "mine", "encoder": "efficientnet-lite0", "features": "pooled", "dataset": {"name": "folder"}}
    return save_checkpoint(tmp_path_factory.mktemp("run"), model, config)


@pytest.fixture
def calls(monkeypatch, trained) -> list[tuple[str, dict]]:
    """What the hub's client was asked, which answers at once; it fetches `trained`."""
    asked = []
    answers = {"create_repo": None, "upload_folder": SimpleNamespace(oid="c0ffee"), "snapshot_download": str(trained)}
    for action, answer in answers.items():

        def act(self, action=action, answer=answer, **arguments):
            asked.append((action, arguments))
            return answer

        monkeypatch.setattr(huggingface_hub.HfApi, action, act)
    return asked


def test_pushed_and_fetched_again(trained, calls, samples) -> None:
    assert push_to_hub(trained, "ada/mine") == "c0ffee"
    (_, created), (_, uploaded) = calls
    assert created == {"repo_id": "ada/mine", "private": True, "exist_ok": True}
    assert uploaded == {"repo_id": "ada/mine", "folder_path": trained, "allow_patterns": FILES}
    assert Captioner.load(pull_from_hub("ada/mine")).caption(samples[0])[0].error is None
    assert calls[2] == ("snapshot_download", {"repo_id": "ada/mine", "revision": None, "allow_patterns": FILES})
    assert "model.safetensors" in FILES and not any(name.endswith(".bin") for name in FILES)


def test_what_is_not_whole_is_neither_pushed_nor_loaded(trained, calls, tmp_path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["sha256"]["model.safetensors"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    for work in (lambda: Captioner.load(folder), lambda: push_to_hub(folder, "ada/other")):
        with pytest.raises(CaptioningError, match="SHA-256 differs"):
            work()
    assert calls == []


def test_without_a_line_it_says_so(monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CaptioningError, match="refused snapshot download of ada/mine.*HF_HUB_OFFLINE"):
        pull_from_hub("ada/mine")
