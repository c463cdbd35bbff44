"""`diffax evaluate`: a trained run, or samples from anywhere."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffax.cli import shared
from diffax.cli.flags import of_key, words
from diffax.places import path_of

Entry = dict[str, Any]

# flag -> help; each is the field of diffax.data.DataConfig with that name
DATA_FLAGS: dict[str, str] = {
    "path": "folder, file or name, of --data=folder, npz or huggingface",
    "data-dir": "where TFDS sets are prepared",
    "image-size": "resize and crop the reference to so many pixels a side",
    "pad-to": "frame the reference to so many pixels a side",
    "channels": "of --data=folder: 1 grey, 3 colour (default: as the files are)",
    "range": "of --data=npz: the LOW,HIGH that become -1 and 1 (default: by the type)",
    "skip-bad": "of --data=folder: leave out the files that can't be read",
    "modes": "of --data=mixture2d: so many on a square grid (default: its eight elongated ones)",
    "mode-deviation": "of --modes: a mode's deviation over the distance of neighbours",
    "storage": "of decoded data: auto, memory, or disk, for sets that are larger than memory",
    "train-split": "the TFDS split that is the reference (default train)",
    "eval-split": "the TFDS split that gives the floor (default test)",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--workdir",
        metavar="DIR",
        help="directory of a trained run, whose samples are drawn and held against its data",
    )
    what.add_argument(
        "--samples",
        metavar="PATH",
        help="a folder of images of one size, or an .npz, from anywhere",
    )
    parser.add_argument(
        "--metrics",
        type=words,
        metavar="A,B,...",
        help="comma-separated: bpd, bpd_ode (of a run); frechet, frechet_infinity, kid, prdc (over"
        " the features of a classifier of the data); swd; lpips_diversity (within classes);"
        " text_attributes, text_retrieval (of captions); fid, fid_infinity, kid_inception,"
        " prdc_inception, is; fd_lite0, kid_lite0, fd_mobilenet, ... (default for a run its"
        " method's own, such as bpd, and its config.evaluation.metrics or"
        " frechet; frechet,kid,prdc for"
        " --data, fid for --reference)",
    )
    parser.add_argument(
        "--num-samples",
        type=of_key("evaluation.num_samples"),
        metavar="N",
        help="how many samples of the run are drawn (default: its config.evaluation.num_samples)",
    )
    parser.add_argument(
        "--seed", type=of_key("seed"), default=0, help="of noise and samples (default 0)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="JSON of the results, merged by metric with those that are there (default"
        " WORKDIR/evaluation.json or PATH.evaluation.json)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was measured as JSON, not as a table"
    )
    group = parser.add_argument_group("reference of --samples")
    against = group.add_mutually_exclusive_group()
    against.add_argument(
        "--data", metavar="NAME", help="a data set: digits, folder, npz, or a name of TFDS"
    )
    against.add_argument(
        "--reference", metavar="FILE", help="published statistics: an .npz with mu and sigma"
    )
    group.add_argument("--array", help="which array of the .npz holds the samples")
    for flag, text in DATA_FLAGS.items():
        alone = dict(nargs="?", const=True) if flag == "skip-bad" else {}  # a flag without a value
        kind = of_key(f"data.{flag.replace('-', '_')}")
        group.add_argument(f"--{flag}", type=kind, help=text, **alone)
    shared.add_sampling_flags(parser)


def run(args: argparse.Namespace, _: None) -> None:
    if args.workdir and (flags := shared.given(args, ["data", "reference", "array", *DATA_FLAGS])):
        raise ValueError(f"{_shown(flags)}: only with --samples")
    if args.samples and (flags := shared.given(args, ["num-samples", *shared.sampling_flags()])):
        raise ValueError(f"{_shown(flags)}: only with --workdir")
    if args.reference and (flags := shared.given(args, DATA_FLAGS)):
        raise ValueError(f"{_shown(flags)}: only with --data")
    if args.workdir:
        prepare, default = _of_run, path_of(args.workdir) / "evaluation.json"
    else:
        path = Path(args.samples).absolute()
        prepare, default = _of_samples, path.with_name(f"{path.name}.evaluation.json")
    out = shared.output(args.out, default)
    if args.out or out.parent.is_dir():  # or else there is no run or no sample, which is said
        shared.check_output(out)
    read_results(out)
    _measure(*prepare(args), out, args.json)


def _measure(
    by_name: dict[str, Callable[[], Entry]],
    numbers: Mapping[str, Sequence[Any]],
    about: Entry,
    out: Path,
    as_json: bool,
) -> None:
    """Measures, writes each result as it comes, and shows them.

    `numbers`: what each measure of a method gives, for the table. `about`: what each entry also
    says.

    Raises:
      runtime.Failed: a measure or the writing failed; the others are kept.
    """
    from diffax import runtime
    from diffax.files import jsonable, write_text
    from diffax.training.progress import ProgressDisplay

    found, failed, unwritten = {}, [], ""
    for name, measure in by_name.items():
        try:
            with ProgressDisplay() as progress, progress.doing(f"measuring {name}"):
                # What isn't finite, as the bound of a diverged run, is null: JSON has no NaN.
                found[name] = jsonable(measure() | about)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            failed.append(f"{name} failed ({error})")
            continue
        try:
            merged = merge(read_results(out), name, found[name])
            write_text(out, json.dumps(merged, indent=1, allow_nan=False))
            unwritten = ""
        except (ValueError, OSError) as error:
            unwritten = f"{out} can't be written ({error}): the results stand above"
    if found and (as_json or unwritten):
        print(json.dumps(found, indent=1, allow_nan=False))
    elif found:
        print(f"{results_table(found, numbers)}\n{out}")
    if unwritten or failed:
        raise runtime.Failed("; ".join([*failed, *([unwritten] if unwritten else [])]))


Prepared = tuple[dict[str, Callable[[], Entry]], dict[str, Sequence[Any]], Entry]


def _of_run(args: argparse.Namespace) -> Prepared:
    import jax

    from diffax import config, evaluation, files
    from diffax.training.progress import ProgressDisplay

    with ProgressDisplay() as progress:
        with progress.doing("", shared.reading(args.workdir)):
            trained = shared.loaded(args)
        progress.detail(f"the run in {args.workdir}: checkpoint of step {int(trained.state.step)}")
    if args.num_samples is not None:
        trained.config.evaluation.num_samples = args.num_samples
        config.validate(trained.config)
    dataset = config.load_data(trained.config)
    method, chosen = trained.method, trained.config.evaluation.metrics
    # Of a classifier of the data, which some data have none of.
    usual = ["frechet"] if method.sample is not None or evaluation.is_classifiable(dataset) else []
    scores = [*(chosen or usual)] if method.makes_examples else []
    own = [name for name in method.compared if name in method.measures]
    names = args.metrics or [*own, *scores]
    by_name = evaluation.measurements(trained, dataset, names, args.seed)
    weights = jax.tree.leaves(
        jax.device_get(getattr(trained.state, "ema_params", trained.state.params))
    )
    numbers = {name: measure.metrics for name, measure in method.measures.items()}
    return by_name, numbers, {"weights_hash": files.content_hash(*weights)}


def _of_samples(args: argparse.Namespace) -> Prepared:
    from diffax import data, evaluation

    if args.data:
        fields = {"name": args.data, **shared.given(args, DATA_FLAGS)}
        reference = evaluation.Reference.of(data.load(fields), fields)
        names = args.metrics or ["frechet", "kid", "prdc"]
    elif args.reference:
        reference, names = evaluation.Reference.read(args.reference), args.metrics or ["fid"]
    else:
        raise ValueError("--samples needs a reference: --data=NAME, or --reference=FILE")
    evaluation.check_names(names)
    found = evaluation.read_samples(args.samples, reference.dataset, args.array or "")
    x, label, about, text = found
    planned = evaluation.plan(names, reference, x.shape[1:], len(x), label, text)
    by_name = evaluation.pending(planned, lambda: x, reference, args.seed, label, text)
    return by_name, {}, about


def _shown(given: dict[str, Any]) -> str:
    return " ".join(f"--{field.replace('_', '-')}={value}" for field, value in given.items())


# --- the file of results, merged by metric, and the table of them --------------------------------


EARLIER = "earlier"


def read_results(path: Path) -> dict[str, Any]:
    """The results in a file: metric -> entry, and a list of entries under "earlier"; {} for none.

    Raises:
      ValueError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # of JSON or of UTF-8; said below
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(entry, list if name == EARLIER else dict) for name, entry in found.items()
    ):
        raise ValueError(
            f"{path} is there and holds no results of diffax evaluate: move it away, or name"
            " another file by --out"
        )
    return found


