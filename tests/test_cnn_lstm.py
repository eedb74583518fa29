"""The two LSTM captioners: every formula against the library or a calculation by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.captioner import build_model
from helpers.cnn_lstm import ShowAndTell, ShowAttendTell, Standardise, State, lstm_cell
from helpers.files import CaptioningError
from tests.toy_captioners import MODELS, REGIONS, WIDTH, small_model

both_models = pytest.mark.parametrize("name", list(MODELS))


def pictures(count: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, REGIONS, WIDTH, generator=torch.Generator().manual_seed(seed))


def sentences(model, rows: int, length: int, seed: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, len(model.tokenizer), (rows, length), generator=generator)
    tokens[:, 0] = model.start_id
    return tokens


def walk(model, state: State, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [N, T, V], one step at a time."""
    out = []
    for column in tokens.T:
        log_probs, state = model.step(column, state)
        out.append(log_probs)
    return torch.stack(out, 1)


def test_lstm_cell_is_the_library_cell() -> None:
    torch.manual_seed(0)
    cell = nn.LSTMCell(7, 5)
    x, h, c = torch.randn(3, 7), torch.randn(3, 5), torch.randn(3, 5)
    gates = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
    ours, theirs = lstm_cell(gates, c), cell(x, (h, c))
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


@torch.no_grad()
def test_show_and_tell_is_an_lstm_over_word_and_picture() -> None:
    model = small_model()
    features, tokens = pictures(3), sentences(model, 3, 6)
    E, H = model.config["embedding"], model.config["hidden"]
    reference = nn.LSTM(E + WIDTH, H, batch_first=True)
    reference.weight_ih_l0.copy_(torch.cat([model.word_to_gates.weight, model.summary_to_gates.weight], 1))
    reference.weight_hh_l0.copy_(model.hidden_to_gates.weight)
    reference.bias_ih_l0.copy_(model.word_to_gates.bias)
    reference.bias_hh_l0.zero_()
    picture = ((features - model.standardise.mean) / model.standardise.deviation).mean(1)
    first = model.first_hidden(picture).tanh()[None], model.first_cell(picture).tanh()[None]
    read = torch.cat([model.embed(tokens), picture[:, None].expand(-1, 6, -1)], -1)
    expected = model.output(reference(read, first)[0])
    logits, attention = model(features, tokens)
    torch.testing.assert_close(logits, expected)
    assert attention.shape == (3, 6, 0)


@torch.no_grad()
def test_attention_by_hand() -> None:
    model = small_model("ShowAttendTell")
    features = pictures(2)
    state = model.start(features)
    context, weights = model.attend(state.hidden, state)
    seen = model.standardise(features)
    for image in range(2):
        query = model.to_query.weight @ state.hidden[image]
        scores = [model.score.weight[0] @ torch.tanh(model.to_key(region) + query) for region in seen[image]]
        expected = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
        torch.testing.assert_close(weights[image], expected)
        values = model.to_value(seen[image])
        torch.testing.assert_close(context[image], sum(w * v for w, v in zip(expected, values, strict=True)))


@torch.no_grad()
def test_one_attention_step_by_hand() -> None:
    model = small_model("ShowAttendTell")
    features, token = pictures(2), torch.tensor([5, 6])
    state = model.start(features)
    context, weights = model.attend(state.hidden, state)
    context = torch.sigmoid(model.gate(state.hidden)) * context
    gates = model.word_to_gates(model.embed(token)) + model.hidden_to_gates(state.hidden)
    gates = gates + model.context_to_gates(context)
    gates = gates + model.summary_to_gates(model.to_value(model.standardise(features)).mean(1))
    hidden, _ = lstm_cell(gates, state.cell)
    log_probs, after = model.step(token, state)
    torch.testing.assert_close(log_probs, model.output(torch.cat([hidden, context], -1)).log_softmax(-1))
    torch.testing.assert_close(after.attention, weights)


@torch.no_grad()
def test_attention_sums_to_one_and_follows_the_regions() -> None:
    model = small_model("ShowAttendTell")
    features, tokens = pictures(2), sentences(model, 2, 5)
    logits, attention = model(features, tokens)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 5))
    assert attention.std() > 1e-4  # not simply uniform
    order = torch.tensor([2, 0, 3, 1])
    moved_logits, moved = model(features[:, order], tokens)
    torch.testing.assert_close(moved, attention[..., order])
    torch.testing.assert_close(moved_logits, logits)


