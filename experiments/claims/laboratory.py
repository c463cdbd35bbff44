"""Where the claims are tested: data, networks shared by several claims, and the judge of samples.

A network is a config, so one that two claims ask for is trained once. Everything lies under the
working directory: data/ has the arrays, networks/ a directory per network and seed.
"""

from __future__ import annotations

import functools
import json
import platform
import runpy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax import Generator, data, evaluation, training
from diffax import config as config_lib
from diffax.ablation import Arm, measure, runner, store
from diffax.files import read_json, replacing, write_json, write_text
from diffax.rates import Rate
from diffax.training import Run

ROOT = Path(__file__).resolve().parents[2]
ENDS = {"schedule.log_snr_max": 10.0, "schedule.log_snr_min": -10.0}
# In discrete time, each paper's own betas; what is predicted is the noise, as in all of them.
PUBLISHED = {
    "schedule.log_snr_max": None,
    "schedule.log_snr_min": None,
    "schedule.num_steps": 1000,
    "objective.prediction": "eps",
}


class Network(NamedTuple):
    """What an arm trains.

    Attributes:
      overrides: of the scale's config.
      data: a key of the scale's `data`.
      teacher: the network that this one learns from, of the same seed; None for none.
      rated: whose schedule it trains on, with schedule.name="from_rate"; None for a named one.
    """

    overrides: Mapping[str, Any]
    data: str = "plain"
    teacher: Network | None = None
    rated: Rated | None = None

    def about(self) -> dict[str, Any]:
        """The overrides and the data, of the teacher too, for the raw results."""
        own = dict(self.overrides, data=self.data)
        if self.rated:
            own["rate"] = {"of": self.rated.network.about(), "by": self.rated.by.__name__}
        return own | {"teacher": self.teacher.about()} if self.teacher else own


class Rated(NamedTuple):
    """A rate that a network trains by.

    Attributes:
      network: of which it is estimated, of the same seed.
      by: (the trained network, seed) -> the rate.
    """

    network: Network
    by: Callable[[Trained, int], Rate]


def published(name: str, num_steps: int = 1000, data: str = "plain", **more: Any) -> Network:
    """A schedule as published, with its betas for T steps; `more` has __ for the dots of keys."""
    own = {**PUBLISHED, "schedule.name": name, "schedule.num_steps": num_steps}
    return Network({**own, **_dotted(more)}, data)


def between_equal_ends(name: str, data: str = "plain", **more: Any) -> Network:
    """A schedule in continuous time, log-SNR from 10 to -10."""
    own = {"schedule.name": name, "schedule.num_steps": 0, "objective.prediction": "eps", **ENDS}
    return Network({**own, **_dotted(more)}, data)


def _dotted(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in keys.items()}


class Images(NamedTuple):
    """A data set made of another one.

    Attributes:
      make: () -> (images, labels), uint8 (N, H, W, C) and int32 (N,).
      judge: the key of the data set whose classifier judges samples; these are first averaged over
        blocks of pixels to its size.
    """

    make: Callable[[], tuple[np.ndarray, np.ndarray]]
    judge: str = "plain"


class Scale(NamedTuple):
    """How large everything is.

    Attributes:
      base: () -> the config that all networks have in common.
      data: the data sets.
      flat: whether the network takes an image as one row of numbers.
      seeds, num_samples: by default.
      about: the network and the data, in words.
    """

    name: str
    base: Callable[[], ConfigDict]
    data: Mapping[str, Images]
    flat: bool
    seeds: int
    num_samples: int
    about: str


# --- data ---------------------------------------------------------------------------------------


