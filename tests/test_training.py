"""The training loop and its parts: batches, objectives, averages, saved states, resuming."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from torch.nn import functional as F

from helpers import loop, training
from helpers.decoding import decode
from helpers.files import CaptioningError
from helpers.loop import Average, load_state, make_accelerator, parameter_groups, save_state
from helpers.losses import CrossEntropy
from helpers.metrics import evaluate
from helpers.text import IGNORE, START, CaptionBatches
from helpers.training import check, run_stage, stage_settings
from tests.toy_captioners import MEANINGS, MODELS, QUICK, features, small_model, small_run, vocabulary, world

both_models = pytest.mark.parametrize("name", list(MODELS))


def batches(**options) -> CaptionBatches:
    words = vocabulary()
    settings = {"start_id": START, "end_id": words.end_id, "images_per_batch": 9, "captions_per_image": 2, **options}
    return CaptionBatches(world("t"), [features("t")], words, **settings)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_time(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# -- batches ------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_once_with_its_own_captions() -> None:
    data, words, seen = batches(), vocabulary(), []
    for batch in data.epoch(0):
        seen += batch.images
        assert batch.features.shape == (9, 4, 9) and batch.features.dtype == torch.float32
        for number, row in enumerate(batch.row.tolist()):
            caption = words.decode(batch.labels[number][batch.labels[number] != IGNORE].tolist())
            assert caption in [words.decode(words.encode(c)) for c in world("t")[batch.images[row]]]
            assert batch.inputs[number, 0] == START
        assert torch.equal(batch.features, features("t")[batch.images])
        assert batch.share == 1.0
    assert sorted(seen) == sorted(world("t"))


def test_epochs_differ_and_repeat_themselves() -> None:
    def order(seed: int, epoch: int) -> list[str]:
        return [image for batch in batches(seed=seed).epoch(epoch) for image in batch.images]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4) and order(0, 3) != order(1, 3)


def test_the_incomplete_batch_is_dropped_unless_it_is_the_only_one() -> None:
    assert [len(b.images) for b in batches(images_per_batch=10).epoch(0)] == [10, 10]
    assert [len(b.images) for b in batches(images_per_batch=40).epoch(0)] == [27]
    assert sum(len(b.images) for b in batches(images_per_batch=10).in_order()) == 27


def test_two_processes_share_a_batch_without_overlap() -> None:
    whole = list(batches().epoch(0))
    halves = [list(batches(process=(number, 2)).epoch(0)) for number in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert sorted(first.images + second.images) == sorted(batch.images)
        assert first.tokens + second.tokens == batch.tokens
        assert (first.share + second.share) / 2 == pytest.approx(1.0)
        assert first.share == pytest.approx(2 * first.tokens / batch.tokens)


def test_long_captions_are_cut_and_still_end() -> None:
    batch = next(batches(max_tokens=2).epoch(0))
    assert batch.labels.shape[1] == 3 and (batch.labels[:, 2] == 2).all()


def test_features_of_other_images_are_refused() -> None:
    with pytest.raises(CaptioningError, match="do split and cache belong together"):
        CaptionBatches(world("x"), [features("t")], vocabulary(), start_id=START, end_id=2)


# -- objectives ---------------------------------------------------------------------------------------------------


@both_models
def test_the_loss_by_hand_and_padding_that_changes_nothing(name: str) -> None:
    model, batch = small_model(name), next(batches().epoch(0))
    loss, tokens, _ = CrossEntropy()(model, batch)
    log_probs = model(batch.features, batch.inputs, batch.row)[0].log_softmax(-1)
    places = [(n, t, label) for n, row in enumerate(batch.labels.tolist()) for t, label in enumerate(row)]
    by_hand = -sum(log_probs[place] for place in places if place[2] != IGNORE)
    assert tokens == batch.tokens and loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    batch.inputs, batch.labels = F.pad(batch.inputs, (0, 4)), F.pad(batch.labels, (0, 4), value=IGNORE)
    padded, still, _ = CrossEntropy()(model, batch)
    assert still == tokens and padded.item() == pytest.approx(loss.item(), rel=1e-6)


def test_padding_gets_no_share_of_the_attention_term() -> None:
    model, batch = small_model("ShowAttendTell", doubly_stochastic=5.0), next(batches().epoch(0))
    plain = CrossEntropy()(small_model("ShowAttendTell"), batch)[0]
    loss = CrossEntropy()(model, batch)[0]
    batch.inputs, batch.labels = F.pad(batch.inputs, (0, 4)), F.pad(batch.labels, (0, 4), value=IGNORE)
    assert loss > plain and CrossEntropy()(model, batch)[0].item() == pytest.approx(loss.item(), rel=1e-5)


def test_label_smoothing_by_hand() -> None:
    model, batch = small_model(), next(batches().epoch(0))
    log_probs = model(batch.features, batch.inputs, batch.row)[0].log_softmax(-1)
    mask = batch.labels != IGNORE
    true = log_probs.gather(-1, batch.labels.clamp(min=0)[..., None])[..., 0]
    expected = -((0.9 * true + 0.1 * log_probs.mean(-1)) * mask).sum()
    assert CrossEntropy(label_smoothing=0.1)(model, batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)


class Spy(torch.nn.Module):
    """Says the next number after every word it reads, and keeps what it was given to read."""

    start_id = START

    def __init__(self, size: int = 20):
        super().__init__()
        self.size, self.read = size, []

    def forward(self, features, tokens, row):
        self.read.append(tokens.clone())
        return F.one_hot((tokens + 1) % self.size, self.size).float() * 9, tokens.new_zeros(*tokens.shape, 0).float()

    def extra_loss(self, attention, mask):
        return torch.zeros(())


LONGER = {**QUICK, "epochs": 8, "images_per_batch": 3, "learning_rate": 0.05}


# -- learning -----------------------------------------------------------------------------------------------------


@both_models
def test_four_images_are_learnt_by_heart(name: str) -> None:
    meanings = [MEANINGS[i] for i in (0, 5, 13, 26)]
    references = {image: group[:1] for image, group in world("t", meanings).items()}
    words, model = vocabulary(), small_model(name)
    data = CaptionBatches(references, [features("t", meanings)], words, start_id=START, end_id=words.end_id)
    optimizer = torch.optim.AdamW(parameter_groups(model.train(), 0.0), lr=0.03)
    batch = next(data.epoch(0))
    for _ in range(120):
        loss, tokens, _ = CrossEntropy()(model, batch)
        optimizer.zero_grad()
        (loss / tokens).backward()
        optimizer.step()
    assert (loss / tokens).item() < 0.01
    for method in ("greedy", "beam"):
        groups = decode(model, next(data.in_order()).features, method)
        said = [words.decode(group[0].tokens) for group in groups]
        assert said == [words.decode(words.encode(c[0])) for c in references.values()]
        assert all(group[0].finished for group in groups)


@both_models
def test_a_stage_learns_the_toy_world(name: str, tmp_path) -> None:
    run = small_run(tmp_path, name)
    rows = []
    history = run_stage(run, LONGER, callback=rows.append)
    assert history == rows == run.history and [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1]["train_loss"] < 0.6 < 1.5 < history[0]["train_loss"]
    assert history[-1]["dev_loss"] < history[0]["dev_loss"] and history[-1]["CIDEr"] > 3
    assert history[0]["step"] == 9 and history[-1]["step"] == 72
    with open(tmp_path / "history.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in table] == [row["train_loss"] for row in history]


def test_validation_measures_what_it_says(tmp_path) -> None:
    run = small_run(tmp_path)  # in fp32, as what it is compared with
    row = run_stage(run, {**QUICK, "epochs": 1}, accelerator=make_accelerator("no"))[0]
    images = list(run.dev)
    groups = decode(run.model, run.views[0][images], "greedy", max_length=10)
    captions = {image: run.model.tokenizer.decode(g[0].tokens) for image, g in zip(images, groups, strict=True)}
    scores = evaluate(run.dev, captions, metrics=("BLEU", "CIDEr"))
    assert (row["BLEU-4"], row["CIDEr"]) == (scores["BLEU-4"], scores["CIDEr"])
    data = CaptionBatches(run.dev, run.views, run.model.tokenizer, start_id=START, end_id=run.model.end_id)
    batch = next(data.in_order())
    with torch.no_grad():
        loss, tokens, _ = CrossEntropy()(run.model, batch)
    assert len(batch.images) == 12 and row["dev_loss"] == pytest.approx((loss / tokens).item(), rel=1e-5)


def scripted(monkeypatch, values: list[float]) -> list[dict]:
    """Makes validation return these CIDEr values; returns the weights at each call."""
    weights, remaining = [], list(values)

    def validate(run, settings, accelerator):
        weights.append({n: v.clone() for n, v in run.model.state_dict().items()})
        return {"dev_loss": 1.0, "BLEU-4": 0.0, "CIDEr": remaining.pop(0)}

    monkeypatch.setattr(training, "validate", validate)
    return weights


def test_the_best_epoch_is_kept_and_patience_ends_a_stage(tmp_path, monkeypatch) -> None:
    weights = scripted(monkeypatch, [0.1, 0.5, 0.3, 0.4, 0.9])
    run = small_run(tmp_path)
    history = run_stage(run, {**QUICK, "epochs": 5, "patience": 2})
    assert [row["CIDEr"] for row in history] == [0.1, 0.5, 0.3, 0.4]
    assert same(run.model.state_dict(), weights[1])
    again = run_stage(small_run(tmp_path), {**QUICK, "epochs": 5, "patience": 2})  # a stopped stage stays stopped
    assert again == history


def test_warm_up_and_cosine() -> None:
    factors = [loop.schedule({"warmup_steps": 4}, step, 100) for step in range(101)]
    assert [factors[step] for step in (0, 50, 100)] == pytest.approx([0.25, 0.5, 0.0])
    assert max(factors) == factors[3] and all(a > b for a, b in zip(factors[3:], factors[4:], strict=False))
    assert factors[30] == pytest.approx(0.5 * (1 + math.cos(0.3 * math.pi)))


def test_biases_do_not_decay() -> None:
    model = small_model()
    decayed, free = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert {id(p) for p in free["params"]} == {id(p) for n, p in model.named_parameters() if n.endswith("bias")}
    model.requires_grad_(False)
    with pytest.raises(CaptioningError, match="frozen"):
        parameter_groups(model, 0.1)


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(CaptioningError, match="Did you mean 'learning_rate'"):
        stage_settings({"learning_rat": 1.0})
    with pytest.raises(CaptioningError, match="Did you mean 'encoder'"):
        check({"encodr": "efficientnet-lite0"})
    with pytest.raises(CaptioningError, match="no 'stages'"):
        check({"name": "a", "dataset": {}, "encoder": "efficientnet-lite0"})


# -- killed and resumed -------------------------------------------------------------------------------------------

EVERYTHING = {
    **QUICK, "epochs": 4, "average": 0.9, "label_smoothing": 0.1,
}  # fmt: skip
DROPOUT = {"dropout": 0.3}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["between two epochs", "in the middle of an epoch", "while the state is written"])
def test_a_killed_run_ends_as_one_that_never_was(moment: str, tmp_path, monkeypatch) -> None:
    whole = small_run(tmp_path / "whole", "ShowAttendTell", **DROPOUT)
    expected = run_stage(whole, EVERYTHING)

    def kill_after(count: int, function):
        def wrapped(*args, **kwargs):
            nonlocal count
            count -= 1
            if count < 0:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    callback = None
    with monkeypatch.context() as patch:
        if moment == "between two epochs":
            callback = kill_after(1, lambda row: None)
        elif moment == "in the middle of an epoch":
            patch.setattr(CrossEntropy, "__call__", kill_after(2 * 5 + 1, CrossEntropy.__call__))
        else:
            patch.setattr(loop, "save_state", kill_after(3, loop.save_state))
        with pytest.raises(Killed):
            run_stage(small_run(tmp_path / "killed", "ShowAttendTell", **DROPOUT), EVERYTHING, callback=callback)
    torch.manual_seed(99)  # another process has another random state
    resumed = small_run(tmp_path / "killed", "ShowAttendTell", seed=0, **DROPOUT)
    resumed.model = small_model("ShowAttendTell", seed=7, **DROPOUT)  # whose new model is thrown away
    resumed_from = (tmp_path / "killed" / "stage1-last.safetensors").exists()
    history = run_stage(resumed, EVERYTHING)
    assert resumed_from and len(history) == 4
    assert without_time(history) == without_time(expected)
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_a_run_that_is_done_says_so_and_trains_no_more(tmp_path, capsys) -> None:
    first = run_stage(small_run(tmp_path), QUICK)
    capsys.readouterr()
    again = small_run(tmp_path)
    assert run_stage(again, QUICK, callback=lambda row: pytest.fail("an epoch ran")) == first
    assert "stage1-last.safetensors: already trained, 3 of 3 epochs." in capsys.readouterr().err


@pytest.mark.parametrize(
    "what", ["learning_rate was 0.01 and is 0.02", "train was '27 images.*and is '27 images", "seed was 0 and is 1",
             "encoder was 'a 1' and is 'a 2'", "hidden"],
)  # fmt: skip
def test_a_state_made_from_something_else_is_refused_or_begun_anew(what: str, tmp_path) -> None:
    def made(changed: bool) -> tuple:
        run = small_run(tmp_path, **({"hidden": 8} if changed and what == "hidden" else {}))
        run.made_from = {"encoder": "a 2" if changed and "encoder" in what else "a 1"}
        run.seed = int(changed and "seed" in what)
        if changed and "train" in what:  # one caption is corrected
            run.train = {**run.train, "t0.jpg": ["A red hen runs.", run.train["t0.jpg"][1]]}
        return run, {**QUICK, "learning_rate": 0.02 if changed and "rate" in what else 0.01}

    run_stage(*made(False))
    with pytest.raises(CaptioningError, match=f"made from something else: .*{what}.*--restart"):
        run_stage(*made(True))
    for state in tmp_path.glob("stage*-*.safetensors"):  # as --restart does
        state.unlink()
    epochs = []
    run_stage(*made(True), callback=lambda row: epochs.append(row["epoch"]))
    assert epochs == [1, 2, 3]


def test_the_second_stage_starts_from_the_best_of_the_first(tmp_path) -> None:
    run = small_run(tmp_path)
    first = run_stage(run, QUICK, 1)
    best = {n: v.clone() for n, v in run.model.state_dict().items()}
    began = []
    second = {**QUICK, "objective": "self_critical", "epochs": 1, "learning_rate": 0.0, "samples": 2}
    rows = run_stage(run, second, 2, callback=began.append)
    assert [row["stage"] for row in run.history] == [1, 1, 1, 2] and run.history == first + rows
    assert rows[0]["step"] == 3 and "reward" in rows[0] and "reward" not in first[0]
    assert same(run.model.state_dict(), best)  # a rate of 0 leaves it where it began
    assert {path.name for path in tmp_path.iterdir()} == {
        f"stage{number}-{kind}.safetensors" for number in (1, 2) for kind in ("last", "best")
    } | {"history.csv", ".lock"}


# -- averages and saved states ------------------------------------------------------------------------------------


def test_the_running_mean_by_hand() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = Average(model, 0.5)
        for step, value in enumerate([2.0, 4.0, 8.0], 1):
            model.weight.fill_(value)
            average.update(step)
    expected = 1.0
    for step, value in enumerate([2.0, 4.0, 8.0], 1):
        decay = min(0.5, (1 + step) / (10 + step))  # early steps forget faster
        expected = decay * expected + (1 - decay) * value
    average.swap()
    assert model.weight.item() == pytest.approx(expected)
    average.swap()
    assert model.weight.item() == 8.0


def test_the_mean_is_what_is_measured_and_kept(tmp_path, monkeypatch) -> None:
    measured = scripted(monkeypatch, [0.1, 0.2, 0.3])
    trained = []
    run = small_run(tmp_path)

    def keep(row):
        trained.append({n: v.clone() for n, v in run.model.state_dict().items()})

    run_stage(run, {**QUICK, "average": 0.99}, callback=keep)
    assert not same(measured[-1], trained[-1]) and same(run.model.state_dict(), measured[-1])


def test_a_state_of_another_model_or_a_broken_file_is_refused(tmp_path) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, small_model())
    with pytest.raises(CaptioningError, match="another"):
        load_state(path, small_model("ShowAttendTell"))
    with pytest.raises(CaptioningError, match="another"):
        load_state(path, small_model(hidden=8))
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CaptioningError, match="Cannot read the training state"):
            load_state(path, small_model())
