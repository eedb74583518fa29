"""How Sphinx makes the course's pages: `make site`. Notebooks are shown as they are stored; nothing is executed."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parent.parent
MERMAID = ROOT / "build" / "mermaid" / "package" / "dist"  # there where npm is
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]

project = "Image captioning"
copyright = "the course's contributors, MIT licence"
html_title = "Image captioning"
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
root_doc = "site/index"
extensions = ["myst_nb", "autoapi.extension", "sphinxcontrib.mermaid", "sphinx_copybutton"]
include_patterns = ["site/index.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "notebooks/README.md",
                    "docs/*.md", "*.md", "data/README.md",
                    "data/checkpoints/*/README.md", "configs/README.md", "configs/cluster/README.md",
                    "sample_images/README.md", "tests/README.md", "benchmarks/README.md", "autoapi/**"]
exclude_patterns = ["build", ".venv"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
mermaid_use_local = "mermaid/mermaid.esm.min.mjs" if MERMAID.is_dir() else ""
mermaid_height, mermaid_fullscreen_button = "auto", "+"
autoapi_dirs = [str(ROOT / "helpers")]
autoapi_options = ["members", "show-module-summary"]
default_role = "code"  # of single backquotes in docstrings
autoapi_add_toctree_entry = False
autoapi_keep_files = False
html_math_renderer = "mathml"
html_theme = "furo"
html_extra_path = ["root"]
html_static_path = ["static"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#005a9c", "color-brand-content": "#005a9c"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ff", "color-brand-content": "#7cc4ff"},
}
suppress_warnings = ["toc.not_included", "autoapi.python_import_resolution", "docutils", "myst.header",
                     "myst.xref_missing", "mystnb.unknown_mime_type", "image.not_readable"]


def change_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Makes links to files that are no pages lead to the repository, and badges words instead of others' pictures."""
    folder = (ROOT / docname).parent
    for image in list(doctree.findall(nodes.image)):
        if "://" in image["uri"]:
            image.replace_self(nodes.inline(text=image.get("alt", ""), classes=["button"]))
    for link in list(doctree.findall(nodes.reference)):
        target = link.get("refuri", "")
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        path = (folder / target.split("#")[0]).resolve()
        if path.exists() and path.is_relative_to(ROOT) and path.suffix not in (".html",):
            link["refuri"] = f"{ADDRESS}/blob/main/{path.relative_to(ROOT)}"


def write_math(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Writes a formula as MathML, which browsers draw themselves: no script and no network."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def copy_mermaid(app: Sphinx, error: Exception | None) -> None:
    """Puts what draws the diagrams beside the pages, so that they need nothing from elsewhere."""
    if mermaid_use_local and error is None:
        target = Path(app.outdir) / "_static" / "mermaid"
        chunks, no_maps = Path("chunks", "mermaid.esm.min"), shutil.ignore_patterns("*.map")
        shutil.copytree(MERMAID / chunks, target / chunks, dirs_exist_ok=True, ignore=no_maps)
        shutil.copy(MERMAID / "mermaid.esm.min.mjs", target)


def plain_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keeps the asterisks and the last underscores of docstrings, which are parts of names and no markup."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"\*|_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]  # what stands outside backquotes
        lines[number] = "`".join(parts)


def setup(app: Sphinx) -> None:
    """Connects the change of links and the formulas."""
    app.connect("doctree-resolved", change_links)
    app.connect("autodoc-process-docstring", plain_text)
    app.connect("build-finished", copy_mermaid)
    app.add_html_math_renderer("mathml", inline_renderers=(write_math, None), block_renderers=(write_math, None))