@both_models
@torch.no_grad()
def test_teacher_forcing_equals_stepping(name: str) -> None:
    model = small_model(name)
    features, tokens = pictures(3), sentences(model, 3, 7)
    logits, _ = model(features, tokens)
    torch.testing.assert_close(logits.log_softmax(-1), walk(model, model.start(features), tokens))


@both_models
@torch.no_grad()
def test_rows_share_their_image(name: str) -> None:
    model = small_model(name)
    features, row = pictures(3), torch.tensor([0, 0, 1, 1, 2, 2])
    tokens = sentences(model, 6, 5)
    logits, attention = model(features, tokens, row)
    expected, expected_attention = model(features[row], tokens)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(attention, expected_attention)


@both_models
@torch.no_grad()
def test_what_comes_later_never_changes_a_logit(name: str) -> None:
    model = small_model(name)
    features, tokens = pictures(2), sentences(model, 2, 6)
    longer = torch.cat([tokens, torch.zeros(2, 3, dtype=torch.long)], 1)  # padding
    assert torch.equal(model(features, longer)[0][:, :6], model(features, tokens)[0])


@both_models
@pytest.mark.parametrize(
    "index",
    [
        [0, 1, 2, 3, 4, 5],  # nothing moves
        [1, 0, 3, 3, 5, 4],  # beams swap inside their images
        [0, 0, 2, 2, 4, 4],  # the best beam twice
        [4, 5, 0, 1],  # an image leaves, the others change places
        [2, 3],  # one image stays
        [0, 1, 2],  # uneven: two beams of one image, one of the next
        [5, 0, 1, 0],  # uneven and out of order
        [0, 2, 0, 2],  # images come back
    ],
    ids=str,
)
@torch.no_grad()
def test_reorder_keeps_every_row_with_its_picture(name: str, index: list[int]) -> None:
    model = small_model(name)
    features, row = pictures(3), torch.arange(3).repeat_interleave(2)
    told, then = sentences(model, 6, 4), sentences(model, 6, 3, seed=9)
    state = model.reorder(model.start(features), row)
    for column in told.T:
        _, state = model.step(column, state)
    chosen = torch.tensor(index)
    moved = model.reorder(state, chosen)
    if state.attention is not None:
        assert torch.equal(moved.attention, state.attention[chosen])
    expected = model(features[row], torch.cat([told, then], 1))[0][chosen][:, 4:].log_softmax(-1)
    torch.testing.assert_close(walk(model, moved, then[chosen]), expected)


def test_extra_loss_by_hand() -> None:
    model = small_model("ShowAttendTell", doubly_stochastic=2.0)
    attention = torch.tensor([[[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [9.0, 9.0, 9.0, 9.0]]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])  # the third position is padding
    looked = torch.tensor([0.6, 0.4, 0.2, 0.8])
    assert model.extra_loss(attention, mask).item() == pytest.approx(2.0 * ((0.5 - looked) ** 2).mean().item())
    fair = torch.full((1, 3, 4), 0.25)
    assert model.extra_loss(fair, mask).item() == pytest.approx(0.0, abs=1e-12)
    assert small_model("ShowAttendTell").extra_loss(attention, mask).item() == 0
    assert small_model().extra_loss(torch.zeros(1, 3, 0), mask).item() == 0


def test_standardise_measures_the_training_images() -> None:
    layer = Standardise(3)
    features = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([10.0, 0.1, 0.0]) + 7
    layer.fit(features)
    out = layer(features).flatten(0, 1)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    assert torch.isfinite(out).all()  # a channel that never changes is no division by zero
    assert set(layer.state_dict()) == {"mean", "deviation"} and not list(layer.parameters())


@both_models
def test_every_parameter_learns(name: str) -> None:
    model = small_model(name, doubly_stochastic=1.0) if name == "ShowAttendTell" else small_model(name)
    model.train()
    tokens = sentences(model, 6, 6)
    logits, attention = model(pictures(3), tokens[:, :-1], torch.arange(3).repeat_interleave(2))
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    (loss + model.extra_loss(attention, torch.ones(6, 5))).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("model", [ShowAndTell, ShowAttendTell])
def test_an_unknown_option_is_named(model) -> None:
    with pytest.raises(TypeError, match=r"no option \['hiden'\]"):
        model(10, 4, hiden=8)
    with pytest.raises(CaptioningError, match="hiden"):
        build_model(model.__name__, {"vocabulary_size": 10, "feature_width": 4, "hiden": 8})
