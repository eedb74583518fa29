"""generate_caption.py: what it prints, its exit status, and that it starts fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import generate_caption
from helpers.captioner import Caption, available
from helpers.files import CaptioningError

HEAVY = ("pandas", "nltk", "matplotlib", "transformers", "streamlit", "pycocoevalcap", "scipy", "sklearn", "accelerate")


class StandIn:
    """Answers for a captioner and remembers what it was asked."""

    calls: list = []

    @classmethod
    def load(cls, name, device="cpu"):
        if name == "no-such-model":
            raise CaptioningError("Unknown model 'no-such-model'. Known: stand-in.")
        cls.calls = [("load", name, device)]
        return cls()

    def caption(self, images, **options):
        self.calls.append((len(images), options))
        if "prompt" in options:
            raise CaptioningError("stand-in takes no prompt.")
        return [self.answer(str(image), f"a photo\nof {len(images)}") for image in images]

    @staticmethod
    def answer(name: str, caption: str) -> Caption:
        if "bad" in name:
            return Caption(name, None, None, "stand-in", error=f"{name} is not an image.")
        return Caption(name, caption, -1.5, "stand-in", [("a second one", -2.5)])


@pytest.fixture
def stand_in(monkeypatch) -> type[StandIn]:
    monkeypatch.setattr("helpers.captioner.Captioner", StandIn)
    StandIn.calls = []
    return StandIn


def test_a_line_a_photo(stand_in, capsys) -> None:
    assert generate_caption.main(["--image_path", "one.jpg", "two.jpg"]) == 0
    assert capsys.readouterr().out == "one.jpg\ta photo of 2\ntwo.jpg\ta photo of 2\n"
    assert stand_in.calls[0][:2] == ("load", None)  # which is the default


def test_json_lines(stand_in, capsys) -> None:
    assert generate_caption.main(["--image_path", "one.jpg", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "image": "one.jpg", "caption": "a photo\nof 1", "log_prob": -1.5, "model": "stand-in",
        "alternatives": [{"caption": "a second one", "log_prob": -2.5}],
    }  # fmt: skip


def test_bad_images_are_named_and_the_others_printed(stand_in, capsys) -> None:
    assert generate_caption.main(["--image_path", "one.jpg", "bad.jpg", "two.jpg"]) == 1
    output = capsys.readouterr()
    assert [row.split("\t")[0] for row in output.out.splitlines()] == ["one.jpg", "two.jpg"]
    assert output.err == "bad.jpg is not an image.\n1 of 3 images got no caption.\n"


def test_a_folder_stands_for_its_images(stand_in, samples, capsys) -> None:
    assert generate_caption.main(["--image_path", str(samples[0].parent)]) == 0
    assert [row.split("\t")[0] for row in capsys.readouterr().out.splitlines()] == [str(path) for path in samples]


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ([], {}),
        (["--beam_size", "3", "--length_penalty", "0.5"], {"beam_size": 3, "length_penalty": 0.5}),
        (["--beam_size", "1"], {"method": "greedy"}),
        (["--top_p", "0.9"], {"method": "sample", "top_p": 0.9}),
        (["--top_k", "5", "--temperature", "0.7"], {"method": "sample", "top_k": 5, "temperature": 0.7}),
        (["--repetition_penalty", "1.2", "--max_length", "9"], {"repetition_penalty": 1.2, "max_length": 9}),
    ],
)
def test_options_reach_the_captioner(stand_in, capsys, given, asked) -> None:
    assert generate_caption.main(["--image_path", "one.jpg", *given]) == 0
    assert stand_in.calls[1] == (1, asked)


def test_the_model_can_be_a_name_or_a_folder(stand_in, capsys) -> None:
    generate_caption.main(["--image_path", "one.jpg", "--model", "cnn-lstm", "--device", "cpu"])
    assert stand_in.calls[0] == ("load", "cnn-lstm", "cpu")
    generate_caption.main(["--image_path", "one.jpg", "--checkpoint", "runs/mine"])
    assert stand_in.calls[0] == ("load", "runs/mine", "cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--image_path"),
        (["--image_path"], "--image_path"),
        (["--image_path", "a.jpg", "--beam_size", "0"], "at least 1, not '0'"),
        (["--image_path", "a.jpg", "--beam_size", "two"], "an integer at least 1, not 'two'"),
        (["--image_path", "a.jpg", "--top_p", "1.5"], "at most 1"),
        (["--image_path", "a.jpg", "--temperature", "0"], "above 0"),
        (["--image_path", "a.jpg", "--temperature", "nan"], "above 0"),
        (["--image_path", "a.jpg", "--beam_size", "3", "--top_k", "2"], "draw one: choose"),
        (["--image_path", "a.jpg", "--model", "a", "--checkpoint", "b"], "not allowed with"),
        (["--image_path", "a.jpg", "--beams", "3"], "unrecognized"),
    ],
)
def test_wrong_usage_exits_with_2(capsys, arguments, message) -> None:
    with pytest.raises(SystemExit) as exit_status:
        generate_caption.main(arguments)
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--model", "no-such-model"], ["--prompt", "a dog"], ["--device", "gpu"]])
def test_what_the_model_refuses_exits_with_2(stand_in, capsys, given) -> None:
    assert generate_caption.main(["--image_path", "one.jpg", *given]) == 2
    output = capsys.readouterr()
    assert output.out == "" and ("stand-in" in output.err or "'gpu' cannot be used" in output.err)
    assert "Traceback" not in output.err


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the real command in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=root, timeout=120, encoding="utf-8"
    )


def test_help_and_wrong_usage_import_nothing_heavy(root: Path) -> None:
    code = "import sys, generate_caption as g\ntry: g.main(['--help'])\nexcept SystemExit: pass\n"
    result = command(root, "-c", code + "print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))")
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def shipped() -> list[str]:
    """The names of the captioners in data/checkpoints/."""
    return available() or pytest.skip("data/checkpoints/ holds no captioner yet")


def test_every_shipped_captioner_captions_real_photos(root: Path, samples, shipped, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(samples[0].read_bytes()[:2000])
    for name in shipped:
        photos = [str(broken), *map(str, samples)]
        result = command(root, "generate_caption.py", "--model", name, "--json", "--image_path", *photos)
        assert result.returncode == 1, result.stderr
        assert "broken.jpg" in result.stderr and "Traceback" not in result.stderr
        records = [json.loads(row) for row in result.stdout.splitlines()]
        assert [(record["image"], record["model"]) for record in records] == [(photo, name) for photo in photos[1:]]
        assert all(record["log_prob"] < 0 and record["alternatives"] for record in records)
        assert all(3 <= len(record["caption"].split()) <= 24 for record in records)
        different = {record["caption"] for record in records}
        assert len(different) > len(samples) // 2, f"{name} says the same of different photos"
