"""What `diffax sample` draws: samples, or data that a trained run changes, beside the result."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffax import arguments, data
from diffax import config as config_lib
from diffax.data import controls, images
from diffax.files import read_npz
from diffax.generator import Generator, check_examples, check_range, num_not_finite
from diffax.registry import suggestion


class Drawn(NamedTuple):
    """What was sampled.

    Attributes:
      arrays: name -> (n, ..., C), to be kept; data that was edited is "given".
      drawn: title -> (n, ..., C), to be drawn side by side.
      said: a line on the outcome; "" if there is nothing to say.
    """

    arrays: dict[str, np.ndarray]
    drawn: Mapping[str, np.ndarray]
    said: str = ""


class Edit(NamedTuple):
    """An edit.

    Attributes:
      run: (generate, x, **flags, **sampling options) -> Drawn.
      flags: those that it alone reads.
      num: how many examples it takes by default.
      options: of sampling, in place of the run's own.
      draws: whether it draws noise, and so reads a seed.
    """

    run: Callable[..., Drawn]
    flags: tuple[str, ...] = ()
    num: int = 16
    options: Mapping[str, Any] = {}
    draws: bool = True


def _sdedit(generate: Generator, x: np.ndarray, strength: float = 0.5, **common: Any) -> Drawn:
    result = generate.sdedit(x, strength, **common)
    return Drawn({"given": x, "edited": result}, {"given": x, f"strength {strength:g}": result})


def _inpaint(
    generate: Generator,
    x: np.ndarray,
    mask: str = "centre",
    jump_length: int | None = None,
    num_resamples: int = 10,
    **common: Any,
) -> Drawn:
    known = 1 - anew(mask, x.shape[1:])
    resampling = {"jump_length": jump_length, "num_resamples": num_resamples}
    result = generate.inpaint(x, known, **resampling, **common)
    return Drawn(
        {"given": x, "known": known, "inpainted": result},
        {"given": x, "known": x * known, "inpainted": result},
    )


def _invert(generate: Generator, x: np.ndarray, **common: Any) -> Drawn:
    found = generate.invert(x, **common)
    low, high = found.error.min(), found.error.max()
    # The noise of latents is no picture.
    start = {"start": found.start / 2} if found.start.shape == x.shape else {}
    return Drawn(
        {"given": x, **found._asdict()},
        {"given": x, **start, "reconstruction": found.reconstruction},
        f"reconstruction error (root mean square, data in [-1, 1]): mean {found.error.mean():.3g},"
        f" {low:.3g} to {high:.3g} over {len(x)} examples\n",
    )


def _interpolate(generate: Generator, x: np.ndarray, frames: int = 8, **common: Any) -> Drawn:
    frames = arguments.whole("--frames", frames, 2, _FRAMES)
    if len(x) != 2:
        raise ValueError(f"--edit=interpolate: between two examples, and {len(x)} are given")
    shares = np.linspace(0, 1, frames)
    result = generate.interpolate(x[0], x[1], shares, **common)
    drawn = {f"{share:.2f}": frame[None] for share, frame in zip(shares, result)}
    return Drawn({"given": x, "interpolated": result}, drawn)


_MOST_TITLES = 8  # prompts under which their samples are drawn
_FRAMES = 10_000  # of an interpolation, at most
# The error of inversion falls as 1 / steps, and is several times as small on this grid as over t.
_FINE = {"num_steps": 100, "grid": "logsnr"}
EDITS: dict[str, Edit] = {
    "sdedit": Edit(_sdedit, ("strength",)),
    "inpaint": Edit(_inpaint, ("mask", "jump_length", "num_resamples")),
    "invert": Edit(_invert, options=_FINE, draws=False),
    "interpolate": Edit(_interpolate, ("frames",), 2, _FINE, draws=False),
}


def edit(
    generate: Generator,
    name: str,
    paths: Sequence[str] | None,
    num: int | None,
    counts: Sequence[int] | None,
    flags: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Drawn:
    """The edit of that name, of files or of `num` examples of the run's evaluation split.

    Args:
      paths: see `read`; None for the evaluation split.
      num, counts: how many examples, and a list of one step count; None for the edit's own.
      flags: the edit's own settings.
      options: of `Generator`.

    Raises:
      ValueError: a flag of another edit, several step counts, more examples than there are, a seed
        where nothing is drawn, or what the edit itself refuses.
    """
    check_flags(name, flags)
    chosen = EDITS[name]
    if counts and len(counts) > 1:
        raise ValueError(f"--steps={','.join(map(str, counts))}: one count with --edit")
    if "seed" in options and not chosen.draws:
        raise ValueError(f"--seed={options['seed']}: --edit={name} draws no noise (it is DDIM's)")
    x, known = examples(generate.run, paths, num, chosen.num)
    options = {**chosen.options, **options}
    options |= {"num_steps": counts[0]} if counts else {}
    options |= {k: value for k, value in known.items() if options.get(k) is None}
    return chosen.run(generate, x, **flags, **options)


def draw(
    generate: Generator, num: int | None, counts: Sequence[int] | None, options: Mapping[str, Any]
) -> Drawn:
    """`num` samples with each of the step counts (the run's own), from the same noise.

    By default they are 64, or as many as there are prompts, `options["text"]`, which come in turn,
    as controls do.
    """
    prompts = options.get("text") or []
    num = max(64, len(prompts)) if num is None else num
    if prompts:
        options = {**options, "text": [prompts[i % len(prompts)] for i in range(num)]}
    followed = options.get("control")
    if followed is not None:
        followed = in_turn(followed, num)
        options = {**options, "control": followed}
    counts = list(dict.fromkeys(counts or [generate.run.config.sampling.num_steps]))
    drawn = {f"{n} steps": generate(num, num_steps=n, **options) for n in counts}
    if len(drawn) == 1:
        (x,) = drawn.values()
        if 1 < len(prompts) <= _MOST_TITLES:
            drawn = {p: x[i :: len(prompts)] for i, p in enumerate(prompts) if i < num}
        elif followed and followed[0].shape[-1] in (1, 3):
            drawn = {"control": followed[0], "samples": x}
        return Drawn({"samples": x}, drawn)
    return Drawn({f"samples_{n}": x for n, x in zip(counts, drawn.values())}, drawn)


def read_controls(
    generate: Generator, groups: Sequence[Sequence[str]] | None
) -> list[np.ndarray] | None:
    """The controls of files, (m, ..., C') in [-1, 1], an array for each that the network follows;
    None without files.

    Args:
      groups: the files of each control: images of the control's size and channels, or .npz files
        with an array "control", or a single one.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a network that follows no control or another number of them, or a file of another
        size or number of channels; names the file.
    """
    if not groups:
        return None
    config, info = generate.run.config, generate.run.dataset
    names = config_lib.control_names(config)
    if len(names) != len(groups):
        follows = ", ".join(names) or "no control"
        raise ValueError(
            f"--control is given {len(groups)} times, and this network follows {follows}: give it"
            " once for each, with one file or several after it"
        )
    shapes = config_lib.control_shapes(config, info)
    return [
        np.concatenate([_read_control(Path(path), shape) for path in paths])
        for shape, paths in zip(shapes, groups)
    ]


def _read_control(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"--control={path}: no such file")
    if path.suffix.lower() == ".npz":
        return _read_file(path, shape, 256, "--control", "control")
    try:
        header = images.header(path)
        found = (*header.size, 1 if header.grey else 3)
        if found != shape:
            raise ValueError(
                f"its size and channels are {found}, and this network's controls are {shape}"
            )
        return data.dataset.to_float(images.decode(path, shape[-1])[None])
    except (OSError, ValueError) as error:
        raise ValueError(f"--control={path}: {error}") from None


def in_turn(arrays: Sequence[np.ndarray], num: int) -> list[np.ndarray]:
    """Controls, (m, ..., C') each, for `num` samples: row i is the i-th, from the first again."""
    return [x[np.arange(num) % len(x)] for x in arrays]


def read_prompts(path: str | None) -> list[str]:
    """The lines of a text file that are not empty; [] without a file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is no text, or holds nothing.
    """
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"--prompts={path}: can't be read ({error})") from None
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"--prompts={path}: holds no prompt")
    return prompts


def not_finite(drawn: Drawn) -> str:
    """How many examples of what was drawn are not finite, array by array; "" for none."""
    floats = {name: x for name, x in drawn.arrays.items() if np.issubdtype(x.dtype, np.floating)}
    wrong = {name: num_not_finite(x) for name, x in floats.items() if name != "given"}
    return ", ".join(f"{n} of {len(floats[k])} in {k!r}" for k, n in wrong.items() if n)


def check_flags(name: str | None, given: Mapping[str, Any]) -> None:
    """Raises ValueError for a flag that the edit of that name (None: no edit) does not read."""
    for flag, value in given.items():
        owners = [owner for owner, edit in EDITS.items() if flag in ("input", *edit.flags)]
        if value is not None and name not in owners:
            raise ValueError(
                f"--{flag.replace('_', '-')}={value}: only with --edit={' or '.join(owners)}"
            )


def read(paths: Sequence[str], shape: tuple[int, ...], levels: int | None = 256) -> np.ndarray:
    """Examples of `shape` in [-1, 1] from image files, resized and cropped, or from .npz files.

    Of an .npz the array "samples" is read, in [-1, 1], as `diffax sample` writes it, or else its
    only array.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that can't be read, data of another shape or not finite, or with `levels`
        far outside [-1, 1]; names the file.
    """
    return np.concatenate([_read_file(Path(path), shape, levels) for path in paths])


def _read_file(
    path: Path,
    shape: tuple[int, ...],
    levels: int | None,
    flag: str = "--input",
    array: str = "samples",
) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{flag}={path}: no such file")
    if path.suffix.lower() != ".npz":
        return _read_image(path, shape)[None].astype(np.float32) / 127.5 - 1

    def pick(names: Sequence[str]) -> list[str]:
        if array not in names and len(names) != 1:
            held = ", ".join(names) or "no array"
            raise ValueError(f"{flag}={path}: holds {held}; name one of them {array}")
        return [array] if array in names else list(names)

    ((name, x),) = read_npz(path, pick).items()
    try:
        if x.dtype.kind not in "fiu":
            raise ValueError(f"{name!r} is of {x.dtype}, not of numbers")
        x = np.asarray(arguments.data(name, x), np.float32)
        check_examples(repr(name), x, shape)
        check_range(repr(name), x, levels)
    except ValueError as error:
        raise ValueError(f"{flag}={path}: {error}") from None
    return x


def _read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] not in images.MODES:
        raise ValueError(f"{path}: an image can't become data of shape {shape}; give an .npz")
    try:
        return images.decode(path, shape[2], shape[0])
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable image ({error})") from error


