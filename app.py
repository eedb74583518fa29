"""The web page: `make app`, or `streamlit run app.py`. Photos in, captions out, in the browser.

`streamlit run app.py -- --checkpoint FOLDER` adds a captioner of your own and begins with it. What a visitor may send
is limited in .streamlit/config.toml.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image, ImageOps

from generate_caption import decoding_options
from helpers.captioner import Caption, Captioner, available
from helpers.files import ROOT, CaptioningError, pick_device
from helpers.images import open_image, shown
from helpers.official import OFFICIAL

PHOTOS = 20  # captioned at a time
THUMB = 640  # pixels of the longer side of the copy that is shown
SIDE = 208  # pixels of a small square picture; shown at half of it, sharp on a phone
DRAWS = 5  # captions drawn for each photo when sampling
INTRODUCTION = "Drop or choose photos, or click samples. They are forgotten when you close the page."
ABOUT = "Code, training and the meaning of every setting are in the course's notebooks."


@st.cache_resource(show_spinner=False)
def captioner(name: str) -> tuple[Captioner, threading.Lock]:
    """Returns a captioner, loaded once for all visitors, and the lock that its user holds."""
    return Captioner.load(name, pick_device()), threading.Lock()


@st.cache_data(show_spinner=False)
def sample_photos() -> dict[Path, tuple[str, Image.Image]]:
    """Returns the sample photos: file -> what it shows (from the folder's README.md), a small square picture."""
    folder = ROOT / "sample_images"
    table = re.findall(r"^\| ([\w.-]+\.jpg) \| ([^|]+?) \|", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    return {folder / name: (text, ImageOps.fit(open_image(folder / name), (SIDE, SIDE))) for name, text in table}


def plain(text: str) -> str:
    """Returns text that Markdown shows as it stands: a file name may hold links, pictures or colours."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:^=@&\"'])", r"\\\1", " ".join(text.split()))


def sure(caption: str, log_prob: float) -> str:
    """Returns how sure the model is of a caption, as the (geometric) mean probability of its words and its end."""
    return f"{math.exp(log_prob / (len(caption.split()) + 1)):.0%}"


def lit(photo: Image.Image, weights: np.ndarray) -> Image.Image:
    """Returns the photo squeezed into a square, bright where `weights` [R], a square grid of regions, are large."""
    side = round(len(weights) ** 0.5)
    light = (weights - weights.min()) / max(weights.max() - weights.min(), 1e-9)
    smooth = Image.fromarray(light.reshape(side, side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mask = 0.25 + 0.75 * np.clip(np.asarray(smooth), 0, 1)[..., None]  # [SIDE, SIDE, 1]
    return Image.fromarray((np.asarray(photo.resize((SIDE, SIDE))) * mask).astype(np.uint8))


def choose() -> dict[str, Any]:
    """Shows the ways to choose photos. Returns key -> photo, the samples first; a photo is a path or an upload."""
    state = st.session_state
    state.setdefault("round", 0)
    state.setdefault("samples", [])
    uploads = st.file_uploader(
        "Drop photos here, or choose them", accept_multiple_files=True, key=f"uploads-{state.round}",
        help="JPEG, PNG, GIF, WebP, BMP, TIFF or AVIF",
    )  # fmt: skip
    with st.container(horizontal=True, wrap=False, gap="small", key="samples"):
        for path, (text, picture) in sample_photos().items():
            with st.container(width=120, gap=None):
                st.image(picture, width=120, alt="")  # the button below it has the name
                if st.button(path.stem, key=f"pick-{path.stem}", help=text, width="stretch"):
                    state.samples = [path, *(other for other in state.samples if other != path)]
    return {str(path): path for path in state.samples} | {upload.file_id: upload for upload in uploads}


def settings(names: list[str]) -> tuple[str, dict[str, Any]]:
    """Shows the settings in the sidebar. Returns the model's name and the decoding options that were changed."""
    given: dict[str, Any] = {}
    with st.sidebar:
        st.header("Settings", anchor=False)
        model = st.selectbox("Model", names, format_func=lambda name: Path(name).name,
                             help="Each has a card in data/checkpoints/ with its training and scores.")  # fmt: skip
        decoding = st.radio("Decoding", ["The model's own", "Beam search", "Sampling"])
        if decoding == "Beam search":
            given["beam_size"] = st.slider("Beam size", 1, 10, 5, help="Captions kept at a step; 1 is greedy.")
        elif decoding == "Sampling":
            given["top_p"] = st.slider("Top-p", 0.05, 1.0, 0.9, 0.05,
                                       help="Draw from the likeliest words, which hold this share.")  # fmt: skip
            given["temperature"] = st.slider("Temperature", 0.1, 2.0, 1.0, 0.1, help="Below 1 safer, above 1 wilder.")
            given["seed"] = int(st.number_input("Seed", 0, help="Another seed draws other captions."))
        prompt = st.text_input("Prompt", max_chars=200, placeholder="a photo of", help="The caption begins with it.")
        given["prompt"] = prompt.strip() or None
        st.caption(ABOUT)
    return model, given


def caption_all(items: dict[str, Any], model: str, given: dict[str, Any]) -> list[tuple[Image.Image | None, Caption]]:
    """Returns (small copy or None, Caption) for each photo; what was captioned before is not captioned again.

    Raises CaptioningError when no photo can be captioned with these settings.
    """
    how = (model, *sorted((name, value) for name, value in given.items() if value is not None))
    done = {key: value for key, value in st.session_state.get("done", {}).items() if key[0] in items}
    new = [key for key in items if (key, how) not in done]
    if new:
        options = decoding_options(given) | ({"samples": DRAWS} if "seed" in given else {})
        with st.spinner("Writing captions …"):
            chosen, lock = captioner(model)
            with lock:
                captions = chosen.caption([items[key] for key in new], **options)
        for key, caption in zip(new, captions, strict=True):
            done[key, how] = small(items[key], caption), caption
    st.session_state.done = done
    return [done[key, how] for key in items]


def small(item: Any, caption: Caption) -> Image.Image | None:
    """Returns a small copy of a captioned photo."""
    if caption.error is not None:
        return None
    photo = open_image(item)
    photo.thumbnail((THUMB, THUMB))
    return photo


def card(number: int, name: str, text: str, photo: Image.Image | None, caption: Caption) -> None:
    """Shows one photo with its caption, the candidates, and where the model looked."""
    with st.container(border=True, key=f"card-{number}"):
        if photo is None:
            st.error(plain(caption.error))
            return
        left, right = st.columns([2, 3])
        left.image(photo, alt=text, width="stretch")
        with right:
            with st.container(key=f"caption-{number}"):
                st.subheader(plain(caption.caption) or "(it said nothing)", anchor=False)
            st.caption(f"{plain(name)} · {plain(caption.model)}")
            said = [(caption.caption, caption.log_prob), *caption.alternatives]
            table = [(plain(words), sure(words, log_prob)) for words, log_prob in said]
            st.table(pd.DataFrame(table, columns=["candidate", "sure, per word"]).set_index("candidate"))
        if caption.attention is not None:
            with st.expander("Where it looked, word by word", expanded=True), st.container(horizontal=True):
                for word, weights in zip(caption.words, np.asarray(caption.attention, np.float32), strict=False):
                    if word.strip():  # not the end token
                        st.image(lit(photo, weights), plain(word), width=104, alt=f"where it looked for {word}")


def clear() -> None:
    """Forgets the chosen photos."""
    st.session_state.samples = []
    st.session_state.round += 1  # a widget of another name is a new one, without files


def main() -> None:
    """Draws the page; Streamlit runs it anew after every click."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--checkpoint", action="append", default=[])
    own = parser.parse_known_args(sys.argv[1:])[0].checkpoint
    st.set_page_config("Caption a photo", page_icon="🖼", menu_items={"About": ABOUT})
    st.title("Caption a photo", anchor=False)
    st.write(INTRODUCTION)
    items = choose()
    model, given = settings([*own, *available(), *OFFICIAL])
    if len(items) > PHOTOS:
        st.warning(f"The first {PHOTOS} of {len(items)} photos are captioned. Remove some to see the others.")
        items = dict(list(items.items())[:PHOTOS])
    if not items:
        return
    try:
        results = caption_all(items, model, given)
    except CaptioningError as error:
        st.error(plain(str(error)))
        return
    rows = []
    for number, (item, (photo, caption)) in enumerate(zip(items.values(), results, strict=True)):
        name = shown(item.name)
        text = sample_photos()[item][0] if isinstance(item, Path) else f"Your photo {name}"
        card(number, name, text, photo, caption)
        rows.append((name, caption.caption, caption.log_prob, caption.model, caption.error))
    with st.container(horizontal=True):
        table = pd.DataFrame(rows, columns=["image", "caption", "log_prob", "model", "error"])
        st.download_button("Download all as CSV", table.to_csv(index=False), "captions.csv", on_click="ignore")
        st.button("Remove all photos", on_click=clear)


if __name__ == "__main__":
    main()
