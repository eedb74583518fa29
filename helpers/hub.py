"""Captioners in the Hugging Face hub's format: a folder to keep, or a repository to share.

    python -m helpers.hub save data/runs/mine build/mine       # a folder with a card that the hub understands
    python -m helpers.hub push data/runs/mine USER/mine        # the same, uploaded; needs a token (`hf auth login`)
    python -m helpers.hub pull USER/mine data/runs/theirs      # then: Captioner.load("data/runs/theirs")

A checkpoint of this course nearly has that format already: config.json, model.safetensors and a card. What is added is
the card's header. What is fetched is checked like any checkpoint; nothing but JSON and safetensors is read from it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from helpers.captioner import Captioner, checkpoint_folder, load_checkpoint
from helpers.errors import CaptioningError, command
from helpers.files import atomic_write, read_json

FILES = ("config.json", "model.safetensors", "vocabulary.json", "tokenizer.json", "encoder.safetensors",
         "training.json", "README.md")  # fmt: skip
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(checkpoint: str | os.PathLike, folder: str | os.PathLike, licence: str = "mit") -> Path:
    """Writes a checkpoint (a shipped name, or a folder that training wrote) in the hub's format; returns the folder.

    Raises CaptioningError when it is no whole checkpoint. Its encoder is named, not copied: who loads it needs it; of a
    tuned one the tail goes along.
    """
    source, folder = checkpoint_folder(checkpoint), Path(folder)
    load_checkpoint(source)  # whole, and its files belong together
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES[:-1]:
        if (source / name).is_file() and not (folder / name).exists():
            with atomic_write(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
        elif (source / name).is_file() and (folder / name).read_bytes() != (source / name).read_bytes():
            raise CaptioningError(f"{folder} holds another checkpoint. Choose an empty folder.")
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card(source, licence), encoding="utf-8")
    return folder


def card(source: Path, licence: str = "mit") -> str:
    """Returns the model card of a checkpoint with the header that the hub reads."""
    config = read_json(source / "config.json")
    training = read_json(source / "training.json") if (source / "training.json").is_file() else {}
    trained_on = training.get("dataset", {}).get("name")
    header = ["---", f"license: {licence}", "language: en", "pipeline_tag: image-to-text"]
    header += ["tags:", "- image-captioning", f"- {config['class'].lower()}", "- safetensors"]
    header += ["datasets:", f"- {trained_on}"] if trained_on else []
    text = (source / "README.md").read_text(encoding="utf-8") if (source / "README.md").is_file() else ""
    if text.startswith("---\n"):
        return text  # it has a header, perhaps a better one
    text = text or f"# {config['name']}\n\nAn image captioner ({config['class']}).\n"
    use = f"""
## Use

It needs the image captioning course (`helpers/`) and the encoder `{config["encoder"]["name"]}`:

```python
from helpers.hub import from_pretrained
captioner = from_pretrained("USER/{config["name"]}")       # or a folder
print(captioner.caption("photo.jpg")[0].caption)
```
"""
    return "\n".join([*header, "---", "", ""]) + text.rstrip() + "\n" + use


def from_pretrained(name: str | os.PathLike, revision: str | None = None, device: str = "cpu") -> Captioner:
    """Returns the captioner in a folder, or in the hub's repository USER/NAME (kept in the hub's cache once fetched).

    `revision`: a branch, tag or commit. Raises CaptioningError when there is none, or its files do not fit together.
    """
    if Path(name).is_dir() or not _REPOSITORY.fullmatch(str(name)):
        return Captioner.load(name, device)
    fetched = call_hub("snapshot_download", repo_id=str(name), revision=revision, allow_patterns=list(FILES))
    return Captioner.load(Path(fetched), device)


def push_to_hub(checkpoint: str | os.PathLike, repository: str, private: bool = True, licence: str = "mit") -> str:
    """Uploads a checkpoint to the repository USER/NAME, made if it is not there; returns the commit's identity."""
    if not _REPOSITORY.fullmatch(repository):
        raise CaptioningError(f"{repository!r} is no repository of the hub; it should read USER/NAME.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(checkpoint, Path(temporary) / "checkpoint", licence)
        call_hub("create_repo", repo_id=repository, private=private, exist_ok=True)
        commit = call_hub(
            "upload_folder", repo_id=repository, folder_path=folder, allow_patterns=list(FILES),
            commit_message="A captioner with its card",
        )  # fmt: skip
    return commit.oid


def pull_from_hub(repository: str, folder: str | os.PathLike, revision: str | None = None) -> Path:
    """Fetches the captioner in USER/NAME into `folder`, checks it, and returns the folder."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CaptioningError(f"{folder} is not empty. Choose another folder.")
    call_hub(
        "snapshot_download", repo_id=repository, revision=revision, local_dir=folder, allow_patterns=list(FILES)
    )  # fmt: skip
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub's notes on what it fetched
    load_checkpoint(folder)
    return folder


def call_hub(action: str, **arguments):
    """Returns the answer of the hub to `action`, a method of its client. The one place that speaks to it.

    HF_ENDPOINT names another hub, HF_TOKEN the key to it. Raises CaptioningError with the hub's reason.
    """
    from huggingface_hub import HfApi

    client = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="image-captioning-course")
    try:
        return getattr(client, action)(**arguments)
    except Exception as error:  # the hub's own errors, and those of whatever HTTP library its client is built on
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CaptioningError(
            f"The hub refused {action.replace('_', ' ')} of {arguments.get('repo_id')}: {reason} Check the name and "
            "the token (`hf auth login`), and that HF_HUB_OFFLINE is not set."
        ) from error


@command
def main(arguments: list[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m helpers.hub", description="Captioners in the hub's format.")
    parser.add_argument("action", choices=["save", "push", "pull"])
    parser.add_argument("source", help="a checkpoint's name or folder; for pull, USER/NAME")
    parser.add_argument("target", help="a folder; for push, USER/NAME")
    parser.add_argument("--public", action="store_true", help="a pushed repository can be read by all")
    parser.add_argument("--revision", help="for pull: a branch, tag or commit")
    options = parser.parse_args(arguments)
    if options.action == "save":
        print(save_pretrained(options.source, options.target))
    elif options.action == "push":
        print(push_to_hub(options.source, options.target, private=not options.public))
    else:
        print(pull_from_hub(options.source, options.target, options.revision))


if __name__ == "__main__":
    raise SystemExit(main())
