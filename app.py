"""The web page: `make app`, or `streamlit run app.py`. Photos in, captions out, in the browser.

`streamlit run app.py -- --checkpoint FOLDER` adds a captioner of your own and begins with it. Nothing heavy is imported
before the page stands, so that photos can be chosen while the captioner is loading.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import streamlit as st
from PIL import Image
from streamlit.runtime.scriptrunner import get_script_run_ctx

from helpers import web_limits, web_page
from helpers.files import CaptioningError
from helpers.images import shown
from helpers.web_guard import guarded_uploads

MEGABYTES = 25
SECONDS = 120  # for all photos that were chosen together
KEPT = 20  # samples and pasted photos; the oldest go
DRAWS = 5  # captions drawn for each photo when sampling
INTRODUCTION = (
    "Drop, choose or paste photos, or click one of the samples. The computer that runs this page captions them, and "
    "forgets them when you close it."
)
ABOUT = "Code, training and the meaning of every setting are in the course's notebooks."


@dataclass(frozen=True)
class Item:
    """A photo that the visitor chose: `key` tells it from all others, `text` describes it for a screen reader."""

    key: str
    name: str
    data: bytes
    text: str


@st.cache_resource(show_spinner=False)
def the_desk():
    """Returns the captioners of all visitors. The default one begins to load in the background."""
    from helpers.files import pick_device
    from helpers.web_desk import Desk

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--checkpoint", action="append", default=[])
    desk = Desk(parser.parse_known_args(sys.argv[1:])[0].checkpoint, pick_device())
    web_limits.limit_uploads(get_script_run_ctx().uploaded_file_mgr, desk.limits)  # one for all visitors
    desk.warm_up()
    return desk


@st.cache_data(show_spinner=False)
def sample_photos() -> list[tuple[str, str, bytes, Image.Image]]:
    """Returns name, description, content and small picture of each sample."""
    return [(path.stem, text, path.read_bytes(), small) for path, text, small in web_page.samples()]


def taken(files: list[Any]) -> list[Any]:
    """Returns the files that were not over a limit, and shows why the others were, once for each reason."""
    reasons: dict[str, list[str]] = {}
    for file in files:
        reasons.setdefault(web_limits.refusal(file), []).append(shown(file.name))
    for reason, names in reasons.items():
        if reason:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            st.error(f"Not taken: {web_page.plain(', '.join(names[:3]))}{more}. {reason}")
    return [file for file in files if not web_limits.refusal(file)]


def choose() -> list[Item]:
    """Shows the ways to choose photos. Returns those chosen, the latest first."""
    state = st.session_state
    state.setdefault("kept", {})  # samples and pasted photos, by key; uploads are kept by their widget
    state.setdefault("round", 0)
    uploads = st.file_uploader(
        "Drop photos here, or choose them", key=f"uploads-{state.round}", max_upload_size=MEGABYTES,
        accept_multiple_files=True, help="JPEG, PNG, GIF, WebP, BMP, TIFF or AVIF; "
        f"together at most {web_limits.LIMITS.request_bytes // 10**6} MB.",
    )  # fmt: skip
    uploads = taken(uploads)
    with st.container(key="pasting"):  # inside one, the input stays here and does not stick to the window's lower edge
        pasted = st.chat_input(
            "Or paste a photo here (Ctrl+V), then press Enter",
            accept_file="multiple", max_upload_size=MEGABYTES, key=f"paste-{state.round}",
        )  # fmt: skip
    if pasted:
        for file in taken(pasted.files):
            item = Item(file.file_id, shown(file.name), file.getvalue(), "The photo you pasted")
            state.kept[item.key] = item
            web_limits.remember(item)
        if not pasted.files:
            st.warning("That was text. Copy a photo, click into the field, and press Ctrl+V.")
    with st.container(horizontal=True, wrap=False, gap="small", key="samples"):
        for name, text, data, small in sample_photos():
            with st.container(key=f"sample-{name}", width=112, gap=None):
                st.image(small, width=112, alt="")  # the button below it has the name
                if st.button(name, key=f"pick-{name}", help=text, width="stretch"):
                    state.kept.pop(f"sample {name}", None)
                    state.kept[f"sample {name}"] = Item(f"sample {name}", f"{name}.jpg", data, text)
    while len(state.kept) > KEPT or web_limits.total(state.kept.values()) > web_limits.LIMITS.request_bytes:
        del state.kept[next(iter(state.kept))]
    chosen = [Item(file.file_id, shown(file.name), file.getvalue(), "Your photo") for file in uploads]
    return [*reversed(state.kept.values()), *chosen]


def settings(desk) -> tuple[str, dict[str, Any]]:
    """Shows the settings in the sidebar. Returns the model's name and the decoding options that were changed."""
    with st.sidebar:
        st.header("Settings", anchor=False)
        model = st.selectbox(
            "Model", desk.names, help="Each has a card in data/checkpoints/ with its training and scores."
        )
        usual = desk.decoding(model)
        decoding = st.radio("Decoding", ["Beam search", "Sampling"], horizontal=True)
        options: dict[str, Any] = {}
        if decoding == "Beam search":
            widest = max(10, usual["beam_size"])
            beams = st.slider("Beam size", 1, widest, usual["beam_size"], help="Captions kept at a step; 1 is greedy.")
            if beams == 1:
                options["method"] = "greedy"
            elif beams != usual["beam_size"] or usual["method"] != "beam":
                options |= {"method": "beam", "beam_size": beams}
        else:
            top_p = st.slider(
                "Top-p", 0.05, 1.0, 0.9, 0.05, help="Draw from the likeliest words, which hold this share."
            )
            temperature = st.slider("Temperature", 0.1, 2.0, 1.0, 0.1, help="Below 1 safer, above 1 wilder.")
            st.session_state.setdefault("seed", 0)
            if st.button("Draw again", width="stretch"):
                st.session_state.seed += 1
            options = {"method": "sample", "top_p": top_p, "temperature": temperature, "samples": DRAWS}
            options["seed"] = st.session_state.seed
        penalty = st.slider(
            "Repetition penalty", 1.0, 2.0, 1.0, 0.1, help="Above 1: words said before become less likely."
        )
        prompt = st.text_input("Prompt", max_chars=200, placeholder="a photo of", help="The caption begins with it.")
        if penalty != 1.0:
            options["repetition_penalty"] = penalty
        if prompt.strip():
            options["prompt"] = prompt.strip()
        st.caption(ABOUT)
    return model, options


