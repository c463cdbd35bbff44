"""The project as a whole: what it imports, which way its parts depend, what a wheel holds."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import setuptools

import diffax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffax"
SOURCES = sorted(
    path
    for part in ("diffax", "configs", "experiments", "tests", "setup.py")
    for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
)


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- the import -----------------------------------------------------------------------------


def run_python(code: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_import_is_quick():
    """Under three seconds as a whole process: the best of three, since others use the machine."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run_python("import diffax")
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 3:
            return
    pytest.fail(f"import diffax took {seconds} s")


def test_import_leaves_heavy_libraries_alone():
    """Only what schedules and samplers need is loaded; and no device is touched yet, so that a
    program can still choose its platform after the import."""
    heavy = ("tensorflow", "tensorflow_datasets", "sklearn", "scipy.stats", "matplotlib", "grain")
    loaded = run_python(
        "import sys, diffax\n"
        f"print(*[name for name in {heavy} if name in sys.modules])\n"
        "from jax._src import xla_bridge\n"
        "print(*xla_bridge._backends)"
    )
    assert loaded.split() == []


def test_every_public_module_is_an_attribute():
    """After `import diffax` alone; a misspelt one is answered with the nearest."""
    modules = sorted(
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.name[0] != "_"
    )
    code = (
        f"import diffax\nassert {{*{modules}}} <= {{*dir(diffax)}}\n"
        f"print(*[getattr(diffax, name).__name__ for name in {modules}])"
    )
    assert run_python(code).split() == [f"diffax.{name}" for name in modules]
    with pytest.raises(AttributeError, match="'schedulse' .did you mean schedules"):
        diffax.schedulse  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute '_private'$"):
        diffax._private  # noqa: B018


# --- the layout -----------------------------------------------------------------------------

# Which parts of the package each part may import, besides itself. The arrows point one way:
# schedules <- process <- rates <- objectives, samplers, likelihood <- methods (with models,
# distributed) <- config <- training <- evaluation <- ablation <- cli.
CORE = {"arguments", "registry", "plugins", "schedules", "process"}
FUNCTIONS = CORE | {"objectives", "time_sampling", "samplers", "likelihood", "rates"}
METHODS = FUNCTIONS | {"models", "data", "distributed", "methods"}
PARTS = METHODS | {"metric", "plots", "config", "files", "places", "runtime", "evaluation"}
MAY_IMPORT = {
    "arguments": set(),
    "registry": set(),
    "plugins": {"files", "places", "registry"},
    "schedules": {"arguments", "registry"},
    "process": {"arguments", "registry", "schedules"},
    "time_sampling": CORE,
    "likelihood": CORE | {"time_sampling"},
    "objectives": CORE | {"time_sampling", "likelihood"},
    "samplers": CORE | {"rates"},
    "rates": CORE,
    "models": {"arguments", "registry"},
    "files": {"places", "runtime"},
    "places": {"runtime"},
    "metric": set(),
    "data": {"files", "registry", "runtime"},
    "evaluation": {"data", "files", "metric", "registry", "runtime"},
    "distributed": {"registry", "schedules", "models"},
    "methods": FUNCTIONS | {"models", "data", "distributed", "metric"},
    "plots": FUNCTIONS | {"data"},
    "config": METHODS | {"evaluation"},
    "runtime": set(),
    "training": PARTS,
    "generator": PARTS | {"training"},
    "evaluation.run": PARTS | {"training", "generator"},
    "scoring": {"evaluation"},
    "metrics": {"evaluation"},
    "codecs": {"methods", "training"},
    "interop": PARTS | {"training"},
    "edits": PARTS | {"generator"},
    "report": {"data", "evaluation", "files", "places", "plots", "runtime"},
    "ablation": PARTS | {"training", "report"},
    "tuning": PARTS | {"training", "report", "ablation"},
    "cli": PARTS | {"training", "generator", "edits", "interop", "report", "ablation", "tuning"},
    "__main__": {"cli"},
}


# Files that are a part of their own. `config` knows the names of scores, and what evaluates a run
# builds on `training`.
APART = {"evaluation/run.py": "evaluation.run"}


def part_of(path: Path) -> str:
    """The part a file of the package belongs to: the folder or module just under diffax/."""
    inside = path.relative_to(PACKAGE)
    return APART.get(inside.as_posix(), inside.parts[0].removesuffix(".py"))


def imported_parts(path: Path) -> set[str]:
    """The parts of diffax that a file imports anywhere in it, inside functions too."""
    package = path.relative_to(ROOT).parent.parts
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules, whole = [], set()  # dotted names; what the file calls the package as a whole
    for node in nodes:
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
            whole |= {alias.asname or "diffax" for alias in node.names if alias.name == "diffax"}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            modules += [f"{module}.{alias.name}" for alias in node.names]
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in whole
    }
    named = {module.split(".")[1] for module in modules if module.startswith("diffax.")}
    return (used | named) - {part_of(path), "__version__"}


def package_files() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.name != "__init__.py"
    ]


