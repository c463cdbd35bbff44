"""`diffax sample`: drawing, and editing of given data."""

import argparse
import shlex
from collections.abc import Callable

from diffax.cli import shared
from diffax.cli.flags import number, of_key, whole
from diffax.places import path_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    shared.add_workdir(parser, "of a trained run")
    parser.add_argument("--num", type=whole(1), help="how many (default 64; of an edit 16)")
    parser.add_argument("--seed", type=of_key("seed"), help="of the noise (default 0)")
    parser.add_argument("--label", help="the class of all, name or number (default: in turn)")
    parser.add_argument(
        "--text",
        action="append",
        metavar="PROMPT",
        help="a caption; repeated, the prompts come in turn (default: none)",
    )
    parser.add_argument("--prompts", metavar="FILE", help="a text file with a prompt on each line")
    parser.add_argument(
        "--control",
        action="append",
        nargs="+",
        metavar="FILE",
        help="images, or .npz with an array control, that samples follow in turn; repeated for a"
        " network of several controls (default: of the evaluation split)",
    )
    parser.add_argument(
        "--control-strength",
        type=strengths,
        metavar="S[,S...]",
        help="of a ControlNet: 0 is its base, 1 as trained (default); one for each control",
    )
    parser.add_argument(
        "--controlnet",
        action="append",
        default=[],
        metavar="DIR",
        help="workdir of a further ControlNet on the same base, whose control is added",
    )
    parser.add_argument(
        "--out",
        metavar="NAME",
        help="NAME.npz and NAME.png are written (default WORKDIR/samples/sample, or of an edit its"
        " name)",
    )
    text = "noise levels visited; several, as 5,10,50, draw a comparison from the same noise"
    shared.add_sampling_flags(parser, steps=dict(type=shared.counts, metavar="N[,N...]", help=text))
    group = parser.add_argument_group("editing of given data")
    group.add_argument(
        "--edit",
        choices=("sdedit", "inpaint", "invert", "interpolate"),
        help="noise it and sample from there; draw a part anew; find the noise DDIM turns into it;"
        " pass from one example to another",
    )
    group.add_argument(
        "--input",
        nargs="+",
        metavar="FILE",
        help="images, or .npz with an array of samples (default: from the evaluation split)",
    )
    for flag, (kind, text) in EDIT_FLAGS.items():
        group.add_argument(f"--{flag}", type=kind, help=text)


def strengths(text: str) -> list[float] | float:
    """A type for argparse: a number, or several joined by commas."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be a number, or numbers joined by commas"
        ) from None
    return found if len(found) > 1 else found[0]


EDIT_FLAGS: dict[str, tuple[Callable, str]] = {
    "strength": (
        number(0, 1),
        "of sdedit: share of the levels gone back, above 0 to 1 (default 0.5)",
    ),
    "mask": (
        str,
        "of inpaint: what is drawn anew, left, right, top, bottom or centre, or an image's light"
        " part (default centre)",
    ),
    "jump-length": (whole(1), "of inpaint: levels in a jump back (default 10, or all but one)"),
    "num-resamples": (whole(1), "of inpaint: passes through each stretch (default 10)"),
    "frames": (whole(2), "of interpolate: examples from first to last (default 8)"),
}


def run(args: argparse.Namespace, _: None) -> None:
    import warnings

    import numpy as np

    from diffax import edits, plots, runtime, training
    from diffax.data.images import encode_png
    from diffax.files import replacing
    from diffax.generator import Generator, NotFinite
    from diffax.training.progress import ProgressDisplay

    prompts = [*(args.text or []), *edits.read_prompts(args.prompts)]
    default = path_of(args.workdir) / "samples" / (args.edit or "sample")
    out = shared.output(args.out, default, ".npz", ".png")
    arrays, picture = (out.with_name(f"{out.name}.{suffix}") for suffix in ("npz", "png"))
    with ProgressDisplay() as progress:
        with progress.doing("", shared.reading(args.workdir)):
            generate = Generator(training.combined(args.workdir, *args.controlnet))
        step = int(generate.run.state.step)
        progress.detail(f"the run in {args.workdir}: checkpoint of step {step}")
    flags = shared.given(args, EDIT_FLAGS)
    options = shared.given_options(args) | shared.given(args, ("seed", "label"))
    if prompts:
        # The prompts of samples come in turn; one that is alone is that of all examples edited.
        options["text"] = prompts[0] if args.edit and len(prompts) == 1 else prompts
    followed = edits.read_controls(generate, args.control)
    if followed is not None:
        options["control"] = followed
    if args.control_strength is not None:
        options["control_strength"] = args.control_strength
    shared.check_output(arrays, picture)
    with ProgressDisplay(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotFinite)  # it is said below, with the file's name
        if args.edit:
            result = edits.edit(
                generate, args.edit, args.input, args.num, args.steps, flags, options
            )
        else:
            edits.check_flags(None, flags | {"input": args.input})
            result = edits.draw(generate, args.num, args.steps, options)
    if not args.edit and generate.run.config.model.class_conditional:
        num = len(next(iter(result.arrays.values())))
        result.arrays["label"] = generate.labels(num, args.label, followed)
    if prompts and not args.edit:
        num = len(next(iter(result.arrays.values())))
        result.arrays["text"] = np.array([prompts[i % len(prompts)] for i in range(num)])
    if followed is not None and not args.edit:
        num = len(next(iter(result.arrays.values())))
        result.arrays["control"] = np.concatenate(edits.in_turn(followed, num), axis=-1)
    with replacing(arrays) as partial, open(partial, "wb") as file:
        np.savez(file, **result.arrays)
    wrong = edits.not_finite(result)
    # What can't be drawn is drawn as 0.
    drawn = {title: np.nan_to_num(x, posinf=0, neginf=0) for title, x in result.drawn.items()}
    try:
        with replacing(picture) as partial:
            if len(drawn) == 1:
                partial.write_bytes(encode_png(plots.picture(*drawn.values())))
            else:
                plots.draw_comparison(drawn).savefig(partial, format="png")
    except (ValueError, OSError) as error:
        raise runtime.Failed(f"{arrays} is written, and no picture of it: {error}") from None
    print(f"{result.said}picture: {picture}\nsamples: {arrays}")
    if not args.edit:
        print(f"next:    {shlex.join(['diffax', 'evaluate', f'--workdir={args.workdir}'])}")
    if wrong:
        raise runtime.Failed(f"not finite (NaN or infinite), though written to {arrays}: {wrong}")
