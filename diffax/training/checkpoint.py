"""Checkpoints by orbax, written in the background while training goes on.

    workdir/checkpoints/<step>/state    every array of the `TrainState`, by its path in the tree
    workdir/checkpoints/<step>/loop     JSON: the data iterator's state and what the loop remembers
    workdir/checkpoints/<step>/checksums    JSON: of both, so that a flipped bit is found

A step's folder gets its name when all of it is written, so it is whole or not there.
"""

import contextlib
import copy
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from diffax import places, runtime
from diffax.training import hosts

_LOG = logging.getLogger("diffax")


class OtherArraysError(ValueError):
    """A checkpoint holds other arrays than are wanted."""


class DamagedError(ValueError):
    """A checkpoint can't be read."""


class NotSavedError(OSError):
    """A checkpoint could not be written; those before it are left as they are."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: where they lie; made if it isn't there.
      keep: how many of the latest stay, and beside them the one of step `trusted`, an attribute
        that may be set.
      read_only: for looking only; nothing is made.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 1, read_only: bool = False):
        runtime.watch_callbacks()
        self.directory = places.workdir_of(directory)
        self._read_only, self._keep = read_only, keep
        self.trusted: int | None = None
        self._state, self._text = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
        handlers = dict(state=self._state, loop=self._text, checksums=self._text)
        with _without_warnings() if read_only else contextlib.nullcontext():
            writes = dict(create=not read_only, cleanup_tmp_directories=not read_only)
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self, read_only=read_only, **writes
                ),
                item_handlers=handlers,
            )

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of the checkpoints, ascending, stay; orbax asks it."""
        del context
        first = len(checkpoints) - self._keep
        return [i >= first or info.step == self.trusted for i, info in enumerate(checkpoints)]

    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, loop: dict[str, Any]) -> None:
        """Begins to write; waits only for an earlier checkpoint and for the copy to the host.

        Args:
          step: a checkpoint of the same step that is there already is left as it is.
          state: any pytree of arrays and PRNG keys.
          loop: plain data that JSON can hold; copied, so that it may change afterwards.

        Raises:
          NotSavedError: the checkpoint before this one could not be written.
        """
        if step in self._manager.all_steps():
            return
        arrays = _by_path(state)
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            loop=ocp.args.JsonSave(copy.deepcopy(loop)),
            checksums=ocp.args.JsonSave(_sums(arrays, loop)),
        )
        with _writing():
            self._manager.save(step, args=content)

    def remove(self, steps: Iterable[int]) -> None:
        """Removes the checkpoints of these steps."""
        for step in list(steps):
            self._manager.delete(step)

    def restore(
        self, like: Any, sharding: Any, step: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The state and the loop's data of a step, the latest readable one if left out.

        A damaged one that is passed over is named in a warning and, unless `read_only`, put aside
        as "damaged-<step>", so that its step can be saved again.

        Args:
          like: a tree of the state's structure, of arrays or `jax.ShapeDtypeStruct`.
          sharding: where the arrays go, one for all or a tree of them like the state; it need not
            be where they were when saved.

        Raises:
          FileNotFoundError: there is no checkpoint, or none of that step.
          OtherArraysError: it holds other arrays than `like`.
          DamagedError: it can't be read, nor, if `step` was left out, can another.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self.directory}")
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps))
            raise FileNotFoundError(
                f"there is no checkpoint of step {step} in {self.directory}; there are: {there}"
            )
        if isinstance(sharding, jax.sharding.Sharding):
            sharding = jax.tree.map(lambda _: sharding, like)
        places = dict(_paths(sharding))
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[path])
            for path, leaf in jax.eval_shape(_by_path, like).items()
        }
        candidates = steps[::-1] if step is None else [step]
        damaged: dict[int, Exception] = {}
        for candidate in candidates:
            try:
                by_path, loop = self._read(candidate, wanted)
            except OtherArraysError:
                raise
            except Exception as error:  # orbax has no one kind for what it can't read
                damaged[candidate] = error
            else:
                self._pass_over(damaged, candidate)
                return _from_paths(by_path, like), loop
        latest, error = next(iter(damaged.items()))
        others = ", nor is there another that can" if step is None else ""
        raise DamagedError(
            f"the checkpoint of step {latest} in {self.directory} can't be read{others}:"
            f" {_first_line(error)}"
        ) from error

    def put_aside(self, steps: Iterable[int], word: str) -> None:
        """Gives the checkpoints of some steps the name "<word>-<step>", so that they are none."""
        steps = list(steps)
        for step in steps:
            # One of the hosts does it for all.
            if jax.process_index() == 0:
                place = self.directory / f"{word}-{step}"
                places.remove_folder(place)  # of an earlier time
                places.rename_folder(self.directory / str(step), place)
        if steps:
            multihost_utils.sync_global_devices("checkpoints are put aside")
            self._manager.reload()

    def _pass_over(self, damaged: dict[int, Exception], used: int) -> None:
        if not self._read_only:
            self.put_aside(damaged, "damaged")
        for step, error in damaged.items():
            place = self.directory / (str(step) if self._read_only else f"damaged-{step}")
            _LOG.warning(
                "the checkpoint of step %d is damaged (%s; now %s): the one of step %d is used",
                step,
                _first_line(error),
                place,
                used,
            )

    def _read(
        self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        # By the handlers themselves, since the manager's reading ends with waiting for the other
        # hosts, of which one alone may find damage.
        folder, text = self.directory / str(step), self._text.restore
        with hosts.failing_together():
            saved, loop = self._state.metadata(folder / "state"), text(folder / "loop")
            sums = text(folder / "checksums")
            there = {path: tuple(meta.shape) for path, meta in saved.items()}
            if sums["shapes"] != _text_checksum(there):
                raise ValueError("the arrays' names or shapes are not those that were saved")
            self._check_same_arrays(step, there, wanted)
        # Restored as another dtype, they would have other checksums.
        as_saved = {path: leaf.update(dtype=saved[path].dtype) for path, leaf in wanted.items()}
        with hosts.failing_together():
            state = self._state.restore(folder / "state", args=ocp.args.StandardRestore(as_saved))
        # All but 64 bits where JAX has only 32.
        same = {path: leaf for path, leaf in state.items() if leaf.dtype == saved[path].dtype}
        with hosts.failing_together():
            _check_sums(_sums(same, loop), sums)
        return {path: state[path].astype(leaf.dtype) for path, leaf in wanted.items()}, loop

    def _check_same_arrays(
        self, step: int, there: dict[str, tuple], wanted: dict[str, jax.ShapeDtypeStruct]
    ) -> None:
        needed = {path: leaf.shape for path, leaf in wanted.items()}
        for path in sorted(needed.keys() | there.keys()):
            found, expected = there.get(path, "none"), needed.get(path, "none")
            if found != expected:
                raise OtherArraysError(
                    f"the checkpoint of step {step} in {self.directory} is of another model or"
                    f" config: {path} has shape {found} there, and {expected} is needed"
                )

    def remembered(self, step: int | None = None) -> dict[str, Any]:
        """The loop's data of a step, the latest sound one if left out, without the arrays; {} if
        there is none that can be read."""
        for candidate in self.steps()[::-1] if step is None else [step]:
            folder = self.directory / str(candidate)
            try:
                loop, sums = (
                    json.loads((folder / name / "metadata").read_text(encoding="utf-8"))
                    for name in ("loop", "checksums")
                )
                if sums["loop"] == _text_checksum(loop):
                    return loop
            except (OSError, ValueError, KeyError, TypeError) as error:
                # `restore` says so where it matters.
                _LOG.debug("the loop's data of step %d can't be read (%s)", candidate, error)
        return {}

    def wait(self) -> None:
        """Returns when all is written; raises NotSavedError if it went wrong in the background."""
        with _writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and ends."""
        with _writing():
            self._manager.close()


def kept(directory: Path) -> str:
    """Words that say which checkpoint in a directory is the latest whole one."""
    step = latest_step(directory)
    if step is None:
        return "no checkpoint was made before it"
    return f"the checkpoint of step {step} in {directory} is kept"


def latest_step(directory: Path) -> int | None:
    """The step of the latest whole checkpoint in a directory, None if there is none."""
    if not directory.exists():
        return None
    return max(ocp.utils.checkpoint_steps(directory), default=None)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Within it orbax doesn't warn, through absl, that what is opened to be read isn't written."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax has no one kind for what it can't write
        code = re.search(r"os_error_code='(\d+)'", str(error))  # of tensorstore
        number = int(code[1]) if code else getattr(error, "errno", None)
        if number:
            raise NotSavedError(number, f"a checkpoint: {os.strerror(number)}") from error
        raise NotSavedError(f"a checkpoint could not be written: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What an error says, without the details that a library adds to it."""
    line = str(error).partition("\n")[0]
    return line.partition(" See full TensorStore details")[0][:200]


def _sums(arrays: Mapping[str, jax.Array], loop: dict[str, Any]) -> dict[str, Any]:
    """The checksums of a checkpoint, as they are saved in it."""
    return {
        "shapes": _text_checksum({path: leaf.shape for path, leaf in arrays.items()}),
        "loop": _text_checksum(loop),
        "arrays": checksums(arrays),
    }


def _check_sums(found: dict[str, Any], saved: dict[str, Any]) -> None:
    wrong = [path for path, value in found["arrays"].items() if value != saved["arrays"][path]]
    wrong += ["loop"] * (found["loop"] != saved["loop"])
    if wrong:
        raise ValueError(f"{wrong[0]} has another checksum than when it was saved")


def _text_checksum(data: Any) -> int:
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _paths(tree: Any) -> list[tuple[str, Any]]:
    """The leaves, each with its path in the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(p, simple=True, separator="."), leaf) for p, leaf in leaves]


def _by_path(tree: Any) -> dict[str, jax.Array]:
    """The leaves by their path in the tree, PRNG keys as the integers that they consist of."""
    return {
        path: jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in _paths(tree)
    }


def _from_paths(by_path: dict[str, jax.Array], like: Any) -> Any:
    return jax.tree.structure(like).unflatten(
        jax.random.wrap_key_data(by_path[path]) if _is_key(leaf) else by_path[path]
        for path, leaf in _paths(like)
    )


# --- checksums of arrays, wherever their parts lie ------------------------------------------------


@jax.jit
def _checksum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    # Bits as unsigned integers; values of 8 bytes become two of 4 in a last axis.
    bits = jnp.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(array, bits).astype(jnp.uint32)
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        step = jnp.uint32(stride % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * step
        stride *= words.shape[axis]
    mixed = words + place * jnp.uint32(0x9E3779B1)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)


def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """The sum mod 2**32 over an array's words of mix(word + place * 0x9E3779B1), for each array.

    A word is an element's bits (of an element of 8 bytes each half), place its index in C order,
    and mix the final step of MurmurHash3 (Appleby 2011), a bijection of 32-bit integers. So any
    change within one word changes the sum, a flipped bit for certain; other changes go unnoticed
    once in 2**32 times.

    The sum is taken on the devices where the array lies, and no order or sharding changes it:
    nothing is copied to the host, and an array that is spread over several hosts is no special
    case. All hosts must call it.
    """
    # Programs are kept by shape, of which a network has few; one for all compiles for long. Each
    # ends before the next begins: of two in flight, two hosts' CPUs may each begin another first.
    return {path: int(_checksum(array)) for path, array in arrays.items()}
