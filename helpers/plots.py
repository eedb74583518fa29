"""Figures of photos, captions and datasets. Each function returns a matplotlib Figure; `show` puts it into a notebook.

Figures of what a model does inside are in model_plots.py. All share `COLOURS` and `use_style`.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

# Okabe and Ito 2008: told apart with every common kind of colour blindness, and in grey print.
COLOURS = {"blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "purple": "#CC79A7",
           "sky": "#56B4E9", "grey": "#8C8C8C", "ink": "#262626", "pale": "#E8E8E8"}  # fmt: skip
CYCLE = [COLOURS[name] for name in ("blue", "orange", "green", "red", "purple", "sky", "grey")]
SPLIT_COLOURS = {"train": COLOURS["blue"], "dev": COLOURS["orange"], "test": COLOURS["green"]}
WIDTH = 9.0  # inches, of every figure that has no reason to be narrower
DPI = 100
TEXT = 9.0  # points, of captions below photos
_LINE = TEXT * 1.35 / 72  # inches a line of such text needs
Photo = Image.Image | str | Path | np.ndarray


def use_style() -> None:
    """Sets the one look of all figures: sizes, colours, light grid lines, no frame. Call it once in a notebook."""
    mpl.rcParams.update({
        "figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white", "figure.constrained_layout.use": True,
        "font.size": 10, "font.family": "DejaVu Sans", "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["ink"],
        "axes.titlesize": 11, "axes.titlelocation": "left", "axes.prop_cycle": mpl.cycler(color=CYCLE),
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.color": COLOURS["pale"], "grid.linewidth": 0.8, "legend.frameon": False, "lines.linewidth": 2,
        "image.cmap": "viridis",
    })  # fmt: skip


def show(figure: Figure, alt: str) -> None:
    """Displays a figure in a notebook with `alt`, the sentence that stands for it where it cannot be seen.

    Photos are stored as JPEG and charts as PNG of at most 256 colours, so that a notebook stays small.
    """
    from IPython.display import display

    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI)
    picture, packed = Image.open(raw).convert("RGB"), io.BytesIO()
    photos = any(axes.images for axes in figure.axes)
    if photos:
        picture.save(packed, "JPEG", quality=82, optimize=True)
    else:
        picture.quantize(256, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    kind = "image/jpeg" if photos else "image/png"
    data = {kind: base64.b64encode(packed.getvalue()).decode(), "text/plain": f"[figure: {alt}]"}
    display(data, metadata={kind: {"alt": alt}}, raw=True)


def as_picture(photo: Photo) -> Image.Image:
    """Returns a photo as a PIL image: a path, a PIL image, or uint8 pixels [3, S, S] or [S, S, 3]."""
    if isinstance(photo, (str, Path)):
        from helpers.images import open_image

        return open_image(photo)
    if isinstance(photo, Image.Image):
        return photo.convert("RGB")
    pixels = np.asarray(photo)
    return Image.fromarray(pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels)


def photo_grid(
    photos: Sequence[Photo],
    captions: Sequence[str | Sequence[str]] = (),
    columns: int = 4,
    width: float = WIDTH,
    colours: Sequence[str] | None = None,
) -> Figure:
    """Returns photos side by side, `columns` in a row, each with its caption (or several, one below the other).

    `colours`: one colour a photo for its caption, such as COLOURS["red"] for a wrong one.
    """
    pictures = [as_picture(photo) for photo in photos]
    columns = min(columns, len(pictures))
    gap, cell = 0.15, (width - 0.15 * (columns - 1)) / columns  # inches
    letters = max(8, int(cell * 72 / (TEXT * 0.56)))  # that fit below a photo
    texts = [_wrap(captions[i] if i < len(captions) else "", letters) for i in range(len(pictures))]
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    tall = [max(min(p.height / p.width, 1.25) for p in (pictures[i] for i in row)) * cell for row in rows]
    below = [max(texts[i].count("\n") + 1 if texts[i] else 0 for i in row) * _LINE + gap for row in rows]
    height = sum(tall) + sum(below)
    figure, top = Figure(figsize=(width, height), layout="none"), height
    for row, tallest, under in zip(rows, tall, below, strict=True):
        for place, i in enumerate(row):
            high = min(pictures[i].height / pictures[i].width, 1.25) * cell
            left = place * (cell + gap)
            axes = figure.add_axes((left / width, (top - high) / height, cell / width, high / height))
            _draw(axes, pictures[i], pixels=int(cell * DPI))
            colour = colours[i] if colours else COLOURS["ink"]
            axes.text(0, -0.04 / high, texts[i], size=TEXT, va="top", color=colour, transform=axes.transAxes)
        top -= tallest + under
    return figure


def pair_grid(pairs: Sequence[tuple[Photo, Photo, str]], columns: int = 3, width: float = WIDTH) -> Figure:
    """Returns pairs of photos that are nearly the same, each pair joined, with one line of text below it."""
    joined = []
    for one, other, _ in pairs:
        left, right = as_picture(one), as_picture(other)
        right = right.resize((max(1, round(right.width * left.height / right.height)), left.height))
        sheet = Image.new("RGB", (left.width + right.width + left.width // 30, left.height), "white")
        sheet.paste(left, (0, 0))
        sheet.paste(right, (sheet.width - right.width, 0))
        joined.append(sheet)
    return photo_grid(joined, [text for _, _, text in pairs], columns, width)


def candidates(photo: Photo, captions: Sequence[str], probabilities: Sequence[float], width: float = WIDTH) -> Figure:
    """Returns a photo beside its candidate captions, each above a bar as long as its probability (0 to 1)."""
    figure = Figure(figsize=(width, max(2.6, 0.5 * len(captions) + 0.7)))
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    _draw(left, as_picture(photo), pixels=int(width * DPI / 3), stretch=False)
    places = np.arange(len(captions))
    colours = [CYCLE[0]] + [COLOURS["sky"]] * (len(captions) - 1)
    bars = right.barh(places + 0.18, probabilities, height=0.34, color=colours)
    right.bar_label(bars, fmt=_percent, padding=4, size=TEXT)
    for place, caption in zip(places, captions, strict=True):
        right.text(0, place - 0.06, caption, size=TEXT, va="bottom")
    right.set(xlabel="probability of the whole caption", xticks=[], yticks=[], ylim=(len(captions) - 0.4, -0.5))
    right.set_xlim(0, max(probabilities) * 1.25)
    right.spines[:].set_visible(False)
    return figure


def word_bars(words: Sequence[str], probabilities: Sequence[float], width: float = WIDTH) -> Figure:
    """Returns a bar a word: the probability that the model gave it after the words before it (0 to 1)."""
    figure = Figure(figsize=(width, 2.6))
    axes = figure.subplots()
    bars = axes.bar(range(len(words)), probabilities, color=CYCLE[0], width=0.7)
    axes.bar_label(bars, fmt=_percent, size=TEXT)
    axes.set(ylabel="probability", ylim=(0, 1.08), xlabel="words in the order they were chosen")
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(words) > 10 else {}
    axes.set_xticks(range(len(words)), words, **turned)
    axes.grid(axis="x", visible=False)
    return figure


def length_histogram(lengths: pd.DataFrame, width: float = WIDTH) -> Figure:
    """Returns the share of captions by number of words, a line a split. `lengths`: columns split, words, captions."""
    figure = Figure(figsize=(width, 3.0))
    axes = figure.subplots()
    for split, rows in lengths.groupby("split", sort=False):
        full = rows.set_index("words")["captions"].reindex(range(rows["words"].max() + 2), fill_value=0)
        axes.plot(full.index, full / full.sum(), label=split, color=SPLIT_COLOURS.get(split), drawstyle="steps-mid")
    axes.set(xlabel="words in a caption", ylabel="share of captions", ylim=(0, None), xlim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend()
    return figure


def vocabulary_growth(growth: pd.DataFrame, width: float = WIDTH) -> Figure:
    """Returns distinct words against captions read. `growth`: columns captions, vocabulary, vocabulary_4."""
    figure = Figure(figsize=(width, 3.0))
    axes = figure.subplots()
    axes.plot(growth["captions"], growth["vocabulary"], label="words seen at all")
    axes.plot(growth["captions"], growth["vocabulary_4"], label="words seen at least 4 times")
    axes.set(xlabel="training captions read", ylabel="different words", ylim=(0, None), xlim=(0, None))
    axes.legend()
    return figure


def zipf(counts: Mapping[str, Sequence[int]], width: float = WIDTH) -> Figure:
    """Returns word frequencies by rank, both axes logarithmic, a line a text, beside Zipf's 1/rank."""
    figure = Figure(figsize=(width, 3.4))
    axes = figure.subplots()
    longest = 1
    for name, values in counts.items():
        ordered = np.sort(np.asarray(values, dtype=float))[::-1]
        axes.loglog(np.arange(1, len(ordered) + 1), ordered / ordered.sum(), label=name)
        longest = max(longest, len(ordered))
    ranks = np.array([1, longest])
    axes.loglog(ranks, 0.1 / ranks, color=COLOURS["grey"], linestyle="--", linewidth=1.2, label="0.1 / rank")
    axes.set(xlabel="rank of the word, most frequent first", ylabel="share of all words")
    axes.legend()
    return figure


