"""One job at a time in a workdir: a file, lock.json, that says whose it is.

It names the host, the process and when that began. On the same host the process is looked for; of
another host, as on a shared file system, the file's time tells: the holder renews it every
`BEAT_SECONDS`, and one that is `STALE_SECONDS` old is of a job that is gone. The file is made with
O_EXCL, which is atomic on network file systems too, and times are compared with the file system's
own clock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_LOG = logging.getLogger("diffax")
NAME = "lock.json"
BEAT_SECONDS = 10
STALE_SECONDS = 60
_LOOK_SECONDS = 1


class Lost(OSError):
    """The workdir, or the lock in it, is not this job's any more."""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:  # there is no such file but on Linux
        return ""


def _began(process: int) -> str:
    """When a process of this machine began, in ticks since it was started; "" if that is unknown,
    or the process has ended. A number alone may be that of a later process."""
    state, *rest = _read(f"/proc/{process}/stat").rpartition(")")[2].split() or ["Z"]
    return "" if state == "Z" else rest[18]  # a zombie is only not waited for


def _me() -> dict[str, Any]:
    try:
        processes = os.readlink("/proc/self/ns/pid")  # containers number theirs anew
    except OSError:
        processes = ""
    return {
        "host": platform.node(),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "processes": processes,
        "process": os.getpid(),
        "began": _began(os.getpid()),
        "token": secrets.token_hex(8),
    }


def _is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether the process of an owner on this host has ended."""
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        pass
    return owner["began"] != _began(owner["process"])


class Lock:
    """The lock of one directory, which exists; `take` it, and `release` it at the end."""

    def __init__(self, directory: Path, name: str = NAME):
        self.path, self._me = directory / name, _me()
        self._text = json.dumps(self._me, indent=1)

    def take(self) -> None:
        """Makes the file.

        Raises:
          ValueError: another job is at work there.
        """
        while not self._create():
            owner, old = self._owner()
            if old is None:  # it has just gone
                continue
            here = all(owner.get(k) == self._me[k] for k in ("host", "boot", "processes"))
            if here and owner["process"] and not _is_gone(owner):
                raise ValueError(self._refusal(owner))
            if here and owner["process"] or self._becomes_stale(owner, old):
                self._remove_stale(old)
                _LOG.warning(
                    "an earlier job (%s) was stopped in %s; its lock is taken over",
                    *(_words(owner), self.path.parent),
                )

    def check(self) -> None:
        """Raises Lost if the file is another's, or gone with config.json, the first that a run
        writes; makes it again if it alone is gone."""
        owner, text = self._owner()
        if text is None and not (self.path.parent / "config.json").exists():
            raise Lost("the directory was deleted or moved while it was in use")
        if text is None and self._create():
            _LOG.warning("%s was deleted while it was in use; it is made again", self.path)
        elif text not in (None, self._text):
            raise Lost(f"{_words(owner)} has taken the directory over")

    def renew(self) -> None:
        """Gives the file a new time, by which others see that its job is alive."""
        with contextlib.suppress(OSError):  # what can't be reached now may be later; `check` tells
            if self._owner()[1] == self._text:
                os.utime(self.path)

    def release(self) -> None:
        """Removes the file, if it is ours."""
        if self._owner()[1] == self._text:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            number = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with open(number, "w", encoding="utf-8") as file:
                file.write(self._text)
        except OSError:  # the disk is full
            self.path.unlink()
            raise
        return True

    def _owner(self) -> tuple[dict[str, Any], str | None]:
        """What the file says of its owner, and its text; None if there is no file."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return {}, None
        try:
            owner = json.loads(text)
        except ValueError:  # damaged, or not written yet
            owner = {}
        return {key: owner.get(key) for key in self._me} if isinstance(owner, dict) else {}, text

    def _refusal(self, owner: Mapping[str, Any]) -> str:
        return (
            f"workdir {self.path.parent} is in use by {_words(owner)}: wait for its end, stop it,"
            " or take another workdir"
        )

    def _becomes_stale(self, owner: Mapping[str, Any], text: str) -> bool:
        """Waits to see; False if the file is another or gone. Raises ValueError if renewed."""
        first, said = None, False
        while self._owner()[1] == text:
            with contextlib.suppress(FileNotFoundError):
                time_of_it = os.stat(self.path).st_mtime
                first = time_of_it if first is None else first
                if time_of_it != first:
                    raise ValueError(self._refusal(owner))
                if self._now() - time_of_it > STALE_SECONDS:
                    return True
            if not said:
                _LOG.warning(
                    "%s is of %s; waiting up to %d s to see whether that is at work",
                    *(self.path, _words(owner), STALE_SECONDS),
                )
                said = True
            time.sleep(_LOOK_SECONDS)
        return False

    def _now(self) -> float:
        """The file system's time."""
        with tempfile.TemporaryFile(dir=self.path.parent) as file:
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_mtime

    def _remove_stale(self, text: str) -> None:
        """By a new name first, which one of several alone can give."""
        aside = self.path.with_name(f".{self.path.name}.{self._me['token']}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if aside.read_text(encoding="utf-8") != text:  # another was quicker, and has a new one
            with contextlib.suppress(OSError):  # a third was quicker still
                os.link(aside, self.path)
        aside.unlink()


def _words(owner: Mapping[str, Any]) -> str:
    if not owner.get("process"):
        return "an unknown job"
    return f"process {owner['process']} on host {owner['host']}"


@contextlib.contextmanager
def held(directories: Sequence[Path], name: str = NAME) -> Iterator[Callable[[], None]]:
    """Holds the locks of some directories, which exist; gives a function that raises Lost if one is
    not ours any more.

    Raises:
      ValueError: one of them is in use.
    """
    with contextlib.ExitStack() as stack:
        locks = []
        for directory in directories:
            lock = Lock(directory, name)
            lock.take()
            stack.callback(lock.release)
            locks.append(lock)
        end = threading.Event()

        def beat() -> None:
            while not end.wait(BEAT_SECONDS):
                for lock in locks:
                    lock.renew()

        thread = threading.Thread(target=beat, daemon=True, name="locks")
        thread.start()
        stack.callback(thread.join)
        stack.callback(end.set)

        def check() -> None:
            for lock in locks:
                lock.check()

        yield check
