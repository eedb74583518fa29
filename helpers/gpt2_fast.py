"""How decoding reads a language model word by word: lean steps over the weights of a GPT-2, and a way for all others.

Both readers take a prefix of embeddings, run it through the model once an image, and are then stepped and reordered
like the state of any captioner.

Shapes: B images, K rows an image (beams or samples), N = B * K rows, P prefix length, S slots of the cache, L layers,
W width, H heads, C = W / H, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.cnn_lstm import exact_logits
from helpers.errors import CaptioningError
from helpers.gpt2_weights import GPT2Weights
from helpers.language_models import read_on
from helpers.sampling import NEVER

GROWTH = 16  # steps for which the cache is lengthened at once


def reader(model: nn.Module, prefix: Tensor, look: bool = False) -> GPT2Reader | CacheReader:
    """Returns a reader that stands at the end of `prefix` [B, P, W], with the `log_probs` [B, V] of the next token.

    A plain GPT-2 gets the lean reader; any other model, one that is being trained, or one with adapters, the general.
    With `look` the lean reader also keeps `looked` [N, P]: how much attention each vector of the prefix got in the last
    step, the mean over heads and layers. The general reader has no such map: there `looked` stays None.
    """
    lean = not torch.is_grad_enabled() and not model.training and is_plain_gpt2(model)
    return GPT2Reader(model, prefix, look) if lean else CacheReader(model, prefix)


def is_plain_gpt2(model: nn.Module) -> bool:
    """Returns whether `model` is a `GPT2LMHeadModel`, or its weights, whose forward pass is the one written here."""
    if isinstance(model, GPT2Weights):
        return True
    from transformers import GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    if type(model) is not GPT2LMHeadModel:
        return False
    c = model.config
    usual = c.scale_attn_weights and c.activation_function in ("gelu_new", "gelu_pytorch_tanh")
    unusual = c.scale_attn_by_inverse_layer_idx or c.reorder_and_upcast_attn or c.add_cross_attention
    parts = [part for b in model.transformer.h for part in (b.attn.c_attn, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj)]
    return bool(usual and not unusual and type(model.lm_head) is nn.Linear and all(type(p) is Conv1D for p in parts))


class GPT2Reader:
    """Steps a GPT-2 with a preallocated cache that all beams of an image share.

    Every row writes keys and values into slots of its image and keeps a mask of the slots that belong to its own past.
    Reordering beams then moves a few bits of mask, where moving the cache itself would copy megabytes at each step;
    the K rows of an image read one cache together, prefix included, as the K queries of one attention.
    """

    def __init__(self, model: nn.Module, prefix: Tensor, look: bool = False):
        body = model.transformer
        self.words, self.positions, self.head = body.wte.weight, body.wpe.weight, model.lm_head.weight.float()
        self.layers = [
            (b.ln_1, b.attn.c_attn.weight, b.attn.c_attn.bias, b.attn.c_proj.weight, b.attn.c_proj.bias,
             b.ln_2, b.mlp.c_fc.weight, b.mlp.c_fc.bias, b.mlp.c_proj.weight, b.mlp.c_proj.bias)
            for b in body.h
        ]  # fmt: skip
        self.norm, self.heads = body.ln_f, model.config.n_head
        B, P, W = prefix.shape
        self.used = self.length = self.prefix_length = P
        self.look, self.looked = look, None
        dtype = self.words.dtype
        S, C = P + GROWTH, W // self.heads
        self.cache = prefix.new_empty(len(self.layers), 2, B, self.heads, S, C, dtype=dtype)  # keys and values
        self.mask = prefix.new_full((B, 1, S), NEVER, dtype=dtype)  # 0 where a row may look, [B, K, S]
        self.mask[:, :, :P] = 0.0
        self._check_length(P)
        hidden = (prefix.to(dtype) + self.positions[:P]).flatten(0, 1)  # [B * P, W]
        future = prefix.new_full((P, P), NEVER, dtype=dtype).triu_(1)
        self.log_probs = self._predict(self._run(hidden, B, slice(0, P), future, last=True))

    def step(self, tokens: Tensor) -> Tensor:
        """Returns log-probabilities [N, V] of the token after `tokens` [N]."""
        B, K, S = self.mask.shape
        if self.used + K > S:
            more = K * GROWTH
            self.cache = F.pad(self.cache, (0, 0, 0, more))
            self.mask = F.pad(self.mask, (0, more), value=NEVER)
        self._check_length(self.length + 1)
        new = slice(self.used, self.used + K)
        self.mask[:, torch.arange(K), torch.arange(new.start, new.stop)] = 0.0  # each row sees its own word
        mask = self.mask[:, None, :, : new.stop]  # [B, 1, K, S']
        hidden = self._run(self.words[tokens] + self.positions[self.length], B, new, mask)
        self.used, self.length, self.log_probs = new.stop, self.length + 1, None
        return self._predict(hidden)

    def reorder(self, index: Tensor) -> None:
        """Makes the rows `index` [N'] the reader's rows, in that order, in place. Rows of one image stand together."""
        B, K, S = self.mask.shape
        owner, width = index // K, len(index) // B
        images = torch.arange(B, device=index.device)
        if len(index) != B * width or not torch.equal(owner, images.repeat_interleave(width)):
            images, counts = owner.unique_consecutive(return_counts=True)
            if (counts != counts[0]).any():
                images = owner  # uneven groups: every row becomes an image of its own
            self.cache = self.cache[:, :, images]
        self.mask = self.mask.view(B * K, S)[index].view(len(images), -1, S)
        self.log_probs = None if self.log_probs is None else self.log_probs[index]
        self.looked = None if self.looked is None else self.looked[index]

    def _run(self, hidden: Tensor, B: int, new: slice, mask: Tensor, last: bool = False) -> Tensor:
        """Runs all layers over `hidden` [B * Q, W], Q rows an image; their keys and values go to slots `new`.

        With `last` only the last row of each image comes out, [B, W]: of the others nothing is read after the last
        layer's keys and values, so there that layer stops.
        """
        W = hidden.shape[1]
        C, shares = W // self.heads, []
        for number, (layer, cache) in enumerate(zip(self.layers, self.cache, strict=True), 1):
            norm1, to_qkv, qkv_bias, project, project_bias, norm2, widen, widen_bias, narrow, narrow_bias = layer
            x = F.layer_norm(hidden, (W,), norm1.weight, norm1.bias, norm1.eps)
            qkv = torch.addmm(qkv_bias, x, to_qkv).view(B, -1, 3, self.heads, C)  # [B, Q, 3, H, C]
            qkv = qkv.permute(2, 0, 3, 1, 4)  # [3, B, H, Q, C]
            cache[:, :, :, new] = qkv[1:]
            keys, values = cache[:, :, :, : new.stop]  # each [B, H, S', C]
            queries = qkv[0]
            if last and number == len(self.layers):
                queries, mask, hidden = queries[:, :, -1:], mask[-1:], hidden.view(B, -1, W)[:, -1]
            scores = torch.matmul(queries * C**-0.5, keys.mT).add_(mask)  # [B, H, Q, S']
            weights = scores.float().softmax(-1).to(scores.dtype)
            if self.look:
                seen = weights[:, :, -1:] if last else weights
                shares.append(seen[..., : self.prefix_length].float().mean(1).flatten(0, 1))  # [N, P]
            looked = torch.matmul(weights, values)  # [B, H, Q, C]
            looked = looked.transpose(1, 2).reshape(-1, W)
            hidden = torch.addmm(project_bias, looked, project).add_(hidden)
            x = F.layer_norm(hidden, (W,), norm2.weight, norm2.bias, norm2.eps)
            x = _gelu(torch.addmm(widen_bias, x, widen))
            hidden = torch.addmm(narrow_bias, x, narrow).add_(hidden)
        self.looked = torch.stack(shares).mean(0) if shares else None
        return hidden

    def _predict(self, hidden: Tensor) -> Tensor:
        hidden = F.layer_norm(hidden, hidden.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)
        return _normalise(exact_logits(hidden, self.head))

    def _check_length(self, length: int) -> None:
        if length > len(self.positions):
            raise CaptioningError(
                f"The language model reads {len(self.positions)} positions, prefix and prompt included; "
                "set a smaller max_length or a shorter prompt."
            )


class CacheReader:
    """Steps any causal language model of transformers through its own cache, one copy of it a row."""

    looked = None  # fast attention kernels give out no weights

    def __init__(self, model: nn.Module, prefix: Tensor):
        self.model = model
        logits, self.cache = read_on(model, inputs_embeds=prefix, logits_to_keep=1)
        self.log_probs = _normalise(logits[:, -1])

    def step(self, tokens: Tensor) -> Tensor:
        """Returns log-probabilities [N, V] of the token after `tokens` [N]."""
        logits, self.cache = read_on(self.model, self.cache, input_ids=tokens[:, None])
        self.log_probs = None
        return _normalise(logits[:, -1])

    def reorder(self, index: Tensor) -> None:
        """Makes the rows `index` [N'] the reader's rows, in that order, in place."""
        self.cache.reorder_cache(index)
        self.log_probs = None if self.log_probs is None else self.log_probs[index]


def _gelu(x: Tensor) -> Tensor:
    """GELU by tanh (Hendrycks and Gimpel 2016), as x * sigmoid(2 u): on a CPU half the time of the fused kernel."""
    if not x.is_cpu or x.dtype != torch.float32:
        return F.gelu(x, approximate="tanh")
    u = torch.addcmul(x, x, x * x, value=0.044715)
    return u.mul_(2 * math.sqrt(2 / math.pi)).sigmoid_().mul_(x)


def _normalise(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1)
