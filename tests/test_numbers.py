"""Numbers stay honest: what explodes or overflows stops or is skipped, and precision changes no caption."""

from __future__ import annotations

import contextlib

import pytest
import torch
from accelerate import Accelerator

from helpers.captioner import Captioner, available
from helpers.files import CaptioningError
from helpers.loop import load_state, make_accelerator
from helpers.losses import CrossEntropy
from helpers.training import run_stage
from tests.toy_captioners import QUICK, small_model, small_run, world


def spoil_after(epochs: int, spoil) -> object:
    """A callback that calls `spoil` when so many epochs are done."""
    done = []

    def callback(row: dict) -> None:
        done.append(row)
        if len(done) == epochs:
            spoil()

    return callback


def assert_names_everything(message: str, folder) -> None:
    assert "step 7 (epoch 3)" in message and f"{folder / 'stage1-last.safetensors'}" in message
    assert any(image in message for image in world("t")) and "before the weights were changed" in message
    model = small_model()
    load_state(folder / "stage1-last.safetensors", model)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_loss_that_is_no_number_stops(tmp_path) -> None:
    run = small_run(tmp_path)

    def spoil() -> None:
        with torch.no_grad():
            run.model.output.weight.mul_(float("inf"))

    with pytest.raises(CaptioningError, match="The loss is nan") as caught:
        run_stage(run, {**QUICK, "epochs": 4}, callback=spoil_after(2, spoil))
    assert_names_everything(str(caught.value), tmp_path)


def test_a_gradient_that_is_no_number_stops_before_the_step(tmp_path, monkeypatch) -> None:
    run, original, spoilt = small_run(tmp_path), CrossEntropy.__call__, []

    def objective(self, model, batch):
        loss, tokens, figures = original(self, model, batch)
        if spoilt and model.training:
            loss = loss + (run.model.output.weight.sum() * 0).sqrt()  # the value is 0, the slope infinite
        return loss, tokens, figures

    monkeypatch.setattr(CrossEntropy, "__call__", objective)
    with pytest.raises(CaptioningError, match="The loss is a number, but its gradient is nan") as caught:
        run_stage(run, {**QUICK, "epochs": 4}, callback=spoil_after(2, lambda: spoilt.append(1)))
    assert_names_everything(str(caught.value), tmp_path)
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())


# -- fp16 ---------------------------------------------------------------------------------------------------------


class Half(Accelerator):
    """fp16's loss scaling, by PyTorch's own GradScaler, on a processor without a GPU; the products stay in fp32."""

    mixed_precision = "fp16"

    def __init__(self) -> None:
        make_accelerator("no")  # whatever a test before has left
        super().__init__(mixed_precision="no")
        self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def autocast(self, *args, **kwargs):
        return contextlib.nullcontext()


def overflowing(run, steps: range) -> None:
    """Makes the gradients of these backward passes infinite, as too large a scale does."""
    count = iter(range(10**9))
    run.model.output.weight.register_hook(lambda g: g * float("inf") if next(count) in steps else g)


def test_an_overflow_is_skipped_and_the_scale_lowered(tmp_path) -> None:
    run, half = small_run(tmp_path), Half()
    overflowing(run, range(2))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    history = run_stage(run, {**QUICK, "epochs": 4}, accelerator=half)
    assert half.scaler.get_scale() == 2.0**14 and len(history) == 4
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    after = run.model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not torch.equal(before["output.weight"], after["output.weight"])


def test_a_resumed_run_goes_on_with_the_same_scale(tmp_path) -> None:
    whole, half = small_run(tmp_path / "whole"), Half()
    overflowing(whole, range(2))
    expected = run_stage(whole, QUICK, accelerator=half)

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    broken = small_run(tmp_path / "broken")
    overflowing(broken, range(2))
    with pytest.raises(Killed):
        run_stage(broken, QUICK, accelerator=Half(), callback=spoil_after(1, kill))
    resumed, again = small_run(tmp_path / "broken"), Half()
    history = run_stage(resumed, QUICK, accelerator=again)
    assert again.scaler.state_dict() == half.scaler.state_dict()
    assert [row["dev_loss"] for row in history] == [row["dev_loss"] for row in expected]
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_endless_overflow_stops(tmp_path) -> None:
    run = small_run(tmp_path)
    overflowing(run, range(10**6))
    with pytest.raises(CaptioningError, match="The loss is a number, but its gradient is"):
        run_stage(run, {**QUICK, "epochs": 30}, accelerator=Half())


def test_a_precision_that_cannot_be_used_is_named() -> None:
    with pytest.raises(CaptioningError, match="mixed_precision 'fp12' cannot be used here"):
        make_accelerator("fp12")
    assert make_accelerator("no").mixed_precision == "no"  # and the next one is not spoilt


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_fp16_without_a_gpu_is_refused() -> None:
    with pytest.raises(CaptioningError, match="mixed_precision 'fp16' cannot be used here"):
        make_accelerator("fp16")


# -- another precision, another device ----------------------------------------------------------------------------


# Half precision keeps 11 bits of every product (fp16) or 8 (bf16), so where two captions are nearly tied, the other may
# come first. For how many of the 14 sample photos the caption has to be the same, and by how much its log-probability
# may differ, per token. One more is the same where this was measured.
PRECISIONS = {torch.float16: (13, 0.001), torch.bfloat16: (13, 0.005)}
NEARLY_TIED = {("clipcap-transformer", torch.float16): 12, ("cnn-lstm-attention", torch.bfloat16): 12}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", available())
def test_a_shipped_captioner_says_the_same_in_another_precision(name, dtype, samples) -> None:
    """With its own decoding, where the first of nearly tied candidates may change places."""
    least, tolerance = PRECISIONS[dtype]
    captioner = Captioner.load(name)
    expected = captioner.caption(samples)
    captioner.model.to(dtype)
    found = captioner.caption(samples)
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if a.caption == b.caption]
    assert len(samples) == 14 and len(pairs) >= NEARLY_TIED.get((name, dtype), least)
    for a, b in pairs:
        assert abs(a.log_prob - b.log_prob) <= tolerance * len(a.words), a.caption


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", available())
def test_a_shipped_captioner_says_the_same_on_a_gpu(name, samples) -> None:
    one, other = (Captioner.load(name, device).caption(list(samples)) for device in ("cpu", "cuda"))
    assert sum(a.caption == b.caption for a, b in zip(one, other, strict=True)) >= len(samples) - 1
