"""Odd inputs for `fuzz.py`: config keys, command lines, files, calls; each made from its number.

A kind is a function number -> Case. A case says what is tried, in words, and runs it: it returns
the numbers that come out, or raises. `verdict` holds what happened against what may happen.
"""

import contextlib
import dataclasses
import functools
import io
import os
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import diffax
from diffax import cli, data, runtime, training
from diffax import config as config_lib
from diffax.cli import shared
from diffax.config import reading, storage

REFUSALS = (ValueError, TypeError, OSError, runtime.Failed)
LONGEST = 1500  # letters of a refusal


class Refused(Exception):
    """An input was refused; the message is what the user reads."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is tried.

    Attributes:
      words: what it is.
      run: gives what comes out, a tree of numbers.
      wrong: it makes no sense, and must be refused.
      right: it is what users write, and must not be refused.
      expected: what must come out, if it is not refused; None: anything finite.
    """

    words: str
    run: Callable[[], Any]
    wrong: bool = False
    right: bool = False
    expected: Any = None


def verdict(case: Case) -> tuple[str, str]:
    """What became of a case, a key of `fuzz.OUTCOMES`, and the details of a fault."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = case.run()
    except Refused as refusal:
        return _refusal(case, str(refusal))
    except REFUSALS as error:
        if isinstance(error, TypeError) and not _is_ours(error):
            return "traceback", f"{type(error).__name__}: {error}"
        return _refusal(case, str(error))
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    if case.wrong:
        return "nonsense", "accepted"
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
    numbers = [leaf.astype(np.float64) for leaf in leaves if leaf.dtype.kind in "fiub"]
    if not all(np.isfinite(leaf).all() for leaf in numbers):
        return "not finite", "accepted"
    if case.expected is not None and not _same(found, case.expected):
        return "nonsense", "accepted, with another result than the undamaged"
    return "worked", ""


def _refusal(case: Case, text: str) -> tuple[str, str]:
    if case.right:
        return "wrongly refused", text[:LONGEST]
    if not text.strip() or "Traceback" in text or len(text) > LONGEST:
        return "no sentence", text[:LONGEST]
    return "refused", ""


def _is_ours(error: TypeError) -> bool:
    """Whether diffax itself raised it, and not what it called with what it was given."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return Path(diffax.__file__).parent in Path(trace.tb_frame.f_code.co_filename).parents


def _same(found: Any, expected: Any) -> bool:
    return jax.tree.structure(found) == jax.tree.structure(expected) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected))
    )


# --- a run that the cases start from --------------------------------------------------------

CONFIG = """
from diffax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mixture2d"
    config.model.name = "mlp"
    config.model.mlp.width = 8
    config.model.mlp.depth = 1
    config.schedule.log_snr_max = 6.0
    config.schedule.log_snr_min = -6.0
    config.optimizer.warmup_steps = 0
    config.training.batch_size = 16
    config.training.num_steps = 2
    config.training.log_every = 1
    config.parallel.num_devices = 1
    config.sampling.num_steps = 2
    config.sampling.num_samples = 4
    config.evaluation.num_examples = 16
    config.evaluation.batch_size = 16
    config.evaluation.repeats = 1
    config.evaluation.num_samples = 16
    config.evaluation.gradient_batches = 0
    return config
"""
IMAGES = CONFIG.replace('"mixture2d"', '"digits"').replace(
    '    config.model.name = "mlp"\n    config.model.mlp.width = 8\n'
    "    config.model.mlp.depth = 1\n",
    "    config.model.unet.channels = 4\n    config.model.unet.channel_mults = (1,)\n"
    "    config.model.unet.num_blocks = 1\n    config.model.unet.attention_resolutions = ()\n"
    "    config.model.class_conditional = True\n",
)


@functools.cache
def home() -> Path:
    """A folder of this process, removed at its end."""
    return Path(tempfile.mkdtemp(prefix="diffax-fuzz-", dir=os.environ.get("DIFFAX_FUZZ")))


@functools.cache
def config_file(text: str) -> str:
    path = home() / f"config_{len(list(home().glob('config_*')))}.py"
    path.write_text(text)
    return str(path)


