"""Checkpoints from strangers: nothing in them runs, leads elsewhere, or asks for more than it is worth."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from helpers.captioner import Captioner, load_checkpoint, save_checkpoint
from helpers.files import CaptioningError, load_weights, sha256_file
from helpers.language_models import load_language_model
from tests.toy_captioners import small_model

ROOT = Path(__file__).resolve().parent.parent
ENCODER = "efficientnet-lite0"


# -- no code is run that a file brings along ----------------------------------------------------------------------


UNSAFE = "|".join([r"(?:c?[Pp]ickle|joblib|dill|marshal|yaml)\.loads?", r"torch\.(?:jit|hub)\.load",
                   r"\w+\.read_pickle", "eval", "exec"])


def test_no_code_of_a_file_is_ever_run() -> None:
    """`torch.load` always with weights_only=True, transformers never with code of the model's own, no pickle."""
    files = [path for folder in (".", "helpers", "scripts", "benchmarks", "notebooks", "notebooks/solutions")
             for path in (*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*.ipynb"))]
    assert len(files) > 60
    loads, found = 0, []
    for path in files:
        if path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        else:
            code = path.read_text(encoding="utf-8")
        calls = re.findall(r"(?:torch\.load|load_state_dict_from_url)\((?:[^()]|\([^()]*\))*\)", code)
        loads += len(calls)
        found += [call for call in calls if "weights_only=True" not in call]
        found += re.findall(r"(?:allow_pickle|trust_remote_code)=(?!False)\w+", code)
        remote = re.findall(r"Auto\w+\.from_pretrained\((?:[^()]|\([^()]*\))*\)", code)
        found += [call for call in remote if "trust_remote_code=False" not in call]
        found += re.findall(rf"(?<![\w.])(?:{UNSAFE})(?=\()", code)
    assert loads >= 1 and found == []


class Trap:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "pytorch_model.bin"])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "of before 1.6"])
def test_a_file_that_would_write_a_file_is_not_read(name, old, tmp_path) -> None:
    mark = tmp_path / "mark"
    torch.save({"weight": torch.ones(2), "more": Trap(mark)}, tmp_path / name, _use_new_zipfile_serialization=not old)
    with pytest.raises(CaptioningError, match="could run a program"):
        load_weights(tmp_path / name)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # the trap works


def test_sparse_weights_are_refused(tmp_path) -> None:
    with torch.sparse.check_sparse_tensor_invariants(enable=False):  # weights_only=True does not look at them either
        columns, values = torch.tensor([0]), torch.tensor([1.0])
        trap = torch.sparse_csr_tensor(torch.tensor([0, 1 << 20]), columns, values, (1, 4), check_invariants=False)
    torch.save({"weight": trap}, tmp_path / "weights.pt")
    with pytest.raises(CaptioningError, match="sparse"):
        load_weights(tmp_path / "weights.pt")


def test_weights_of_ours_that_are_a_pickle_are_no_safetensors(copy, tmp_path) -> None:
    torch.save({"weight": Trap(tmp_path / "mark")}, copy / "model.safetensors")
    rehash(copy)
    with pytest.raises(CaptioningError, match="model.safetensors cannot be read"):
        load_checkpoint(copy)
    assert not (tmp_path / "mark").exists()


def test_a_language_model_with_code_of_its_own_is_not_asked_for_it(tmp_path, monkeypatch) -> None:
    """The configuration names a class in a file beside it; transformers would ask, and then import that file."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    names = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": names}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": names}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(CaptioningError, match="cannot be loaded"):
        load_language_model(str(tmp_path))
    assert not (tmp_path / "mark").exists()


# -- what a configuration may say ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "toy"
    return save_checkpoint(folder, small_model(), {"name": "toy", "encoder": ENCODER, "features": "pooled"})


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, path: str, value: object) -> None:
    """Sets the entry at a dotted path of config.json."""
    config = json.loads((folder / "config.json").read_text())
    *parents, last = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def rehash(folder: Path) -> None:
    """Makes the hashes fit, as someone who means harm would."""
    edit(folder, "sha256", {name: sha256_file(folder / name) for name in ("model.safetensors", "vocabulary.json")})


@pytest.mark.parametrize(("path", "value", "message"), [
    ("class", "subprocess.Popen", "Unknown model class"),
    ("class", ["ShowAndTell"], "is not as training writes it"),
    ("class", "PocketCLIP", "Unknown model class"),
    ("options", [], "is not as training writes it"),
    ("encoder", "efficientnet-lite0", "is not as training writes it"),
    ("encoder.name", None, "is not as training writes it: see encoder"),
    ("sha256", None, "is not as training writes it"),
    ("tokenizer", "/etc/passwd", "is not as training writes it: see tokenizer"),
    ("tokenizer", "../vocabulary.json", "is not as training writes it: see tokenizer"),
    ("name", 7, "is not as training writes it"),
    ("decoding", [], "is not as training writes it"),
    ("decoding", {"generator": "x"}, "Unknown decoding setting 'generator'"),
    ("options.hidden", 10**12, "cannot be built|do not fit"),
    ("options.hidden", float("inf"), "cannot be built"),
])  # fmt: skip
def test_a_configuration_that_means_harm_is_refused(path, value, message, copy) -> None:
    edit(copy, path, value)
    with pytest.raises(CaptioningError, match=message) as caught:
        Captioner.load(copy)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
