"""What is measured of a diffusion model: its bound, its ODE likelihood, its loss by level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax import arguments, likelihood, schedules
from diffax.distributed.steps import jit_over_numbers
from diffax.methods.base import Arrays, Batch, Measure, State, standard_error
from diffax.metric import Metric
from diffax.process import AnySchedule, Predict
from diffax.schedules import ends_of

METRICS = (
    Metric(
        "bpd",
        "Bits per dimension",
        "bits/dim",
        digits=3,
        meaning="The variational bound (VLB) on held-out examples, in bits for each of an example’s"
        " values (pixels times channels): at most so many bits does the model take to code it. Of"
        " real-valued data it bounds a density, and may be below zero. In continuous time it"
        " depends on the ends of the schedule, not on its shape between them.",
    ),
    Metric(
        "vlb_variance",
        "Var(VLB)",
        "(bits/dim)²",
        scale="log",
        meaning="The variance of the bound’s estimate by one example at one random time, along the"
        " arm’s own schedule: how noisy the bound is as what one trains on. A learned schedule"
        " makes it small.",
    ),
    Metric(
        "prior",
        "Prior term",
        "bits/dim",
        digits=5,
        main=False,
        meaning="Of the bound: how far the noisiest state is from pure noise.",
    ),
    Metric(
        "diffusion",
        "Diffusion term",
        "bits/dim",
        digits=3,
        main=False,
        meaning="Of the bound: the errors of denoising, over all noise levels.",
    ),
    Metric(
        "reconstruction",
        "Reconstruction term",
        "bits/dim",
        digits=3,
        main=False,
        meaning="Of the bound: what the cleanest state leaves open about the example.",
    ),
    Metric(
        "bpd_own",
        "By its own schedule",
        "bits/dim",
        digits=3,
        main=False,
        entry="bpd",
        meaning="Bits per dimension once more, estimated along the arm’s own schedule; the main"
        " number is estimated along the log-SNR-linear schedule for all arms. They differ by the"
        " noise of the estimate.",
    ),
)
_METRICS = {metric.key: metric for metric in METRICS}
LATENT_BOUND = Metric(
    "latent_bound",
    "Bound of the latents",
    "bits/value",
    digits=3,
    meaning="The variational bound on the density of held-out examples’ latents, in bits for each"
    " of their values. It compares runs that work in the same latents, and is no likelihood of the"
    " data.",
    entry="bpd",
)
# What `diffax evaluate` shows of each measure.
_TABLED = {
    name: Metric(name, f"Bits/dim, {by}", "bits/dim", entry="bpd")
    for name, by in {
        "bpd": "variational bound",
        "bpd_vlb": "variational bound",
        "bpd_ode": "probability-flow ODE",
    }.items()
}
CURVE_POINTS = 1025
PROFILE_LEVELS = 33


class Settings(NamedTuple):
    """How the bound and the likelihood are measured.

    Attributes:
      repeats: noise levels at which each example is seen for the bound.
      vlb_num_steps: T of the bound; 0 for the schedule's own time.
      ode_num_steps: steps of the probability-flow ODE.
      schedule_steps: T of a schedule that acts in discrete time, else 0.
      shape_is_free: whether the bound depends on the schedule's ends alone: in continuous time, by
        a network conditioned on the log-SNR. An ablation then estimates the bound of all arms along
        the log-SNR-linear schedule, whose small variance compares networks more sharply.
      impossible: () -> a sentence that says why neither can be measured; empty if they can.
      of_latents: whether what the method sees are latents: their bound is "latent_bound", and the
        likelihood of the data is refused.
    """

    repeats: int
    vlb_num_steps: int
    ode_num_steps: int
    schedule_steps: int
    shape_is_free: bool
    impossible: Callable[[], str] = str
    of_latents: bool = False


def _no_likelihood() -> str:
    return (
        "the likelihood in bits/dim is one of the data, and this run works in the latents of a"
        " codec, which decodes them with a loss that has no density: measure latent_bound, which"
        " compares runs in the same latents, or scores of samples"
    )


class Measures:
    """The measures of a diffusion model, by the averaged parameters of a state.

    "bpd" is the variational bound and the variance of its estimate: "bpd" the mean bound, in
    bits/dim, "prior", "diffusion" and "reconstruction" its terms, "standard_error" that of "bpd" as
    an estimate for the population of examples, left out for a single one; "vlb_variance" the
    variance of the diffusion term of one example at one time, in (bits/dim)^2: what training sees
    (Kingma 2021, figure 4). "bpd_vlb" is the same, to stand beside "bpd_ode", the bits/dim by the
    probability-flow ODE (`likelihood.ode_bits_per_dim`), with one random probe of the divergence
    and one dequantisation per example. In latents all these are refused, and "latent_bound" is the
    bound of the latents.
    """

    def __init__(
        self,
        predict: Callable[[State, Batch], Predict],
        effective: Callable[[State], AnySchedule],
        prediction: str,
        levels: int | None,
        settings: Settings,
    ):
        """`predict`: the averaged network under a batch's conditions. `effective`: the schedule of
        a state as it acts, in discrete time if that is so."""
        self._predict, self._effective = predict, effective
        self._prediction, self._levels, self._settings = prediction, levels, settings
        bound = Measure(
            self._bound, self._bound_summary, settings.repeats, self._logged, settings.impossible
        )
        ode = Measure(self._ode, self._ode_summary, impossible=settings.impossible)
        measures = {"bpd": bound, "bpd_vlb": bound._replace(logged=None), "bpd_ode": ode}
        self.measures = {
            name: measure._replace(metrics=(_TABLED[name],)) for name, measure in measures.items()
        }
        terms = ("prior", "diffusion", "reconstruction")
        own = _METRICS["vlb_variance"]
        self.compared = {"bpd": _with(bound, "bpd", own.key, *terms)}
        along_line = bound._replace(summary=self._line_summary, of_state=_along_line)
        if settings.shape_is_free:
            self.compared = {
                "bpd": _with(along_line, "bpd", *terms),
                "bpd_own": _with(bound, own.key, "bpd_own"),
            }
        if settings.of_latents:
            of_latents = bound._replace(metrics=(LATENT_BOUND,), logged=self._logged_latents)
            refused = dict(impossible=_no_likelihood, logged=None)
            self.measures = {
                "latent_bound": of_latents,
                **{name: measure._replace(**refused) for name, measure in self.measures.items()},
            }
            compared = along_line if settings.shape_is_free else bound
            self.compared = {
                "latent_bound": compared._replace(metrics=(LATENT_BOUND,)),
                "latent_bound_own": _with(bound, own.key),
            }

    # --- the bound ---

    def _bound(self, state: State, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        x0 = batch["x"]
        terms = likelihood.vlb(
            None,
            self._predict(state, batch),
            self._effective(state),
            x0,
            num_steps=self._settings.vlb_num_steps or None,
            prediction=self._prediction,
            levels=self._levels,
            draws=likelihood.draw(key, x0.shape, x0.dtype, batch["number"]),
        )
        return terms._asdict()

    def _bound_summary(self, terms: Arrays) -> dict[str, Any]:
        diffusion_term = terms["diffusion"]
        if diffusion_term.size < 2:
            raise ValueError(
                f"evaluation.repeats={self._settings.repeats} with {diffusion_term.shape[1]}"
                " example: the variance of the bound needs at least 2 values; raise"
                " evaluation.repeats or evaluation.num_examples"
            )
        per_example = likelihood.VLB(**terms).total.mean(axis=0)
        num_steps = self._settings.vlb_num_steps or self._settings.schedule_steps
        return {
            "bpd": float(per_example.mean()),
            **standard_error(per_example),
            **{name: float(np.mean(term)) for name, term in terms.items()},
            "vlb_variance": float(diffusion_term.var(ddof=1)),
            "num_examples": len(per_example),
            "repeats": self._settings.repeats,
            "time": f"{num_steps} steps" if num_steps else "continuous",
            "levels": self._levels,
        }

    def _line_summary(self, terms: Arrays) -> dict[str, Any]:
        return self._bound_summary(terms) | {"estimated_along": "linear_logsnr"}

    def _logged(self, terms: Arrays) -> dict[str, float]:
        return {
            "vlb": float(np.mean(likelihood.VLB(**terms).total)),
            **{name: float(np.mean(term)) for name, term in terms.items()},
            "vlb_variance": float(np.var(terms["diffusion"])),
        }

    def _logged_latents(self, terms: Arrays) -> dict[str, float]:
        found = self._logged(terms)
        return {"latent_bound": found["vlb"], "latent_bound_variance": found["vlb_variance"]}

    # --- the likelihood by the ODE ---

    def _ode(self, state: State, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        bits = likelihood.ode_bits_per_dim(
            self._predict(state, batch),
            self._effective(state),
            batch["x"],
            key=likelihood.keys_of(key, batch["number"]),
            levels=self._levels,
            prediction=self._prediction,
            num_steps=self._settings.ode_num_steps,
        )
        return {"bits": bits}

    def _ode_summary(self, found: Arrays) -> dict[str, Any]:
        (bits,) = found["bits"]
        return {
            "bpd": float(bits.mean()),
            **standard_error(bits),
            "num_examples": len(bits),
            "num_steps": self._settings.ode_num_steps,
            "divergence": "hutchinson, 1 probe",
            "levels": self._levels,
        }

    # --- the loss by noise level ---

    def loss_by_log_snr(self, state: State, batch: Batch, seed: int = 0) -> dict[str, list]:
        """E|eps - eps_hat|^2 per dimension at 33 equally spaced log-SNRs: "log_snr" and "loss".

        Between the schedule's ends, infinite ones taken at 20 and -20. It compares networks trained
        under different schedules noise level by noise level. In discrete time the nearest index is
        taken.
        """
        schedule = self._effective(state)
        first, last = (np.clip(float(end), -20.0, 20.0) for end in ends_of(schedule))
        times = schedule.inverse_log_snr(jnp.linspace(last, first, PROFILE_LEVELS))
        error, key = jit_over_numbers(self._error_at), arguments.seeded(seed)
        points = [error(state, batch, t, jax.random.fold_in(key, i)) for i, t in enumerate(times)]
        return {
            "log_snr": [float(log_snr) for log_snr, _ in points],
            "loss": [float(loss) for _, loss in points],
        }

    def _error_at(
        self, state: State, batch: Batch, t: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The log-SNR at a time and the mean of |eps - eps_hat|^2 per dimension there."""
        x0 = batch["x"]
        noise = jax.random.normal(key, x0.shape)
        t = jnp.broadcast_to(t, x0.shape[:1])
        log_snr = self._effective(state).log_snr(t)
        predict = self._predict(state, batch)
        errors = likelihood.eps_error(predict, x0, noise, t, log_snr, self._prediction)
        return log_snr[0], jnp.mean(errors) / math.prod(x0.shape[1:])


