"""The ablation laboratory: an ablation is data.

    arms = [Arm(name, {"schedule.name": name}) for name in ("cosine", "learned")]
    results = run_grid(arms, seeds=[0, 1, 2], run_one=run_one, workdir=workdir)
    spec = Spec("Title", "Question?", baseline="cosine", metrics=[Metric("bpd", "Bits/dim")])
    print(build_report(spec, results, workdir).table)

`grid` runs arms × seeds and `store` keeps the results, `spec` is the question, `statistics` has the
intervals, tests and power, `analysis` turns results into numbers, `opinions` says which rankings
are settled, and `verdict` turns numbers into sentences; `report` writes the page, whose content is
in `sections` and `differences`. `runner`, `measure` and `together` alone know what a run does.
"""

from diffax.ablation.analysis import Analysis, Cell, Comparison, analyse
from diffax.ablation.grid import (
    Arm,
    GridError,
    Progress,
    grid,
    load_results,
    print_progress,
    run_grid,
)
from diffax.ablation.report import Report, build_report, format_table, report_on
from diffax.ablation.spec import Metric, Spec
from diffax.ablation.statistics import (
    Difference,
    Interval,
    bootstrap_interval,
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
    "bootstrap_interval",
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
]
