"""An encoder's tail that learns with its captioner: what moves, what it is good for, how it is kept and checked."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.captioner import Captioner, load_checkpoint
from helpers.cnn_lstm import ShowAndTell
from helpers.decoding import decode
from helpers.encoders import FILE, TailAndCaptioner, load_encoder, read_stem
from helpers.features import Features
from helpers.files import ROOT, CaptioningError, read_json, sha256_file
from helpers.loop import make_accelerator, parameter_groups, stage_settings
from helpers.text import Vocabulary
from helpers.training import Run, check, fine_tuning, run_stage, train
from helpers.trunks import WIDTH, LiteTrunk
from tests.toy_captioners import QUICK
from tests.toy_language_models import save_family

SIZE, CHANNELS = 64, 112  # pixels a side; channels of Lite0's stem
WORDS = {"a.jpg": ["a red dog"], "b.jpg": ["a blue dog"]}
HIDDEN = slice(0, 56)  # channels of the stem that the tail, as it begins, does not look at


@pytest.fixture(scope="module")
def trunk() -> LiteTrunk:
    """Lite0 at 64 pixels, its tail blind to a few channels of the stem."""
    trunk = LiteTrunk(0, SIZE).eval()
    with torch.no_grad():
        trunk.net._blocks[trunk.cut]._expand_conv.weight[:, HIDDEN] = 0.0
    return trunk


def stems(seed: int = 0) -> Features:
    """Two pictures that differ in the hidden channels alone."""
    array = np.repeat(np.random.default_rng(seed).normal(0, 1, (1, 4, 4, CHANNELS)), 2, 0).astype(np.float32)
    array[0, ..., HIDDEN] += 3
    array[1, ..., HIDDEN] -= 3
    return Features(list(WORDS), array)


def small_run(folder: Path, trunk: LiteTrunk, seed: int = 0, drop_path: float = 0.0) -> Run:
    torch.manual_seed(seed)
    words = Vocabulary.build([c for group in WORDS.values() for c in group], min_count=1)
    captioner = ShowAndTell(len(words), WIDTH, embedding=8, hidden=16, dropout=0.0)
    captioner.tokenizer, captioner.end_id = words, words.end_id
    model = TailAndCaptioner(copy.deepcopy(trunk), captioner, drop_path=drop_path)
    return Run(model, WORDS, WORDS, [stems(), stems(1)], folder, seed)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: dict, module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


# -- learning -----------------------------------------------------------------------------------------------------

STAGE = {**QUICK, "schedule": "constant", "learning_rate": 0.02, "weight_decay": 0.0}


def learn(run: Run, stage: dict, number: int = 1, callback=None) -> list[dict]:
    """A stage in fp32 on every machine."""
    return run_stage(run, stage, number, make_accelerator("no"), callback)


def test_the_tail_learns_and_the_stem_and_batch_norm_do_not(trunk, tmp_path) -> None:
    run = small_run(tmp_path, trunk)
    before, tail = state(run.model.trunk), set(trunk.tail_parameters())
    learn(run, {**STAGE, "objective": "cross_entropy"})
    learn(run, {**STAGE, "objective": "self_critical", "samples": 3}, 2)
    assert moved(before, run.model.trunk) == tail
    assert not any("running" in name or "num_batches" in name for name in tail)
    assert {name.split(".")[2] for name in tail if "_blocks" in name} == {str(n) for n in range(trunk.cut, 16)}
    run.model.train()
    assert not any(m.training for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert run.model.trunk.training and run.model.captioner.training


def test_the_tail_has_its_own_rate(trunk, tmp_path) -> None:
    """AdamW's first step moves every weight by the learning rate, whatever the size of its gradient."""
    run = small_run(tmp_path, trunk)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    learn(run, {**STAGE, "epochs": 1, "encoder_rate": 0.05})
    steps = {name: (value - before[name]).abs().max().item() for name, value in run.model.named_parameters()}
    tail = [step for name, step in steps.items() if name.startswith("trunk") and step]
    assert max(tail) == pytest.approx(0.05 * 0.02, rel=0.02)
    assert max(step for name, step in steps.items() if name.startswith("captioner")) == pytest.approx(0.02, rel=0.02)