@pytest.mark.parametrize("path", package_files(), ids=names)
def test_arrows_point_one_way(path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"say in MAY_IMPORT what the new part {part!r} may import"
    wrong = imported_parts(path) - MAY_IMPORT[part]
    assert not wrong, f"{names(path)} must not import {sorted(wrong)}"


def test_table_of_arrows_has_no_cycle():
    """Parts can be put in an order in which each imports only earlier ones."""
    placed: set[str] = set()
    while ready := {part for part in set(MAY_IMPORT) - placed if MAY_IMPORT[part] <= placed}:
        placed |= ready
    assert placed == set(MAY_IMPORT)


def test_imports_are_found_in_every_form(tmp_path, monkeypatch):
    """The walk that the arrows rest on sees plain, aliased, relative and nested imports, and
    what is taken from the package as a whole."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "diffax")
    path = tmp_path / "diffax" / "models" / "unet.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import numpy, diffax.process as p\n"
        "from diffax import samplers\n"
        "from diffax.data.pipeline import batches\n"
        "from . import layers\n"
        "from .. import metrics\n"
        "def f():\n    from ..training.loop import train\n"
    )
    assert imported_parts(path) == {"process", "samplers", "data", "metrics", "training"}
    path.write_text("import diffax as d\nd.samplers.get(d.__version__)\n")
    assert imported_parts(path) == {"samplers"}


# --- the source -----------------------------------------------------------------------------

MAX_LINES = 700
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")  # split, to not find itself


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_source_is_clean(path):
    """Files one can read in one go, no marks of unfinished work, no swallowed errors."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= MAX_LINES, f"{len(lines)} lines; split it"
    marks = [f"line {i}: {line}" for i, line in enumerate(lines, 1) if UNFINISHED.search(line)]
    assert not marks
    swallowed = [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ExceptHandler) and swallows(node)
    ]
    assert not swallowed


def swallows(handler: ast.ExceptHandler) -> bool:
    """A bare `except:`, or one for Exception and the like that does nothing about it."""
    if handler.type is None:
        return True
    caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    idle = all(isinstance(node, ast.Pass | ast.Continue) for node in handler.body)
    return idle and bool(caught & {"Exception", "BaseException"})


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("except:\n  raise", True),
        ("except Exception:\n  pass", True),
        ("except (ValueError, Exception):\n  pass", True),
        ("except ValueError:\n  pass", False),
        ("except Exception as error:\n  print(error)", False),
    ],
)
def test_swallowed_errors_are_found(code, expected):
    tree = ast.parse(f"try:\n  f()\n{code}\n")
    assert swallows(tree.body[0].handlers[0]) is expected


def test_example_runs_name_no_place_of_the_machine_that_made_them():
    files = [path for path in (ROOT / "tests" / "example_runs").rglob("*") if path.is_file()]
    assert files
    named = [path for path in files if re.search(rb"/(work|home|root|Users)/", path.read_bytes())]
    assert not named


# --- the package ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of the source tree, built offline from a copy, so that no product stays behind."""
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("building a wheel needs setuptools 77 or newer, as `make test` installs")
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    shutil.copytree(PACKAGE, tree / "diffax", ignore=shutil.ignore_patterns("__pycache__"))
    build = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
        + ["--no-build-isolation", "--wheel-dir", tree / "wheels", tree],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    (path,) = (tree / "wheels").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_ships_every_file_of_the_package(wheel):
    """Everything under diffax/ (typing marker and stylesheet included), no more."""
    ours = {
        names(path)
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == ours
    assert "diffax/py.typed" in shipped


def test_wheel_describes_itself(wheel):
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    about = metadata.PathDistribution(zipfile.Path(wheel, f"{folder}/"))
    assert about.version == diffax.__version__
    assert about.metadata["Name"] == "diffax"
    assert about.metadata["License-Expression"] == "Apache-2.0"
    assert about.metadata["Requires-Python"] == ">=3.11"
    assert set(about.metadata.get_all("Provides-Extra")) >= {"test", "notebooks", "bench"}
    (script,) = about.entry_points
    assert (script.name, script.value) == ("diffax", "diffax.cli:main")
    plain = [line for line in about.requires if "extra ==" not in line]
    assert not any(re.match("tensorflow(?!-datasets)", line) for line in plain)
    assert "Apache License" in wheel.read(f"{folder}/licenses/LICENSE").decode()


# --- the pins -------------------------------------------------------------------------------


def pins(name: str) -> dict[tuple[str, str], str]:
    """(package, environment marker) -> version, of a requirements file."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        requirement = line.split("#")[0].strip()
        if requirement:
            package, version, marker = re.fullmatch(
                r"([\w.-]+)==([\w.+]+)(?: ; (.*))?", requirement
            ).groups()
            found[package, marker or ""] = version
    return found


def test_pins_agree_and_cover_both_pythons():
    """The tests run on the versions that the experiment runs on, whole closures, JAX by Python."""
    run, test = pins("run.txt"), pins("test.txt")
    # A pin without a marker is one for every platform.
    found = {(name, marker): test.get((name, marker), test.get((name, ""))) for name, marker in run}
    assert found == run
    jax = sorted(version for (package, _), version in run.items() if package == "jax")
    assert [version.split(".")[:2] for version in jax] == [["0", "10"], ["0", "11"]]
    assert not any(package.startswith("tensorflow-cpu") for package, _ in run)