@functools.cache
def trained(text: str = CONFIG) -> Path:
    """A run of two steps."""
    workdir = home() / f"run_{'mixture' if text == CONFIG else 'digits'}"
    training.train(shared.read_config(config_file(text), []), workdir)
    return workdir


def command(*argv: str) -> str:
    """What a command prints; raises `Refused` with what it says where it ends with a status."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            status = cli.main(list(argv))
        except SystemExit as stop:  # argparse
            status = stop.code
    if status == 0:
        return printed.getvalue()
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    if "Traceback" in said.getvalue():
        raise RuntimeError(said.getvalue()[-LONGEST:])
    raise Refused(lines[-1] if lines else "")


# --- config keys ----------------------------------------------------------------------------

# text -> whether it is wrong whatever the key of that type
ODD = {
    int: {
        **dict.fromkeys(("1.5", "nan", "inf", "", "abc", "true", "(1,)", "0x", "--1"), True),
        **dict.fromkeys(("0", "-1", "1", "2", "3", "16", "-9223372036854775808"), False),
        **dict.fromkeys(("2147483648", "9223372036854775807", "1" + "0" * 30, "1e3"), False),
    },
    float: {
        **dict.fromkeys(("nan", "-nan", "", "abc", "true", "(1.0,)", "1e", "1.0.0"), True),
        **dict.fromkeys(("0", "-1", "1", "0.5", "1e-320", "1e308", "-1e308", "1e-30"), False),
        **dict.fromkeys(("inf", "-inf", "1e39", "3", "-0.0", "1e400", "20", "-20"), False),
    },
    bool: {
        **dict.fromkeys(("maybe", "", "2", "1.0", "()", "nan"), True),
        **dict.fromkeys(("true", "False", "TRUE", "false"), False),
    },
    str: dict.fromkeys(
        ("", "nope", "None", "../../etc", "ε", "a" * 300, "cosine", "learned", "edm", "laplace",
         "linear_logsnr", "sigmoid", "v", "x0", "adamw", "unet", "mlp", "heun", "plms", "digits",
         "karras", "pmap", "importance", "bfloat16", "add", "\n", "{0}", "%s", "$(id)"),
        False,
    ),
    tuple: {
        **dict.fromkeys(("1", "abc", "", "(", "(1,", "((1,2),)", "(nan,)", "{1:2}"), True),
        **dict.fromkeys(("()", "(1,)", "(1,2)", "(2,1)", "(0,)", "(-1,)", "(1.5,)"), False),
        **dict.fromkeys(("(2147483648,)", "(1,)*3", "(1e308,2e308)"), False),
    },
}  # fmt: skip


def keys(number: int) -> Case:
    """Some keys of a config with odd values, as typed; what is accepted trains two steps."""
    rng = random.Random(f"keys {number}")
    text = rng.choice((CONFIG, CONFIG, IMAGES))
    reference = shared.read_config(config_file(text), [])
    names = sorted(storage.flat(reference))
    overrides, wrong = [], False
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice(names)
        if rng.random() < 0.05:
            key, wrong = rng.choice((key + "s", key.upper(), "model", "a.b.c", "", "seed.x")), True
            value = "1"
        else:
            value, never = _value(key, storage.flat(reference)[key], rng)
            wrong |= never
        overrides.append(f"--config.{key}={value}")
    return Case(
        f"{'digits' if text == IMAGES else 'mixture2d'} {overrides}",
        functools.partial(_train_two_steps, text, overrides),
        wrong,
    )


def _value(key: str, default: Any, rng: random.Random) -> tuple[str, bool]:
    """What is typed for a key, and whether it is wrong whatever the key: an odd value of its type,
    or what it was, made larger or smaller."""
    kind = reading.find(key).kind.type
    if kind in (int, float) and default and rng.random() < 0.5:
        return str(kind(default * rng.choice((0.1, 0.5, 0.99, 1.5, 2, 3, 10)))), False
    if kind is str and rng.random() < 0.5:  # a name that some key knows
        names = (diffax.samplers.SAMPLERS, diffax.samplers.GRIDS, diffax.schedules.names())
        return rng.choice(sorted({name for table in names for name in table})), False
    return rng.choice(sorted(ODD[kind].items()))


def _train_two_steps(text: str, overrides: list[str]) -> Any:
    config = shared.read_config(config_file(text), overrides)
    config_lib.validate(config)
    if config.parallel.multihost:
        raise Refused("a job of several processes is not for here")
    with tempfile.TemporaryDirectory(dir=home()) as folder:
        state, metrics = training.train(
            config, Path(folder) / "run", stop=lambda step, run: step >= 2
        )
        return jax.device_get(state.params), jax.device_get(state.ema_params), metrics


# --- command lines --------------------------------------------------------------------------

NUMBERS = ("0", "-1", "1", "2", "1.5", "nan", "inf", "1e308", "9223372036854775808", "abc", "4,")
TEXTS = (
    "", "nope", "~", "gs://bucket/run", "/dev/null", "/proc/1/mem", "/nowhere/at/all", "\0",
    "a" * 300, "ddim", "uniform", "cosine", "kid", "bpd", "swd,swd", ",", "(", "x=1",
)  # fmt: skip
FLAGS = {
    "train": ("--config", "--workdir", "--config.seed", "--config.schedule.name", "--config.nope"),
    "sample": (
        "--workdir", "--num", "--seed", "--label", "--out", "--steps", "--sampler", "--grid",
        "--eta", "--sampling-schedule", "--order", "--variance", "--clip-x0", "--dynamic-threshold",
        "--low-order-finish", "--guidance-scale", "--guidance-interval", "--guidance-rescale",
        "--edit", "--input", "--strength", "--mask", "--jump-length", "--num-resamples", "--frames",
    ),
    "evaluate": (
        "--workdir", "--samples", "--metrics", "--num-samples", "--seed", "--out", "--data",
        "--reference", "--array", "--path", "--image-size", "--pad-to", "--channels", "--steps",
        "--sampler", "--guidance-scale", "--train-split",
    ),
    "ablate": ("--axis", "--seeds", "--metrics", "--baseline", "--workers", "--shard", "--workdir"),
    "report": ("--workdir", "--out"),
    "tune": ("--search", "--trials", "--budget", "--metric", "--workers", "--workdir"),
    "schedules": ("--out", "--schedule", "--steps"),
    "config": (),
    "metrics": (),
    "nope": (),
}  # fmt: skip


def flags(number: int) -> Case:
    """A command with one to three odd flags. What would train is asked for something impossible
    besides, so that it ends before."""
    rng = random.Random(f"flags {number}")
    name = rng.choice(sorted(FLAGS) + ["sample"] * 4 + ["evaluate"] * 2)
    text = rng.choice((CONFIG, IMAGES))
    argv, wrong = [name], name == "nope"
    if name in ("sample", "evaluate") and rng.random() < 0.9:
        argv.append(f"--workdir={trained(text)}")
    if name == "sample":
        argv += ["--num=2", f"--out={home() / 'out' / str(number)}"]
    if name == "evaluate":
        argv += ["--metrics=swd", "--num-samples=16", f"--out={home() / 'out' / f'{number}.json'}"]
    if name in ("train", "ablate", "tune"):
        argv += [f"--config={config_file(text)}", "--config.training.num_steps=0"]
        wrong = True
    for _ in range(rng.randint(1, 3)):
        if FLAGS[name] and rng.random() < 0.9:
            flag = rng.choice(FLAGS[name])
        else:
            flag = rng.choice(("--nope", "-x", "--workdirs", "--step", "stray", "--=1"))
            wrong = True
        value = rng.choice(NUMBERS + TEXTS)
        form = rng.random()
        argv += [flag] if form < 0.05 else [flag, value] if form < 0.15 else [f"{flag}={value}"]
    return Case(f"diffax {argv}", functools.partial(_run_command, argv), wrong)


def _run_command(argv: list[str]) -> Any:
    before = os.getcwd()
    with tempfile.TemporaryDirectory(dir=home()) as folder:
        os.chdir(folder)  # where odd paths may be made
        try:
            command(*argv)
        finally:
            os.chdir(before)
    out = [word.removeprefix("--out=") for word in argv if word.startswith("--out=")]
    written = Path(f"{out[-1]}.npz") if argv[0] == "sample" and out else None
    return dict(np.load(written)) if written and written.is_file() else {}


# --- files ----------------------------------------------------------------------------------

FORMATS = ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm")


def _image(rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(FORMATS)
    modes = ("L", "RGB", "RGB", "P", "1") + (("RGBA", "LA", "I;16") if kind == "png" else ())
    mode, size = rng.choice(modes), rng.choice(((8, 8), (8, 8), (1, 1), (3, 17), (64, 8)))
    noise = np.random.default_rng(rng.randrange(2**32))
    pixels = noise.integers(0, 256, (*size, 3), np.uint8)
    grey = Image.fromarray(pixels[..., 0])
    picture = grey.convert("I;16") if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    out = io.BytesIO()
    with contextlib.suppress(OSError, KeyError):  # a mode that the format does not have
        picture.save(out, kind)
        return kind, out.getvalue()
    Image.fromarray(pixels).save(out := io.BytesIO(), kind)
    return kind, out.getvalue()


def _damaged(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Content with some of it changed, and what was done."""
    broken = bytearray(content)
    what = rng.choice(("flip", "flip", "cut", "empty", "junk", "swap", "grow", "zeros"))
    if what == "flip":
        for _ in range(rng.choice((1, 1, 8))):
            at = rng.randrange(len(broken))
            broken[at] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del broken[rng.randrange(len(broken)) :]
    elif what == "empty":
        broken.clear()
    elif what == "junk":
        broken = bytearray(rng.randbytes(rng.choice((1, 10, 1000))))
    elif what == "swap":
        a, b = sorted(rng.sample(range(len(broken)), 2))
        broken[a:b] = broken[a:b][::-1]
    elif what == "grow":
        broken += rng.randbytes(50)
    else:
        broken[len(broken) // 2 :] = bytes(len(broken) - len(broken) // 2)
    return what, bytes(broken)


def _folder(number: int, rng: random.Random) -> Case:
    """A folder of two good pictures and a damaged one."""
    kind, content = _image(rng)
    what, broken = _damaged(content, rng)

    def run():
        with _scratch() as folder:
            for i in range(2):
                Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(folder / f"{i}.png")
            (folder / f"bad.{kind}").write_bytes(broken)
            return _loaded(name="folder", path=str(folder), image_size=8, channels=1)

    return Case(f"a .{kind}: {what}", run)


def _npz(number: int, rng: random.Random) -> Case:
    """An .npz, damaged, or of arrays that are no data."""
    rows = np.random.default_rng(number)
    arrays = {
        "bytes": rows.integers(0, 256, (12, 4, 4, 1), np.uint8),
        "floats": rows.uniform(-1, 1, (12, 4, 1)).astype(np.float32),
        "large": rows.uniform(0, 255, (12, 4, 4, 1)),
        "nan": np.full((12, 4, 1), np.nan, np.float32),
        "objects": np.array([{}, None, 3], object),
        "text": np.array(["a", "b"] * 6),
        "complex": rows.normal(size=(12, 2)) + 1j,
        "scalar": np.float32(1),
        "row": np.arange(12.0),
        "none": np.zeros((0, 4, 1), np.float32),
        "thin": np.zeros((12, 0, 1), np.float32),
        "channels first": rows.integers(0, 256, (12, 3, 16, 16), np.uint8),
        "dates": np.zeros((12, 2), "datetime64[s]"),
        "records": np.zeros(12, [("a", "f4")]),
        "wide": rows.normal(size=(12, 2)).astype(np.longdouble) * 1e300,
    }
    labels = {
        "no label": None,
        "label": np.arange(12) % 3,
        "short label": np.arange(5),
        "float label": np.arange(12) + 0.5,
        "large label": np.arange(12) + 2**32,
        "negative label": -np.arange(12),
        "text label": np.array(["a"] * 12),
    }
    which, label = rng.choice(sorted(arrays)), rng.choice(["no label"] * 4 + sorted(labels))
    out = io.BytesIO()
    members = {"x": arrays[which]} | ({} if label == "no label" else {"label": labels[label]})
    np.savez(out, **members)
    damage = rng.random() < 0.5
    what, content = _damaged(out.getvalue(), rng) if damage else ("whole", out.getvalue())
    good = not damage and which in ("bytes", "floats") and label in ("no label", "label")
    bad_array = which not in ("bytes", "floats")
    bad_label = label not in ("no label", "label", "text label", "large label")

    def run():
        with _scratch() as folder:
            path = folder / "a.npz"
            path.write_bytes(content)
            return _loaded(name="npz", path=str(path))

    wrong = not damage and (bad_array or bad_label)
    return Case(f"an .npz of {which}, {label}: {what}", run, wrong, good)


def _loaded(**fields: Any) -> Any:
    dataset = data.load(fields)
    found = {"train": dataset.train.array(), "eval": dataset.eval.array()}
    for values in found.values():
        if values.size == 0 or np.abs(values).max() > 1 + 1e-6:
            raise RuntimeError(f"data of {values.shape} reaches {np.abs(values).max()}")
    return found


def _config_text(number: int, rng: random.Random) -> Case:
    """A config file that is damaged, or no config at all."""
    texts = {
        "empty": "", "json": '{"seed": 1}', "none": "def get_config():\n    return None\n",
        "raises": "raise RuntimeError('no')\n", "syntax": "def get_config(:\n",
        "exits": "import sys\nsys.exit(0)\n", "import": "import nothing_of_this_name\n",
        "dictionary": "def get_config():\n    return {}\n",
        "arguments": "def get_config(a, b):\n    pass\n", "number": "get_config = 3\n",
        "key": CONFIG.replace("training.log_every", "training.log_evry"), "binary": "\0\1\2",
        "array": "import numpy\n\n\ndef get_config():\n    return numpy.zeros(3)\n",
        "interrupted": "def get_config():\n    raise StopIteration\n",
    }  # fmt: skip
    which = rng.choice(sorted(texts))

    def run():
        with _scratch() as folder:
            path = folder / "config.py"
            path.write_text(texts[which])
            command("train", f"--config={path}", f"--workdir={folder / 'run'}")

    return Case(f"a config file: {which}", run, wrong=True)


READ = ("config.json", "dataset.json")


def _workdir(number: int, rng: random.Random) -> Case:
    """A run of which one file is damaged: what is sampled is the same, or refused."""
    source = trained(IMAGES if rng.random() < 0.5 else CONFIG)
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    files = [path for path in files if path.parts[0] != "samples"]
    chosen = rng.choice([*files, *map(Path, READ * 3)])
    content = (source / chosen).read_bytes()
    what, broken = ("gone", None) if rng.random() < 0.15 else _damaged(content or b" ", rng)

    def run():
        with _scratch() as folder:
            shutil.copytree(source, folder / "run")
            if broken is None:
                (folder / "run" / chosen).unlink()
            else:
                (folder / "run" / chosen).write_bytes(broken)
            return _drawn(folder / "run", folder / "out")

    return Case(f"a run's {chosen}: {what}", run, expected=_undamaged(source))


def _drawn(workdir: Path, out: Path) -> Any:
    command("sample", f"--workdir={workdir}", "--num=2", f"--out={out}")
    with np.load(out.with_suffix(".npz")) as arrays:
        return dict(arrays)


@functools.cache
def _undamaged(workdir: Path) -> Any:
    return _drawn(workdir, home() / f"{workdir.name}_drawn")


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=home()) as folder:
        yield Path(folder)