def merge(found: Mapping[str, Any], name: str, entry: Entry) -> dict[str, Any]:
    """The results with that of a metric; another one that it replaces is kept under "earlier"."""
    before = found.get(name, entry)
    earlier = [*found.get(EARLIER, []), *([{"metric": name, **before}] if before != entry else [])]
    others = {k: v for k, v in found.items() if k not in (name, EARLIER)}
    return {**others, name: entry, **({EARLIER: earlier} if earlier else {})}


def results_table(found: Mapping[str, Entry], measures: Mapping[str, Sequence[Any]] = {}) -> str:
    """Lines of text: each number of each metric, its interval, and of what it is.

    `measures`: of a method's measures the numbers; those of scores are known.
    """
    rows = [("metric", "value", "interval", "of", "what it is")]
    rows += [row for name, entry in found.items() for row in _rows(name, entry, measures)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _rows(name: str, entry: Entry, measures: Mapping[str, Sequence[Any]]) -> list[tuple[str, ...]]:
    from diffax import evaluation

    known = measures[name] if name in measures else evaluation.numbers(name)
    numbers = [(n.key, n.entry or n.key, n.label) for n in known]
    spread = "-"
    if entry.get("low") is not None:
        spread = f"{_number(entry['low'])} to {_number(entry['high'])}"
    elif entry.get("standard_error") is not None:
        spread = f"± {_number(entry['standard_error'])}"
    kind = "samples" if "num_samples" in entry else "examples"
    of = f"{entry[count]} {kind}" if (count := f"num_{kind}") in entry else ""
    floor = f" (of held-out data {_number(entry['floor'])})" if "floor" in entry else ""
    return [(key, _number(entry[at]), spread, of, label + floor) for key, at, label in numbers]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
