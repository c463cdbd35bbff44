"""diffusers' UNet2DModel and DDIMScheduler as a peer of benchmark.py, which starts this program.

    python experiments/diffusers_peer.py '{"shape": [32, 32, 1], "batch": 16, ...}'

The argument is what `benchmark.peer_task` gives. Nothing of diffax or JAX is imported.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial

import pairing

LIBRARIES = ("torch", "diffusers")


def build(task: dict):
    """The UNet2DModel whose levels, blocks, attention and channels are those of the task."""
    import diffusers

    sizes = [task["shape"][0] // 2**level for level in range(len(task["channel_mults"]))]
    kinds = ["Attn" * (size in task["attention_resolutions"]) for size in sizes]
    return diffusers.UNet2DModel(
        sample_size=tuple(task["shape"][:2]),
        in_channels=task["shape"][-1],
        out_channels=task["shape"][-1],
        layers_per_block=task["num_blocks"],
        block_out_channels=tuple(task["channels"] * mult for mult in task["channel_mults"]),
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=task["head_width"],
        norm_num_groups=task["norm_groups"],
    )


def train(model, x, eps, steps, precision: Callable) -> Callable:
    """A training step: eps-MSE, Adam with learning rate 1e-4 (one kernel on a GPU)."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=x.is_cuda)
    model.train()

    def once():
        optimizer.zero_grad()
        with precision():
            loss = torch.nn.functional.mse_loss(model(x, steps).sample.float(), eps)
        loss.backward()
        optimizer.step()

    return once


def forward(model, x, eps, steps, precision: Callable) -> Callable:
    """A forward pass."""
    import torch

    def once():
        model.eval()
        with torch.no_grad(), precision():
            model(x, steps)

    return once


def sample(num_steps: int, model, x, eps, steps, precision: Callable) -> Callable:
    """DDIM, as diffusers' documentation writes the loop."""
    import diffusers
    import torch

    scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(num_steps)

    def once():
        model.eval()
        image = x
        with torch.no_grad(), precision():
            for t in scheduler.timesteps:
                image = scheduler.step(model(image, t).sample, t, image).prev_sample

    return once


def eager(model, *images) -> tuple:
    """Model and data as they are."""
    return model, *images


def compiled(model, *images) -> tuple:
    """The model compiled; channels last."""
    import torch

    layout = dict(memory_format=torch.channels_last)
    model = torch.compile(model.to(**layout), dynamic=False)
    return model, *(image.contiguous(**layout) for image in images)


MODES = {"eager": eager, "compile": compiled}


def settle_cpu() -> None:
    """One thread."""
    import torch

    torch.set_num_threads(1)


def settle_gpu() -> None:
    """tf32 allowed, as it is in XLA; convolutions by the fastest algorithm."""
    import torch

    torch.set_float32_matmul_precision("high")  # of convolutions it is by default
    torch.backends.cudnn.benchmark = True


def finish_cpu() -> dict:
    """Nothing: the work is done."""
    return {}


def finish_gpu() -> dict:
    """Waits for the GPU; the most of its memory that arrays have held since the last time."""
    import torch

    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 1e6
    torch.cuda.reset_peak_memory_stats()
    return dict(peak_memory_mb=peak)


# device -> its settings, and what ends a turn
DEVICES = {"cpu": (settle_cpu, finish_cpu), "cuda": (settle_gpu, finish_gpu)}


def finished(finish: Callable, calls: int, part: Callable, *given) -> Callable:
    """The function that does a part `calls` times and returns when the work is done."""
    begin = part(*given)

    def turn() -> dict:
        for _ in range(calls):
            begin()
        return finish()

    return turn


def start(task: dict) -> tuple[dict, dict[str, Callable]]:
    """About this program, and its parts, for `pairing.serve`.

    Raises:
      ValueError: a library is missing.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{sys.executable} has no {' and no '.join(missing)}, which the comparison needs: "
            "pip install '.[bench]', or name a Python that has them by --peer-python"
        )
    import diffusers
    import torch

    device = task["device"]
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"{sys.executable} has a torch that sees no GPU; JAX has one here")
    torch.manual_seed(0)
    model = build(task).to(device)
    if task["remat"]:
        model.enable_gradient_checkpointing()
    about = dict(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        versions=dict(torch=torch.__version__, diffusers=diffusers.__version__),
    )
    x, eps = torch.randn(2, task["batch"], task["shape"][-1], *task["shape"][:2], device=device)
    settle, finish = DEVICES[device]
    settle()
    model, x, eps = MODES[task["mode"]](model, x, eps)
    steps = torch.linspace(0, 999, task["batch"], device=device).long()
    # Parameters stay float32, as ours do: what is bfloat16 is the computation.
    precision = partial(torch.autocast, device, torch.bfloat16, enabled=task["dtype"] == "bfloat16")
    given = (model, x, eps, steps, precision)
    parts = dict(train=train, forward=forward, sample=partial(sample, task["num_steps"]))
    turn = partial(finished, finish, task["calls"])
    return about, {name: partial(turn, part, *given) for name, part in parts.items()}


if __name__ == "__main__":
    given_task = json.loads(sys.argv[1])
    pairing.pin(given_task["core"])
    pairing.serve(partial(start, given_task))