def split_dots(tables: Mapping[str, pd.DataFrame], images: int = 30, width: float = WIDTH) -> Figure:
    """Returns a dot a caption, a column an image, coloured by split; a panel a table (image, caption, split)."""
    figure = Figure(figsize=(width, 1.5 * len(tables) + 0.5))
    panels = figure.subplots(len(tables), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        shown = table[table["image"].isin(table["image"].unique()[:images])]
        column, row = shown.groupby("image", sort=False).ngroup(), shown.groupby("image").cumcount()
        for split, colour in SPLIT_COLOURS.items():
            here = (shown["split"] == split).to_numpy()
            axes.scatter(column[here], row[here] + 1, s=26, color=colour, label=split)
        axes.set(title=title, ylabel="caption", ylim=(row.max() + 1.6, 0.4), yticks=range(1, row.max() + 2))
        axes.grid(visible=False)
    panels[-1].set_xlabel("image")
    panels[0].legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    return figure


def token_grid(tables: Mapping[str, Sequence[Sequence[str]]], width: float = WIDTH) -> Figure:
    """Returns tables of tokens, one panel each: start and end coloured, padding and ignored places grey."""
    roles = {"<start>": COLOURS["sky"], "<end>": COLOURS["orange"], "<pad>": COLOURS["pale"], "-100": COLOURS["pale"]}
    rows = [len(table) for table in tables.values()]
    figure = Figure(figsize=(width, 0.34 * sum(rows) + 0.5 * len(rows)))
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=rows)[:, 0]
    columns = max(len(row) for table in tables.values() for row in table)
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        for y, row in enumerate(table):
            for x, token in enumerate(row):
                colour = roles.get(token, "white")
                axes.add_patch(Rectangle((x, y), 0.96, 0.9, facecolor=colour, edgecolor=COLOURS["grey"], linewidth=0.6))
                axes.text(x + 0.48, y + 0.47, token, ha="center", va="center", size=min(TEXT, 88 / columns))
        axes.set(xlim=(0, columns), ylim=(len(table), 0), title=title)
        axes.axis("off")
    return figure


