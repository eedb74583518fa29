"""The hub's format: written to a folder, pushed, fetched, and checked, against a server that stands in for the hub."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import yaml

from helpers.captioner import (
    FILES,
    Captioner,
    call_hub,
    from_pretrained,
    main,
    pull_from_hub,
    push_to_hub,
    save_checkpoint,
    save_pretrained,
)
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


def test_a_folder_in_the_hubs_format_comes_back_the_same(trained, tmp_path, samples) -> None:
    folder = save_pretrained(trained, tmp_path / "shared")
    assert {path.name for path in folder.iterdir()} == set(FILES) - {"tokenizer.json", "encoder.safetensors"}
    text = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["pipeline_tag"] == "image-to-text" and header["datasets"] == ["folder"]
    assert "safetensors" in header["tags"] and "efficientnet-lite0" in text
    same = [from_pretrained(place).caption(samples[:2]) for place in (trained, folder)]
    assert [c.caption for c in same[0]] == [c.caption for c in same[1]]
    assert [c.log_prob for c in same[0]] == [c.log_prob for c in same[1]]
    save_pretrained(folder, tmp_path / "again")  # from a folder that has its header
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == text
    with pytest.raises(CaptioningError, match="holds another checkpoint"):
        save_pretrained("cnn-lstm", folder)


def test_what_is_not_whole_is_neither_saved_nor_loaded(trained, tmp_path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    (broken / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:-1])
    for work in (lambda: save_pretrained(broken, tmp_path / "out"), lambda: from_pretrained(broken)):
        with pytest.raises(CaptioningError, match="SHA-256 differs"):
            work()


def test_pushed_and_fetched_again(trained, hub, tmp_path, samples) -> None:
    commit = push_to_hub(trained, "ada/mine")
    assert commit == hub.commit("ada/mine") and hub.private["ada/mine"] is True
    stored = hub.repositories["ada/mine"]
    assert set(stored) == set(FILES) - {"tokenizer.json", "encoder.safetensors"}
    assert stored["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    caption = from_pretrained("ada/mine").caption(samples[0])[0]
    assert caption.caption == Captioner.load(trained).caption(samples[0])[0].caption
    folder = pull_from_hub("ada/mine", tmp_path / "theirs")
    assert {path.name for path in folder.iterdir()} == set(stored)
    assert push_to_hub(trained, "ada/mine") == commit  # again: the repository is there already, and nothing differs


def test_a_changed_file_on_the_hub_is_noticed(trained, hub, tmp_path) -> None:
    push_to_hub(trained, "ada/mine")
    config = json.loads(hub.repositories["ada/mine"]["config.json"])
    config["sha256"]["model.safetensors"] = "0" * 64
    hub.repositories["ada/mine"]["config.json"] = json.dumps(config).encode()
    with pytest.raises(CaptioningError, match="SHA-256 differs"):
        pull_from_hub("ada/mine", tmp_path / "theirs")


def test_only_the_files_of_a_checkpoint_are_fetched(trained, hub, tmp_path) -> None:
    push_to_hub(trained, "ada/mine")
    hub.repositories["ada/mine"]["pytorch_model.bin"] = b"a pickle"
    folder = pull_from_hub("ada/mine", tmp_path / "theirs")
    assert not (folder / "pytorch_model.bin").exists()
    assert not any("pytorch_model" in call for call in hub.calls)


def test_refusals_name_the_repository_and_the_reason(trained, hub, monkeypatch, tmp_path, capsys) -> None:
    with pytest.raises(CaptioningError, match="should read USER/NAME"):
        push_to_hub(trained, "mine")
    assert main(["pull", "ada/none", str(tmp_path / "none")]) == 1
    assert "ada/none" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CaptioningError, match="refused create repo of ada/mine.*hf auth login"):
        push_to_hub(trained, "ada/mine")
    assert not hub.repositories


def test_without_a_line_it_says_so(monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CaptioningError, match="HF_HUB_OFFLINE"):
        call_hub("snapshot_download", repo_id="ada/mine")


def test_the_command_saves_and_says_where(trained, tmp_path, capsys) -> None:
    assert main(["save", str(trained), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert main(["save", "no-such-model", str(tmp_path / "out")]) == 1
    assert "error:" in capsys.readouterr().err