# region -> (axis, counted from the channels, where it begins and ends as shares of that axis)
_REGIONS: dict[str, tuple[tuple[int, float, float], ...]] = {
    "left": ((-2, 0.0, 0.5),),
    "right": ((-2, 0.5, 1.0),),
    "top": ((-3, 0.0, 0.5),),
    "bottom": ((-3, 0.5, 1.0),),
    "centre": ((-2, 0.25, 0.75), (-3, 0.25, 0.75)),
}


def anew(mask: str, shape: tuple[int, ...]) -> np.ndarray:
    """1 where data of `shape`, (..., C), are to be drawn anew: a region's name or an image's path.

    Of an image the part that is lighter than half grey counts. A signal, (L, C), has the regions
    left, right and centre.

    Raises:
      ValueError: no such region in data of that shape, or an unreadable image.
    """
    if mask not in _REGIONS and not Path(mask).is_file():
        near = suggestion(mask, _REGIONS)
        raise ValueError(
            f"--mask={mask}{near}: no such part and no such file; it must be"
            f" {', '.join(_REGIONS)}, or an image file"
        )
    if mask not in _REGIONS:
        light = _read_image(Path(mask), (*shape[:2], 1)) > 127
        return np.broadcast_to(light, shape).astype(np.float32)
    sides = [side for side in _REGIONS[mask] if -side[0] <= len(shape)]
    if not sides:
        raise ValueError(f"--mask={mask}: data of shape {shape} have no such part")
    result = np.zeros(shape, np.float32)
    index = [slice(None)] * len(shape)
    for axis, begin, end in sides:
        index[axis] = slice(round(begin * shape[axis]), round(end * shape[axis]))
    result[tuple(index)] = 1
    return result


def examples(
    run: Any, paths: Sequence[str] | None, num: int | None, default: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """x of files, or of the first `num` of the run's evaluation split, and the "label", "text" and
    "control" of each, of a network that takes them; those of files are not known.

    With `num` None they are all that the files hold, or `default` of the split, or all it has.

    Raises:
      ValueError: fewer than `num` are there.
    """
    split = None if paths else config_lib.load_data(run.config).eval
    x = read(paths, run.dataset.shape, run.dataset.levels) if paths else None
    there = len(x) if paths else len(split)
    if num is not None and arguments.whole("--num", num, 1, arguments.MOST_EXAMPLES) > there:
        where = "--input holds" if paths else "the evaluation split has"
        raise ValueError(f"--num={num}: {where} {there} examples")
    if paths:
        return x[:num], {}
    indices = np.arange(min(default, there) if num is None else num)
    known = {}
    if run.config.model.class_conditional:
        known["label"] = split.label[indices]
    if run.config.condition.text:
        known["text"] = split.arrays["text"][indices].tolist()
    if names := config_lib.control_names(run.config):
        known["control"] = controls.images(split.batch(indices), names)
    return split.array(indices), known