def _with(measure: Measure, *keys: str) -> Measure:
    return measure._replace(metrics=tuple(_METRICS[key] for key in keys))


def _along_line(state: State) -> State:
    """The state with the log-SNR-linear schedule between the ends of its own."""
    first, last = schedules.concrete_ends(state.schedule)
    return state.replace(schedule=schedules.linear_logsnr(log_snr_max=first, log_snr_min=last))


@jax.jit
def _log_snr(schedule: AnySchedule, t: jax.Array) -> jax.Array:
    return schedule.log_snr(t)


def schedule_curve(state: State) -> dict[str, dict[str, list]]:
    """{"schedule": {"t": [...], "log_snr": [...]}} of a state.

    Continuous time is seen at 1025 points from 0 to 1; `diffax.schedules.from_json` reads what is
    written of it if both ends are finite. T steps are seen at t = (i + 1) / T. Infinite values,
    which JSON doesn't have, are null.
    """
    schedule = state.schedule
    if schedule.num_steps is None:
        t = np.linspace(0.0, 1.0, CURVE_POINTS)
        log_snr = _log_snr(schedule, t.astype(np.float32))
    else:
        t = (np.arange(schedule.num_steps) + 1) / schedule.num_steps
        log_snr = schedule.log_snrs
    values = [value if math.isfinite(value) else None for value in np.asarray(log_snr).tolist()]
    return {"schedule": {"t": t.tolist(), "log_snr": values}}
