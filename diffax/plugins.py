"""Plugins: files and modules of Python that register what a config may name.

    load("power.py").name   # "power.py#<digest of its code>", as a config keeps it

A plugin is known by its code, so that the same one under two paths is one plugin, which is run once
in a process, and a changed one is another. What a `get_config()` in it says plays no part: a config
file that registers something is a plugin too. A run keeps copies of its plugins; see `keep`.
"""

import errno
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from diffax import files, registry
from diffax.places import absolute, path_of
from diffax.registry import code_digest

_LOG = logging.getLogger("diffax")
# What a config calls a plugin: the name of its file or module, and the digest of its code.
_KNOWN = re.compile(r"([^/\\]+)#([0-9a-f]{32})")
_MODULE = "diffax_plugin_"  # how the modules of files are called, with the digest


class Plugin(NamedTuple):
    """A plugin that was run.

    Attributes:
      name: as config.plugins has it: "power.py#<digest>", "lab.schedules#<digest>", "lab==1.2" of a
        package, which is known by its version.
      path: of the file that was run; None for a package.
      original: of the file that a copy was made of, or else `path`.
      source: of its file; b"" for a package.
      module: what it made.
      registers: (kind, name) of what it registered.
    """

    name: str
    path: Path | None
    original: Path | None
    source: bytes
    module: types.ModuleType
    registers: tuple[tuple[str, str], ...]


_LOADED: dict[str, Plugin] = {}  # by the digest, or the name of a package, of this process


def load(
    given: str, kept: str | os.PathLike | None = None, check: Callable[[], Any] | None = None
) -> Plugin:
    """Runs a plugin, unless this process has done so.

    A file that was changed since this process has run it is run again, and what it registers takes
    the place of what it registered before.

    Args:
      given: the path of a file of Python, the name of a module, or the name of a plugin as a config
        keeps it.
      kept: a folder in which `keep` has put copies. Of a plugin's own name the copy is run; where
        the file that it was made of has changed since, a warning says so. If this process has run
        the changed file, that one holds, as the warning says, and the copy is not run.
      check: called after a plugin has run; if it raises ValueError, nothing is registered.

    Raises:
      ValueError: there is no such plugin, its code fails, a copy is damaged, or it registers a name
        that is taken; one sentence, with the line.
    """
    known = _KNOWN.fullmatch(given)
    if known and known[2] in _LOADED:
        return _LOADED[known[2]]
    try:
        if known and (changed := _changed(given, kept)):
            return changed
        found = _copy(given, *known.groups(), kept) if known else _find(given)
        _replace_older(found)
        if found.key not in _LOADED and _imported(found) is None:
            _LOG.info("running the plugin %s", found.path or found.name)
        return _run(found, check)
    except ValueError as error:
        raise ValueError(f"plugin {error}") from None


def run_config(path: str) -> Plugin:
    """A config file, run; it counts as a plugin if it registers something.

    Raises:
      ValueError: as `load`.
    """
    found = _find(path, is_file=True)
    _replace_older(found)
    plugin = _run(found, None)
    if not plugin.registers:
        del _LOADED[found.key]
    return plugin


def unowned() -> list[tuple[str, str]]:
    """(kind, name) of what is registered by no plugin, but by this program itself."""
    owned = {entry for plugin in _LOADED.values() for entry in plugin.registers}
    return [entry for entry in registry.added() if entry not in owned]


def keep(names: Iterable[str], folder: str | os.PathLike) -> None:
    """Puts copies of plugins into a folder, beside each the path of the file that it was made of.

    A package has no copy: it is imported again, by its name. Several processes may do this at once.
    """
    loaded = {plugin.name: plugin for plugin in _LOADED.values()}
    for name in names:
        plugin = loaded.get(name) or load(name)
        if plugin.path is not None:
            copy = path_of(folder) / _copy_name(name)
            _write(copy.with_suffix(".json"), json.dumps(os.fspath(plugin.original)).encode())
            _write(copy, plugin.source)


def guarded(path: str, run: Callable[[], Any]) -> Any:
    """What a function gives; an error in a user's file is one sentence, with the line of it.

    Raises:
      ValueError: what the function raises, but for KeyboardInterrupt.
    """
    try:
        return run()
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        said = str(error)
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
            said = error.msg
        where = f", line {lines[-1]}" if lines and lines[-1] else ""
        kind = "" if type(error) in (ValueError, registry.Taken) else f"{type(error).__name__}: "
        said = " ".join(said.split()) or "no message"
        raise ValueError(f"{path}{where}: {kind}{said}") from None


# --- where a plugin is found --------------------------------------------------------------------


class _Found(NamedTuple):
    """What is to be run: a file, or a module that is imported."""

    label: str  # of a file its name, of a module its name
    path: Path | None
    source: bytes
    is_module: bool
    version: str = ""
    original: Path | None = None

    @property
    def key(self) -> str:
        return self.name if self.path is None else code_digest(self.source)

    @property
    def name(self) -> str:
        if self.path is None:
            return f"{self.label}=={self.version}" if self.version else self.label
        return f"{self.label}#{code_digest(self.source)}"


def _find(given: str, is_file: bool = False) -> _Found:
    path = Path(given).expanduser()
    if is_file or path.suffix == ".py" or len(path.parts) > 1 or path.is_file():
        source = _read(os.path.expanduser(given), given)
        return _Found(path.name, path.absolute(), source, is_module=False)
    label, _, version = given.partition("==")
    if not all(part.isidentifier() for part in label.split(".")):
        raise ValueError(f"{given!r}: must be a file of Python or the name of a module")
    spec = guarded(label, lambda: _spec(label))
    if spec is None:
        file = f" (did you mean {label}.py?)" if Path(f"{label}.py").is_file() else ""
        raise ValueError(f"{given!r}: there is no module of that name{file}")
    if spec.submodule_search_locations is None and str(spec.origin).endswith(".py"):
        return _Found(label, Path(spec.origin), _read(Path(spec.origin), given), is_module=True)
    now = _version(label)
    if version and version != now:
        _LOG.warning("plugin %s is %s==%s here", given, label, now or "unknown")
    return _Found(label, None, b"", is_module=True, version=version or now)


