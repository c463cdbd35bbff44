"""Text to image on 1,635 emoji: does a small network follow its prompts, and with which guidance?

    python experiments/text_to_emoji.py --emoji FOLDER --taef2 FOLDER     # three seeds, one CPU
    python experiments/text_to_emoji.py --page                            # from the raw numbers

FOLDER holds pictures of 64x64 pixels and a metadata.jsonl with their names as captions; the other
one the two files of TAEF2, in whose latents the network works. Hearts, circles and squares are
there in nine colours. One in three of these 27 combinations is held out: the network sees each
colour and each shape, but never these together. The others are repeated, so that they make up a
part of the batches.

Measured for each seed and guidance scale: the share of samples that have the colour and the shape
of their prompt (diffax.evaluation.attributes), for combinations that were seen and for those that
were not. The raw numbers go to results/text_to_emoji.json, the table is made from them, and those
of a claim of the ledger to results/claims/. The command resumes if interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

import diffax
from diffax import config as config_lib
from diffax import runtime, training
from diffax.data.dataset import to_8_bits
from diffax.evaluation import attributes
from diffax.files import read_json, write_json
from diffax.report import statistics

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
NAME, CLAIM = "text_to_emoji", "strong_guidance_suits_text"
HELD_OUT = (
    *("red square", "orange circle", "yellow heart", "green square", "blue circle"),
    *("purple heart", "brown square", "black circle", "white heart"),
)
COMBINATIONS = [f"{colour} {shape}" for shape in attributes.SHAPES for colour in attributes.COLOURS]
OTHERS = ("tiger face", "red apple", "pizza", "blue book", "smiling face with heart-eyes", "cat",
          "soccer ball", "deciduous tree", "full moon")  # fmt: skip
GUIDANCE = (1.0, 2.0, 3.0, 5.0, 7.0, 9.0)
OF_EACH = 4  # samples of a combination
REPEATS = 30  # of each combination in the training set


def training_set(emoji: Path, path: Path) -> None:
    """Writes the pictures and captions that are trained on, but for the held-out ones."""
    lines = (emoji / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    images, captions = [], []
    for entry in map(json.loads, lines):
        caption = entry["text"].replace(" large square", " square")
        if caption in HELD_OUT:
            continue
        image = np.asarray(Image.open(emoji / entry["file_name"]).convert("RGB"))
        times = REPEATS if caption in COMBINATIONS else 1
        images += [image] * times
        captions += [caption] * times
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=np.stack(images), text=np.array(captions))


def config_of(path: Path, taef2: Path, steps: int, seed: int) -> Any:
    """A U-Net on 8 x 8 latents, with MiniLM for the captions."""
    config = config_lib.default_config()
    config.seed = seed
    config.data.update(name="npz", path=str(path))
    config.codec.update(name="taef2", path=str(taef2))
    config.condition.update(text="minilm", text_length=16)
    config.model.name = "unet"
    config.model.unet.update(
        channels=64, channel_mults=(1, 2), num_blocks=1, attention_resolutions=(8, 4), head_width=32
    )
    config.schedule.update(log_snr_max=10.0, log_snr_min=-10.0)
    config.objective.prediction = "v"
    config.optimizer.update(learning_rate=1e-3, decay="cosine")
    config.ema.decay = 0.995
    config.training.update(
        batch_size=64, num_steps=steps, log_every=50, checkpoint_every=200, eval_every=0
    )
    config.evaluation.gradient_batches = 0
    config.sampling.update(sampler="dpmpp_2m", num_steps=20)
    return config


def measure(generate: diffax.Generator, seed: int) -> dict[str, Any]:
    """What samples at each guidance scale are."""
    prompts, found = COMBINATIONS * OF_EACH, {}
    for scale in GUIDANCE:
        images = to_8_bits(generate(len(prompts), seed, text=prompts, guidance_scale=scale))
        parts = {"seen": [], "held out": []}
        for i, prompt in enumerate(prompts):
            parts["held out" if prompt in HELD_OUT else "seen"].append(i)
        found[f"{scale:g}"] = {
            name: attributes.agreement(images[rows], [prompts[i] for i in rows])._asdict()
            for name, rows in parts.items()
        }
        print(f"seed {seed}, guidance {scale:g}: {found[f'{scale:g}']}", flush=True)
    return found


def sheet(generate: diffax.Generator, scale: float, path: Path) -> None:
    """A picture of the 27 combinations, the held-out ones underlined, and of other captions."""
    prompts = [*COMBINATIONS, *OTHERS]
    images = to_8_bits(generate(len(prompts), 0, text=prompts, guidance_scale=scale))
    columns, gap, side = 9, 8, images.shape[1]
    size = columns * (side + gap) + gap
    canvas = Image.new("RGB", (size, 4 * (side + gap) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (prompt, image) in enumerate(zip(prompts, images)):
        row, column = divmod(i, columns)
        left, top = gap + column * (side + gap), gap + row * (side + gap)
        canvas.paste(Image.fromarray(image), (left, top))
        if prompt in HELD_OUT:
            draw.rectangle((left, top + side + 2, left + side - 1, top + side + 4), fill="#d0006f")
    canvas.resize((2 * canvas.width, 2 * canvas.height), Image.Resampling.LANCZOS).save(path)


def page(raw: dict[str, Any]) -> str:
    """results/text_to_emoji.md."""
    seeds = [raw["seeds"][seed] for seed in sorted(raw["seeds"])]

    def cell(scale: str, part: str, key: str) -> str:
        values = [100 * seed["guidance"][scale][part][key] for seed in seeds]
        if len(values) < 2:
            return f"{values[0]:.0f}"
        interval = statistics.mean_interval(values)
        low, high = max(interval.low, 0), min(interval.high, 100)
        return f"{interval.mean:.0f} ({low:.0f} to {high:.0f})"

    columns = [(part, key) for part in ("seen", "held out") for key in ("both", "colour", "shape")]
    head = "| guidance | " + " | ".join(f"{part}: {key}" for part, key in columns) + " | chance |"
    lines = [head, "|---" * (len(columns) + 2) + "|"]
    for scale in seeds[0]["guidance"]:
        cells = [cell(scale, part, key) for part, key in columns]
        lines.append(f"| {scale} | {' | '.join(cells)} | {cell(scale, 'held out', 'chance')} |")
    return "\n".join(lines)


def raw_of_claim(raw: dict[str, Any], digits: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the ledger's claim, beside those of digits by their class: the raw numbers of
    the claim guidance_trades_diversity, of as many seeds."""
    seeds = [raw["seeds"][seed] for seed in sorted(raw["seeds"])]

    def right(seed: dict[str, Any], scale: float) -> float:
        parts = seed["guidance"][f"{scale:g}"].values()
        return sum(p["both"] * p["num"] for p in parts) / sum(p["num"] for p in parts)

    text = {f"right-{scale:g}": [right(seed, scale) for seed in seeds] for scale in GUIDANCE}
    by_class = {
        key: values[: len(seeds)]
        for key, values in digits["arms"]["cosine"].items()
        if not key.startswith("accuracy")
    }
    return {
        "claim": CLAIM,
        "scale": "digits",
        "about": "emoji of 64x64 in 8x8x32 latents, captions by a frozen MiniLM; a U-Net of 64"
        f" channels, {raw['steps']:,} steps of batch 64; experiments/text_to_emoji.py",
        "num_samples": OF_EACH * len(COMBINATIONS),
        "seeds": list(range(len(seeds))),
        # Of a seed that was resumed only the last part is known.
        "cpu_minutes": len(seeds) * max(seed["cpu_minutes"] for seed in seeds),
        "machine": raw["machine"],
        "date": raw["date"],
        "networks": {},
        "arms": {"text": text, "digits by class": by_class},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emoji", type=Path, help="the folder of captioned pictures")
    parser.add_argument("--taef2", type=Path, help="the folder with TAEF2's files")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / NAME)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--page", action="store_true", help="show the table of the raw numbers")
    args = parser.parse_args(argv)
    raw = args.results / f"{NAME}.json"
    if not args.page:
        if args.emoji is None or args.taef2 is None:
            parser.error("--emoji and --taef2 are needed, or --page")
        runtime.start(trains=True)
        path, found = args.workdir / "train.npz", {}
        if not path.exists():
            training_set(args.emoji, path)
        for seed in range(args.seeds):
            run, kept = args.workdir / f"seed{seed}", args.workdir / f"seed{seed}.json"
            if not kept.exists():
                begin = time.process_time()
                training.train(config_of(path, args.taef2, args.steps, seed), run)
                generate = diffax.Generator(run, batch_size=54)
                entry = {"guidance": measure(generate, seed)}
                if seed == 0:
                    sheet(generate, 2.0, args.results / f"{NAME}.png")
                write_json(kept, {**entry, "cpu_minutes": (time.process_time() - begin) / 60})
            found[str(seed)] = read_json(kept)
        whole = {
            "steps": args.steps,
            "seeds": found,
            "machine": f"{platform.machine()} CPU, jax {jax.__version__},"
            f" Python {platform.python_version()}",
            "date": f"{datetime.date.today()}",
        }
        write_json(raw, whole)
        claims = args.results / "claims"
        claims.mkdir(exist_ok=True)
        digits = read_json(RESULTS / "claims" / "guidance_trades_diversity.json")
        write_json(claims / f"{CLAIM}.json", raw_of_claim(whole, digits))
    print(page(read_json(raw)))


if __name__ == "__main__":
    main()