def score_bars(scores: pd.DataFrame, width: float = WIDTH) -> Figure:
    """Returns grouped bars: a group a metric (columns), a colour a system (rows), scores as fractions."""
    scores = scores.dropna(axis="columns", how="all")
    figure = Figure(figsize=(width, 3.0))
    axes = figure.subplots()
    grouped_bars(axes, scores, "{:.2f}")
    axes.set(ylabel="score", xlabel="metric")
    axes.margins(y=0.1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def grouped_bars(axes: Axes, scores: pd.DataFrame, label: str) -> None:
    """Draws a group of bars a column of `scores`, a colour a row, with each value above its bar as `label` has it."""
    thick = 0.8 / len(scores)
    letters = TEXT - (1 if scores.size <= 15 else 3)  # narrow bars leave little room above them
    for number, (name, row) in enumerate(scores.iterrows()):
        places = np.arange(len(row)) + (number - (len(scores) - 1) / 2) * thick
        bars = axes.bar(places, row.astype(float), width=thick * 0.92, label=name)
        axes.bar_label(bars, fmt=label, size=letters)
    axes.set_xticks(range(len(scores.columns)), scores.columns)
    axes.grid(axis="x", visible=False)


def _draw(axes: Axes, picture: Image.Image, pixels: int, stretch: bool = True) -> None:
    """Draws a picture without axes, scaled down first: a notebook need not store what nobody sees."""
    picture = picture.copy()
    picture.thumbnail((2 * pixels, 2 * pixels))
    axes.imshow(np.asarray(picture), aspect="auto" if stretch else "equal", interpolation="bicubic")
    axes.axis("off")


def _wrap(caption: str | Sequence[str], letters: int) -> str:
    lines = [caption] if isinstance(caption, str) else caption
    lines = [line.replace(" .", "\N{NO-BREAK SPACE}.").replace(" ,", "\N{NO-BREAK SPACE},") for line in lines]
    return "\n".join("\n".join(textwrap.wrap(line, letters)) for line in lines if line)


def _percent(value: float) -> str:
    """Returns a probability as people read it: 12%, 0.4%, or 1 in 5,000 where a percentage would be all zeros."""
    if value >= 0.1 or value <= 0:
        return f"{value:.0%}"
    return f"{value:.1%}" if value >= 0.001 else f"1 in {float(f'{1 / value:.2g}'):,.0f}"
BLUES = LinearSegmentedColormap.from_list("blues", ["white", COLOURS["blue"]])
SIDE = 224  # pixels a side at which a photo with a map over it is drawn


def training_curves(histories: Mapping[str, Sequence[Mapping]] | Sequence[Mapping], width: float = WIDTH) -> Figure:
    """Returns the teacher-forced loss beside the scores of freely decoded captions, by epoch.

    histories: the rows of one run (see `helpers.training.run_stage`), or name -> rows to compare several. Epochs of a
    second stage follow those of the first, behind a dotted line.
    """
    several = isinstance(histories, Mapping)
    named = histories if several else {"": histories}
    figure = Figure(figsize=(width, 3.2))
    left, right = figure.subplots(1, 2)
    for colour, (name, rows) in zip(CYCLE, named.items(), strict=False):
        epochs = np.arange(1, len(rows) + 1)
        curves = [
            (left, "train", [row["train_loss"] if "reward" not in row else np.nan for row in rows]),
            (left, "dev", [row["dev_loss"] for row in rows]),
            (right, "BLEU-4", [row.get("BLEU-4", np.nan) for row in rows]),
            (right, "CIDEr", [row.get("CIDEr", np.nan) for row in rows]),
        ]
        for number, (axes, what, values) in enumerate(curves):
            # One run: a colour a curve. Several: a colour a run, and the line's style tells its curves apart.
            style = {"color": colour, "linestyle": ("--", "-")[number % 2]} if several else {"color": CYCLE[number]}
            axes.plot(epochs, values, label=f"{name} {what}".strip(), **style)
        for epoch, (row, after) in enumerate(zip(rows, rows[1:], strict=False), 1):
            if row["stage"] != after["stage"]:
                for axes in (left, right):
                    axes.axvline(epoch + 0.5, color=COLOURS["grey"], linestyle=":", linewidth=1)
    left.set(title="reading the true words", ylabel="loss a word", xlabel="epoch")
    right.set(title="reading its own words", ylabel="score on dev", xlabel="epoch", ylim=(0, None))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend()
    right.legend(**({"loc": "upper left", "bbox_to_anchor": (1, 1)} if several else {}))  # many curves leave no room
    return figure


def captions_by_epoch(
    photos: Sequence[Photo],
    captions: Sequence[Sequence[str]],
    labels: Sequence[str] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Returns photos, each beside what a model said of it after every epoch; the newest darkest.

    captions[e][i] is what was said of photo i at time e. labels: names of the times, "epoch 1" … without.
    """
    labels = labels or [f"epoch {number}" for number in range(1, len(captions) + 1)]
    line, letters = TEXT * 1.5 / 72, int((width - 2.9) * 72 / (TEXT * 0.56))
    texts = [[textwrap.wrap(said[i], letters) or ["(nothing)"] for said in captions] for i in range(len(photos))]
    heights = [max(1.75, line * (sum(len(lines) for lines in column) + 1)) for column in texts]
    figure = Figure(figsize=(width, sum(heights)))
    panels = figure.subplots(len(photos), 2, width_ratios=(1.7, width - 1.7), height_ratios=heights, squeeze=False)
    for (left, right), photo, column, height in zip(panels, photos, texts, heights, strict=True):
        left.imshow(as_picture(photo).resize((SIDE, SIDE)))
        y = 0.5
        for number, (label, lines) in enumerate(zip(labels, column, strict=True)):
            shade = 0.35 + 0.65 * (number + 1) / len(column)
            style = {"size": TEXT, "va": "center", "color": COLOURS["ink"], "alpha": shade}
            right.text(0.0, y, label, **{**style, "color": COLOURS["blue"]})
            right.text(0.13, y + (len(lines) - 1) / 2, "\n".join(lines), linespacing=1.5, **style)
            y += len(lines)
        right.set(ylim=(height / line, 0), xlim=(0, 1))
        left.axis("off"), right.axis("off")
    return figure


def gate_picture(
    words: Sequence[str], gates: Mapping[str, np.ndarray], units: int = 24, width: float = WIDTH
) -> Figure:
    """Returns a panel a gate: a column a word, a row a unit, the colour how far the gate is open (0 to 1).

    gates: name -> [T, H]. Units are the `units` that change most over the caption, sorted by when they are most open.
    """
    values = {name: np.asarray(value, dtype=float) for name, value in gates.items()}  # [T, H] each
    figure = Figure(figsize=(width, 3.6))
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (name, value) in zip(panels, values.items(), strict=True):
        liveliest = np.argsort(value.std(0))[::-1][:units]
        order = liveliest[np.argsort(value[:, liveliest].argmax(0), kind="stable")]
        drawn = axes.imshow(value[:, order].T, cmap=BLUES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor", size=TEXT - 1)
        axes.set(title=name, yticks=[])
        axes.grid(visible=False)
    panels[0].set_ylabel(f"{min(units, value.shape[1])} units")
    figure.colorbar(drawn, ax=list(panels), label="0 shut, 1 open", shrink=0.8)
    return figure


def grid_side(regions: int) -> int:
    """Returns the side of a square grid of `regions`. Raises ValueError when it is not square."""
    side = round(regions**0.5)
    if side * side != regions:
        raise ValueError(f"{regions} regions are no square grid.")
    return side


def lit(photo: Photo, weights: np.ndarray, brightest: float, darkest: float = 0.0, dark: float = 0.25) -> Image.Image:
    """Returns the photo, SIDE pixels square, lit by `weights` [R]: full light at `brightest` and above, the share
    `dark` of it at `darkest` and below."""
    side = grid_side(len(weights))
    light = (np.asarray(weights, dtype=np.float32) - darkest) / max(brightest - darkest, 1e-9)
    light = np.clip(light, 0, 1).reshape(side, side)
    smooth = Image.fromarray(light).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mask = dark + (1 - dark) * np.clip(np.asarray(smooth), 0, 1)[..., None]  # [S, S, 1]
    picture = np.asarray(as_picture(photo).resize((SIDE, SIDE)), dtype=np.float32)
    return Image.fromarray((picture * mask).astype(np.uint8))


def attention_words(
    photo: Photo,
    words: Sequence[str],
    attention: np.ndarray,
    notes: Sequence[str] | None = None,
    columns: int = 6,
    boxes: Mapping[int, Sequence[float]] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Returns the photo once as it is and once a word, lit where the model looked when it chose that word.

    attention: [T, R], rows sum to 1. Each word has a scale of its own, from its smallest to its largest weight; both
    stand above it, since what is easy to see may be a small difference from 1 / R, which stands above the photo.
    notes: a line below each word. boxes: word number -> [left, top, right, bottom] as fractions of the photo.
    """
    attention = np.asarray(attention, dtype=float)[: len(words)]  # [T, R]
    rows = -(-(len(words) + 1) // columns)
    cell = width / columns
    figure = Figure(figsize=(width, rows * (cell + (0.4 if notes is None else 0.56))))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    _picture(panels[0], as_picture(photo).resize((SIDE, SIDE)), f"the photo\neven: {1 / attention.shape[1]:.3f}")
    for number, (axes, word, weights) in enumerate(zip(panels[1:], words, attention, strict=False)):
        lines = [word, f"{weights.min():.3f} to {weights.max():.3f}", *([] if notes is None else [notes[number]])]
        _picture(axes, lit(photo, weights, weights.max(), weights.min()), "\n".join(lines))
        if boxes and number in boxes:
            left, top, right, bottom = (SIDE * value for value in boxes[number])
            frame = {"fill": False, "edgecolor": COLOURS["orange"], "linewidth": 1.5}
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, **frame))
    return figure


def channel_maps(photo: Photo, grid: np.ndarray, channels: Sequence[int], width: float = WIDTH) -> Figure:
    """Returns the photo beside itself lit by single channels of its features `grid` [R, D], each on its own scale."""
    grid = np.asarray(grid, dtype=float)
    figure = Figure(figsize=(width, width / (len(channels) + 1) + 0.3))
    panels = figure.subplots(1, len(channels) + 1)
    _picture(panels[0], as_picture(photo).resize((SIDE, SIDE)), "the photo")
    for axes, channel in zip(panels[1:], channels, strict=True):
        _picture(axes, lit(photo, grid[:, channel], grid[:, channel].max()), f"channel {channel}")
    return figure


def weight_grids(weights: Mapping[str, np.ndarray], regions: Sequence[str] = (), width: float = WIDTH) -> Figure:
    """Returns small square grids of numbers side by side, a panel each. weights: title -> [R], 0 to 1.

    regions: what each region holds, written above its number.
    """
    figure = Figure(figsize=(width, width / max(3, len(weights)) + 0.3))
    panels = figure.subplots(1, max(3, len(weights)), squeeze=False)[0]
    for axes in panels[len(weights) :]:
        axes.axis("off")
    for axes, (title, values) in zip(panels, weights.items(), strict=False):
        side = grid_side(len(values))
        square = np.asarray(values, dtype=float).reshape(side, side)
        axes.imshow(square, cmap=BLUES, vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(square):
            colour = "white" if value > 0.6 else COLOURS["ink"]
            text = f"{regions[row * side + column]}\n{value:.2f}" if regions else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, size=TEXT if side < 5 else 6)
        axes.set(title=title, xticks=[], yticks=[])
        axes.grid(visible=False)
    return figure


def two_bars(words: Sequence[str], values: Mapping[str, Sequence[float]], width: float = WIDTH) -> Figure:
    """Returns bars side by side for every word, a colour a name. values: name -> a probability (0 to 1) a word."""
    figure = Figure(figsize=(width, 2.8))
    axes = figure.subplots()
    thick = 0.84 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        places = np.arange(len(words)) + (number - (len(values) - 1) / 2) * thick
        axes.bar(places, heights, width=thick * 0.94, label=name)
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(words) > 10 else {}
    axes.set_xticks(range(len(words)), words, **turned)
    axes.set(ylabel="probability", ylim=(0, 1.05))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(values), borderpad=0)
    return figure


def _picture(axes: Axes, picture: Image.Image, title: str) -> None:
    axes.imshow(np.asarray(picture), interpolation="antialiased")
    axes.set_title(title, size=TEXT, loc="center")
    axes.axis("off")
