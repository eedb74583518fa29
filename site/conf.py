"""How Sphinx makes the course's pages: `make site`. Notebooks are shown as they are stored; nothing is executed."""

from __future__ import annotations

import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]

project = "Image captioning"
author = "the course's contributors"
html_title = "Image captioning, from a CNN-LSTM to ClipCap"
root_doc = "site/index"
extensions = ["myst_nb", "autoapi.extension", "sphinxcontrib.mermaid", "sphinx_copybutton"]
include_patterns = ["site/index.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "notebooks/README.md",
                    "README.md",
                    "ModelArchitecture.md", "CONTRIBUTING.md", "LICENSES.md", "data/README.md",
                    "data/checkpoints/*/README.md", "configs/README.md", "configs/cluster/README.md",
                    "sample_images/README.md", "tests/README.md", "benchmarks/README.md", "autoapi/**"]
exclude_patterns = ["build", ".venv"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
autoapi_dirs = [str(ROOT / "helpers")]
autoapi_options = ["members", "show-module-summary"]
autoapi_add_toctree_entry = False
autoapi_keep_files = False
html_theme = "furo"
html_extra_path = ["root"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#005a9c", "color-brand-content": "#005a9c"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ff", "color-brand-content": "#7cc4ff"},
}
suppress_warnings = ["toc.not_included", "autoapi.python_import_resolution", "docutils", "myst.header",
                     "myst.xref_missing", "mystnb.unknown_mime_type"]


def link_to_source(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Makes relative links to files that are no pages lead to the repository."""
    folder = (ROOT / docname).parent
    for link in list(doctree.findall(nodes.reference)):
        target = link.get("refuri", "")
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        path = (folder / target.split("#")[0]).resolve()
        if path.exists() and path.is_relative_to(ROOT) and path.suffix not in (".html",):
            link["refuri"] = f"{ADDRESS}/blob/main/{path.relative_to(ROOT)}"


def setup(app: Sphinx) -> None:
    """Connects the change of links."""
    app.connect("doctree-resolved", link_to_source)
