"""The ablation laboratory: an ablation is data.

    arms = [Arm(name, {"schedule.name": name}) for name in ("cosine", "learned")]
    results = run_grid(arms, seeds=[0, 1, 2], run_one=run_one, workdir=workdir)
    spec = Spec("Title", "Question?", baseline="cosine", metrics=[Metric("bpd", "Bits/dim")])
    print(build_report(spec, results, workdir).table)

`grid` runs arms × seeds, `workers` in several processes, and `store` keeps the results. `runner`
makes each run a training, its samples and what `measure` measures of both. The report is made by
`diffax.report`, which needs no more than a `Spec` and the results.
"""

from diffax.ablation.grid import Arm, GridError, Progress, grid, print_progress, run_grid
from diffax.ablation.store import load_results, report_on
from diffax.evaluation import Metric
from diffax.report import statistics
from diffax.report.analysis import Analysis, Cell, Comparison, analyse
from diffax.report.build import Report, build_report, format_table
from diffax.report.spec import Spec
from diffax.report.statistics import (
    Difference,
    Interval,
    geometric_interval,
    holm,
    mean_interval,
    paired_difference,
    paired_power,
    paired_ratio,
    seeds_needed,
    sign_flip,
)

__all__ = [
    "Analysis",
    "Arm",
    "Cell",
    "Comparison",
    "Difference",
    "GridError",
    "Interval",
    "Metric",
    "Progress",
    "Report",
    "Spec",
    "analyse",
    "build_report",
    "format_table",
    "geometric_interval",
    "grid",
    "holm",
    "load_results",
    "mean_interval",
    "paired_difference",
    "paired_power",
    "paired_ratio",
    "print_progress",
    "report_on",
    "run_grid",
    "seeds_needed",
    "sign_flip",
    "statistics",
]
