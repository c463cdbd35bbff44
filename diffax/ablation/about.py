"""What an ablation was made of, for the top of its report: data, network, length of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from diffax import data, training

MOST_OF_START = 0.01  # of the initial parameters in the moving average, without a remark


def subject(configs: Sequence[ConfigDict], dataset: data.Dataset) -> dict[str, str]:
    """What the runs of some configs on a data set have been trained on, and how, in words."""
    shape = " × ".join(map(str, dataset.shape))
    classes = f"{dataset.num_classes} classes" if dataset.num_classes else "no classes"
    accumulated = {c.training.grad_accumulation for c in configs}
    parts = "" if accumulated == {1} else f" in {_told(accumulated)} parts"
    return {
        "data": f"{dataset.name}: {len(dataset.train):,} examples to train on,"
        f" {len(dataset.eval):,} held out, {shape}, {classes}",
        "network": _told(c.model.name for c in configs),
        "steps": _told(c.training.num_steps for c in configs),
        "batch": f"{_told(c.training.batch_size for c in configs)}{parts}",
    }


def _told(values: Iterable[Any]) -> str:
    distinct = sorted(set(values))
    return " or ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in distinct)


def _steps(numbers: Iterable[int]) -> str:
    distinct = set(numbers)
    return f"{_told(distinct)} step{'' if distinct == {1} else 's'}"


def remarks(configs: Sequence[ConfigDict]) -> list[str]:
    """What a reader must know of trainings that were short, as sentences."""
    found = []
    shares = {
        training.share_of_start(c.ema.decay, c.training.num_steps): c.training.num_steps
        for c in configs
    }
    share = max(shares)
    if share > MOST_OF_START:
        found.append(
            f"Training was short: after {_steps([shares[share]])} the moving average of the"
            f" weights, by which all is measured, is still {share:.0%} the untrained network."
        )
    rising = [c for c in configs if c.training.num_steps <= c.optimizer.warmup_steps]
    if rising:
        steps = _steps(c.training.num_steps for c in rising)
        warmup = _told(c.optimizer.warmup_steps for c in rising)
        found.append(
            f"Training was short: it ended after {steps}, within the learning rate’s warm-up"
            f" of {warmup}."
        )
    return found


def wall_seconds(results: Sequence[Mapping[str, Any]]) -> float | None:
    """For how long any run was under way, on whichever machine; None where a result does not tell
    when it was finished."""
    if not all("finished" in r and r.get("seconds") is not None for r in results):
        return None
    total, until = 0.0, float("-inf")
    for start, end in sorted((r["finished"] - r["seconds"], r["finished"]) for r in results):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