def files(number: int) -> Case:
    """A damaged file: a picture, an .npz, a config, a file of a run."""
    rng = random.Random(f"files {number}")
    return rng.choice((_folder, _npz, _config_text, _workdir, _workdir))(number, rng)


# --- calls ----------------------------------------------------------------------------------


def _pools() -> dict[str, dict[str, Any]]:
    x = np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)
    schedules = {
        "cosine": diffax.schedules.get("cosine"),
        "linear, T = 100": diffax.schedules.get("linear").discretize(100),
        "learned": diffax.schedules.get("learned", log_snr_max=6.0, log_snr_min=-6.0, size=4),
    }
    times = {"half": np.full(4, 0.5, np.float32), "!late": np.full(4, 500.0), "!text": "t",
             "!nan": np.full(4, np.nan), "!before": np.full(4, -1.0)}  # fmt: skip
    return {
        "own schedule": schedules,
        "schedule": schedules | {
            "!text": "cosine", "!None": None, "!number": 3, "!class": diffax.schedules.Schedule,
        },
        "key": {"key": jax.random.key(3), "old key": jax.random.PRNGKey(3),
                "!int": 0, "!None": None, "!keys": jax.random.split(jax.random.key(0), 3)},
        "predict": {"zero": diffax.by_log_snr(lambda x, l: 0 * x), "!None": None, "!array": x},
        "x": {"x": x, "list": x.tolist(), "half": x.astype(np.float16), "jax": jnp.asarray(x),
              "!nan": x * np.nan, "!bytes": np.full((4, 2), 200, np.uint8), "!text": "x",
              "!none": np.zeros((0, 2), np.float32), "!complex": x + 1j,
              "!object": x.astype(object)},
        "t": times | {"!short": np.full(3, 0.5)},
        "any t": times | {"short": np.full(3, 0.5), "none": np.zeros(0)},
        "num_steps": {"5": 5, "1": 1, "numpy": np.int64(3), "!0": 0, "!-1": -1, "!half": 2.5,
                      "!text": "5", "!bool": True, "!None": None},
        "sampler": {name: name for name in diffax.samplers.SAMPLERS} | {"!nope": "nope", "!3": 3},
        "prediction": {"eps": "eps", "x0": "x0", "v": "v", "score": "score", "!nope": "nope"},
        "shape": {"points": (4, 2), "signal": (2, 8, 1), "!text": "(4, 2)", "!none": (0, 2),
                  "!negative": (-1, 2), "!half": (2.5, 2)},
    }  # fmt: skip