def _spec(label: str) -> Any:
    try:
        return importlib.util.find_spec(label)
    except ModuleNotFoundError as error:
        if error.name and label.startswith(error.name):  # a package that it should lie in
            return None
        raise


def _version(label: str) -> str:
    top = label.partition(".")[0]
    distributions = importlib.metadata.packages_distributions().get(top)
    return importlib.metadata.version(distributions[0]) if distributions else ""


def _read(path: str | Path, given: str) -> bytes:
    try:
        if not os.fspath(path):  # which pathlib takes for the working directory
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        source = path_of(path).read_bytes()
    except IsADirectoryError:
        raise ValueError(f"{given} is a directory; name a file of Python") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        strerror = getattr(error, "strerror", None)
        raise ValueError(f"{given}: {strerror.lower() if strerror else error}") from None
    if b"\0" in source:
        raise ValueError(f"{given} is a binary file, not Python")
    return source


def _copy(given: str, label: str, digest: str, kept: str | os.PathLike | None) -> _Found:
    """The copy of a plugin in a folder."""
    path = path_of(kept) / _copy_name(given) if kept is not None else None
    if path is None or not path.is_file():
        where = f"no copy in {kept}, and it is not loaded" if kept else "it is not loaded"
        raise ValueError(f"{given}: {where}; name its file by --plugin=FILE")
    source = _read(path, os.fspath(path))
    if code_digest(source) != digest:
        raise ValueError(f"{path} is not the plugin that it was: it is damaged or was changed")
    original = Path(_original(given, path.parent) or absolute(path))
    if original.is_file() and code_digest(original.read_bytes()) != digest:
        _LOG.warning(
            "%s has changed since the run was trained: %s, the copy kept with it, is used",
            *(original, path),
        )
    return _Found(label, absolute(path), source, is_module=False, original=original)


def _changed(given: str, kept: str | os.PathLike | None) -> Plugin | None:
    """What was run of the file that a copy in a folder was made of, and that is another now."""
    original = kept is not None and _original(given, path_of(kept))
    original = original and os.path.realpath(original)
    for plugin in _LOADED.values():
        if original and plugin.path and os.path.realpath(plugin.path) == original:
            _say_changed(original)
            return plugin
    return None


@functools.cache  # a command reads a run more than once
def _say_changed(original: str) -> None:
    _LOG.warning(
        "%s has changed since the run was trained: the changed file is used, which --plugin or this"
        " program named",
        original,
    )


def _copy_name(name: str) -> str:
    label, digest = _KNOWN.fullmatch(name).groups()
    return f"{digest}-{label.removesuffix('.py')}.py"


def _original(name: str, folder: Path) -> str | None:
    """The path of the file that a copy in a folder was made of; None where that is not known."""
    path = (folder / _copy_name(name)).with_suffix(".json")
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else None
        if not isinstance(found, str | None):
            raise TypeError(f"it holds {found!r}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    return found


def _write(path: Path, content: bytes) -> None:
    """All of a file or nothing, also where several processes write it."""
    if path.is_file() and path.read_bytes() == content:
        return
    with files.replacing(path) as partial:
        partial.write_bytes(content)


# --- running it ---------------------------------------------------------------------------------


def _run(found: _Found, check: Callable[[], Any] | None) -> Plugin:
    if found.key in _LOADED:
        return _LOADED[found.key]
    module = _imported(found)
    before = registry.added()
    if module is not None:  # by the program itself
        mine = tuple(registry.added_by(module.__name__))
    else:
        try:
            module = _import(found) if found.is_module else _execute(found)
            mine = registry.added()[len(before) :]
            if check is not None:
                check()
        except ValueError:
            registry.forget(registry.added()[len(before) :])
            raise
    original = found.original or found.path
    plugin = Plugin(found.name, found.path, original, found.source, module, mine)
    _LOADED[found.key] = plugin
    return plugin


def _replace_older(found: _Found) -> None:
    """Forgets what the same file, or a copy that was made of it, registered when it was another."""
    for key, plugin in list(_LOADED.items()):
        places = {plugin.path, plugin.original} - {None}
        if found.path in places and plugin.source != found.source:
            registry.forget(plugin.registers)
            del _LOADED[key]


def _imported(found: _Found) -> types.ModuleType | None:
    """The module of the same code that the program itself has imported or is; None without."""
    if found.is_module:
        return sys.modules.get(found.label)
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__dict__", {}).get("__file__") or "")
        if found.label in (file.name, name) and not name.startswith(_MODULE) and file.is_file():
            if code_digest(file.read_bytes()) == found.key:
                return module
    return None


def _import(found: _Found) -> types.ModuleType:
    return guarded(found.label, lambda: importlib.import_module(found.label))


def _execute(found: _Found) -> types.ModuleType:
    path = os.fspath(found.path)
    module = types.ModuleType(f"{_MODULE}{found.key}", f"The plugin {path}.")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look their module up
    try:
        code = guarded(path, lambda: compile(found.source, path, "exec", dont_inherit=True))
        guarded(path, lambda: exec(code, vars(module)))
    except ValueError:
        del sys.modules[module.__name__]
        raise
    return module
