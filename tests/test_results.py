"""The line that a notebook records, and the table that `make run` ends with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import run_all
from helpers.files import record


def test_what_notebooks_record_stands_in_the_table(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_all, "BUILD", tmp_path)
    notebook = Path("02_cnn_lstm.ipynb")
    monkeypatch.setenv("CAPTIONING_RESULTS", str(run_all.results_file(notebook)))
    record(model="plain", bleu4=np.float32(0.5), cider=0.25, captions_per_second=300, seconds=20)
    record(model="bare", bleu4=0.1, cider=None, seconds=1.5)
    table = run_all.results([notebook, Path("03_attention.ipynb")]).set_index("model")
    assert table.loc["plain", ["BLEU-4", "CIDEr", "seconds of training"]].tolist() == [0.5, 0.25, 20.0]
    assert table.loc["bare", "BLEU-4"] == 0.1 and np.isnan(table.loc["bare", "CIDEr"])
    assert table.loc["clipcap-mlp", "data"].startswith("flickr8k")
