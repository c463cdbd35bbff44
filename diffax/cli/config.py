"""`diffax config`."""

import argparse
import textwrap


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key",
        nargs="?",
        metavar="KEY",
        help="a key or a section alone, as schedule.name or schedule (default: all of them)",
    )


def run(args: argparse.Namespace, _: None) -> None:
    from diffax.config import checks, defaults, reading

    known = defaults.keys()
    chosen = reading.under(args.key or "", known)
    for name in chosen:
        key = known[name]
        print(f"{name} = {key.default!r}  ({key.kind})")
        said = [key.meaning]
        if name in checks.RULES:
            said.append(f"must be {checks.RULES[name].words()}")
        for text in filter(None, said):
            print(textwrap.indent(textwrap.fill(text, 92), "    "))
