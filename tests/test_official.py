"""The authors' weights by name: small models under their key names, fetched from a hub that runs here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from helpers.captioner import Captioner, load_checkpoint
from helpers.encoders import load_encoder
from helpers.files import CaptioningError
from helpers.language_models import load_language_model
from helpers.official import OFFICIAL, read_weights
from helpers.text import pad
from scripts.convert_clipcap import main
from tests.tiny_clips import save_clip
from tests.toy_language_models import save_family

D, W, P = 16, 16, 4  # the small CLIP's joint width, the small GPT-2's width, the prefix
CLIP, GPT2 = "openai/clip-vit-base-patch32", "openai-community/gpt2"
REPOSITORY, FILE = OFFICIAL["clipcap-coco"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A folder with the three repositories that `clipcap-coco` needs, in small."""
    root = tmp_path_factory.mktemp("hub")
    save_clip("clip", root / CLIP)
    save_family(root / GPT2)
    (root / REPOSITORY).mkdir(parents=True)
    torch.save(official(root / GPT2).state_dict(), root / REPOSITORY / FILE)
    return root


class Official(nn.Module):
    """A captioner of the authors' script: its names, and its forward pass in their words."""

    def __init__(self, language_model: nn.Module):
        super().__init__()
        self.gpt = language_model
        self.clip_project = nn.Module()
        self.clip_project.model = nn.Sequential(nn.Linear(D, P * W // 2), nn.Tanh(), nn.Linear(P * W // 2, P * W))

    def forward(self, vectors: Tensor, tokens: Tensor) -> Tensor:
        """Returns the logits [B, T + 1, V] that predict `tokens` [B, T] and what follows."""
        prefix = self.clip_project.model(vectors).view(-1, P, W)
        words = self.gpt.get_input_embeddings()(tokens)
        return self.gpt(inputs_embeds=torch.cat([prefix, words], 1)).logits[:, P - 1 :]


def official(gpt2: Path) -> Official:
    """Returns one with weights at random: its GPT-2 was tuned, so it is no longer the one of that name."""
    torch.manual_seed(0)
    language_model = AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32)
    with torch.no_grad():
        for parameter in language_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return Official(language_model).eval()


def as_published(state: dict, form: str) -> dict:
    """Returns the file's content in one of the forms in which such weights go round."""
    if form == "fp16":
        return {name: value.half() for name, value in state.items()}
    if form == "lightning":
        return {"epoch": 9, "state_dict": {f"model.{name}": value for name, value in state.items()}}
    if form == "old masks":
        masks = {f"gpt.transformer.h.{n}.attn.bias": torch.ones(1, 1, 96, 96).tril().bool() for n in range(2)}
        return state | masks | {"gpt.transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    return state


@pytest.mark.parametrize("form", ["plain", "fp16", "lightning", "old masks"])
@torch.no_grad()
def test_the_model_gives_the_official_logits(hub: Path, tmp_path: Path, form: str) -> None:
    reference = official(hub / GPT2)
    torch.save(as_published(reference.state_dict(), form), tmp_path / FILE)
    model = read_weights(tmp_path / FILE, f"clip:{hub / CLIP}", str(hub / GPT2))
    assert model.config["tune"] == "full" and model.config["prefix_length"] == P
    vectors = torch.randn(3, D) * 4
    tokens = pad([model.tokenizer.encode(c) for c in ("a red dog", "the cat that sits", "a bird")], 0)
    expected = reference(vectors, tokens)
    close = {"atol": 2e-2, "rtol": 1e-2} if form == "fp16" else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(model(vectors[:, None], tokens)[0], expected, **close)


def test_a_full_stop_ends_a_caption(hub: Path) -> None:
    model = read_weights(hub / REPOSITORY / FILE, f"clip:{hub / CLIP}", str(hub / GPT2))
    (stop,) = model.tokenizer.tokenizer.encode(".", add_special_tokens=False).ids
    assert model.end_id == stop != load_language_model(str(hub / GPT2))[1].end_id
    assert model.tokenizer.decode([*model.tokenizer.encode("a dog"), stop, *model.tokenizer.encode("cat")]) == "a dog"


def test_what_is_no_clipcap_is_refused_before_anything_is_written(hub: Path, tmp_path: Path, capsys) -> None:
    state = torch.load(hub / REPOSITORY / FILE, weights_only=True)
    cases = {
        "no ClipCap with an MLP mapper": {n: v for n, v in state.items() if n.startswith("gpt.")},
        "and its GPT-2": {n: v for n, v in state.items() if not n.startswith("gpt.")},
        "RN50x4": {**state, "clip_project.prefix_const": torch.zeros(2, 2)},
        "does not fit": {**state, "clip_project.model.0.bias": torch.zeros(3)},
        "does not fit.*gpt2": {n: v for n, v in state.items() if ".h.1." not in n},
    }
    encoder = f"clip:{hub / CLIP}"
    for message, weights in cases.items():
        torch.save(weights, tmp_path / "bad.pt")
        with pytest.raises(CaptioningError, match=f"(?s){message}"):
            read_weights(tmp_path / "bad.pt", encoder, str(hub / GPT2))
    command = [str(hub / REPOSITORY / FILE), str(tmp_path / "out"), "--language_model", str(hub / GPT2)]
    assert main([*command, "--encoder", "efficientnet-lite0"]) == 2
    assert "reads 16 numbers an image, and efficientnet-lite0 gives None" in capsys.readouterr().err
    for content, what in ((b"<!DOCTYPE html><html>", "a web page"), (b"version https://git-lfs.github.com", "Git LFS")):
        (tmp_path / "page.pt").write_bytes(content)
        assert main([str(tmp_path / "page.pt"), str(tmp_path / "out")]) == 2
        assert what in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_converts_a_file_of_ones_own(hub: Path, tmp_path: Path) -> None:
    encoder = f"clip:{hub / CLIP}"
    options = ["--encoder", encoder, "--language_model", str(hub / GPT2)]
    assert main([str(hub / REPOSITORY / FILE), str(tmp_path / "mine"), *options]) == 0
    _, config = load_checkpoint(tmp_path / "mine")
    assert config["name"] == "mine" and config["encoder"]["kind"] == "pooled"
    captioner, photo = Captioner.load(tmp_path / "mine"), Image.radial_gradient("L").convert("RGB")
    vector = load_encoder(encoder).encode([photo], "pooled")
    with torch.inference_mode():
        expected = official(hub / GPT2)(vector, torch.zeros(1, 0, dtype=torch.long))[0, -1].log_softmax(-1)
        first = captioner.model.start(vector[:, None]).log_probs[0]
    torch.testing.assert_close(first, expected, atol=5e-3, rtol=0)  # fp16 on disk


# --- By name


class Handler(BaseHTTPRequestHandler):
    """What the hub answers for the files in a folder: what a repository holds, and each of its files."""

    def __init__(self, *arguments, root: Path, asked: list[str]):
        self.root, self.asked = root, asked
        super().__init__(*arguments)

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/") and path.count("/") == 3:
            name = path.removeprefix("api/models/")
            files = sorted((self.root / name).glob("*"))
            about = {"id": name, "modelId": name, "sha": "c" * 40, "private": False, "tags": [], "downloads": 0}
            about["siblings"] = [{"rfilename": f.name, "size": f.stat().st_size} for f in files]
            return self.answer(json.dumps(about).encode())
        owner_name, _, file = path.partition("/resolve/main/") if "/resolve/main/" in path else path.partition(
            f"/resolve/{'c' * 40}/"
        )
        if file and (self.root / owner_name / file).is_file():
            return self.answer((self.root / owner_name / file).read_bytes())
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{len(content):040x}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def served(hub: Path):
    """The address of the hub, and what it was asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, root=hub, asked=asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def caption(samples: list[Path], place: Path, endpoint: str, root: Path) -> subprocess.CompletedProcess:
    """Captions a photo with `clipcap-coco` in a process of its own, whose caches are empty at first."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(place / "hf"), "CAPTIONING_CACHE": str(place / "cache")}
    command = [sys.executable, "generate_caption.py", "--model", "clipcap-coco", "--image_path", str(samples[0])]
    environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)


def test_one_name_fetches_everything_once(hub: Path, served, samples, tmp_path: Path, root: Path) -> None:
    endpoint, asked = served
    result = caption(samples, tmp_path, endpoint, root)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{samples[0]}\t")
    for text in ("MIT", f"{REPOSITORY}/{FILE}: ", f"{CLIP}/model.safetensors: ", f"{GPT2}/model.safetensors: "):
        assert text in result.stderr
    fetched = [line for line in asked if line.startswith("GET") and FILE in line]
    assert len(fetched) == 1
    again = caption(samples, tmp_path, endpoint, root)
    assert again.stdout == result.stdout and "fetched once" not in again.stderr
    assert [line for line in asked if line.startswith("GET") and FILE in line] == fetched


def test_without_a_network_one_line_says_what_is_missing(samples, tmp_path: Path, root: Path) -> None:
    result = caption(samples, tmp_path, "http://127.0.0.1:9", root)
    assert result.returncode == 2 and result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    for text in (FILE, REPOSITORY, str(tmp_path / "cache" / "official"), CLIP, GPT2):
        assert text in last


def test_a_file_put_there_by_hand_is_used(hub: Path, served, samples, tmp_path: Path, root: Path) -> None:
    endpoint, asked = served
    (tmp_path / "cache" / "official").mkdir(parents=True)
    (tmp_path / "cache" / "official" / FILE).write_bytes((hub / REPOSITORY / FILE).read_bytes())
    result = caption(samples, tmp_path, endpoint, root)
    assert result.returncode == 0, result.stderr
    assert not [line for line in asked if FILE in line]