def test_biases_of_the_tail_do_not_decay_and_a_plain_model_has_no_more_groups(trunk, tmp_path) -> None:
    model = small_run(tmp_path, trunk).model
    groups = parameter_groups(model, 0.1, 0.3)
    assert [(g["weight_decay"], g["factor"]) for g in groups] == [(0.1, 1.0), (0.0, 1.0), (0.1, 0.3), (0.0, 0.3)]
    assert sum(len(g["params"]) for g in groups[2:]) == len(trunk.tail_parameters())
    assert len(parameter_groups(model.captioner, 0.1)) == 2


def test_a_rate_of_0_leaves_the_encoder_as_it_was(trunk, tmp_path) -> None:
    run = small_run(tmp_path, trunk)
    before = state(run.model)
    learn(run, {**STAGE, "encoder_rate": 0})
    assert all(name.startswith("captioner") for name in moved(before, run.model))
    assert moved(before, run.model)


def test_what_a_frozen_encoder_cannot_see_a_tuned_one_learns_to_see(trunk, tmp_path) -> None:
    """The two pictures have the same features, so the one word that differs costs a frozen encoder log 2 a caption:
    a quarter of that a token (a, colour, dog, end). A tuned one learns to look at what it was blind to."""
    assert torch.equal(*trunk.tail(stems()[list(WORDS)]).unbind(0))
    long = {**STAGE, "epochs": 60, "choose_by": "dev_loss", "learning_rate": 0.03, "encoder_rate": 0.01}
    floor = math.log(2) / 4
    frozen = learn(small_run(tmp_path / "frozen", trunk), {**long, "encoder_rate": 0})
    run = small_run(tmp_path / "tuned", trunk)
    tuned = learn(run, long)
    assert min(row["dev_loss"] for row in frozen) >= floor * 0.999
    assert min(row["dev_loss"] for row in tuned) < floor / 5
    said = decode(run.model, stems()[list(WORDS)], "greedy", max_length=6)
    assert [run.model.tokenizer.decode(group[0].tokens) for group in said] == ["a red dog", "a blue dog"]


def test_the_model_is_the_captioner_behind_its_tail(trunk, tmp_path) -> None:
    for kind, regions in (("grid", 4), ("pooled", 1)):
        model = small_run(tmp_path, trunk).model.eval()
        model.kind = kind
        with torch.no_grad():
            grid = read_stem(model.trunk, stems()[list(WORDS)], kind)
            assert grid.shape == (2, regions, WIDTH)
            one, other = (decode(m, f, "beam") for m, f in ((model, stems()[list(WORDS)]), (model.captioner, grid)))
        assert [[h.tokens for h in group] for group in one] == [[h.tokens for h in group] for group in other]
        assert [[h.log_prob for h in group] for group in one] == [[h.log_prob for h in group] for group in other]


def test_blocks_are_left_out_in_training_alone(trunk, tmp_path) -> None:
    model, stem = small_run(tmp_path, trunk, drop_path=0.5).model, stems()[list(WORDS)]
    assert not torch.equal(model.train().trunk.tail(stem), model.trunk.tail(stem))
    assert torch.equal(model.eval().trunk.tail(stem), trunk.tail(stem))


class Killed(BaseException):
    pass


def test_a_killed_run_ends_as_one_that_never_was(trunk, tmp_path) -> None:
    stage = {**STAGE, "epochs": 4, "average": 0.9, "weight_decay": 0.1}
    whole = small_run(tmp_path / "whole", trunk, drop_path=0.3)
    expected = learn(whole, stage)

    def kill(row: dict) -> None:
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        learn(small_run(tmp_path / "killed", trunk, drop_path=0.3), stage, callback=kill)
    torch.manual_seed(99)
    resumed = small_run(tmp_path / "killed", LiteTrunk(0, SIZE, pretrained=False), seed=0, drop_path=0.3)
    history = learn(resumed, stage)
    assert [r | {"seconds": 0} for r in history] == [r | {"seconds": 0} for r in expected]
    assert not moved(state(whole.model), resumed.model)


# -- from a configuration to a captioner --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a few photos of noise, in train and dev, and a language model."""
    place, noise = tmp_path_factory.mktemp("tuned"), np.random.default_rng(0)
    (place / "photos").mkdir()
    lines = ["image,caption,split"]
    for number in range(10):
        tint = np.array([255, 90, 0] if number % 2 else [0, 90, 255])
        small = noise.integers(0, 255, (6, 6, 3)) // 2 + tint // 2
        Image.fromarray(small.astype(np.uint8)).resize((80, 60)).save(place / "photos" / f"{number}.png")
        text = "a red wall" if number % 2 else "the sea is blue"
        lines += [f"{number}.png,{text},{'dev' if number > 7 else 'train'}"]
    (place / "photos" / "captions.csv").write_text("\n".join(lines))
    save_family(place / "gpt2")
    return place