def whole(**source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both splits of a data set; `source` are the fields of `config.data`."""
    found = data.load(source)
    parts = (found.train, found.eval)
    return tuple(np.concatenate([getattr(part, key) for part in parts]) for key in ("x", "label"))


def few(share: int, **source: Any) -> tuple[np.ndarray, np.ndarray]:
    """One of so many examples, drawn at random once and for all."""
    x, label = whole(**source)
    kept = np.random.default_rng(0).permutation(len(x))[: len(x) // share]
    return x[kept], label[kept]


def enlarged(factor: int, **source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel repeated, so that an image has `factor` times as many a side and says no more."""
    x, label = whole(**source)
    return x.repeat(factor, axis=1).repeat(factor, axis=2), label


def half_inverted(factor: int = 1, **source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Every second image as its negative: the mean brightness has two far-off modes."""
    x, label = enlarged(factor, **source)
    x[1::2] = 255 - x[1::2]
    return x, label


# --- scales -------------------------------------------------------------------------------------


def digits_config() -> ConfigDict:
    """A residual MLP of 0.2M parameters, seconds of training on one core: many seeds instead."""
    config = config_lib.default_config()
    config.model.name = "mlp"
    config.model.mlp.width = 128
    config.model.mlp.depth = 3
    config.optimizer.learning_rate = 2e-3
    config.optimizer.decay = "cosine"
    config.ema.decay = 0.995
    config.schedule_learning.learning_rate = 1e-2
    config.schedule_learning.update_every = 2
    config.training.batch_size = 64
    config.training.num_steps = 3000
    config.training.steps_per_call = 100
    config.training.log_every = 100
    config.training.checkpoint_every = 0
    config.sampling.clip_x0 = 1.0
    return config


def gpu_config() -> ConfigDict:
    """The U-Net of configs/fashion_mnist.py, its likelihoods on 2,000 images."""
    config = runpy.run_path(str(ROOT / "configs" / "fashion_mnist.py"))["get_config"]()
    config.data = ConfigDict(data.known_fields())
    config.schedule_learning.update_every = 2
    config.evaluation.num_examples = 2000
    config.training.update(sample_every=0, steps_per_call=10)
    return config


DIGITS, FASHION = {"name": "digits"}, {"name": "fashion_mnist"}
SCALES = {
    "digits": Scale(
        "digits",
        digits_config,
        {
            "plain": Images(functools.partial(enlarged, 1, **DIGITS)),
            "small": Images(functools.partial(enlarged, 1, **DIGITS)),
            "middle": Images(functools.partial(enlarged, 2, **DIGITS)),
            "large": Images(functools.partial(enlarged, 4, **DIGITS)),
            "half inverted": Images(functools.partial(half_inverted, 2, **DIGITS)),
            "third": Images(functools.partial(few, 3, **DIGITS)),
            "tenth": Images(functools.partial(few, 10, **DIGITS)),
        },
        flat=True,
        seeds=5,
        num_samples=1000,
        about="digits of scikit-learn, 8x8, 1,797 images of which a tenth is held out; a residual"
        " MLP of width 128 and depth 3, 3,000 steps of batch 64",
    ),
    "gpu": Scale(
        "gpu",
        gpu_config,
        {
            "plain": Images(functools.partial(whole, pad_to=32, **FASHION)),
            "small": Images(functools.partial(whole, image_size=8, **FASHION), "small"),
            "middle": Images(functools.partial(whole, image_size=16, **FASHION), "middle"),
            "large": Images(functools.partial(whole, image_size=32, **FASHION), "large"),
            "half inverted": Images(functools.partial(half_inverted, pad_to=32, **FASHION)),
            "third": Images(functools.partial(few, 3, pad_to=32, **FASHION)),
            "tenth": Images(functools.partial(few, 10, pad_to=32, **FASHION)),
        },
        flat=False,
        seeds=3,
        num_samples=10_000,
        about="Fashion-MNIST, 32x32, 70,000 images of which a tenth is held out; the U-Net of"
        " configs/fashion_mnist.py, 20,000 steps of batch 128",
    ),
}


# --- networks -----------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A network with its data."""

    run: Run
    directory: Path
    dataset: data.Dataset  # as the network sees it
    kind: str  # key of the scale's data


class Laboratory:
    """Trains what a claim asks for, once, and measures it.

    Args:
      scale: see `SCALES`.
      workdir: of the data and the networks.
    """

    def __init__(self, scale: Scale, workdir: Path) -> None:
        self.scale, self.workdir = scale, Path(workdir).absolute()

    def config(self, network: Network, seed: int) -> ConfigDict:
        """The config of a network; ValueError for overrides that can't be."""
        base = self.scale.base()
        base.data.update(name="npz", path=str(self._file(network.data, flat=self.scale.flat)))
        if network.teacher is not None:
            base.method.teacher = str(self._directory(network.teacher, seed))
        if network.rated is not None:
            base.schedule.path = str(self._rate_file(network.rated, seed))
        return runner.arm_config(base, Arm(network.data, network.overrides), seed)

    def known(self, network: Network, seed: int) -> dict[str, Any]:
        """All that a network and its samples depend on, wherever the working directory is."""
        config = config_lib.relevant(self.config(network, seed))
        config["data"]["path"] = network.data
        if network.teacher is not None:
            config["method"]["teacher"] = self._key(network.teacher, seed)
        if network.rated is not None:
            config["schedule"]["path"] = self._rate_file(network.rated, seed).name
        return config

    def _key(self, network: Network, seed: int) -> str:
        known = self.known(network, seed)
        kept = {k: v for k, v in known.items() if k not in measure.AFTER_TRAINING}
        return store.fingerprint(store.plain(kept))[:32]

    def _directory(self, network: Network, seed: int) -> Path:
        name = network.overrides.get("method.name") or self.config(network, seed).schedule.name
        return self.workdir / "networks" / f"{name}-seed{seed}-{self._key(network, seed)}"

    def trained(self, network: Network, seed: int) -> Trained:
        """The network, trained now unless it was; an interrupted training resumes."""
        if network.teacher is not None:
            self.trained(network.teacher, seed)
        if network.rated is not None:
            self._make_rate(network.rated, seed)
        config, directory = self.config(network, seed), self._directory(network, seed)
        self._make(network.data)
        cost, begin = directory / "cpu_seconds.json", time.process_time()
        training.train(config, directory)
        if not cost.exists():
            write_json(cost, time.process_time() - begin)
        dataset = data.load_cached(config.data)
        return Trained(training.load(directory), directory, dataset, network.data)

    def _rate_file(self, rated: Rated, seed: int) -> Path:
        name = f"{rated.by.__name__}-{self._key(rated.network, seed)}.json"
        return self.workdir / "rates" / name

    def _make_rate(self, rated: Rated, seed: int) -> None:
        path = self._rate_file(rated, seed)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            rate = rated.by(self.trained(rated.network, seed), seed)
            write_text(path, rate.to_json())

    def draw(
        self, trained: Trained, num: int, seed: int, label: np.ndarray | None = None, **options: Any
    ) -> np.ndarray:
        """Samples of a network as images, (num, H, W, C); options of `diffax.Generator`."""
        generate = Generator(trained.run, batch_size=1000, num_devices=1)
        samples = generate(num, seed, label, **options)
        return samples.reshape(num, *self.images(trained.kind).shape)

    def distance(self, trained: Trained, seed: int, **options: Any) -> float:
        """The Fréchet distance of `num_samples` samples, cached beside the network.

        To the training images, over the features of the judging classifier.
        """
        num = self.scale.num_samples
        known = store.plain({"seed": seed, "num": num, **options})
        cache = trained.directory / "distances" / f"{store.fingerprint(known)}.json"
        if not cache.exists():
            found = self.frechet(trained, self.draw(trained, num, seed, **options))
            write_json(cache, {"options": known, "frechet": found})
        return read_json(cache, ("frechet",))["frechet"]

    def frechet(self, trained: Trained, samples: np.ndarray) -> float:
        """The Fréchet distance of samples; see `distance`."""
        judge, images = self._judge(trained)
        found = evaluation.FeatureStatistics.of(self.features(trained, samples))
        reference = evaluation.reference_statistics(judge, images.train)
        return evaluation.frechet_distance(found, reference)

    def features(self, trained: Trained, samples: np.ndarray) -> np.ndarray:
        """The judging classifier's features of samples, (N, F)."""
        return evaluation.features(self._judge(trained)[0], self.seen(trained, samples))

    def accuracy(self, trained: Trained, samples: np.ndarray, label: np.ndarray) -> float:
        """The fraction of samples that the judging classifier takes for their label."""
        logits = evaluation.logits(self._judge(trained)[0], self.seen(trained, samples))
        return float(np.mean(logits.argmax(axis=1) == label))

    def prdc(self, trained: Trained, samples: np.ndarray) -> evaluation.PRDC:
        """Precision, recall, density and coverage against as many training images."""
        judge, images = self._judge(trained)
        num = min(len(samples), len(images.train))
        reference = evaluation.features(judge, images.train.array(np.arange(num)))
        return evaluation.prdc(self.features(trained, samples[:num]), reference)

    def images(self, kind: str) -> data.Dataset:
        """A data set of the scale, as images."""
        self._make(kind)
        return load_images(str(self._file(kind, flat=False)))

    def _judge(self, trained: Trained) -> tuple[evaluation.Extractor, data.Dataset]:
        """The classifier that judges a network's samples, and the images that it knows."""
        kind = self.scale.data[trained.kind].judge
        images = self.images(kind)
        return load_judge(str(self._file(kind, flat=False))), images

    def seen(self, trained: Trained, samples: np.ndarray) -> np.ndarray:
        """Samples at the judge's size: means over blocks of pixels."""
        side = self.images(self.scale.data[trained.kind].judge).shape[0]
        num, height, _, channels = samples.shape
        block = height // side
        blocks = samples.reshape(num, side, block, side, block, channels)
        return blocks.mean(axis=(2, 4))

    def _file(self, kind: str, flat: bool) -> Path:
        return self.workdir / "data" / f"{kind.replace(' ', '-')}{'-flat' if flat else ''}.npz"

    def _make(self, kind: str) -> None:
        """Writes the arrays of a data set; npz sources are cut by their length, both alike."""
        last = self._file(kind, flat=False)
        if last.exists():
            return
        x, label = self.scale.data[kind].make()
        for path, images in ((self._file(kind, flat=True), x.reshape(len(x), -1)), (last, x)):
            with replacing(path) as partial, open(partial, "wb") as file:
                np.savez(file, x=images, label=label)


@functools.lru_cache(maxsize=4)
def load_images(path: str) -> data.Dataset:
    """The images of a file."""
    return data.load({"name": "npz", "path": path})


@functools.lru_cache(maxsize=4)
def load_judge(path: str) -> evaluation.Extractor:
    """The classifier of the images of a file."""
    return evaluation.get_classifier(load_images(path))


def cpu_seconds(directory: Path) -> float:
    """What the training in a directory took of the processor; the last part of it if stopped."""
    return float((directory / "cpu_seconds.json").read_text(encoding="utf-8"))


def logged(trained: Trained, key: str, after: float) -> float:
    """The mean of what the loop logged, over the steps beyond a share of the training."""
    text = (trained.directory / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    first = after * trained.run.config.training.num_steps
    return float(np.mean([row[key] for row in rows if key in row and row["step"] > first]))


def machine() -> str:
    """The kind of machine and the versions that decide a number's last digits."""
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else f"{platform.machine()} CPU"
    return f"{kind}, jax {jax.__version__}, Python {platform.python_version()}"
