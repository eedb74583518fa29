"""ClipCap: against the paper's definition written out, against transformers' own decoding, and what must not change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.captioner import build_model, load_checkpoint, save_checkpoint
from helpers.clipcap import ClipCap
from helpers.decoding import decode
from helpers.files import CaptioningError
from helpers.losses import CrossEntropy
from helpers.text import IGNORE, pad, teacher_forcing_batch
from helpers.training import run_stage
from tests.toy_captioners import MEANINGS, REGIONS, WIDTH, features, world
from tests.toy_language_models import FAMILIES, clipcap, clipcap_run, save_family

QUICK = {
    "epochs": 1, "images_per_batch": 9, "captions_per_image": 2, "learning_rate": 0.02, "warmup_steps": 1,
    "decoding": {"method": "greedy", "max_length": 4},
}  # fmt: skip
both_mappers = pytest.mark.parametrize("mapper", ["mlp", "transformer"])
both_families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: save_family(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def trained(folders) -> ClipCap:
    """The tuned MLP variant, taught until it knows the toy world."""
    model = clipcap(folders["gpt2"])
    captions, row = encoded(model, len(MEANINGS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(250):
        optimizer.zero_grad()
        our_loss(model, pictures(len(MEANINGS)), captions, row).backward()
        optimizer.step()
    return model


def pictures(count: int, grid: bool = False) -> Tensor:
    return torch.from_numpy(features("t", MEANINGS[:count], grid).array).view(count, -1, WIDTH)


def encoded(model: ClipCap, count: int) -> tuple[list[list[int]], Tensor]:
    """Two captions each of the first `count` pictures, as token numbers, and which picture each describes."""
    groups = list(world("t", MEANINGS[:count]).values())
    row = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    return [model.tokenizer.encode(caption) for group in groups for caption in group], row


def our_loss(model: ClipCap, images: Tensor, captions: list[list[int]], row: Tensor) -> Tensor:
    inputs, labels = teacher_forcing_batch(captions, None, model.end_id)
    batch = SimpleNamespace(features=images, row=row, inputs=inputs, labels=labels, length=None)
    loss, count, _ = CrossEntropy()(model, batch)
    return loss / count


def walk(model: ClipCap, images: Tensor, tokens: Tensor, row: Tensor) -> Tensor:
    """Log-probabilities [N, T + 1, V], one step at a time."""
    state = model.reorder(model.start(images), row)
    first, state = model.step(torch.zeros(len(row), dtype=torch.long), state)
    out = [first]
    for column in tokens.T:
        log_probs, state = model.step(column, state)
        out.append(log_probs)
    return torch.stack(out, 1)


# -- the paper's definition, written out -------------------------------------------------------------------------------


def paper_mlp(x: Tensor, w: dict[str, Tensor], length: int, **_) -> Tensor:
    """Section 3.2: one hidden layer, tanh. x: [N, D]."""
    hidden = torch.tanh(x @ w["model.0.weight"].T + w["model.0.bias"])
    return (hidden @ w["model.2.weight"].T + w["model.2.bias"]).reshape(len(x), length, -1)


def paper_transformer(
    x: Tensor, w: dict[str, Tensor], length: int, clip_length: int, heads: int, layers: int
) -> Tensor:
    """Section 3.2: the vector spread over several, learned constants behind them, attention among all, head by head."""
    x = (x @ w["linear.weight"].T + w["linear.bias"]).reshape(len(x), clip_length, -1)
    x = torch.cat([x, w["constants"][None].repeat(len(x), 1, 1)], 1)
    width = x.shape[-1]
    size = width // heads
    for layer in range(layers):
        p = {name.removeprefix(f"layers.{layer}."): v for name, v in w.items() if name.startswith(f"layers.{layer}.")}
        y = F.layer_norm(x, (width,), p["norm1.weight"], p["norm1.bias"])
        keys_values = y @ p["to_keys_values.weight"].T
        looked = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            query = (y @ p["to_queries.weight"].T)[..., part]
            key, value = keys_values[..., :width][..., part], keys_values[..., width:][..., part]
            weights = (query @ key.transpose(1, 2) / size**0.5).softmax(-1)
            looked.append(weights @ value)
        x = x + torch.cat(looked, -1) @ p["project.weight"].T + p["project.bias"]
        y = F.layer_norm(x, (width,), p["norm2.weight"], p["norm2.bias"])
        x = x + torch.relu(y @ p["fc1.weight"].T + p["fc1.bias"]) @ p["fc2.weight"].T + p["fc2.bias"]
    return x[:, clip_length:]


def paper_loss(model: ClipCap, images: Tensor, captions: list[list[int]], row: Tensor, longest: int = 40) -> Tensor:
    """Section 3.1, as the official recipe computes it: every caption beside its own prefix, padded to 40 tokens, the
    language model over prefix and caption together, cross-entropy on the positions that predict caption tokens."""
    mapper = {"mlp": paper_mlp, "transformer": paper_transformer}[model.config["mapper"]]
    options = {k: v for k, v in model.config["mapper_options"].items() if k != "hidden"}
    P = model.config["prefix_length"]
    prefix = mapper(images[row, 0], dict(model.mapper.named_parameters()), P, **options)  # [N, P, W]
    tokens = torch.zeros(len(captions), longest, dtype=torch.long)
    real = torch.zeros(len(captions), longest, dtype=torch.bool)
    for number, caption in enumerate(captions):
        caption = [*caption, model.end_id]
        tokens[number, : len(caption)] = torch.tensor(caption)
        real[number, : len(caption)] = True
    words = model.language_model.get_input_embeddings()(tokens)
    logits = model.language_model(inputs_embeds=torch.cat([prefix, words], 1)).logits
    return F.cross_entropy(logits[:, P - 1 : -1].flatten(0, 1), tokens.masked_fill(~real, -100).flatten())


@both_mappers
@both_families
def test_a_batch_of_the_official_recipe_gives_the_same_loss_and_gradients(folders, mapper: str, family: str) -> None:
    tune = "full" if (family, mapper) == ("gpt2", "mlp") else "none"  # the paper's two variants
    model = clipcap(folders[family], mapper, tune=tune, standardise=False)
    captions, row = encoded(model, 4)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    ours, theirs = (f(model, pictures(4), captions, row) for f in (our_loss, paper_loss))
    assert abs(ours.item() - theirs.item()) < 1e-5
    gradients = (torch.autograd.grad(loss, parameters) for loss in (ours, theirs))
    for name, mine, reference in zip(names, *gradients, strict=True):
        assert reference.abs().max() > 0, name
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert any(n.startswith("language_model") for n in names) == (tune == "full")


# -- teacher forcing and decoding are one model ------------------------------------------------------------------------


@both_mappers
@both_families
@pytest.mark.parametrize("grid", [False, True], ids=["vector", "grid"])
@torch.no_grad()
def test_teacher_forcing_equals_one_step_at_a_time(folders, mapper: str, family: str, grid: bool) -> None:
    options = {"regions": REGIONS if grid else 1, "tune": "full" if family == "gpt2" else "none"}
    model = clipcap(folders[family], mapper, prompt="the dog", **options)
    captions, row = encoded(model, 3)
    tokens = pad(captions, 0)
    logits, attention = model(pictures(3, grid), tokens, row)
    assert logits.shape == (6, tokens.shape[1] + 1, len(model.tokenizer)) and attention.shape[-1] == 0
    stepped = walk(model, pictures(3, grid), tokens, row)
    torch.testing.assert_close(logits.log_softmax(-1), stepped, atol=1e-5, rtol=1e-4)


def test_beam_search_scores_what_teacher_forcing_scores(trained) -> None:
    for group, image in zip(decode(trained, pictures(2), beam_size=3), pictures(2), strict=True):
        for hypothesis in group:
            tokens = torch.tensor([hypothesis.tokens])
            log_probs = trained(image[None], tokens[:, :-1])[0].log_softmax(-1)
            total = log_probs.gather(2, tokens[..., None]).sum().item()
            assert hypothesis.log_prob == pytest.approx(total, abs=1e-4)


def test_it_learns_what_the_pictures_show(trained) -> None:
    groups = decode(trained, pictures(27), method="greedy", max_length=24)
    said = [trained.tokenizer.decode(group[0].tokens) for group in groups]
    references = world("t").values()
    right = sum(caption in {" ".join(trained.tokenizer.decode(trained.tokenizer.encode(r)).split()) for r in group}
                for caption, group in zip(said, references, strict=True))  # fmt: skip
    assert right >= 20
    assert all(group[0].finished for group in groups)


# -- labels and padding ------------------------------------------------------------------------------------------------


def test_padding_is_labelled_out_and_never_changes_the_loss(folders) -> None:
    model = clipcap(folders["gpt2"])
    captions, row = encoded(model, 3)
    with torch.no_grad():
        together = our_loss(model, pictures(3), captions, row)
        lengths = [len(c) + 1 for c in captions]
        alone = [
            our_loss(model, pictures(3), [c], row[i : i + 1]) * n
            for i, (c, n) in enumerate(zip(captions, lengths, strict=True))
        ]
        assert float(together) == pytest.approx(float(sum(alone)) / sum(lengths), abs=1e-5)
        inputs, labels = teacher_forcing_batch(captions, None, model.end_id)
        losses = []
        for filler in (0, 7, 200):  # whatever stands in the padding
            filled = pad(captions, filler)
            logits = model(pictures(3), filled, row)[0]
            losses.append(float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)))
    assert losses[0] == losses[1] == losses[2]
    assert (labels != IGNORE).sum() == sum(lengths)
    assert labels.shape[1] == inputs.shape[1] + 1  # the prefix's last output predicts the first token


def test_the_end_and_token_zero_are_scored_like_any_other(folders) -> None:
    model = clipcap(folders["gpt2"])
    assert model.end_id == 0  # our tokenizer's end is number 0, which also fills the padding
    _, labels = teacher_forcing_batch([[5, 6], [5]], None, model.end_id)
    assert labels.tolist() == [[5, 6, 0], [5, 0, IGNORE]]
    with torch.no_grad():
        logits = model(pictures(2), torch.tensor([[5, 6], [5, 0]]))[0].log_softmax(-1)
        expected = -(logits[0, [0, 1, 2], [5, 6, 0]].sum() + logits[1, [0, 1], [5, 0]].sum()) / 5
        assert float(our_loss(model, pictures(2), [[5, 6], [5]], torch.arange(2))) == pytest.approx(float(expected))


# -- the prompt --------------------------------------------------------------------------------------------------------


def test_the_prompt_stands_between_prefix_and_caption(folders) -> None:
    model = clipcap(folders["gpt2"], prompt="a green")
    bare = clipcap(folders["gpt2"])
    words = model.tokenizer.encode("a green")
    caption = model.tokenizer.encode("bird runs")
    with torch.no_grad():
        prompted = model(pictures(1), torch.tensor([caption]))[0]
        spelled = bare(pictures(1), torch.tensor([words + caption]))[0]
        assert model.prefix(pictures(1)).shape[1] == 3 + len(words)
        torch.testing.assert_close(prompted, spelled[:, len(words) :], atol=1e-5, rtol=1e-4)
    generated = decode(model, pictures(2), method="greedy", max_length=5)
    state = model.start(pictures(2))
    assert [g[0].tokens[0] for g in generated] == state.log_probs.argmax(-1).tolist()


# -- what is trained, and what stays as it was -------------------------------------------------------------------------


@both_mappers
@pytest.mark.parametrize("tune", ["full", "none"])
def test_only_what_should_learn_learns(folders, tmp_path: Path, mapper: str, tune: str) -> None:
    model = clipcap(folders["gpt2"], mapper, tune=tune)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_stage(clipcap_run(tmp_path, model), QUICK)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {n for n, p in model.mapper.named_parameters()} <= {n.removeprefix("mapper.") for n in changed}
    in_language_model = {name for name in changed if name.startswith("language_model.")}
    if tune == "none":  # bit for bit
        assert not in_language_model
        assert all(p.grad is None and not p.requires_grad for p in model.language_model.parameters())
    else:
        assert {f"language_model.{n}" for n, _ in model.language_model.named_parameters()} <= in_language_model


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_encoder(monkeypatch):
    """Stands in for the image encoder that a checkpoint names."""
    import helpers.captioner

    encoder = SimpleNamespace(size=32, fingerprint="f", name="small")
    monkeypatch.setattr(helpers.captioner, "load_encoder", lambda name, device="cpu": encoder)


@both_mappers
@pytest.mark.parametrize(("family", "tune"), [("gpt2", "full"), ("gpt2", "none"), ("llama", "none")])
def test_a_checkpoint_gives_back_the_same_captioner(
    folders, tmp_path: Path, small_encoder, family: str, mapper: str, tune: str
) -> None:
    from safetensors.torch import load_file

    model = clipcap(folders[family], mapper, tune=tune, seed=3)
    save_checkpoint(tmp_path, model, {"name": "toy", "encoder": "small", "decoding": {"beam_size": 2}})
    again, config = load_checkpoint(tmp_path)
    assert config["class"] == "ClipCap" and config["decoding"] == {"beam_size": 2}
    captions, row = encoded(model, 3)
    tokens = pad(captions, 0)
    with torch.no_grad():
        logits, expected = (m(pictures(3), tokens, row)[0] for m in (again, model))
        torch.testing.assert_close(logits, expected, atol=5e-3, rtol=0)  # fp16 on disk
    assert again.tokenizer.encode("The red dog!") == model.tokenizer.encode("The red dog!")
    assert again.end_id == model.end_id and not again.training
    stored = [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("language_model.")]
    assert {"full": len(stored) > 10, "none": not stored}[tune]
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


# -- bad options -------------------------------------------------------------------------------------------------------


def test_unknown_options_are_named(folders) -> None:
    with pytest.raises(CaptioningError, match="tuning 'some'.*full"):
        clipcap(folders["gpt2"], tune="some")
    with pytest.raises(CaptioningError, match="is no GPT-2; tune 'none' trains a mapper"):
        clipcap(folders["llama"], tune="full")
    with pytest.raises(CaptioningError, match="mapper 'mpl'.*mlp"):
        ClipCap(WIDTH, language_model=str(folders["gpt2"]), mapper="mpl")
    with pytest.raises(CaptioningError, match="no option \\['prefix_lenght'\\]"):
        build_model("ClipCap", {"feature_width": WIDTH, "prefix_lenght": 3})
    with pytest.raises(CaptioningError, match="ClipCap cannot be built.*layrs"):
        build_model(
            "ClipCap",
            {"feature_width": WIDTH, "language_model": str(folders["gpt2"]), "mapper": "transformer",
             "mapper_options": {"layrs": 2}},
        )  # fmt: skip


def test_another_language_model_under_the_same_name_is_refused(folders, tmp_path, small_encoder) -> None:
    """The checkpoint carries none of its weights, so only a digest can tell it from the one of the training."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["gpt2"], tmp_path / "lm")
    save_checkpoint(tmp_path / "saved", clipcap(folder, tune="none"), {"name": "toy", "encoder": "small"})
    load_checkpoint(tmp_path / "saved")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    words = next(name for name in tensors if name.endswith("wte.weight"))
    tensors[words] = tensors[words].roll(1, 0).contiguous()  # the same numbers, each another word's
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(CaptioningError, match="saved was trained with another language model than the"):
        load_checkpoint(tmp_path / "saved")