def configuration(place: Path, output: Path, **changes) -> dict:
    model = {"class": "ShowAttendTell", "embedding": 8, "hidden": 16, "attention": 8, "value": 8, "dropout": 0.0}
    stage = {**QUICK, "epochs": 2, "images_per_batch": 4, "learning_rate": 0.003}
    return {
        "name": "tuned", "dataset": {"name": "folder", "data_dir": str(place / "photos")}, "flip": True,
        "encoder": "efficientnet-lite0", "tune_encoder": True, "model": model, "vocabulary": {"min_count": 1},
        "stages": [stage], "decoding": {"beam_size": 2, "max_length": 6}, "mixed_precision": "no",
        "output": str(output), **changes,
    }  # fmt: skip


SLOW = {**QUICK, "learning_rate": 0.003}
KINDS = {
    "ShowAttendTell": {"stages": [SLOW, {**SLOW, "epochs": 1, "objective": "self_critical", "samples": 2}]},
    "ShowAndTell": {"features": "pooled", "model": {"class": "ShowAndTell", "embedding": 8, "hidden": 16}},
    "ClipCap": {"model": {"class": "ClipCap", "regions": 49, "mapper_options": {"hidden": 16}}},
    "PocketCLIP": {"encoder": "pocket-clip", "features": "pooled",
                   "model": {"class": "ShowAndTell", "embedding": 8, "hidden": 16}},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_captioner_says_what_the_trained_one_said(kind, place, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(place / "cache"))
    config = configuration(place, tmp_path, **copy.deepcopy(KINDS[kind]))
    if kind == "ClipCap":
        config["model"]["language_model"] = str(place / "gpt2")
        del config["vocabulary"]
    first = load_encoder(config["encoder"]).fingerprint
    run = train(config)
    assert load_encoder(config["encoder"]).fingerprint == first  # others of this process see the encoder as it was
    assert len(run.views) == 2 and not np.array_equal(run.views[0].array, run.views[1].array)  # mirror images
    base = load_encoder(config["encoder"])
    model = run.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())  # as they are saved
        for name, value in model.captioner.named_buffers():
            value.copy_(value.half()) if value.is_floating_point() and "standardise" in name else None
    photos = sorted((place / "photos").glob("*.png"))
    with base.full_precision():
        stem = base.encode([Image.open(photo).convert("RGB") for photo in photos], "stem")
    groups = decode(model, stem, **{"method": "beam", **config["decoding"]})
    captioner = Captioner.load(tmp_path)
    captions = captioner.caption(photos)
    assert [c.caption for c in captions] == [model.tokenizer.decode(g[0].tokens) for g in groups]
    assert [c.log_prob for c in captions] == pytest.approx([g[0].log_prob for g in groups], abs=2e-4)
    tail = base.module.tail_parameters()
    assert load_file(tmp_path / FILE).keys() == tail.keys()
    assert captioner.encoder.fingerprint == read_json(tmp_path / "config.json")["encoder"]["fingerprint"]
    assert captioner.encoder.fingerprint != first == load_encoder(config["encoder"]).fingerprint
    for lost in ("embedding", "labels"):
        with pytest.raises(CaptioningError):
            captioner.encoder.features(torch.zeros(1, 3, 224, 224, dtype=torch.uint8), lost)


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPTIONING_CACHE", str(place / "cache"))
        output = tmp_path_factory.mktemp("trained") / "run"
        train(configuration(place, output))
    return output


@pytest.fixture
def again(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "again"))


def test_what_a_tail_changes_can_be_seen_in_the_features(trained, place) -> None:
    pixels = torch.stack([load_encoder("efficientnet-lite0").prepare(Image.open(place / "photos" / "1.png"))])
    tuned, plain = Captioner.load(trained).encoder, load_encoder("efficientnet-lite0")
    assert torch.equal(tuned.features(pixels, "stem"), plain.features(pixels, "stem"))
    assert (tuned.features(pixels, "grid") - plain.features(pixels, "grid")).abs().max() > 0.05


