"""One job at a time in a workdir: a file, lock.json, that the kernel locks, and that says whose it
is. The lock ends with the process that holds it, whatever ends that."""

import contextlib
import fcntl
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_LOG = logging.getLogger("diffax")
NAME = "lock.json"


class Lost(OSError):
    """The workdir, or the lock in it, is not this job's any more."""


class Lock:
    """The lock of one directory, which exists; `take` it, and `release` it at the end."""

    def __init__(self, directory: Path, name: str = NAME):
        self.path = directory / name
        self._file = -1

    def take(self) -> None:
        """Makes and locks the file.

        Raises:
          ValueError: another job is at work there.
        """
        while True:
            file = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise ValueError(
                    f"workdir {self.path.parent} is in use by {self._owner()}: wait for its end,"
                    " stop it, or take another workdir"
                ) from None
            except OSError as error:  # a file system that knows no locks
                _LOG.warning("%s can't be locked (%s): start no second job", self.path, error)
            if self._is_at_path(file):
                break
            os.close(file)  # its holder has just removed it
        if os.fstat(file).st_size:
            _LOG.warning(
                "an earlier job (%s) was stopped in %s; its lock is taken over",
                *(self._owner(), self.path.parent),
            )
        self._file = file
        try:
            os.ftruncate(file, 0)
            os.write(file, json.dumps({"host": platform.node(), "process": os.getpid()}).encode())
        except OSError:  # the disk is full
            self.release()
            raise

    def check(self) -> None:
        """Raises Lost if the file is another's, or gone with config.json, the first that a run
        writes; makes it again if it alone is gone."""
        if self._is_at_path(self._file):
            return
        if self.path.exists():
            raise Lost(f"{self._owner()} has taken the directory over")
        if not (self.path.parent / "config.json").exists():
            raise Lost("the directory was deleted or moved while it was in use")
        _LOG.warning("%s was deleted while it was in use; it is made again", self.path)
        os.close(self._file)
        self.take()

    def release(self) -> None:
        """Removes the file, if it is ours."""
        if self._is_at_path(self._file):
            self.path.unlink()
        os.close(self._file)

    def _is_at_path(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _owner(self) -> str:
        """What the file says of who holds it."""
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {owner['process']} on host {owner['host']}"
        except (OSError, ValueError, TypeError, KeyError):  # gone, or not written yet
            return "an unknown job"


@contextlib.contextmanager
def held(directories: Sequence[Path], name: str = NAME) -> Iterator[Callable[[], None]]:
    """Holds the locks of some directories, which exist; gives a function that raises Lost if one is
    not ours any more.

    Raises:
      ValueError: one of them is in use.
    """
    with contextlib.ExitStack() as stack:
        locks = [Lock(directory, name) for directory in directories]
        for lock in locks:
            lock.take()
            stack.callback(lock.release)

        def check() -> None:
            for lock in locks:
                lock.check()

        yield check
