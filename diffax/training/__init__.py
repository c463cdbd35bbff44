"""Training: one loop, a pure step, checkpoints that resume exactly.

For instance:

    state, metrics = diffax.training.train(config, "runs/digits")
    run = diffax.training.load("runs/digits")           # config, model, state, dataset
    predict = diffax.training.predictor(run.model, run.state.ema_params)
"""

from diffax.runtime import Interrupted
from diffax.training import hosts
from diffax.training.evaluation import (
    make_bound,
    make_eval_step,
    make_evaluation,
    make_ode_bits,
)
from diffax.training.gradient import make_gradient_variance
from diffax.training.loop import train, train_together
from diffax.training.outputs import make_sampler
from diffax.training.state import DatasetInfo, TrainState, create_state, predictor
from diffax.training.step import make_train_step, share_of_start
from diffax.training.window import NonFiniteError
from diffax.training.workdir import Run, load, outcome, steps_done

__all__ = [
    "DatasetInfo",
    "Interrupted",
    "NonFiniteError",
    "Run",
    "TrainState",
    "create_state",
    "hosts",
    "load",
    "make_bound",
    "make_eval_step",
    "make_evaluation",
    "make_gradient_variance",
    "make_ode_bits",
    "make_sampler",
    "make_train_step",
    "outcome",
    "predictor",
    "share_of_start",
    "steps_done",
    "train",
    "train_together",
]