def edit(folder: Path, change) -> None:
    config = read_json(folder / "config.json")
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, change) -> None:
    """Changes the tail and, as a stranger could, its hash."""
    weights = load_file(folder / FILE)
    change(weights)
    save_file(weights, folder / FILE)
    edit(folder, lambda config: config["sha256"].update({FILE: sha256_file(folder / FILE)}))


HEAD = "net._conv_head.weight"


def test_a_missing_swapped_or_foreign_tail_is_refused(again) -> None:
    whole = (again / FILE).read_bytes()
    (again / FILE).unlink()
    with pytest.raises(CaptioningError, match=f"{FILE} is missing"):
        load_checkpoint(again)
    (again / FILE).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CaptioningError, match=rf"{FILE}.*SHA-256 differs"):
        load_checkpoint(again)
    (again / FILE).write_bytes(whole)
    rewrite(again, lambda weights: weights[HEAD].mul_(2))  # the hash fits, the encoder's fingerprint does not
    with pytest.raises(CaptioningError, match="another version of the encoder"):
        Captioner.load(again)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop(HEAD),
        lambda weights: weights.update({HEAD: weights[HEAD][:1].clone()}),
        lambda weights: weights.update({"net._conv_stem.weight": torch.zeros(32, 3, 3, 3)}),
        lambda weights: weights.update({"net._bn1.running_mean": torch.zeros(1280)}),
    ],
    ids=["lost", "other shape", "a stem", "statistics"],
)
def test_a_tail_that_does_not_fit_is_refused(change, again) -> None:
    rewrite(again, change)
    with pytest.raises(CaptioningError, match="not those of a tail of efficientnet-lite0"):
        Captioner.load(again)


def test_other_tricks_with_the_tail_are_refused(again) -> None:
    (again / FILE).write_bytes(b"no tensors")
    edit(again, lambda config: config["sha256"].update({FILE: sha256_file(again / FILE)}))
    with pytest.raises(CaptioningError, match="cannot be read"):
        Captioner.load(again)
    edit(again, lambda config: config["sha256"].pop(FILE))  # then it would be the captioner of another encoder
    with pytest.raises(CaptioningError, match="another version of the encoder"):
        Captioner.load(again)


def test_a_training_goes_on_from_a_tuned_checkpoint(trained, place, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(place / "cache"))
    dataset = {"name": "folder", "data_dir": str(place / "photos")}
    config = fine_tuning(trained, dataset, tmp_path / "more", min_count=1, epochs=1, encoder_rate=0)
    assert config["tune_encoder"] is True and check(config) is None
    train(config)
    old, new = (load_file(folder / FILE) for folder in (trained, tmp_path / "more"))
    assert all(torch.equal(old[name], new[name]) for name in old)  # it began with that tail, and left it alone
    with pytest.raises(CaptioningError, match="Set tune_encoder to true"):
        train({**config, "tune_encoder": False, "output": str(tmp_path / "other")})


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet50"}, "resnet50 cannot be tuned.*efficientnet-lite0"),
        ({"encoder": "vgg16"}, "vgg16 cannot be tuned"),
        ({"encoder": "clip:ViT-B/32"}, "helpers.pretraining"),
        ({"encoder": "hf-clip:openai/clip-vit-base-patch32"}, "cannot be tuned"),
        ({"crops": 2}, "set crops to 0"),
        ({"features": "embedding"}, "'grid' or 'pooled', not embedding"),
        ({"tune_encoder": "yes"}, "true, false or an object"),
        ({"tune_encoder": {"drop_pth": 0.1}}, "Did you mean 'drop_path'"),
        ({"tune_encoder": {"drop_path": 1}}, "from 0 to below 1"),
        ({"tune_encoder": {"drop_path": True}}, "from 0 to below 1"),
        ({"encoder": "pocket-clip", "decoding": {"clip_weight": 4.0}}, "set clip_weight to 0"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_at_once(changes, message) -> None:
    config = configuration(Path("nowhere"), Path("nowhere"))
    check(config)
    with pytest.raises(CaptioningError, match=message):
        check({**config, **changes})
    if "tune_encoder" not in changes and "features" not in changes:
        check({**config, **changes, "tune_encoder": False})


def test_the_example_configuration_is_right() -> None:
    config = read_json(ROOT / "configs" / "cnn-lstm-attention-tuned.json")
    check(config)
    rates = [stage_settings(stage)["encoder_rate"] for stage in config["stages"]]
    assert config["tune_encoder"] and rates[0] == 0 < min(rates[1:])  # first it learns to speak
