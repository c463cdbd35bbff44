"""`diffax.evaluation` under its earlier name, for plugins that are kept in the workdirs of runs."""

from diffax.evaluation import *  # noqa: F403
from diffax.evaluation import Metric
from diffax.evaluation import Metric as Number  # noqa: F401
from diffax.evaluation import pending as measurements  # noqa: F401
from diffax.evaluation import register_measure as register  # noqa: F401


def Reading(
    label: str,
    short: str = "",
    lower_is_better: bool | None = True,
    scale: str = "linear",
    digits: int = 3,
    meaning: str = "",
) -> Metric:
    """A `Metric` of a measure, whose key is where it stands in `Measure.numbers`."""
    about = dict(scale=scale, digits=digits, meaning=meaning, short=short)
    return Metric("", label, lower_is_better=lower_is_better, **about)
