"""Language models by name, and a GPT-2 of our own: trained, pretrained and decoded by the same lines.

A GPT-2 of any size (`pocket-gpt2`, shipped; `gpt2`, `distilgpt2`, a folder) becomes the `GPT2` written here, under the
weight names of Hugging Face's `GPT2LMHeadModel`; every other causal language model is run by transformers.

Shapes: N rows (captions or beams), B images that they belong to, K = N / B rows an image, T new tokens a row,
Q = K * T new positions an image, S positions in the cache, W width, C = W / heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.files import CHECKPOINTS, CaptioningError, atomic_write, read_json
from helpers.text import exact_logits, normalise

END_TEXT = "<|endoftext|>"
GROWTH = 16  # steps for which the cache is lengthened at once
USUAL = {  # entry of a configuration -> the values, first the default, that `GPT2` computes
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,), "tie_word_embeddings": (True,), "n_inner": (None,),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
}  # fmt: skip


class Cache:
    """The keys and values of what was read. The K rows of an image share them, and each knows which are its own past:
    choosing beams anew moves a few bits of `seen`, where moving the cache itself would copy megabytes at every step,
    and what all rows have in common, such as a prefix, is kept once an image. Notebook 07, section 9."""

    def __init__(self):
        self.store: dict[int, Tensor] = {}  # layer -> keys and values, [2, B, heads, S or more, C]
        self.seen: Tensor | None = None  # [B, K, S] where a row may look
        self.length = 0  # tokens that each row has read

    def begin(self, rows: int, count: int, device: torch.device) -> Tensor:
        """Makes room for `count` tokens of each of N rows; returns where each new position may look, [B, Q, S]."""
        if self.seen is None:
            self.seen = torch.ones(rows, 1, 0, dtype=torch.bool, device=device)  # B = N, K = 1
        B, K, _ = self.seen.shape
        own_row = torch.eye(K, dtype=torch.bool, device=device)[:, None, :, None]
        no_future = torch.ones(count, count, dtype=torch.bool, device=device).tril()[None, :, None, :]
        new = (own_row & no_future).reshape(K * count, K * count)
        past = self.seen.repeat_interleave(count, 1)  # [B, Q, S before]
        may_look = torch.cat([past, new.expand(B, -1, -1)], dim=2)
        self.seen = may_look[:, count - 1 :: count]  # the last token of a row sees all of the row
        self.length += count
        return may_look

    def extend(self, layer: int, new: Tensor) -> Tensor:
        """Puts new keys and values [2, B, heads, Q, C] behind the others of a layer; returns all, [2, ..., S, C]."""
        total = self.seen.shape[2]
        used = total - new.shape[3]
        store = self.store.get(layer, new[:, :, :, :0])
        if torch.is_grad_enabled():  # gradients need the old values, so nothing is overwritten
            store = torch.cat([store[:, :, :, :used], new], dim=3)
        else:
            if store.shape[3] < total:
                more = total - store.shape[3] + GROWTH * self.seen.shape[1]
                store = F.pad(store, (0, 0, 0, more))
            store[:, :, :, used:total] = new
        self.store[layer] = store
        return store[:, :, :, :total]

    def reorder_cache(self, index: Tensor) -> None:
        """Makes the rows `index` [N'] the rows of the cache, in place. Rows of one image stand together."""
        B, K, S = self.seen.shape
        owner, width = index // K, len(index) // B
        images = torch.arange(B, device=index.device)
        if len(index) != B * width or not torch.equal(owner, images.repeat_interleave(width)):
            images, counts = owner.unique_consecutive(return_counts=True)
            if (counts != counts[0]).any():
                images = owner  # uneven groups: every row becomes an image of its own
            self.store = {layer: value[:, images] for layer, value in self.store.items()}
        self.seen = self.seen.view(B * K, S)[index].view(len(images), -1, S)


class Projection(nn.Module):
    """A linear layer whose weight is stored [in, out], as GPT-2's are. Notebook 06, section 1."""

    def __init__(self, config: dict, inputs: int, outputs: int, adds: bool = False):
        """`adds`: what comes out is added to the residual stream, of which there are two a layer."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.zeros(outputs))
        deviation = config.get("initializer_range", 0.02)
        nn.init.normal_(self.weight, std=deviation / math.sqrt(2 * config["n_layer"]) if adds else deviation)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


class Attention(nn.Module):
    """Each position looks at those before it in its row (Vaswani et al. 2017). Notebook 06, section 1."""

    def __init__(self, config: dict, layer: int):
        super().__init__()
        W = config["n_embd"]
        self.heads, self.layer = config["n_head"], layer
        self.c_attn, self.c_proj = Projection(config, W, 3 * W), Projection(config, W, W, True)
        self.dropout = nn.Dropout(config.get("attn_pdrop", 0.1))

    def forward(self, x: Tensor, bias: Tensor, cache: Cache, keep: int) -> Tensor:
        """x: [B, Q, W]; bias: [B, 1, Q, S], 0 where a position may look; keep: how many of the last look (0: all)."""
        parts = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, heads, Q, C]
        keys, values = cache.extend(self.layer, parts[1:])  # each [B, heads, S, C]
        queries = parts[0, :, :, -keep:]  # [-0:] is all of them
        scores = queries * queries.shape[-1] ** -0.5 @ keys.mT + bias[:, :, -keep:]  # [B, heads, Q, S]
        weights = scores.float().softmax(-1).to(values.dtype)
        looked = self.dropout(weights) @ values  # [B, heads, Q, C]
        return self.c_proj(looked.transpose(1, 2).flatten(2))  # [B, Q, W]


class Block(nn.Module):
    """Attention, then two linear layers at each position; each adds to what came in. Notebook 06, section 1."""

    def __init__(self, config: dict, layer: int):
        super().__init__()
        W, small = config["n_embd"], config.get("layer_norm_epsilon", 1e-5)
        self.ln_1, self.attn = nn.LayerNorm(W, eps=small), Attention(config, layer)
        self.ln_2 = nn.LayerNorm(W, eps=small)
        self.mlp = nn.ModuleDict({"c_fc": Projection(config, W, 4 * W), "c_proj": Projection(config, 4 * W, W, True)})
        self.dropout = nn.Dropout(config.get("resid_pdrop", 0.1))

    def forward(self, x: Tensor, bias: Tensor, cache: Cache, keep: int = 0) -> Tensor:
        """x: [B, Q, W]. Only the last `keep` positions of each image come out (0: all); the others fill the cache."""
        x = x[:, -keep:] + self.dropout(self.attn(self.ln_1(x), bias, cache, keep))
        wide = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")  # [B, Q, 4W]
        return x + self.dropout(self.mlp["c_proj"](wide))


class Output(NamedTuple):
    """What a pass of `GPT2` gives back. Notebook 06, section 1."""

    logits: Tensor  # [N, T, V]
    cache: Cache  # with which the next pass goes on


class GPT2(nn.Module):
    """A GPT-2 whose weights have the names that Hugging Face's `GPT2LMHeadModel` gives them. Notebook 06, section 1."""

    def __init__(self, config: dict):
        """`config`: the content of its config.json, see `is_plain_gpt2`."""
        super().__init__()
        self.config = dict(config)
        W, layers, V = config["n_embd"], config["n_layer"], config["vocab_size"]
        words, positions = nn.Embedding(V, W), nn.Embedding(config["n_positions"], W)
        for table in (words, positions):
            nn.init.normal_(table.weight, std=config.get("initializer_range", 0.02))
        blocks = nn.ModuleList(Block(config, layer) for layer in range(layers))
        norm = nn.LayerNorm(W, eps=config.get("layer_norm_epsilon", 1e-5))
        self.transformer = nn.ModuleDict({"wte": words, "wpe": positions, "h": blocks, "ln_f": norm})
        self.dropout = nn.Dropout(config.get("embd_pdrop", 0.1))
        self.lm_head = nn.Linear(W, V, bias=False)
        self.lm_head.weight = words.weight  # one table for reading and for saying

    def load_weights(self, tensors: dict[str, Tensor]) -> GPT2:
        """Takes the weights of a `GPT2LMHeadModel`. Raises RuntimeError when they do not fit."""
        named = {name: value.float() for name, value in tensors.items()}
        self.load_state_dict({"lm_head.weight": named.get("transformer.wte.weight"), **named})
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the table of word vectors [V, W]."""
        return self.transformer["wte"]

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, cache: Cache | None = None,
        logits_to_keep: int = 0,
    ) -> Output:  # fmt: skip
        """Reads `input_ids` [N, T], or vectors `inputs_embeds` [N, T, W] in their place, behind what `cache` has read.

        `logits_to_keep`: of each row only the logits of so many last positions (0: of all), which saves work.
        Raises CaptioningError when there are more positions than the model has.
        """
        positions = self.transformer["wpe"].weight
        words = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds.to(positions.dtype)
        cache = Cache() if cache is None else cache
        N, T, W = words.shape
        first = cache.length
        if first + T > len(positions):
            much = f"The language model reads {len(positions)} positions, prefix and prompt included"
            raise CaptioningError(f"{much}; set a smaller max_length or a shorter prompt.")
        may_look = cache.begin(N, T, words.device)  # [B, Q, S]
        bias = torch.zeros(may_look.shape, dtype=words.dtype, device=words.device)
        bias = bias.masked_fill_(~may_look, -torch.inf)[:, None]  # [B, 1, Q, S]
        x = self.dropout(words + positions[first : first + T])
        x = x.view(len(may_look), -1, W)  # [N, T, W] -> [B, Q, W]
        *layers, last = self.transformer["h"]
        for block in layers:
            x = block(x, bias, cache)
        x = last(x, bias, cache, logits_to_keep if len(may_look) == N else 0)  # of the others nothing is read any more
        x = self.transformer["ln_f"](x).view(N, -1, W)[:, -logits_to_keep:]
        return Output(exact_logits(x, self.lm_head.weight), cache)  # [N, T, V]


def is_plain_gpt2(config: dict) -> bool:
    """Returns whether a model with this content of config.json is one that `GPT2` computes. Notebook 06, section 1."""
    sizes = ("n_embd", "n_layer", "n_head", "vocab_size", "n_positions", "eos_token_id")
    usual = all(config.get(name, values[0]) in values for name, values in USUAL.items())
    return config.get("model_type") == "gpt2" and usual and all(isinstance(config.get(name), int) for name in sizes)


class CaptionTokenizer:
    """Captions to token numbers and back, over a `tokenizers.Tokenizer`. Notebook 06, section 1.

    `plain` captions are lower case without punctuation, as PocketGPT2 reads them; others keep their spelling, as a
    language model that has read the web expects. A blank stands in front, as before a word in running text.
    """

    def __init__(self, tokenizer, end_id: int, plain: bool):
        self.tokenizer, self.end_id, self.plain = tokenizer, end_id, plain

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, caption: str) -> list[int]:
        """Returns the token numbers of a caption, without an end token."""
        text = " ".join(normalise(caption)) if self.plain else caption.strip()
        return self.tokenizer.encode(f" {text}", add_special_tokens=False).ids if text else []

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` up to the first end token."""
        kept = []
        for number in ids:
            if int(number) == self.end_id:
                break
            kept.append(int(number))
        return " ".join(self.tokenizer.decode(kept).split())

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer as one JSON file, the format of the `tokenizers` library."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.tokenizer.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, end_id: int, plain: bool) -> CaptionTokenizer:
        """Returns the tokenizer that `save` wrote. Raises CaptioningError when the file is something else."""
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)), end_id, plain)
        except Exception as error:  # the library raises a bare Exception
            raise CaptioningError(f"{path} is not a tokenizer file: {error}.") from error


