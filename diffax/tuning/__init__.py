"""Tuning: schedule parameters, and any other key of a config, searched for one's own data.

    found = tune(config, ["schedule.s=0.001:0.1:log"], "runs/tuned", num_trials=20)
    print(found.table, found.verdict)

`space` says what may be tried, `search` what is tried next and what is stopped early, `trials` what
a trial is and how it is measured, `results` what is written; `run` joins them and confirms the
winner.
"""

from diffax.tuning.run import Tuned, tune
from diffax.tuning.search import Trial

__all__ = ["Trial", "Tuned", "tune"]
