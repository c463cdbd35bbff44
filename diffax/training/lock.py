"""One job at a time in a workdir: a file, lock.json, that says whose the workdir is.

On a file system the kernel locks it. The lock ends with the process that holds it, whatever ends
that. A bucket has no such locks: there its holder writes a new number into the file now and then,
and one who finds the same number for `LEASE_SECONDS` takes it over, as the job of it has ended.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffax import places

_LOG = logging.getLogger("diffax")
NAME = "lock.json"
# Of a bucket: how long a lock holds whose number stays the same, and how often its holder writes
# another one.
LEASE_SECONDS, BEAT_SECONDS = 60.0, 10.0


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
            return _named(self.path.read_bytes())
        except OSError:  # gone
            return _named(b"")


def _named(content: bytes) -> str:
    """Whose a lock with this content is."""
    try:
        owner = json.loads(content)
        return f"process {owner['process']} on host {owner['host']}"
    except (ValueError, TypeError, KeyError):  # not written yet
        return "an unknown job"


class BucketLock:
    """The lock of a workdir in a bucket; as `Lock`.

    Two jobs that find a lock run out at once may both begin. The later one holds it then, and the
    other ends at its next `check`.
    """

    def __init__(self, directory: Any, name: str = NAME):
        self.path = directory / name
        self._key = uuid.uuid4().hex
        self._end = threading.Event()
        self._beat = threading.Thread(target=self._go_on, daemon=True, name="lock")

    def take(self) -> None:
        """Makes the file, if need be when the lock that is there has run out.

        Raises:
          ValueError: another job is at work there.
        """
        while not places.create(self.path, self._content()):
            self._wait_for(places.read_bytes(self.path))
        self._beat.start()

    def _wait_for(self, held: bytes | None) -> None:
        """Returns when the lock is gone, or has run out and was removed."""
        said, begun = _named(held or b""), time.monotonic()
        if not _is_over(held):
            _LOG.info("waiting to see whether %s is at work in %s", said, self.path.parent)
        while held is not None and not _is_over(held):
            if time.monotonic() - begun > LEASE_SECONDS:
                break
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            now = places.read_bytes(self.path)
            if now is not None and now != held:
                raise ValueError(
                    f"workdir {self.path.parent} is in use by {_named(now)}: wait for its end, stop"
                    " it, or take another workdir"
                )
            held = now
        if held is not None:
            words = "an earlier job (%s) was stopped in %s; its lock is taken over"
            _LOG.warning(words, said, self.path.parent)
            with contextlib.suppress(FileNotFoundError), places.as_os_error(self.path):
                self.path.unlink()

    def check(self) -> None:
        """Raises Lost if the file is another's, or gone with config.json; makes it again if it
        alone is gone."""
        found = places.read_bytes(self.path)
        if found and self._key.encode() not in found:
            raise Lost(f"{_named(found)} has taken the directory over")
        if found is None:
            if not (self.path.parent / "config.json").exists():
                raise Lost("the directory was deleted or moved while it was in use")
            _LOG.warning("%s was deleted while it was in use; it is made again", self.path)
            if not places.create(self.path, self._content()):
                raise Lost("another job has taken the directory over")

    def release(self) -> None:
        """Removes the file, if it is ours."""
        self._end.set()
        self._beat.join()
        found = places.read_bytes(self.path)
        if found is not None and self._key.encode() in found:
            with places.as_os_error(self.path):
                self.path.unlink()

    def _content(self) -> bytes:
        owner = {"host": platform.node(), "process": os.getpid()}
        return json.dumps({**owner, "key": self._key, "beat": uuid.uuid4().hex}).encode()

    def _go_on(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            try:
                found = places.read_bytes(self.path)
                if found is not None and self._key.encode() in found:
                    with places.as_os_error(self.path):
                        self.path.write_bytes(self._content())
            except OSError as error:  # `check` says so where it lasts
                _LOG.debug("%s can't be renewed (%s)", self.path, error)


def _is_over(held: bytes | None) -> bool:
    """Whether the process that holds a lock was one of this host, and has ended."""
    try:
        owner = json.loads(held or b"")
        if owner["host"] != platform.node():
            return False
        os.kill(int(owner["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, TypeError, KeyError):  # another user's; or not known
        return False
    return False


@contextlib.contextmanager
def held(directories: Sequence[Any], name: str = NAME) -> Iterator[Callable[[], None]]:
    """Holds the locks of some directories, which exist; gives a function that raises Lost if one is
    not ours any more.

    Raises:
      ValueError: one of them is in use.
    """
    with contextlib.ExitStack() as stack:
        kinds = [BucketLock if places.in_bucket(place) else Lock for place in directories]
        locks = [kind(directory, name) for kind, directory in zip(kinds, directories)]
        for lock in locks:
            lock.take()
            stack.callback(lock.release)

        def check() -> None:
            for lock in locks:
                lock.check()

        yield check
