"""TAEF2 with weights by a formula, and an image by a formula, for the tests and for the reference.

Run as a script, beside the `taesd.py` of https://github.com/madebyollin/taesd and with PyTorch, it
writes what that code makes of them, and of the published weights in the folder that is named:

    python tests/taef2_cases.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).with_name("taef2_reference.json")


def image(height=32, width=40):
    """(height, width, 3) in [-1, 1]."""
    y, x, c = np.meshgrid(*map(np.arange, (height, width, 3)), indexing="ij")
    return np.sin(0.3 * x + 0.2 * y * (1 + c) + c).astype(np.float32)


def latents(height=2, width=3):
    """(height, width, 32), many of which lie beyond the bound of the decoder."""
    values = 4 * np.sin(np.arange(height * width * 32))
    return values.reshape(height, width, 32).astype(np.float32)


def tensors(shapes):
    """Name -> a tensor of a shape, of a size that keeps signals as large as they are."""
    made = {}
    for i, (name, shape) in enumerate(shapes.items()):
        wave = np.cos(np.arange(np.prod(shape)) * (1 + 0.7 * i) + i).reshape(shape)
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 10
        centre = float(len(shape) == 1 and name.endswith("weight"))
        made[name] = (centre + np.sqrt(2 / fan_in) * wave).astype(np.float32)
    return made


def shown(array):
    """Some of the numbers of (height, width, channels)."""
    return array[::2, ::3, ::5].astype(float).ravel().round(6).tolist()


def outputs(encode, decode):
    """What is compared, of functions of one example."""
    z = encode(image())
    return {"z": shown(z), "x": shown(decode(z)), "far": shown(decode(latents()))}


def main(folder):
    import torch
    from taesd import Decoder, Encoder

    def call(network, array):
        with torch.no_grad():
            return network(torch.tensor(array.transpose(2, 0, 1))[None])[0].numpy()

    def of(encoder, decoder):
        return outputs(
            lambda x: call(encoder, (x + 1) / 2).transpose(1, 2, 0),
            lambda z: call(decoder, z).transpose(1, 2, 0) * 2 - 1,
        )

    networks = [made(32, use_midblock_gn=True) for made in (Encoder, Decoder)]
    shapes = [{k: tuple(v.shape) for k, v in n.state_dict().items()} for n in networks]
    for network, of_it in zip(networks, shapes):
        network.load_state_dict({k: torch.tensor(v) for k, v in tensors(of_it).items()})
    found = {"shapes": shapes, "formula": of(*networks)}
    for network, part in zip(networks, ("encoder", "decoder")):
        network.load_state_dict(torch.load(f"{folder}/taef2_{part}.pth", weights_only=True))
    found["published"] = of(*networks)
    REFERENCE.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
