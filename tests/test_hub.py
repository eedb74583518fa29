"""The hub's format: written to a folder, pushed, fetched, and checked, against a server that stands in for the hub."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from helpers.captioner import FILES, Captioner, pull_from_hub, push_to_hub, save_checkpoint
from helpers.files import CaptioningError
from tests.hub_stand_in import Hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint as training leaves it: small, untrained, of the encoder's width."""
    from helpers.cnn_lstm import ShowAndTell
    from helpers.encoders import load_encoder
    from helpers.text import Vocabulary

    words = Vocabulary.build(["a dog runs", "a cat sits"], min_count=1)
    width = load_encoder("efficientnet-lite0").width
    model = ShowAndTell(len(words), width, embedding=4, hidden=4).eval()
    model.tokenizer, model.end_id = words, words.end_id
    folder = tmp_path_factory.mktemp("run")
    config = {"name": "mine", "encoder": "efficientnet-lite0", "features": "pooled", "dataset": {"name": "folder"}}
    (folder / "stage1-last.safetensors").write_bytes(b"what training needs, and nobody else")
    return save_checkpoint(folder, model, config)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, running; the client is told to use it, with the token that it takes."""
    from huggingface_hub import constants

    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", server.token)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_pushed_and_fetched_again(trained, hub, samples) -> None:
    commit = push_to_hub(trained, "ada/mine")
    assert commit == hub.commit("ada/mine") and hub.private["ada/mine"] is True
    stored = hub.repositories["ada/mine"]
    assert set(stored) == {"config.json", "model.safetensors", "vocabulary.json", "training.json"} <= set(FILES)
    assert stored["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    stored["pytorch_model.bin"] = b"a pickle"
    folder = pull_from_hub("ada/mine")
    assert not (folder / "pytorch_model.bin").exists() and not any("pytorch_model" in call for call in hub.calls)
    caption = Captioner.load(folder).caption(samples[0])[0]
    assert caption.caption == Captioner.load(trained).caption(samples[0])[0].caption
    del stored["pytorch_model.bin"]
    assert push_to_hub(trained, "ada/mine") == commit  # again: the repository is there already, and nothing differs


def test_what_is_not_whole_is_neither_pushed_nor_loaded(trained, hub, tmp_path) -> None:
    push_to_hub(trained, "ada/mine")
    config = json.loads(hub.repositories["ada/mine"]["config.json"])
    config["sha256"]["model.safetensors"] = "0" * 64
    hub.repositories["ada/mine"]["config.json"] = json.dumps(config).encode()
    folder = pull_from_hub("ada/mine")
    for work in (lambda: Captioner.load(folder), lambda: push_to_hub(folder, "ada/other")):
        with pytest.raises(CaptioningError, match="SHA-256 differs"):
            work()
    assert "ada/other" not in hub.repositories


def test_refusals_name_the_repository_and_the_reason(trained, hub, monkeypatch) -> None:
    with pytest.raises(CaptioningError, match="refused snapshot download of ada/none"):
        pull_from_hub("ada/none")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CaptioningError, match="refused create repo of ada/mine.*hf auth login"):
        push_to_hub(trained, "ada/mine")
    assert not hub.repositories


def test_without_a_line_it_says_so(monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CaptioningError, match="HF_HUB_OFFLINE"):
        pull_from_hub("ada/mine")
