"""Two captioners with an LSTM: Show and Tell, and Show, Attend and Tell. Notebooks 02 and 03 build them step by step.

Shapes: B images, K captions or beams of each, N = B * K rows, T tokens, V vocabulary, R image regions, D feature width,
E embedding width, H hidden width, A attention width, S width of a picture's summary and of its values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.files import CaptioningError
from helpers.text import SPECIALS, START, Vocabulary, exact_logits, normalise


class Standardise(nn.Module):
    """Brings every channel of the image features to mean 0 and deviation 1, as measured on the training images.

    Without it a few large channels drown the rest, and attention learns next to nothing. The two vectors are part of
    the model, so a checkpoint cannot be used with features scaled another way. Notebook 02, section 4.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def fit(self, features: Tensor) -> None:
        """Measures mean and deviation on `features` [..., D]."""
        flat = features.flatten(0, -2).float()
        self.mean.copy_(flat.mean(0))
        self.deviation.copy_(flat.std(0).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.deviation).to(self.mean.dtype)


@dataclass
class State:
    """What an LSTM captioner remembers between two steps. Rows of one image stand together, the same number each, and
    share by broadcasting what comes from the picture. Notebook 02, section 4."""

    image: dict[str, Tensor]  # [B, ...]
    hidden: Tensor  # [N, H]
    cell: Tensor  # [N, H]
    attention: Tensor | None = None  # [N, R] where the last step looked


