"""Plugins: which file is run, when it is one and the same, what is said of it."""

import logging
import sys

import pytest
from plugin_cases import afresh

from diffax import plugins, registry, schedules

pytestmark = pytest.mark.usefixtures("registering")

POWER = """
from diffax import schedules


def log_snr(t, p):
    return 10.0 - 20.0 * t**p


schedules.register("power", lambda p=2.0: schedules.from_log_snr(log_snr, p=p))
"""
CONFIG = """

def get_config():
    return {}
"""


@pytest.fixture
def power(tmp_path):
    path = tmp_path / "power.py"
    path.write_text(POWER)
    return path


@pytest.fixture
def lines(monkeypatch):
    """What is logged."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("diffax")
    monkeypatch.setattr(logger, "handlers", [handler])
    logger.setLevel(logging.INFO)
    return said


def test_a_file_is_run_once_and_says_so(power, lines):
    plugin = plugins.load(str(power))
    assert lines == [f"running the plugin {power}"]
    assert plugin.registers == (("schedule", "power"),)
    assert schedules.get("power", p=1.0).log_snr(0.5) == 0.0
    assert plugins.load(str(power)) is plugins.load(plugin.name) is plugin
    assert len(lines) == 1
    assert plugins.unowned() == []


def test_the_same_code_under_two_paths_is_one_plugin(power, tmp_path):
    copy = tmp_path / "copy.py"
    copy.write_text(POWER)
    assert plugins.load(str(copy)) is plugins.load(str(power))


def test_what_get_config_says_is_not_part_of_a_plugin(power):
    """A config file that registers something is one, whatever else is changed in it."""
    path = str(power)
    power.write_text(POWER + CONFIG)
    first = plugins.run_config(path)
    power.write_text(POWER + CONFIG.replace("{}", "{1: 2}"))
    second = plugins.run_config(path)
    assert first.name == second.name and first.registers == second.registers
    assert (first.module.get_config(), second.module.get_config()) == ({}, {1: 2})
    assert plugins.load(second.name) is second
    assert schedules.names().count("power") == 1


def test_a_config_file_that_registers_nothing_is_none(tmp_path):
    path = tmp_path / "config.py"
    for value in (1, 2):
        path.write_text(f"VALUE = {value}\n" + CONFIG)
        assert plugins.run_config(str(path)).module.VALUE == value
    assert plugins._LOADED == {}


def test_two_plugins_of_one_name_are_refused(power, tmp_path):
    other = tmp_path / "other.py"
    other.write_text("from diffax import schedules\n" + POWER.replace("10.0", "9.0"))
    plugins.load(str(power))
    words = rf"{other}, line 10: a schedule named 'power' is registered already, by {power}"
    with pytest.raises(ValueError, match=words) as caught:
        plugins.load(str(other))
    assert "versions" not in str(caught.value)
    moved = tmp_path / "moved" / "power.py"
    moved.parent.mkdir()
    moved.write_text(POWER.replace("10.0", "9.0"))
    with pytest.raises(ValueError, match=f"registered already, by {power}"):
        plugins.load(str(moved))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_of_that_name", "line 1: ModuleNotFoundError: No module named"),
        ("\nx = (1,", "line 2: SyntaxError: '.' was never closed"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3"),
        (POWER + "1 / 0\n", "line 10: ZeroDivisionError"),
        (POWER + "schedules.register('cosine', lambda: 1)", "'cosine' is registered already"),
        ("\0", "is a binary file"),
    ],
)
def test_code_that_fails_is_one_sentence_and_registers_nothing(code, words, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(code)
    before = registry.added()
    with pytest.raises(ValueError, match=words) as caught:
        plugins.load(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert registry.added() == before and plugins._LOADED == {}
    path.write_text(POWER)  # mended, it works
    assert plugins.load(str(path)).registers


def test_what_is_no_plugin_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "power.py").write_text(POWER)
    (tmp_path / "sub.py").mkdir()
    for given, words in {
        "nothing.py": "nothing.py: no such file",
        "sub/nothing": "sub/nothing: no such file",
        ".": "must be a file of Python",
        "sub.py": "sub.py is a directory",
        "power": r"'power': there is no module of that name .did you mean power.py",
        "no.such.module": "there is no module of that name",
        "two words": "must be a file of Python or the name of a module",
        f"power.py#{16 * '7a'}": "it is not loaded; name its file by --plugin=FILE",
    }.items():
        with pytest.raises(ValueError, match=words):
            plugins.load(given)


def test_a_copy_is_kept_and_a_changed_original_is_said(power, tmp_path, lines):
    kept = tmp_path / "run" / "plugins"
    name = plugins.load(str(power)).name
    plugins.keep([name], kept)
    plugins.keep([name], kept)
    afresh()
    plugin = plugins.load(name, kept)
    assert (plugin.name, plugin.path.parent, plugin.source) == (name, kept, POWER.encode())
    assert not any("changed" in line for line in lines)
    plugins.keep([name], tmp_path / "other")  # of a copy: the index names the first original
    power.write_text(POWER.replace("10.0", "9.0"))
    for folder in (kept, tmp_path / "other"):
        afresh()
        plugins.load(name, folder)
        said = f"{power} has changed since the run was trained: {folder}"
        assert any(line.startswith(said) for line in lines)
    power.unlink()  # and without it
    afresh()
    assert schedules.get("power") if plugins.load(name, kept) else None
    afresh()
    plugin.path.write_text(POWER + "# more")
    with pytest.raises(ValueError, match="is damaged or was changed"):
        plugins.load(name, kept)


def test_what_several_processes_keep_at_once_is_all_kept(power, tmp_path, monkeypatch, lines):
    """Here one in the midst of the other."""
    kept, other = tmp_path / "kept", tmp_path / "other.py"
    other.write_text(POWER.replace("power", "other"))
    names = [plugins.load(str(path)).name for path in (power, other)]
    write, last = plugins._write, names[1:]

    def writing(path, content):
        if last:
            plugins.keep([last.pop()], kept)
        write(path, content)

    monkeypatch.setattr(plugins, "_write", writing)
    plugins.keep(names[:1], kept)
    for path, name in zip((power, other), names):
        path.write_text(path.read_text() + "# more")
        afresh()
        plugins.load(name, kept)
        assert any(line.startswith(f"{path} has changed") for line in lines)


def test_a_damaged_note_of_where_a_copy_comes_from_is_named(power, tmp_path, lines):
    kept = tmp_path / "kept"
    name = plugins.load(str(power)).name
    plugins.keep([name], kept)
    [single] = kept.glob("*.json")
    power.write_text(POWER + "# more")
    afresh()
    plugins.load(name, kept)
    assert any(line.startswith(f"{power} has changed") for line in lines)
    single.write_text("[")
    afresh()
    with pytest.raises(ValueError, match=f"{single} is damaged"):
        plugins.load(name, kept)


def test_modules(tmp_path, monkeypatch):
    """One that the program has imported is not run again, nor is its copy; a package is named by
    its version."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "studio_of_powers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "powers.py").write_text(POWER)
    import studio_of_powers.powers

    assert plugins.unowned() == [("schedule", "power")]
    plugin = plugins.load("studio_of_powers.powers")
    assert plugin.module is studio_of_powers.powers and plugin.registers == (("schedule", "power"),)
    assert plugin.name.startswith("studio_of_powers.powers#") and plugins.unowned() == []
    plugins.keep([plugin.name, plugins.load("studio_of_powers").name], tmp_path / "kept")
    assert plugins.load("studio_of_powers").name == "studio_of_powers"
    # Another process: the copy is run, and that the module is imported later does no harm.
    afresh()
    for name in ("studio_of_powers.powers", "studio_of_powers"):
        del sys.modules[name]
    copy = plugins.load(plugin.name, tmp_path / "kept")
    assert copy.registers == plugin.registers and copy.path.parent.name == "kept"
    import studio_of_powers.powers

    assert schedules.names().count("power") == 1
    for name in ("studio_of_powers.powers", "studio_of_powers"):
        del sys.modules[name]


