"""Networks of one to four steps, and diffusion beside them: shared by the claims about both.

The networks have about 0.2M parameters: the scale's own one, or a generator of 207,000 with a
discriminator of 64,000. All but the students of a teacher are trained for as many floating-point
operations as 3,000 steps of diffusion, counted by XLA (`operations`): a step of the GAN has 3.0
times those of diffusion, one of the denoising GAN 4.9. Students have as many once more, on top of
their teacher's: 1.7 times a step for progressive distillation, 1.3 for consistency.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from laboratory import ENDS, ROOT, Laboratory, Network, Trained

from diffax import Generator
from diffax.data import DatasetInfo

sys.path.insert(0, str(ROOT / "experiments"))

import few_steps

_COSINE = {"schedule.name": "cosine", "schedule.num_steps": 0, **ENDS}
_GAME = {
    "discriminator.residual.channels": 48,
    "discriminator.residual.num_blocks": 1,
    "discriminator.optimizer": "rmsprop",
    "discriminator.learning_rate": 1e-3,
    "optimizer.name": "rmsprop",
    "optimizer.learning_rate": 1e-3,
    "optimizer.decay": "constant",
    "method.latent_size": 32,
}
# In place of images, points of which is known where they come from.
MODES = {
    "data.name": "mixture2d",
    "data.path": "",
    "data.modes": 25,
    "sampling.clip_x0": None,
}


def diffusion(data: str = "plain", **more: Any) -> Network:
    """Predicts x0, what the scale's network does best (schedule_and_prediction_interact), in
    continuous time, log-SNR from 10 to -10; cosine, if `more` names no other schedule. `more` has
    __ for the dots of keys, here and below."""
    return Network({**_COSINE, "objective.prediction": "x0", **_dotted(more)}, data)


def gan(data: str = "plain", **more: Any) -> Network:
    """Relativistic, with R1 and R2 of weight 1."""
    own = {
        **_COSINE,
        "method.name": "gan",
        "model.name": "generator",
        "model.generator.channels": 48,
        "model.generator.num_blocks": 1,
        "training.num_steps": 1000,
        "sampling.num_steps": 1,
    }
    return Network({**own, **_GAME, **_dotted(more)}, data)


def denoising_gan(data: str = "plain", **more: Any) -> Network:
    """Four large steps, along cosine's schedule."""
    own = {
        **_COSINE,
        "method.name": "denoising_gan",
        "method.denoising_steps": 4,
        "training.num_steps": 600,
        "sampling.num_steps": 4,
    }
    return Network({**own, **_GAME, **_dotted(more)}, data)


def progressive(teacher: Network, **more: Any) -> Network:
    """From 16 steps of the teacher to 8, 4, 2 and 1, in four stages."""
    own = {
        **teacher.overrides,
        "method.name": "progressive",
        "method.teacher_steps": 16,
        "method.stage_steps": 400,
        "training.num_steps": 1600,
        "sampling.num_steps": 1,
    }
    return Network({**own, **_dotted(more)}, teacher.data, teacher)


def consistency(teacher: Network, **more: Any) -> Network:
    """Tuned from the teacher's weights, over 8 to 64 intervals."""
    own = {
        **teacher.overrides,
        "method.name": "consistency",
        "method.last_intervals": 64,
        "method.doubling_steps": 500,
        "training.num_steps": 2200,
        "sampling.sampler": "consistency",
        "sampling.num_steps": 2,
    }
    return Network({**own, **_dotted(more)}, teacher.data, teacher)


def _dotted(keys: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in keys.items()}


def operations(trained: Trained) -> float:
    """Floating-point operations of a training step, over the examples of its batch."""
    config = trained.run.config
    whole = few_steps.operations(config, DatasetInfo.of(trained.dataset))
    return whole / config.training.batch_size


def distance(lab: Laboratory, trained: Trained, seed: int, num_steps: int) -> float:
    """The Fréchet distance of samples in so many calls: by ddim, or as the method samples."""
    own = trained.run.config
    taught = own.method.name != "diffusion"
    sampler = own.sampling.sampler if taught else "ddim"
    grid = own.sampling.grid if taught else "uniform"
    return lab.distance(trained, seed, sampler=sampler, num_steps=num_steps, grid=grid)


def seconds(trained: Trained, seed: int, num_steps: int, num: int) -> float:
    """Processor seconds of 1,000 samples in so many calls, of `num` drawn by a compiled program."""
    generate = Generator(trained.run, 1000, num_devices=1)
    options = {"sampler": "ddim", "num_steps": num_steps, "grid": None}
    generate(1000, seed, **options)
    begin = time.process_time()
    generate(num, seed + 1, **options)
    return (time.process_time() - begin) * 1000 / num
