"""What a search leaves behind: a table, a picture, and the best config as a file."""

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from diffax import config as config_lib
from diffax.files import replacing, write_text
from diffax.report.figures import scale_axis
from diffax.report.formatting import for_matplotlib, format_seconds
from diffax.tuning.search import Trial, best
from diffax.tuning.space import Range, Space, number, words


def format_table(trials: Sequence[Trial], space: Space, metric: str) -> str:
    """The trials as an aligned plain-text table, the best one starred."""
    keys = [p.key for p in space.parameters]
    head = ["trial", *(key.rpartition(".")[2] for key in keys), metric, "at step", "", "took"]
    winner = best(trials)
    lines = [head]
    for trial in trials:
        lines.append(
            [
                f"{trial.number}{'*' if trial is winner else ''}",
                *(number(trial.values[key]) if key in trial.values else "–" for key in keys),
                "–" if trial.metric is None else f"{trial.metric:.4f}",
                str(trial.step),
                trial.status,
                format_seconds(trial.seconds),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths)) for line in lines)


def to_csv(trials: Sequence[Trial], space: Space, metric: str) -> str:
    """The trials with all their digits, a line for each."""
    keys = [p.key for p in space.parameters]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "status", *keys, metric, "step", "seconds", "message"])
    for trial in trials:
        values = [trial.values.get(key, "") for key in keys]
        row = [trial.status, *values, trial.metric, trial.step, f"{trial.seconds:.2f}"]
        writer.writerow([trial.number, *row, trial.message])
    return out.getvalue()


def to_python(config: ConfigDict, says: str) -> str:
    """The text of a config file, for `--config=`, that holds a whole config; `says`: any text."""
    # JSON writes the one character that could end the string in another way, too.
    text = config_lib.to_json(config).replace("'", r"\u0027")
    says = "\n".join(map(_quoted, says.split("\n")))
    return _CONFIG_FILE.format(says=says, text=text)


def _quoted(line: str) -> str:
    """A line as it stands in a string of Python's: whatever it holds, it doesn't end the string."""
    escapes = {'"': r"\"", "\\": r"\\"}
    return "".join(
        escapes.get(c, c if c.isprintable() else c.encode("unicode_escape").decode()) for c in line
    )


_CONFIG_FILE = '''"""{says}"""

from pathlib import Path

from ml_collections import ConfigDict

from diffax.config import from_json


def get_config() -> ConfigDict:
    return from_json(CONFIG, Path(__file__).parent / "plugins")


CONFIG = r\'\'\'
{text}
\'\'\'
'''


def draw(trials: Sequence[Trial], space: Space, metric: str) -> Figure:
    """A matplotlib Figure: the metric against each parameter, and the best so far against compute.

    Complete trials are dots, the winner a star; those stopped early are crosses at their last
    measurement, which came after fewer steps. Compute is counted in training steps.
    """
    count = len(space.parameters) + 1
    columns = min(count, 3)
    rows = -(-count // columns)
    size = (3.6 * columns, 0.3 + 3.0 * rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained", facecolor="white")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).ravel())
    for panel in panels[count:]:
        panel.set_axis_off()
    for panel, parameter in zip(panels, space.parameters):
        _draw_parameter(panel, parameter, trials)
    _draw_progress(panels[count - 1], trials)
    for panel in panels[:count]:
        panel.grid(color="#eeeeee", lw=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    for panel in panels[:count:columns]:
        panel.set_ylabel(metric, fontsize=9)
    handles, labels = panels[count - 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


# status -> how its trials are drawn and called; unfit ones have no metric to draw
_MARKS = {
    "complete": dict(marker="o", c="#0b6fa4", s=26, label="complete"),
    "pruned": dict(marker="x", c="#9a9a9a", s=20, lw=1, label="stopped early"),
}
_STAR = dict(marker="*", c="#d1495b", s=130, zorder=3, label="best")


def _scatter(panel: Any, trials: Sequence[Trial], places: Sequence[Any]) -> None:
    """Each trial at its place, unless that is None."""
    winner = best(trials)
    placed = [(t, x) for t, x in zip(trials, places) if x is not None]
    for status, mark in _MARKS.items():
        shown = [(x, t.metric) for t, x in placed if t.status == status and t is not winner]
        x, y = zip(*shown) if shown else ((), ())
        panel.scatter(x, y, clip_on=False, **mark)
    for x in (x for t, x in placed if t is winner):
        panel.scatter([x], [winner.metric], **_STAR)


def _draw_parameter(panel: Any, parameter: Any, trials: Sequence[Trial]) -> None:
    is_range, key = isinstance(parameter, Range), parameter.key
    values = [trial.values.get(key) for trial in trials]
    if not is_range:
        values = [None if v is None else parameter.values.index(v) for v in values]
    _scatter(panel, trials, values)
    panel.set_xlabel(key, fontsize=9)
    if is_range:
        panel.set_xlim(parameter.low, parameter.high)  # the whole of what might have been tried
        scale_axis(panel, "x", "log" if parameter.log else "linear")
    else:
        names = [for_matplotlib(str(value)) for value in parameter.values]
        panel.set_xticks(range(len(names)), names)
        panel.margins(x=0.2)


def _draw_progress(panel: Any, trials: Sequence[Trial]) -> None:
    spent = np.array(list(itertools.accumulate(trial.step for trial in trials)))
    _scatter(panel, trials, spent)
    complete = [i for i, trial in enumerate(trials) if trial.status == "complete"]
    lowest = list(itertools.accumulate((trials[i].metric for i in complete), min))
    x, y = [*spent[complete], spent[-1]], [*lowest, lowest[-1]]
    panel.step(x, y, where="post", color="#0b6fa4", lw=1.4, label="best so far")
    panel.set_xlabel("training steps so far, in all trials", fontsize=9)


def write(
    trials: Sequence[Trial], space: Space, metric: str, workdir: Path, command: str
) -> list[Path]:
    """Writes trials.csv, tune.png and best.py; returns their paths."""
    winner = best(trials)
    says = (
        f"Trial {winner.number} of {len(trials)}, by {metric}: {words(winner.values)}.\n\n"
        f"    {command}\n"
    )
    config = config_lib.changed(space.config, space.overrides(winner.values))
    paths = [workdir / name for name in ("trials.csv", "best.py", "tune.png")]
    write_text(paths[0], to_csv(trials, space, metric))
    write_text(paths[1], to_python(config, says))
    with replacing(paths[2]) as partial:
        draw(trials, space, metric).savefig(partial, format="png")
    return paths
