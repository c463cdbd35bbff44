"""Training: one loop for any method, checkpoints that resume exactly.

For instance:

    state, metrics = diffax.training.train(config, "runs/digits")
    run = diffax.training.load("runs/digits")           # config, method, model, state, dataset
    predict = diffax.training.predictor(run.model, run.state.ema_params)
"""

from diffax.data import DatasetInfo
from diffax.distributed import hosts
from diffax.methods import fraction_of_start, predictor
from diffax.runtime import Interrupted
from diffax.training.controlnets import combined
from diffax.training.loop import requirements, train, train_together
from diffax.training.measuring import make_gradient_variance, measure_on, operations
from diffax.training.metric_buffer import NonFiniteError
from diffax.training.workdir import Run, load, outcome, steps_done

__all__ = [
    "DatasetInfo",
    "Interrupted",
    "NonFiniteError",
    "Run",
    "combined",
    "hosts",
    "load",
    "make_gradient_variance",
    "measure_on",
    "operations",
    "outcome",
    "predictor",
    "requirements",
    "fraction_of_start",
    "steps_done",
    "train",
    "train_together",
]