class LSTMCaptioner(nn.Module):
    """What the two models share: words in, one LSTM, words out. `features` is [B, R, D]; R is 1 for one vector.

    Notebook 02, section 4.
    """

    defaults = {"embedding": 256, "hidden": 512, "dropout": 0.5}
    start_id: int = START

    def __init__(self, vocabulary_size: int, feature_width: int, **options):
        super().__init__()
        unknown = set(options) - set(self.defaults)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {sorted(unknown)}; it has {sorted(self.defaults)}.")
        self.config = {"vocabulary_size": vocabulary_size, "feature_width": feature_width, **self.defaults, **options}
        E, H = self.config["embedding"], self.config["hidden"]
        S = self.config.get("value", feature_width)  # width of the summary of the picture
        self.standardise = Standardise(feature_width)
        self.embed = nn.Embedding(vocabulary_size, E)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.first_hidden = nn.Linear(S, H)
        self.first_cell = nn.Linear(S, H)
        # The four gates of an LSTM are a sum of linear maps. Kept apart, the map of the words runs once for all steps,
        # and the map of the picture once for all captions of it.
        self.word_to_gates = nn.Linear(E, 4 * H)
        self.summary_to_gates = nn.Linear(S, 4 * H, bias=False)
        self.hidden_to_gates = nn.Linear(H, 4 * H, bias=False)
        self.dropout = nn.Dropout(self.config["dropout"])
        with torch.no_grad():
            self.word_to_gates.bias[H : 2 * H].fill_(1.0)  # an open forget gate lets early gradients through

    def start(self, features: Tensor) -> State:
        """Returns the state before the first word, one row an image. features: [B, R, D]."""
        features = self.standardise(features)
        # Dropout hides whole channels of a picture, the same in every region; a neighbour must not give them away.
        features = features * self.dropout(torch.ones_like(features[:, :1]))
        image = self.look(features)
        summary = image.pop("summary")  # [B, S]
        image["gates"] = self.summary_to_gates(summary)  # [B, 4H]
        hidden, cell = torch.tanh(self.first_hidden(summary)), torch.tanh(self.first_cell(summary))  # [B, H]
        return State(image, hidden, cell)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns log-probabilities [N, V] of the next token after `tokens` [N], and the state after reading them."""
        words = self.word_to_gates(self.dropout(self.embed(tokens)))  # [N, 4H]
        output, state = self.advance(words, state)  # [N, O]
        return torch.log_softmax(exact_logits(self.dropout(output), self.output.weight, self.output.bias), -1), state

    def reorder(self, state: State, index: Tensor) -> State:
        """Returns the state of the rows `index` [N'], in that order; a row may be repeated or left out."""
        B, N = len(state.image["gates"]), len(state.hidden)
        owner = index // (N // B)  # the image of each new row
        images, counts = owner.unique_consecutive(return_counts=True)
        if (counts != counts[0]).any():
            images = owner  # uneven groups: every row becomes an image of its own
        same = len(images) == B and torch.equal(images, torch.arange(B, device=images.device))
        image = state.image if same else {name: value[images] for name, value in state.image.items()}
        attention = None if state.attention is None else state.attention[index]
        return State(image, state.hidden[index], state.cell[index], attention)

    def forward(self, features: Tensor, tokens: Tensor, row: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns logits [N, T, V] for inputs `tokens` [N, T], and attention weights [N, T, R] (R = 0 without).

        `row` [N] tells which image of `features` [B, R, D] each caption describes; without it caption i has image i.
        Teacher forcing: the words read are those of the true caption, whatever the model would have said.
        """
        state = self.start(features)
        if row is not None:
            state = self.reorder(state, row)
        words = self.word_to_gates(self.dropout(self.embed(tokens)))  # [N, T, 4H]
        outputs, maps = [], []
        for word in words.unbind(1):  # unlike words[:, t], its backward pass writes each gradient once
            output, state = self.advance(word, state)
            outputs.append(output)
            maps.append(state.attention if state.attention is not None else output[:, :0])
        return self.output(self.dropout(torch.stack(outputs, 1))), torch.stack(maps, 1)  # [N, T, V], [N, T, R]

    def extra_loss(self, attention: Tensor, labels_mask: Tensor) -> Tensor:
        """Returns what a model adds to the word loss (0 here). attention: [N, T, R]; labels_mask: [N, T]."""
        return attention.new_zeros(())

    def left_out(self) -> list[str]:
        """Returns the names of weights that a checkpoint does not carry: none."""
        return []

    def load_tokenizer(self, path: Path) -> None:
        """Reads the checkpoint's vocabulary. Raises CaptioningError when it has another size than the model."""
        self.tokenizer = Vocabulary.load(path)
        self.end_id = self.tokenizer.end_id
        if len(self.tokenizer) != self.config["vocabulary_size"]:
            raise CaptioningError(f"{path}: the vocabulary has {len(self.tokenizer)} words, not what the model has.")

    def look(self, features: Tensor) -> dict[str, Tensor]:
        """Returns what is computed once an image from the standardised `features` [B, R, D]: `summary` [B, S], more."""
        return {"summary": features.mean(1)}

    def advance(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """One LSTM step. words: [N, 4H]. Returns the output [N, O] that the word layer reads, and the new state."""
        raise NotImplementedError

    def gates(self, words: Tensor, state: State) -> Tensor:
        """Returns the summed gates [N, 4H] of words [N, 4H], picture and last hidden state."""
        picture = state.image["gates"]  # [B, 4H]
        seen = (words.unflatten(0, (len(picture), -1)) + picture[:, None]).flatten(0, 1)  # [N, 4H]
        return seen + self.hidden_to_gates(state.hidden)


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the new hidden state and cell [N, H] from the summed gates [N, 4H] (Hochreiter and Schmidhuber 1997).

    Notebook 02, section 3.
    """
    input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=-1)  # each [N, H], in nn.LSTM's order
    cell = torch.sigmoid(forget_gate) * cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
    return torch.sigmoid(output_gate) * torch.tanh(cell), cell


class ShowAndTell(LSTMCaptioner):
    """One vector an image, seen as the first state and at every step (Vinyals et al. 2015; Mao et al. 2015).

    Notebook 02, section 4.
    """

    def __init__(self, vocabulary_size: int, feature_width: int, **options):
        super().__init__(vocabulary_size, feature_width, **options)
        self.output = nn.Linear(self.config["hidden"], vocabulary_size)

    def advance(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, cell = lstm_cell(self.gates(words, state), state.cell)
        return hidden, replace(state, hidden=hidden, cell=cell)


class ShowAttendTell(LSTMCaptioner):
    """Soft attention over the regions of a grid at every word (Xu et al. 2015, sections 3.1.2 and 4.2).

    Keys score the regions (the additive form of Bahdanau et al. 2015), values carry what is taken from them, a gate
    says how much the picture matters for the next word, and the doubly stochastic term asks that every region be
    looked at about equally over a whole caption. Notebook 03, section 3.
    """

    defaults = {**LSTMCaptioner.defaults, "attention": 256, "value": 512, "doubly_stochastic": 0.0}

    def __init__(self, vocabulary_size: int, feature_width: int, **options):
        super().__init__(vocabulary_size, feature_width, **options)
        H, A, S = self.config["hidden"], self.config["attention"], self.config["value"]
        self.to_key = nn.Linear(feature_width, A)
        self.to_value = nn.Linear(feature_width, S)
        self.to_query = nn.Linear(H, A, bias=False)
        self.score = nn.Linear(A, 1, bias=False)
        self.gate = nn.Linear(H, S)
        self.context_to_gates = nn.Linear(S, 4 * H, bias=False)
        self.output = nn.Linear(H + S, vocabulary_size)

    def look(self, features: Tensor) -> dict[str, Tensor]:
        values = self.to_value(features)  # [B, R, S]
        return {"keys": self.to_key(features), "values": values, "summary": values.mean(1)}

    def attend(self, hidden: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Returns the context [N, S] and the weights over the regions [N, R], which sum to 1."""
        keys, values = state.image["keys"], state.image["values"]  # [B, R, A], [B, R, S]
        query = self.to_query(hidden).unflatten(0, (len(keys), -1))  # [B, K, A]
        scores = self.score(torch.tanh(keys[:, None] + query[:, :, None])).squeeze(-1)  # [B, K, R]
        weights = scores.float().softmax(-1)
        context = torch.bmm(weights.to(values.dtype), values)  # [B, K, S]
        return context.flatten(0, 1), weights.flatten(0, 1)

    def advance(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        context, weights = self.attend(state.hidden, state)  # [N, S], [N, R]
        context = self.dropout(torch.sigmoid(self.gate(state.hidden)) * context)
        hidden, cell = lstm_cell(self.gates(words, state) + self.context_to_gates(context), state.cell)
        output = torch.cat([hidden, context], dim=-1)  # [N, H + S]
        return output, replace(state, hidden=hidden, cell=cell, attention=weights)

    def extra_loss(self, attention: Tensor, labels_mask: Tensor) -> Tensor:
        if not self.config["doubly_stochastic"]:
            return attention.new_zeros(())
        looked = (attention * labels_mask[..., None]).sum(1)  # [N, R] how much each region got over the caption
        fair = labels_mask.sum(1, keepdim=True) / attention.shape[-1]
        return self.config["doubly_stochastic"] * ((fair - looked) ** 2).mean()


@torch.no_grad()
def grow_vocabulary(model: nn.Module, captions: Iterable[str], min_count: int = 2, seed: int = 0) -> list[str]:
    """Adds the words of `captions` that a CNN-LSTM lacks to its vocabulary and weights; returns them.

    Words seen at least `min_count` times, most frequent first. A new word begins as a vector like the others, drawn
    from their mean and deviation, and as likely as the average word. Known words keep their numbers, so everything that
    the model has learned stays. Give it training captions alone. Notebook 09, section 6.
    """
    known: Vocabulary = model.tokenizer
    counts = Counter(word for caption in captions for word in normalise(caption) if word not in known)
    new = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    if not new:
        return []
    old_embed, old_output = model.embed, model.output
    words = len(known) + len(new)
    embed = nn.Embedding(words, old_embed.embedding_dim)
    output = nn.Linear(old_output.in_features, words)
    generator = torch.Generator().manual_seed(seed)
    for grown, old in ((embed.weight, old_embed.weight), (output.weight, old_output.weight)):
        old = old.cpu()
        drawn = torch.randn((len(new), old.shape[1]), generator=generator)
        grown.copy_(torch.cat([old, old[len(SPECIALS) :].mean(0) + drawn * old[len(SPECIALS) :].std(0)]))
    bias = old_output.bias.cpu()
    output.bias.copy_(torch.cat([bias, bias[len(SPECIALS) :].mean().expand(len(new))]))
    model.embed, model.output = embed.to(old_embed.weight.device), output.to(old_output.weight.device)
    model.config["vocabulary_size"] = words
    model.tokenizer = Vocabulary([*known.words[len(SPECIALS) :], *new])
    return new
