"""Language models by name, and PocketGPT2: its tokenizer, its pretraining, and that transformers alone can read it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from configs.pocket.pretraining import pretrain, train
from helpers.files import CHECKPOINTS, CaptioningError, read_json, write_json
from helpers.language_models import (
    GPT2,
    CaptionTokenizer,
    is_plain_gpt2,
    load_language_model,
    read_on,
)
from tests.toy_captioners import MEANINGS, world
from tests.toy_language_models import FAMILIES, SHAPE, pocket_gpt2, save_family


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_reading_on_with_a_cache_is_reading_the_whole(folders, family) -> None:
    model, tokenizer = load_language_model(str(folders[family]))
    ids = torch.tensor([tokenizer.encode("the cat that sits is green")])
    first, cache = read_on(model, input_ids=ids[:, :2])
    second, _ = read_on(model, cache, input_ids=ids[:, 2:])
    torch.testing.assert_close(torch.cat([first, second], 1), model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: save_family(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@torch.no_grad()
def test_plain_transformers_calls_load_pocket_gpt2(folders) -> None:
    model, tokenizer = pocket_gpt2()
    plain_model, plain_tokenizer = (c.from_pretrained(folders["gpt2"]) for c in (AutoModelForCausalLM, AutoTokenizer))
    assert type(plain_model).__name__ == "GPT2LMHeadModel"
    ids = plain_tokenizer(" a red dog runs")["input_ids"]
    assert ids == tokenizer.encode("A red dog runs.")
    assert plain_tokenizer.eos_token_id == tokenizer.end_id == model.config["eos_token_id"]
    assert plain_tokenizer.decode(ids) == " a red dog runs"
    ids = torch.tensor([ids])
    torch.testing.assert_close(
        plain_model.float()(input_ids=ids).logits, model.eval()(input_ids=ids).logits, atol=5e-3, rtol=0
    )  # fp16 on disk
    out = plain_model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=tokenizer.end_id)
    assert out.shape[1] > ids.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_any_causal_model_loads_and_reads_embeddings_as_it_reads_words(folders, family: str) -> None:
    model, tokenizer = load_language_model(str(folders[family]))
    assert tokenizer.plain and not model.training and next(model.parameters()).dtype == torch.float32
    ids = torch.tensor([tokenizer.encode("a blue bird sleeps")])
    words = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=words).logits, model(input_ids=ids).logits)


def test_text_the_tokenizer_never_saw_survives_it() -> None:
    tokenizer = CaptionTokenizer(pocket_gpt2()[1].tokenizer, end_id=0, plain=False)
    for text in ("Zwölf Boxkämpfer!", "漢字 and 🐈", 'a "quoted" word'):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_plain_captions_lose_case_and_punctuation_and_others_keep_them() -> None:
    raw = pocket_gpt2()[1].tokenizer
    plain, full = (CaptionTokenizer(raw, 0, plain) for plain in (True, False))
    assert plain.encode("The RED dog, runs!") == plain.encode("the red dog runs")
    assert plain.decode(plain.encode("The RED dog, runs!")) == "the red dog runs"
    assert full.decode(full.encode("The RED dog, runs!")) == "The RED dog, runs!"
    assert raw.id_to_token(full.encode("dog")[0]).startswith("Ġ")  # a blank in front, as within a sentence
    assert plain.encode("") == plain.encode(" .") == full.encode("  ") == []


def test_the_tokenizer_is_one_file(tmp_path: Path) -> None:
    _, tokenizer = pocket_gpt2()
    tokenizer.save(tmp_path / "tokenizer.json")
    again = CaptionTokenizer.load(tmp_path / "tokenizer.json", tokenizer.end_id, plain=True)
    assert again.encode("the green cat sits") == tokenizer.encode("the green cat sits")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(CaptioningError, match="other.json is not a tokenizer file"):
        CaptionTokenizer.load(tmp_path / "other.json", 0, plain=True)


QUICK = {"batch_size": 9, "learning_rate": 0.02, "warmup_steps": 1}


def test_pretraining_learns_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    model, tokenizer = pocket_gpt2()
    history = pretrain(model, tokenizer, world("t"), world("d"), epochs=12, folder=tmp_path, **QUICK)
    losses = [row["dev_loss"] for row in history]
    assert losses[-1] < 0.6 * losses[0]
    assert history[-1]["dev_perplexity"] == pytest.approx(math.exp(losses[-1]))
    assert (tmp_path / "history.csv").read_text().count("\n") == 13


def test_numbers_that_are_none_stop_the_run_before_a_step(tmp_path: Path) -> None:
    model, tokenizer = pocket_gpt2()

    def spoil(row: dict) -> None:
        next(model.parameters()).data.fill_(float("nan"))

    with pytest.raises(CaptioningError, match=r"loss is nan at step .* \(epoch 2\), in the batch of .*last.safe"):
        pretrain(model, tokenizer, world("t"), world("d"), epochs=3, folder=tmp_path, callback=spoil, **QUICK)
    assert (tmp_path / "history.csv").read_text().count("\n") == 2


def test_the_best_epoch_is_kept_through_a_restart(tmp_path: Path) -> None:
    """Dev speaks of what train never says, so that learning makes it worse from some epoch on."""
    other = {"d.jpg": ["quiz jazz quiz", "fizz vex"]}
    options = {"folder": tmp_path, **QUICK}
    model, tokenizer = pocket_gpt2()
    first = pretrain(model, tokenizer, world("t"), other, epochs=8, **options)
    best = min(range(len(first)), key=lambda i: first[i]["dev_loss"])
    assert best < len(first) - 1
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    again, _ = pocket_gpt2(seed=1)
    assert pretrain(again, tokenizer, world("t"), other, epochs=8, **options) == first  # nothing left to do
    assert all(torch.equal(value, kept[name]) for name, value in again.state_dict().items())


def test_a_killed_pretraining_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(row: dict) -> None:
        if row["epoch"] == 2:
            raise Killed

    runs = []
    for folder, callback in ((tmp_path / "whole", None), (tmp_path / "cut", kill), (tmp_path / "cut", None)):
        folder.mkdir(exist_ok=True)
        model, tokenizer = pocket_gpt2()
        try:
            options = {"epochs": 3, "folder": folder, "callback": callback, **QUICK}
            runs.append(pretrain(model, tokenizer, world("t"), world("d"), **options))
        except Killed:
            continue
    whole, resumed = ([(r["epoch"], r["train_loss"], r["dev_loss"]) for r in rows] for rows in runs)
    assert len(whole) == 3 and resumed == whole


def test_a_configuration_makes_a_folder_that_can_be_loaded(tmp_path: Path) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    lines = ["image,caption,split"]
    for number, (name, captions) in enumerate(world("t", MEANINGS[:6]).items()):
        Image.new("RGB", (40, 40), (40 * number, 90, 200)).save(images / name)
        lines += [f"{name},{caption},{'dev' if number > 3 else 'train'}" for caption in captions]
    (images / "captions.csv").write_text("\n".join(lines))
    config = {
        "kind": "pocket-gpt2", "dataset": {"name": "folder", "data_dir": str(images)}, "model": SHAPE, "seed": 0,
        "training": {"epochs": 1, **QUICK}, "output": str(tmp_path / "out"),
    }  # fmt: skip
    write_json(tmp_path / "config.json", config)
    rows = []
    train(tmp_path / "config.json", callback=rows.append)
    assert [row["epoch"] for row in rows] == [1]
    _, tokenizer = load_language_model(str(tmp_path / "out" / "model"))
    assert tokenizer.decode(tokenizer.encode("the red dog")) == "the red dog"


def test_a_name_that_cannot_be_had_says_what_can(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match="'no/such-model' cannot be loaded.*pocket-gpt2.*a folder"):
        load_language_model("no/such-model")
    with pytest.raises(CaptioningError, match="cannot be loaded"):
        load_language_model(str(tmp_path / "missing"))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CaptioningError, match="cannot be loaded"):
        load_language_model(str(tmp_path))


@torch.no_grad()
def test_a_published_gpt2_becomes_ours(tmp_path: Path) -> None:
    """As on the hub: no note of ours in its configuration, captions keep their spelling."""
    theirs = AutoModelForCausalLM.from_pretrained(save_family(tmp_path), dtype=torch.float32)
    del theirs.config.plain_captions
    theirs.save_pretrained(tmp_path)
    model, tokenizer = load_language_model(str(tmp_path))
    assert type(model) is GPT2 and not tokenizer.plain and tokenizer.end_id == 0
    ids = torch.tensor([tokenizer.encode("a red dog")])
    torch.testing.assert_close(model(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=0)


def test_a_model_that_never_ends_is_refused(tmp_path: Path) -> None:
    save_family(tmp_path, "llama")
    config = read_json(tmp_path / "tokenizer_config.json")
    write_json(tmp_path / "tokenizer_config.json", {k: v for k, v in config.items() if k != "eos_token"})
    with pytest.raises(CaptioningError, match="no end-of-sequence token"):
        load_language_model(str(tmp_path))


@torch.no_grad()
def test_our_gpt2_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=60, n_positions=40, eos_token_id=0, bos_token_id=0)
    theirs, ours = GPT2LMHeadModel(config).eval(), GPT2(config.to_dict()).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_weights(theirs.state_dict())
    ids = torch.randint(60, (3, 17))
    expected = theirs(input_ids=ids).logits
    torch.testing.assert_close(ours(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(input_ids=ids, logits_to_keep=2).logits, expected[:, -2:], atol=1e-5, rtol=0)
    with pytest.raises(CaptioningError, match="reads 40 positions"):
        ours(input_ids=torch.zeros(1, 41, dtype=torch.long))
    with pytest.raises(RuntimeError, match="ln_f.weight"):
        ours.load_weights({n: v for n, v in theirs.state_dict().items() if "ln_f" not in n})


def test_an_unusual_gpt2_is_left_to_transformers() -> None:
    config = read_json(CHECKPOINTS / "pocket-gpt2" / "config.json")
    assert is_plain_gpt2(config)
    for change in ({"model_type": "llama"}, {"n_inner": 99}, {"activation_function": "relu"}, {"n_embd": "256"},
                   {"scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": False}):  # fmt: skip
        assert not is_plain_gpt2({**config, **change}), change
