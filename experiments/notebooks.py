"""The notebooks as GitHub and Colab show them: their first cells, and their outputs.

    python experiments/notebooks.py               # heads alone, and what was executed stays
    python experiments/notebooks.py --execute     # every notebook from top to bottom, on this CPU

The first two cells are the same in all notebooks but for the title and the time that they take.
`ADDRESS` is where Colab installs diffax from: a fork, or another home of the project, changes it
here and runs the script. Executing takes a quarter of an hour on two cores; the pictures are kept
with few colours and at most `WIDTH` pixels, so that they stay small.
"""

import argparse
import base64
import io
import os
import tempfile
from pathlib import Path

import nbformat
from PIL import Image

import diffax

ADDRESS = "https://github.com/diffax/diffax"
WIDTH = 640  # of stored pictures, in pixels
COLOURS = 48
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

COLAB = "https://colab.research.google.com"
BADGE = "[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{path})"
# What is installed keeps the JAX that is there, with its plugins for GPU and TPU.
INSTALL = '''\
import importlib.metadata
import importlib.util
import pathlib

if importlib.util.find_spec("diffax") is None:  # on Colab, or wherever it is not installed yet
    there = {d.name: d.version for d in importlib.metadata.distributions()}
    pins = [f"{name}=={version}" for name, version in there.items() if name.startswith("jax")]
    pathlib.Path("keep.txt").write_text("\\n".join(pins))
    %pip install -q -c keep.txt "diffax @ git+ADDRESS@vVERSION"

import jax

found = jax.devices()[0]
advice = "" if found.platform != "cpu" else "; on Colab: Runtime, Change runtime type, T4 GPU"
print(f"jax {jax.__version__} computes on {found.device_kind}{advice}")\
'''
# Executed after the last cell, and not kept: processor time of the kernel and of its children.
SPENT = '''\
import resource as _resource

print(sum(
    used.ru_utime + used.ru_stime
    for used in map(_resource.getrusage, (_resource.RUSAGE_SELF, _resource.RUSAGE_CHILDREN))
))\
'''


def install_cell() -> str:
    """The first code of every notebook."""
    return INSTALL.replace("ADDRESS", ADDRESS).replace("VERSION", diffax.__version__)


def badge(path: Path) -> str:
    """The link that opens a notebook on Colab."""
    owner = ADDRESS.removeprefix("https://github.com/")
    return BADGE.format(colab=COLAB, path=f"{owner}/blob/main/notebooks/{path.name}")


def duration(seconds: float | None) -> str:
    """What a notebook says of the time that it takes."""
    if seconds is None:
        return "How long it takes was not measured, neither on a CPU nor on a T4."
    minutes = max(1, round(seconds / 60))
    unit = "minute" if minutes == 1 else "minutes"
    return f"It takes {minutes} {unit} of one CPU core's time; on a T4 it was not measured."


def with_head(notebook: nbformat.NotebookNode, path: Path) -> nbformat.NotebookNode:
    """Sets the badge, the time and the first code; all else stays."""
    first, code = notebook.cells[0], next(c for c in notebook.cells if c.cell_type == "code")
    lines = [line for line in first.source.splitlines() if not line.startswith("[![Open in Colab]")]
    lines = [line for line in lines if "on a T4" not in line]
    title, rest = lines[0], "\n".join(lines[1:]).strip()
    seconds = notebook.metadata.get("diffax", {}).get("cpu_seconds")
    first.source = f"{title}\n\n{badge(path)}\n\n{rest}\n\n{duration(seconds)}"
    code.source = install_cell()
    return notebook


def small(encoded: str) -> str:
    """A PNG of at most WIDTH pixels and COLOURS colours."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.LANCZOS)
    into = io.BytesIO()
    image.quantize(COLOURS).save(into, "png", optimize=True)
    return base64.b64encode(into.getvalue()).decode()


def kept(output: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode | None:
    """An output as it is stored, None of a warning or a progress line; no path of this machine."""
    if output.output_type == "stream":
        output.text = output.text.replace(f"{folder}/", "")
        return output if output.name == "stdout" else None
    data = output.get("data", {})
    if "image/png" in data:
        output.data = nbformat.from_dict({"image/png": small(data["image/png"])})
        output.metadata = nbformat.from_dict({})
    return output


def execute(path: Path) -> None:
    """Runs a notebook in an empty folder, and stores what it shows and the time that it took."""
    from nbclient import NotebookClient

    notebook = with_head(nbformat.read(path, as_version=4), path)
    notebook.cells.append(nbformat.v4.new_code_cell(SPENT))
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=3600, resources=where).execute()
        seconds = float(notebook.cells.pop().outputs[0].text)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                stored = (kept(output, folder) for output in cell.outputs)
                cell.outputs = [output for output in stored if output is not None]
    notebook.metadata = nbformat.from_dict(
        {
            "diffax": {"cpu_seconds": round(seconds)},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    write(with_head(notebook, path), path)
    print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1e3:.0f} kB", flush=True)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes a notebook as Jupyter does, with cell ids that don't change from run to run."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    nbformat.write(notebook, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of notebooks, as 01 (default: all)")
    parser.add_argument("--execute", action="store_true", help="run them, and store the outputs")
    args = parser.parse_args(argv)
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    for path in NOTEBOOKS:
        if args.names and not path.name.startswith(tuple(args.names)):
            continue
        if args.execute:
            execute(path)
        else:
            write(with_head(nbformat.read(path, as_version=4), path), path)


if __name__ == "__main__":
    main()
