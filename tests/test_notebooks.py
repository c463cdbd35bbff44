"""The notebooks run from top to bottom, and each shows pictures."""

import base64
import io
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import diffax
from experiments import notebooks

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
        "07_few_steps",
        "08_text_and_latents",
        "09_control",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_the_script_makes_it(path):
    """The head that `experiments/notebooks.py` writes, and outputs that GitHub shows."""
    notebook = nbformat.read(path, as_version=4)
    before = nbformat.writes(notebook)
    assert nbformat.writes(notebooks.with_head(notebook, path)) == before
    assert f"@v{diffax.__version__}" in notebooks.install_cell()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
    assert not any(o["output_type"] == "error" for o in outputs)
    assert not re.search("/tmp/|/home/|/root/|/work/", json.dumps(outputs))


def test_the_notebooks_stay_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 2e6


def test_pictures_are_made_small_and_warnings_are_left_out():
    from PIL import Image

    wide = io.BytesIO()
    Image.linear_gradient("L").resize((2000, 500)).save(wide, "png")
    data = {"image/png": base64.b64encode(wide.getvalue()).decode(), "text/plain": "<Figure>"}
    shown = nbformat.v4.new_output("display_data", data)
    stored = notebooks.kept(shown, "/tmp/x")
    assert list(stored.data) == ["image/png"]
    with Image.open(io.BytesIO(base64.b64decode(stored.data["image/png"]))) as image:
        assert image.size == (640, 160)
    said = nbformat.v4.new_output("stream", name="stdout", text="/tmp/x/runs/a")
    assert notebooks.kept(said, "/tmp/x").text == "runs/a"
    assert notebooks.kept(nbformat.v4.new_output("stream", name="stderr", text="w"), "/") is None
