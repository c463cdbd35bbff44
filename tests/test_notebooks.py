"""The notebooks run from top to bottom, and each shows pictures."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_draws(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFAX_NOTEBOOK_STEPS", "20")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("count=8", "count=1"))
    monkeypatch.setenv(
        "JAX_DISABLE_MOST_OPTIMIZATIONS", "1"
    )  # 20 steps: compiling is the most of it
    # Runs that differ in the seed have the same programs.
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
    assert not any(o["output_type"] == "error" for o in outputs)


def test_the_notebooks_are_there_and_install_first():
    stems = [path.stem for path in NOTEBOOKS]
    assert stems == [
        "01_schedules",
        "02_learned_vs_cosine",
        "03_samplers",
        "04_evaluate",
        "05_ablation_lab",
        "06_rates",
    ]
    for path in NOTEBOOKS:
        code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert "%pip install" in code[0]