CALLS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "q_sample": (lambda schedule, x, t, noise: diffax.q_sample(schedule, x, t, noise),
                 ("schedule", "x", "t", "x")),
    "q_step": (lambda schedule, x, t, noise: diffax.q_step(schedule, x, t, noise),
               ("schedule", "x", "t", "x")),
    "convert": (lambda schedule, x, source, t: diffax.convert(
                    x, x, schedule.alpha(t), schedule.sigma(t), source, "x0"),
                ("own schedule", "x", "prediction", "t")),
    "sample": (lambda key, predict, schedule, shape, sampler, num_steps, prediction: diffax.sample(
                   key, predict, schedule, shape, sampler=sampler, num_steps=num_steps,
                   prediction=prediction),
               ("key", "predict", "schedule", "shape", "sampler", "num_steps", "prediction")),
    "vlb": (lambda key, predict, schedule, x: diffax.vlb(key, predict, schedule, x),
            ("key", "predict", "schedule", "x")),
    "schedule_gradient": (
        lambda key, predict, schedule, x: diffax.objectives.schedule_gradient(
            key, predict, schedule, x),
        ("key", "predict", "schedule", "x")),
    "log_snr": (lambda schedule, t: schedule.log_snr(t), ("own schedule", "any t")),
}  # fmt: skip


