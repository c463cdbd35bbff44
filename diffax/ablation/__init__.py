"""The ablation laboratory: an ablation is data.

    arms = [Arm(name, {"schedule.name": name}) for name in ("cosine", "learned")]
    results = run_grid(arms, seeds=[0, 1, 2], run_one=run_one, workdir=workdir)
    spec = Spec("Title", "Question?", baseline="cosine", metrics=[Metric("bpd", "Bits/dim")])
    print(build_report(spec, results, workdir).table)

`grid` runs arms × seeds and keeps the results, `statistics` has the intervals and tests,
`analysis` turns results into numbers and `verdict` numbers into sentences, `report` writes the
page. `runner` alone knows what a run does.
"""

from diffax.ablation.analysis import Analysis, Cell, Comparison, Metric, Spec, analyse
from diffax.ablation.grid import (
    Arm,
    GridError,
    Progress,
    grid,
    load_results,
    print_progress,
    run_grid,
)
from diffax.ablation.report import Report, build_report, format_table
from diffax.ablation.statistics import (
    Difference,
    Interval,
    bootstrap_interval,
    geometric_interval,
    holm,
    mean_interval,
    paired_difference,
    paired_ratio,
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
    "bootstrap_interval",
    "build_report",
    "format_table",
    "geometric_interval",
    "grid",
    "holm",
    "load_results",
    "mean_interval",
    "paired_difference",
    "paired_ratio",
    "print_progress",
    "run_grid",
]
