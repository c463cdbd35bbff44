"""The tables of accelerator.py, from its rows."""

from collections.abc import Callable

Row = dict


def markdown(rows: list[Row]) -> str:
    """Markdown: a table for each kind of row that is there, those of one thing merged."""
    blocks = []
    for kind, (title, columns, key) in TABLES.items():
        merged: dict[tuple, Row] = {}
        for row in rows:
            if row["kind"] == kind:
                merged.setdefault(tuple(str(row[name]) for name in key), {}).update(row)
        if not merged:
            continue
        lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
        for row in merged.values():
            lines.append(" | ".join(cell(row, rows) for cell in columns.values()))
        blocks.append("\n".join([f"## {title}", "", *(f"| {line} |" for line in lines)]))
    return "\n\n".join(blocks) + "\n"


def found(rows: list[Row], kind: str, **wanted: object) -> Row:
    """The first row of a kind with these values; {} if there is none."""
    for row in rows:
        if row["kind"] == kind and all(row.get(key) == value for key, value in wanted.items()):
            return row
    return {}


def number(value: float | str | None, digits: int = 3) -> str:
    """For a cell; "-" if there is none."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def value(key: str, digits: int = 3) -> Callable:
    """The cell of a figure."""
    return lambda row, rows: number(row.get(key), digits)


def images_per_second(row: Row, side: str) -> float:
    """Of a pair's side."""
    return row["batch"] / row[side]["wall_seconds"]


def share(row: Row, rows: list[Row], speed: float) -> str:
    """Of the peak, at so many images a second."""
    peak = found(rows, "peak", dtype=row["dtype"]).get("flops_per_second")
    each = found(rows, "operations").get(row.get("step", "train"))
    if peak is None or each is None:
        return "-"
    times = row.get("num_steps", 1)
    return f"{100 * each * speed * times / peak:.1f}%"


def sides(cell: Callable[[Row, list[Row], str], str]) -> Callable:
    """ours / theirs."""
    return lambda row, rows: " / ".join(cell(row, rows, side) for side in ("ours", "theirs"))


def ratio(row: Row, rows: list[Row]) -> str:
    """With its range."""
    low, high = row["wall_ratio_range"]
    return f"{row['wall_ratio']:.3f} ({low:.3f} to {high:.3f})"


def memory(row: Row, rows: list[Row], side: str) -> str:
    """The peak, and the compiler's plan where there is one."""
    plan = row[side].get("planned_memory_mb")
    return number(row[side]["peak_memory_mb"]) + ("" if plan is None else f" ({number(plan)})")


def fed(row: Row, rows: list[Row]) -> str:
    """The pipeline's speed over that of the train step."""
    step = found(rows, "alone", part="alone")
    return number(row["images_per_second"] / step["images_per_second"]) if step else "-"


def distance(row: Row, rows: list[Row]) -> str:
    """The Fréchet distance's figures."""
    figures = row.get("distance", {})
    return ", ".join(f"{key} {number(each)}" for key, each in figures.items()) or "-"


# kind of row -> title, columns (how a cell is made), and the keys by which rows are told apart
TABLES = {
    "machine": (
        "Machine",
        {
            key: value(key)
            for key in "device nvidia_smi cores jax flax optax torch diffusers".split()
        },
        (),
    ),
    "peak": (
        "Rate of a large matrix product, operations a second",
        {"dtype": value("dtype"), "rate": lambda row, rows: f"{row['flops_per_second']:.3g}"},
        ("dtype",),
    ),
    "operations": (
        "Operations for an image, by XLA's count",
        {
            "train step": lambda row, rows: f"{row['train']:.3g}",
            "forward": lambda row, rows: f"{row['sample']:.3g}",
        },
        (),
    ),
    "pair": (
        "Ours / diffusers'",
        {
            "part": value("part"),
            "step": value("step"),
            "batch": value("batch"),
            "dtype": value("dtype"),
            "peer": value("peer_mode"),
            "time ours / theirs": ratio,
            "images/s": sides(lambda row, rows, side: number(images_per_second(row, side))),
            "share of peak": sides(
                lambda row, rows, side: share(row, rows, images_per_second(row, side))
            ),
            "memory, MB": sides(memory),
            "first, s": sides(lambda row, rows, side: number(row[side]["first_seconds"])),
            "XLA compiles, s": lambda row, rows: number(row["ours"].get("compile_seconds")),
        },
        ("part",),
    ),
    "alone": (
        "Ours alone",
        {
            "part": value("part"),
            "batch": value("batch"),
            "dtype": value("dtype"),
            "remat": lambda row, rows: str(row["remat"]),
            "images/s": value("images_per_second"),
            "share of peak": lambda row, rows: share(row, rows, row["images_per_second"]),
            "memory, MB": value("peak_memory_mb"),
            "planned, MB": value("planned_memory_mb"),
            "XLA compiles, s": value("compile_seconds"),
        },
        ("part",),
    ),
    "input": (
        "Input pipeline",
        {"batch": value("batch"), "images/s": value("images_per_second"), "fed": fed},
        (),
    ),
    "equality": (
        "Ten train steps against a CPU, relative differences",
        {
            "precision": value("precision"),
            "first loss": value("first_loss_difference"),
            "largest of a loss": value("loss_difference"),
            "parameters, of their norm": value("of_norm"),
            "parameters, of their movement": value("of_movement"),
        },
        ("precision",),
    ),
    "training": (
        "Training on Fashion-MNIST, four at once",
        {
            "arm": value("arm"),
            "seed": value("seed"),
            "steps": value("steps"),
            "steps/s": value("steps_per_second"),
            "first step, s": value("first_seconds"),
            "loss": value("loss"),
            "bits/dim": value("bpd", 4),
            "standard error": value("standard_error"),
            "Var(VLB)": value("vlb_variance"),
            "Fréchet distance": distance,
        },
        ("arm", "seed"),
    ),
    "error": (
        "What went wrong",
        {"part": value("part"), "of": lambda row, rows: str(row["of"]), "what": value("what")},
        ("part", "of", "what"),
    ),
    "end": (
        "Parts",
        {"part": value("part"), "how": value("how"), "seconds": value("seconds")},
        ("part",),
    ),
}