def calls(number: int) -> Case:
    """A call of the library with at most two odd arguments."""
    rng = random.Random(f"calls {number}")
    name = rng.choice(sorted(CALLS))
    function, kinds = CALLS[name]
    pools, chosen = _pools(), []
    odd = set(rng.sample(range(len(kinds)), rng.choice((0, 1, 1, 2))))
    for i, kind in enumerate(kinds):
        fitting = [option for option in pools[kind] if option.startswith("!") == (i in odd)]
        chosen.append(rng.choice(fitting or list(pools[kind])))
    arguments = [pools[kind][option] for kind, option in zip(kinds, chosen)]
    told = ", ".join(f"{kind}={option}" for kind, option in zip(kinds, chosen))
    # What is not finite may come out as it went in, if the function says so.
    through = {"!nan", "!class", "!object"}
    wrong = any(option.startswith("!") and option not in through for option in chosen)
    return Case(f"{name}({told})", functools.partial(function, *arguments), wrong)


KINDS: dict[str, Callable[[int], Case]] = dict(keys=keys, flags=flags, files=files, calls=calls)


def try_one(kind: str, number: int) -> dict[str, Any]:
    """What became of a case, as a record."""
    begin = time.perf_counter()
    case = KINDS[kind](number)
    outcome, details = verdict(case)
    return dict(
        kind=kind,
        number=number,
        words=case.words[:LONGEST],
        outcome=outcome,
        details=details,
        seconds=round(time.perf_counter() - begin, 2),
    )