def load_language_model(name: str) -> tuple[nn.Module, CaptionTokenizer]:
    """Returns (model, tokenizer) by name, in evaluation mode: `pocket-gpt2` (shipped), a folder, or any causal language
    model of the Hugging Face hub. Raises CaptioningError when it cannot be had. Notebook 06, section 1.
    """
    from safetensors.torch import load_file

    folder = CHECKPOINTS / name if name == "pocket-gpt2" else Path(name)
    try:
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        if is_plain_gpt2(config) and config.get("plain_captions"):  # our own, without the seconds of transformers
            tokenizer = CaptionTokenizer.load(folder / "tokenizer.json", config["eos_token_id"], plain=True)
            model = GPT2(config).load_weights(load_file(folder / "model.safetensors"))
        else:
            model, tokenizer = _by_transformers(name)
    except Exception as error:  # transformers, safetensors and tokenizers raise what they like on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:400]
        known = "pocket-gpt2 (shipped), gpt2, distilgpt2, a folder, or any causal language model of the hub"
        raise CaptioningError(f"The language model {name!r} cannot be loaded: {reason} Names: {known}.") from error
    if tokenizer.end_id is None:
        raise CaptioningError(f"The tokenizer of {name!r} has no end-of-sequence token; a caption could never end.")
    return model.eval(), tokenizer


def _by_transformers(name: str) -> tuple[nn.Module, CaptionTokenizer]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
    config = model.config.to_dict()
    if is_plain_gpt2(config):
        model = GPT2(config).load_weights(model.state_dict())
    plain = bool(config.get("plain_captions"))
    return model, CaptionTokenizer(tokenizer.backend_tokenizer, tokenizer.eos_token_id, plain)


def read_on(model: nn.Module, cache=None, **inputs) -> tuple[Tensor, Any]:
    """Returns (logits, cache) of a pass over `inputs` (`input_ids` or `inputs_embeds`, `logits_to_keep`) that goes on
    where `cache` ends (None: at the beginning). Notebook 06, section 2."""
    if isinstance(model, GPT2):
        out = model(cache=cache, **inputs)
        return out.logits, out.cache
    from transformers.modeling_outputs import CausalLMOutputWithPast

    # transformers 5.24 gave the cache a new name in both directions
    name = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
    out = model(**inputs, **{name: cache}, use_cache=True)
    return out.logits, getattr(out, name)
