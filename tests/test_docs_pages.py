"""The pages of the documentation: every link leads somewhere, every block of code runs."""

import ast
import base64
import doctest
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import yaml
from ablation_cases import SPEC, make_results
from small_runs import small_config

import diffax
from diffax import cli, training
from diffax import config as config_lib
from diffax.report.analysis import analyse
from diffax.report.build import report_numbers

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/diffax/diffax"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
# Files that the site has besides those under docs/: see docs/site/hooks.py.
INCLUDED = ("contributing.md", "changelog.md", "pods.md", "results/")
# Tried by tests/test_docs.py: plugins, programs that train, and what is asserted there.
APART = ("coming_from.md", "extending.md", "own_loop.md")

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

pytestmark = pytest.mark.usefixtures("hasty_compiler", "registering")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def prose(path):
    """A page without its blocks of code and what is written as code."""
    text = re.sub(r"^( *)```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def blocks(path, language):
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# --- links ----------------------------------------------------------------------------------------


def anchors(path):
    """The anchors of a page's headings, as Markdown's and GitHub's rules make them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M):
        words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        found.add(re.sub(r"[\s]+", "-", words))
    return found


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_link_leads_somewhere(path):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(f"{REPOSITORY}/"):
            kind, _, inside = target.removeprefix(f"{REPOSITORY}/").partition("/main/")
            if kind in ("blob", "tree") and not (ROOT / inside).exists():
                wrong.append(target)
            continue
        if ":" in target:
            assert target.startswith(("https://", "mailto:")), target
            continue
        place, _, anchor = target.partition("#")
        there = Path(os.path.normpath(path.parent / place)) if place else path
        drawn = path.is_relative_to(DOCS) and place.startswith("pictures/")
        if not drawn and not there.exists():
            wrong.append(target)
        if anchor and there.suffix == ".md" and anchor not in anchors(there):
            wrong.append(target)
    assert not wrong


def test_the_site_has_every_page():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def leaves(part):
        if isinstance(part, str):
            return [part]
        return [leaf for each in (part.values() if isinstance(part, dict) else part)
                for leaf in leaves(each)]  # fmt: skip

    listed = leaves(settings["nav"])
    ours = {path.relative_to(DOCS).as_posix() for path in PAGES}
    results = {f"results/{path.name}" for path in (ROOT / "experiments/results").glob("*.md")}
    assert {page for page in listed if not page.startswith(INCLUDED)} == ours
    assert {page for page in listed if page.startswith("results/")} == results
    assert len(listed) == len(set(listed))
    assert settings["strict"] and settings["repo_url"] == REPOSITORY


def test_the_pictures_that_pages_show_are_drawn():
    made = (DOCS / "site" / "made.py").read_text(encoding="utf-8")
    shown = {name for path in PAGES for name in re.findall(r"\(pictures/([\w.]+)\)", prose(path))}
    assert shown and all(f'"{name}": ' in made for name in shown)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_a_page_has_made_is_made(path, made):
    for name in re.findall(r"^<!-- made: (.*) -->$", path.read_text(encoding="utf-8"), re.M):
        assert callable(getattr(made, name))


@pytest.fixture
def made(monkeypatch):
    """docs/site/made.py, with a single pixel for each picture: `make docs` draws them."""
    monkeypatch.syspath_prepend(str(DOCS / "site"))
    made = importlib.import_module("made")
    pixel = base64.b64decode(PIXEL)
    names = re.findall(r'"([\w]+\.png)": ', inspect.getsource(made))
    names += [f"schedule_{name}.png" for name in diffax.schedules.names()]
    monkeypatch.setattr(made, "pictures", lambda: dict.fromkeys(names, pixel))
    return made


def test_the_site_builds(made, tmp_path, monkeypatch):
    """Every page, link, anchor and name of the reference; a warning is an error."""
    pytest.importorskip("mkdocstrings_handlers.python")
    build = pytest.importorskip("mkdocs.commands.build")
    settings = importlib.import_module("mkdocs.config")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = settings.load_config("mkdocs.yml", site_dir=str(tmp_path))
    config.plugins.on_startup(command="build", dirty=False)
    build.build(config)
    gallery = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in gallery for name in diffax.schedules.names())
    reference = (tmp_path / "reference" / "samplers.html").read_text(encoding="utf-8")
    assert "dynamic_threshold" in reference
    assert "sampling.num_steps" in (tmp_path / "reference" / "config.html").read_text()
    assert (tmp_path / "results" / "claims.png").read_bytes()


def test_a_picture_of_a_schedule_is_drawn(made):
    assert made.of_schedule("cosine").startswith(b"\x89PNG")


# --- code -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what blocks say that they need."""
    folder = tmp_path_factory.mktemp("pages")
    training.train(small_config(training__num_steps=4), folder / "runs" / "digits")
    lab = folder / "runs" / "lab"
    lab.mkdir()
    numbers = report_numbers(analyse(SPEC, make_results()), {})
    (lab / "results.json").write_text(json.dumps(numbers))
    return folder


def can_run(needs, folder):
    """Whether there is what a block needs: a path of the folder, or a package."""
    return all(
        (folder / need).exists() or importlib.util.find_spec(need.split("/")[0]) is not None
        for need in needs
    )


@pytest.mark.parametrize(
    "path",
    [path for path in (*PAGES, ROOT / "README.md")
     if path.name not in APART and blocks(path, "python")],
    ids=name_of,
)  # fmt: skip
def test_every_block_of_python_runs(path, folder, monkeypatch):
    """The blocks of a page are one program. One that needs what isn't there is read only."""
    monkeypatch.chdir(folder)
    names = {}
    for block in blocks(path, "python"):
        needs = re.findall(r"^# needs: (.*)$", block, re.M)
        code = compile(ast.parse(block), path.name, "exec")
        if can_run(", ".join(needs).split(", ") if needs else [], folder):
            exec(code, names)


LINES = sorted(
    {
        line
        for path in TEXTS
        for block in (*blocks(path, "sh"), *blocks(path, "bash"))
        for line in re.findall(r"^diffax .*", block.replace("\\\n", " "), re.M)
    }
)


@pytest.mark.parametrize("line", LINES)
def test_a_command_has_only_flags_and_keys_that_are_there(line):
    words = shlex.split(line, comments=True)[1:]
    words = [word.replace("${", "").replace("}", "") for word in words]
    if words[0] in ("--version", "--help", "COMMAND"):
        return
    known = {*config_lib.defaults.keys(), "schedule.p", "method.ridge"}  # of the pages' plugins
    keys = [word for word in words if word.startswith("--config.")]
    assert {key.removeprefix("--config.").partition("=")[0] for key in keys} <= known
    axes = [b for a, b in zip(words, words[1:]) if a in ("--axis", "--search")]
    assert {axis.partition("=")[0] for axis in axes} <= known
    for config in re.findall(r"--config=(configs/\S+)", line):
        assert (ROOT / config).is_file()
    rest = cli.make_parser().parse_known_args([word for word in words if word not in keys])[1]
    assert all(word.startswith("--sampling.") for word in rest)


def modules_with_examples():
    for module in pkgutil.walk_packages(diffax.__path__, "diffax."):
        place = module.name.replace(".", "/") + ("/__init__.py" if module.ispkg else ".py")
        if ">>> " in (ROOT / place).read_text(encoding="utf-8"):
            yield module.name


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_the_examples_of_docstrings_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed
