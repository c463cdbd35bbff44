"""What practitioners say of noise schedules and of few steps, tried: the claims ledger.

    python experiments/claims/ledger.py                          # all claims, digits, one CPU core
    python experiments/claims/ledger.py --only=quarter_of_the_steps
    python experiments/claims/ledger.py --scale=gpu              # Fashion-MNIST with a U-Net
    python experiments/claims/ledger.py --from-raw               # claims.md from the raw results

A module beside this one holds a claim: what is measured, and what would support or contradict it;
`CLAIMS` lists them. One that names an EXPERIMENT is measured by that script, which writes its raw
numbers. Networks are shared between claims and kept in the working directory. The
command resumes if interrupted. The raw numbers, one per arm and seed, are written to
../results/claims/NAME.json, and from these alone ../results/claims.md and claims.png are made.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import laboratory
import numpy as np
import verdicts
from laboratory import SCALES, Laboratory, Scale
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from diffax import runtime
from diffax.ablation import Arm, Difference, print_progress, run_grid
from diffax.evaluation.extractors import SETTINGS
from diffax.files import read_json, write_json
from diffax.report import figures, statistics
from diffax.report.formatting import p_text, significant, span, tick

NAMES = (
    "cosine_beats_linear",
    "learned_gains_less_than_cosine",
    "quarter_of_the_steps",
    "cosine_250_beats_linear_1000",
    "ddim_100_keeps_quality",
    "dpm_solver_25_matches_50",
    "zero_terminal_snr_repairs_brightness",
    "guidance_trades_diversity",
    "sigmoid_trains_stably",
    "input_scaling_helps_large_images",
    "learned_schedule_lowers_variance",
    "learned_variance_improves_bound",
    "variance_schedule_is_entropy_rate",
    "learned_grid_10_matches_20",
    "each_solver_needs_its_grid",
    "learned_times_save_steps",
    "flow_matching_beats_cosine",
    "schedule_changes_quality_untrained",
    "schedule_and_prediction_interact",
    "thousands_of_steps_gain_little",
    "one_pass_replaces_25_to_100",
    "diffusion_trains_more_stably",
    "gan_drops_modes",
    "diffusion_needs_less_data",
    "students_keep_quality",
    "hybrid_is_as_good_and_as_fast",
    "gan_is_cheaper_and_restarts_more",
    "teachers_schedule_suits_the_student",
    "latent_cuts_compute",
    "covariance_is_enough",
    "strong_guidance_suits_text",
    "control_composes",
    "gentle_noise_keeps_anatomy",
    "default_schedules_rarely_optimal",
)
RESULTS = laboratory.ROOT / "experiments" / "results"
CLAIMS: dict[str, ModuleType] = {name: importlib.import_module(name) for name in NAMES}
KEYS = ("claim", "scale", "about", "num_samples", "seeds", "arms", "cpu_minutes", "machine", "date")


# --- measuring ----------------------------------------------------------------------------------


def measure(name: str, lab: Laboratory, seeds: int, workdir: Path) -> dict[str, Any]:
    """The raw results of a claim: trains what is missing, measures what is missing."""
    claim = CLAIMS[name]
    arms = {name: Arm(name, network.overrides) for name, network in claim.NETWORKS.items()}

    def run_one(arm: Arm, seed: int, directory: Path) -> dict[str, Any]:
        trained = lab.trained(claim.NETWORKS[arm.name], seed)
        begin = time.process_time()
        values = claim.measure(lab, trained, seed)
        seconds = time.process_time() - begin + laboratory.cpu_seconds(trained.directory)
        return {"values": values, "cpu_seconds": seconds, "date": f"{datetime.date.today()}"}

    def fingerprint(arm: Arm, seed: int) -> dict[str, Any]:
        known = lab.known(claim.NETWORKS[arm.name], seed)
        return {**known, "num_samples": lab.scale.num_samples, "classifier": SETTINGS}

    results = run_grid(
        [*arms.values()], range(seeds), run_one, workdir / "claims" / name, fingerprint,
        on_progress=print_progress,
    )  # fmt: skip
    of_arm = {name: [found for found in results if found["arm"] == name] for name in arms}
    return {
        "claim": name,
        "scale": lab.scale.name,
        "about": lab.scale.about,
        "num_samples": lab.scale.num_samples,
        "seeds": list(range(seeds)),
        "cpu_minutes": sum(found["cpu_seconds"] for found in results) / 60,
        "machine": laboratory.machine(),
        "date": max(found["date"] for found in results),
        "networks": {name: network.about() for name, network in claim.NETWORKS.items()},
        "arms": {
            name: {key: [one["values"][key] for one in found] for key in found[0]["values"]}
            for name, found in of_arm.items()
        },
    }


def folder(scale: Scale, results: Path) -> Path:
    """Where the raw results of a scale are."""
    return results / "claims" / ("" if scale.name == "digits" else scale.name)


def read_raw(scale: Scale, results: Path) -> dict[str, dict[str, Any]]:
    """The raw results that are there, by name."""
    paths = {name: folder(scale, results) / f"{name}.json" for name in NAMES}
    return {name: read_json(path, KEYS) for name, path in paths.items() if path.exists()}


# --- writing ------------------------------------------------------------------------------------

INTRODUCTION = """\
# The claims ledger

Claims that practitioners repeat about noise schedules, and about diffusion beside GANs. Each has a
script of its own in [`experiments/claims/`](../claims), which says what is measured and what would
support or contradict it. This page is made by `python experiments/claims/ledger.py`, from the raw
numbers in [`claims/`](claims) alone (`--from-raw` makes it again without measuring).

**The rule.** A claim comes down to one or more quantities, each claimed to lie in a region that its
script states. A quantity is estimated by its mean over seeds, ratios on a logarithmic scale,
paired: a seed fixes the initial weights, the order of the data, the noise of training and that of
the samples, in all arms alike. Its interval is Student's t. Inside the region: supported; outside
it altogether: contradicted; else undecided at this scale. A claim of m parts takes intervals of 1 -
0.05 / m, so that they hold together with 95%; it is supported if all parts are, and contradicted if
one is. That a small network on small images contradicts a claim says nothing about large ones. The
regions were written before the measurements, but after a look at linear and cosine with one seed;
where the claim itself names no number, its margin is ours. Two claims were measured
twice, zero_terminal_snr_repairs_brightness and input_scaling_helps_large_images. In the first run
their networks predicted v and eps, whose noise a network narrower than the image has pixels can't
pass on, and samples of the larger images were far off (distances of 67 at 16x16 and 166 at 32x32).
Now they predict x0. Three seeds were run first, then the intended five. The two claims with a
learned schedule were measured again after one of the five learned schedules of
learned_schedule_lowers_variance had a variance of 305, the others 2 to 7: the gradient of the
schedule was clipped, by a default that has been removed since, and clipping leads it astray. In
five more seeds the variance was 2.3 to 2,855 with clipping and 1.8 to 3.3 without. All claims were
measured once more when the learning rate of a learned schedule came to decay by default: the
variances of learned_schedule_lowers_variance went from 1.8 to 3.0 to 1.6 to 2.0, and no verdict
changed. The eight claims from variance_schedule_is_entropy_rate on were added later, their regions
again before they were measured. So were the eight from one_pass_replaces_25_to_100 on, after a look
at one seed of each method's distance. In these eight diffusion predicted v at first. It predicts
x0, by which it has a third of the distance here, since two of the eight had been seen with v,
students_keep_quality with all its seeds; no region was changed.

"Distance" is the Fréchet distance between samples and training images over the features of a small
classifier of the same data, the stand-in for FID where Inception's features mean nothing; numbers
can't be compared with FIDs. Few samples raise it, in all arms alike, which draws ratios towards 1.
"""


def write(results: Path) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for scale in SCALES.values():
        raw = read_raw(scale, results)
        parts.append(f"## Scale: {scale.name}\n\n{_capital(scale.about)}.\n")
        if not raw:
            parts.append(
                "Not run yet: no raw results are there. The scripts are the same, by"
                f" `python experiments/claims/ledger.py --scale={scale.name}`.\n"
            )
            continue
        found = {name: CLAIMS[name].verdict(raw[name]) for name in raw}
        if scale.name == "digits":
            parts.append("![Every ratio with its interval and the claimed region](claims.png)\n")
        parts += [_summary(found), _corrected(found)]
        parts += [_section(name, raw.get(name), found.get(name)) for name in NAMES]
    return "\n".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _summary(found: Mapping[str, verdicts.Verdict]) -> str:
    rows = [["claim", "verdict", "script"]]
    for name in NAMES:
        outcome = found[name].outcome if name in found else "not run yet"
        rows.append([CLAIMS[name].CLAIM.rstrip("."), f"**{outcome}**", _script(name)])
    return table(rows)


def _script(name: str) -> str:
    return f"[{name}](../claims/{name}.py)"


def _corrected(found: Mapping[str, verdicts.Verdict]) -> str:
    """How many effects there are at all, over the whole ledger."""
    values = [
        finding.estimate.p_value
        for verdict in found.values()
        for finding in verdict.figures
        if isinstance(finding.estimate, Difference)
    ]
    kept = int(sum(statistics.holm(values) < verdicts.LEVEL))
    return (
        f"Of the {len(values)} paired comparisons below, {kept} show an effect, one way or the"
        " other, after Holm's correction over the whole ledger (p < 0.05).\n"
    )


def _section(name: str, raw: Mapping[str, Any] | None, verdict: verdicts.Verdict | None) -> str:
    claim = CLAIMS[name]
    lines = [f"### {claim.CLAIM}", "", _script(name), ""]
    if raw is None:
        return "\n".join([*lines, "Not run yet: no raw results are there.", ""])
    lines += [f"**{_capital(verdict.outcome)}.** {verdict.sentence}", ""]
    level = 100 * (1 - verdicts.LEVEL / len(verdict.figures))
    rows = [["quantity", "found", f"{level:.3g}% interval", "claimed", "p, no effect", "outcome"]]
    for part, estimate, outcome, _ in verdict.figures:
        text, random = verdicts.number(estimate), isinstance(estimate, Difference)
        rows.append(
            [
                part.name,
                text(estimate.mean),
                span(text, estimate) if random or estimate.low < estimate.high else "exact",
                verdicts.region(part),
                p_text(estimate.p_value) if random else "–",
                outcome,
            ]
        )
    lines += [table(rows), _arms(claim, raw)]
    lines += [
        f"{len(raw['seeds'])} seeds, {raw['num_samples']:,} samples for a distance; {raw['about']}."
        f" {raw['cpu_minutes']:.1f} minutes of processor time, networks shared with other claims"
        f" counted in each ({raw['machine']}); {raw['date']}."
        f" `{_command(claim, raw)}`",
        "",
    ]
    return "\n".join(lines)


def _command(claim: ModuleType, raw: Mapping[str, Any]) -> str:
    if hasattr(claim, "EXPERIMENT"):
        return f"python {claim.EXPERIMENT}"
    scale = "" if raw["scale"] == "digits" else f" --scale={raw['scale']}"
    options = f"--only={raw['claim']} --seeds={len(raw['seeds'])}{scale}"
    return f"python experiments/claims/ledger.py {options}"


def _arms(claim: ModuleType, raw: Mapping[str, Any]) -> str:
    """What every arm has, over the seeds; a row for an arm or for a column."""
    arms, columns = raw["arms"], claim.COLUMNS

    def cell(arm: str, key: str) -> str:
        if key not in arms[arm]:
            return ""
        values = verdicts.column(raw, arm, key)
        mean, low, high = (significant(f(values), 3) for f in (np.mean, np.min, np.max))
        return mean if low == high else f"{mean} ({low} to {high})"

    if len(arms) < len(columns):
        rows = [["mean (lowest to highest)", *arms]]
        rows += [[words, *(cell(arm, key) for arm in arms)] for key, words in columns.items()]
    else:
        rows = [["mean (lowest to highest)", *columns.values()]]
        rows += [[arm, *(cell(arm, key) for key in columns)] for arm in arms]
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body, ""])


def draw(raw: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Every ratio with its interval, over the region that is claimed for it."""
    rows: list[tuple[str, verdicts.Finding | None]] = []  # a claim's name, then its ratios
    for name in raw:
        found = CLAIMS[name].verdict(raw[name]).figures
        ratios = [f for f in found if getattr(f.estimate, "log_scale", False)]
        rows += [(name, None), *((f.part.name, f) for f in ratios)] if ratios else []
    colours = {
        verdicts.SUPPORTED: figures.PALETTE[3][0],
        verdicts.CONTRADICTED: figures.PALETTE[2][0],
        verdicts.UNDECIDED: figures.PALETTE[0][0],
    }
    markers = dict(zip(colours, ("o", "X", "s")))
    left, right = 0.2, 5.0
    figure = Figure(figsize=(9, 1.1 + 0.25 * len(rows)), dpi=110, layout="constrained")
    axes = figure.add_subplot(xscale="log", xlim=(left, right))
    for y, finding in ((y, finding) for y, (_, finding) in enumerate(rows) if finding):
        part, estimate, outcome, _ = finding
        low, high = np.clip([part.low, part.high], left, right)
        axes.barh(y, high - low, left=low, height=0.86, color=figures.RULE, lw=0)
        ends, colour = np.clip([estimate.low, estimate.high], left, right), colours[outcome]
        axes.plot(ends, [y, y], color=colour, lw=2)
        marker = "<" if estimate.mean < left else ">" if estimate.mean > right else markers[outcome]
        mean = np.clip(estimate.mean, left * 1.03, right / 1.03)
        axes.plot(mean, y, marker, color=colour, ms=6)
    for outcome, colour in colours.items():
        axes.plot([], [], markers[outcome], color=colour, label=outcome)
    axes.barh(0, 0, left=1, color=figures.RULE, label="claimed region")
    axes.axvline(1, color=figures.MUTED, lw=0.8)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    for text, (_, finding) in zip(axes.get_yticklabels(), rows):
        text.set_fontweight("normal" if finding else "bold")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("ratio, with the interval of its verdict (arrows: beyond the picture)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


# --- the command --------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=laboratory.ROOT / "runs" / "claims")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(default: %(default)s)")
    parser.add_argument(
        "--only", default=",".join(NAMES), metavar="NAME,...", help="claims (default: all)"
    )
    parser.add_argument("--scale", choices=sorted(SCALES), default="digits")
    parser.add_argument(
        "--seeds", type=int, help="at least 2 (default: 5, gpu 3, or what the claim itself says)"
    )
    parser.add_argument("--from-raw", action="store_true", help="write the page, measure nothing")
    args = parser.parse_args(argv)
    args.only = list(dict.fromkeys(args.only.split(",")))
    if unknown := set(args.only) - set(NAMES):
        parser.error(f"--only: no claim {min(unknown)!r}; they are {', '.join(NAMES)}")
    if args.seeds is not None and args.seeds < 2:
        parser.error(f"--seeds={args.seeds}: an interval needs at least 2")
    if args.scale == "gpu" and not args.from_raw and jax.default_backend() == "cpu":
        parser.error("--scale=gpu: JAX finds no accelerator, and a CPU would take weeks")
    return args


def seeds_of(name: str, args: argparse.Namespace) -> int:
    """How many seeds a claim is measured with."""
    return args.seeds or getattr(CLAIMS[name], "SEEDS", SCALES[args.scale].seeds)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    scale = SCALES[args.scale]
    if not args.from_raw:
        runtime.start()
        lab = Laboratory(scale, args.workdir / scale.name)
        folder(scale, args.results).mkdir(parents=True, exist_ok=True)
        for name in args.only:
            if hasattr(CLAIMS[name], "EXPERIMENT"):
                print(f"{name}: measured by python {CLAIMS[name].EXPERIMENT} --raw=FILE")
                continue
            raw = measure(name, lab, seeds_of(name, args), args.workdir / scale.name)
            write_json(folder(scale, args.results) / f"{name}.json", raw)
            found = CLAIMS[name].verdict(raw)
            print(f"{name}: {CLAIMS[name].CLAIM}\n   {found.outcome}: {found.sentence}")
    page = args.results / "claims.md"
    page.write_text(write(args.results), encoding="utf-8")
    if raw := read_raw(SCALES["digits"], args.results):
        draw(raw).savefig(page.with_suffix(".png"))
    print(f"the ledger: {page}")


if __name__ == "__main__":
    main()