def test_two_types_of_one_key_are_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(POWER.replace("p=2.0", "s='small'"))
    with pytest.raises(ValueError, match="line 9: schedule 'power': its argument 's' is of type"):
        plugins.load(str(path))


def test_a_file_that_is_edited_takes_the_place_of_what_it_was(power):
    """In a notebook, say."""
    old = plugins.load(str(power))
    power.write_text(POWER.replace("10.0 -", "11.0 -"))
    new = plugins.load(str(power))
    assert new.name != old.name and schedules.get("power").log_snr(0.0) == 11.0
    with pytest.raises(ValueError, match="it is not loaded"):
        plugins.load(old.name)


def test_a_changed_file_that_is_asked_for_holds_instead_of_its_copy(power, tmp_path, lines):
    """And so does it for what is asked for after the copy was run, but a copy for no other."""
    kept, later = tmp_path / "run" / "plugins", tmp_path / "later" / "plugins"
    name = plugins.load(str(power)).name
    plugins.keep([name], kept)
    afresh()
    power.write_text(POWER.replace("10.0 -", "11.0 -"))
    new = plugins.load(str(power))
    plugins.keep([new.name], later)
    assert plugins.load(name, kept) is plugins.load(name, kept) is new
    said = f"{power} has changed since the run was trained: the changed file is used"
    assert sum(line.startswith(said) for line in lines) == 1
    assert schedules.get("power").log_snr(0.0) == 11.0

    afresh()
    assert plugins.load(name, kept).path.parent == kept
    with pytest.raises(ValueError, match="'power' is registered already, by .*power.py"):
        plugins.load(new.name, later)
    assert plugins.load(str(power)).name == new.name
    assert schedules.get("power").log_snr(0.0) == 11.0 and plugins.load(name, kept).path == power