def caption_all(desk, items: list[Item], model: str, options: dict[str, Any]) -> list[tuple[Item, Any, Any]]:
    """Returns (item, opened photo or None, Caption) for each item; what was captioned before is not captioned again.

    Raises CaptioningError when no photo can be captioned with these settings, TimeoutError when it takes too long.
    """
    from helpers.captioner import Caption

    state = st.session_state
    photos, captions = state.get("photos", {}), state.get("captions", {})
    here = {item.key for item in items}
    how = (model, *sorted(options.items()))
    state.photos = photos = {key: value for key, value in photos.items() if key[0] in here}
    state.captions = captions = {key: value for key, value in captions.items() if key[0] in here}
    opening: dict[str, Future] = {
        item.key: desk.open(item.data, item.name, model, thumb=True)
        for item in items
        if (item.key, model) not in photos
    }
    until = time.monotonic() + SECONDS
    for key, future in opening.items():
        try:
            photos[key, model] = future.result(max(0.0, until - time.monotonic()))
        except CaptioningError as error:
            photos[key, model] = error
    failed = {item.key for item in items if isinstance(photos[item.key, model], CaptioningError)}
    for item in items:
        if item.key in failed:
            captions[(item.key, *how)] = Caption(item.name, None, None, model, error=str(photos[item.key, model]))
    new = [item for item in items if (item.key, *how) not in captions]
    if new:
        made = desk.submit([photos[item.key, model] for item in new], model, **options)
        made = made.result(max(0.0, until - time.monotonic()))
        captions.update({(item.key, *how): caption for item, caption in zip(new, made, strict=True)})
    return [
        (item, None if item.key in failed else photos[item.key, model], captions[(item.key, *how)]) for item in items
    ]


def card(number: int, item: Item, photo, caption) -> None:
    """Shows one photo with its caption, the alternatives, and where the model looked."""
    with st.container(border=True, key=f"card-{number}"):
        if photo is None:
            st.error(web_page.plain(caption.error))
            return
        left, right = st.columns([2, 3])
        left.image(photo.thumb, alt=f"{item.text.rstrip('.')} ({item.name})", width="stretch")
        with right:
            with st.container(key=f"caption-{number}"):
                st.code(caption.caption or "(it said nothing)", language=None, wrap_lines=True)
            st.caption(f"{web_page.plain(item.name)} · {web_page.plain(caption.model)}")
            if caption.alternatives:
                st.html(web_page.candidates_table([(caption.caption, caption.log_prob), *caption.alternatives]))
            else:
                st.caption(f"probability {web_page.percent(math.exp(caption.log_prob))}")
        if caption.attention is not None:
            with st.expander("Where it looked, word by word", expanded=True):
                seen = web_page.gaze(photo.square, caption.words, caption.attention)
                with st.container(horizontal=True, gap="small", key=f"gaze-{number}"):
                    for picture, word, text in seen:
                        st.image(picture, web_page.plain(word), width=104, alt=text)


def results(desk, items: list[Item], model: str, options: dict[str, Any]) -> None:
    """Captions the chosen photos and shows the cards, or why there are none."""
    if len(items) > desk.limits.photos:
        st.warning(
            f"The first {desk.limits.photos} of {len(items)} photos are captioned. Remove some to see the others."
        )
        items = items[: desk.limits.photos]
    try:
        with st.spinner("Writing captions …" if len(items) > 1 else "Writing a caption …"):
            done = caption_all(desk, items, model, options)
    except CaptioningError as error:
        st.error(web_page.plain(str(error)))
        return
    except TimeoutError:
        st.error("This takes too long; the computer may be busy. Try fewer photos, or once more in a minute.")
        return
    for number, (item, photo, caption) in enumerate(done):
        card(number, item, photo, caption)
    with st.container(horizontal=True):
        text = web_page.as_csv(caption for _, _, caption in done)
        st.download_button("Download all as CSV", text, "captions.csv", "text/csv", on_click="ignore")
        st.button("Remove all photos", on_click=clear)


def clear() -> None:
    """Forgets the chosen photos; Streamlit would keep those of a widget that is gone until the visitor is."""
    run = get_script_run_ctx()
    run.uploaded_file_mgr.remove_session_files(run.session_id)
    st.session_state.kept = {}
    st.session_state.round += 1  # a widget of another name is a new one, without files


def main() -> None:
    """Draws the page; Streamlit runs it anew after every click."""
    st.set_page_config("Caption a photo", page_icon="🖼", menu_items={"About": ABOUT})
    st.html(web_page.STYLE)
    st.title("Caption a photo", anchor=False)
    st.write(INTRODUCTION)
    items = choose()
    try:
        with st.spinner("Starting …"):
            desk = the_desk()
    except CaptioningError as error:  # it names folders, which are no business of a visitor
        print(f"app.py: {error}", file=sys.stderr)
        st.error("The captioners cannot be loaded. The terminal in which this page was started says why.")
        return
    model, options = settings(desk)
    if items:
        results(desk, items, model, options)


if __name__ == "__main__":  # as the script, anew after every click
    main()
else:  # as the server's application, once
    app = st.App(__file__, middleware=guarded_uploads(web_limits.LIMITS))
