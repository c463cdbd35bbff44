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
    """A training step: eps-MSE, Adam with learning rate 1e-4."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
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


def on_one_core(*given) -> tuple:
    """Model and data as they are, one thread."""
    import torch

    torch.set_num_threads(1)
    return given


def on_gpu(model, *images) -> tuple:
    """The model compiled; channels last; tf32 allowed, as it is in XLA."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    layout = dict(memory_format=torch.channels_last)
    model = torch.compile(model.to(**layout))
    return model, *(image.contiguous(**layout) for image in images)


def synchronize() -> None:
    """Waits for the GPU."""
    import torch

    torch.cuda.synchronize()


# device -> what prepares model and data there, and what waits for the end of the work
DEVICES = {"cpu": (on_one_core, lambda: None), "cuda": (on_gpu, synchronize)}


def finished(finish: Callable, part: Callable, *given) -> Callable:
    """`part`'s function, which returns when the work is done."""
    begin = part(*given)

    def once():
        begin()
        finish()

    return once


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
    prepare, finish = DEVICES[device]
    model, x, eps = prepare(model, x, eps)
    steps = torch.linspace(0, 999, task["batch"], device=device).long()
    # Parameters stay float32, as ours do: what is bfloat16 is the computation.
    precision = partial(torch.autocast, device, torch.bfloat16, enabled=task["dtype"] == "bfloat16")
    given = (model, x, eps, steps, precision)
    parts = dict(train=train, forward=forward, sample=partial(sample, task["num_steps"]))
    return about, {name: partial(finished, finish, part, *given) for name, part in parts.items()}


if __name__ == "__main__":
    given_task = json.loads(sys.argv[1])
    pairing.pin(given_task["core"])
    pairing.serve(partial(start, given_task))
