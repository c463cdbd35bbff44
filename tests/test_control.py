"""Spatial control: beside x at the first layer, and by a ControlNet."""

import contextlib
import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_runs import PowerCut, assert_close, assert_equal, cut_after, prepare, small_config

import diffax
from diffax import cli, data, distributed, evaluation, training
from diffax import config as config_lib
from diffax.data import controls
from diffax.data.images import encode_png
from diffax.evaluation import segmentation
from diffax.interop.export import export
from diffax.models import DiT, UNet, control, operations
from diffax.models.control import ControlNet
from diffax.models.text import BytesNetwork
from diffax.training import codecs, teachers

pytestmark = pytest.mark.usefixtures("hasty_compiler")
SMALL = dict(channels=8, channel_mults=(1, 2), num_blocks=1, attention_resolutions=(4,))
BATCH = 3
X = jax.random.normal(jax.random.key(0), (BATCH, 8, 8, 1))
LEVEL = jnp.array([-3.0, 0.0, 4.0])
LABEL = jnp.array([0, 2, 1])
EDGES = (("control_edges", (8, 8, 1)),)


def random_params(network, *args, seed=1, **kwargs):
    """Parameters without any zeros, in the shapes of those at initialisation."""
    shapes = jax.eval_shape(lambda key: network.init(key, *args, **kwargs), jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes["params"])
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    made = [0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return structure.unflatten(made)


def given(*strengths, shape=(8, 8, 3), seed=2):
    image = jax.random.normal(jax.random.key(seed), (BATCH, *shape))
    return {"image": image, "strength": jnp.broadcast_to(jnp.array(strengths), (BATCH, 2))}


def test_folding_puts_each_block_into_the_channels():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    found = operations.folded(x, (2, 2))
    assert found.shape == (2, 2, 2, 2 * 3 * 3)
    np.testing.assert_array_equal(found[1, 1, 0], x[1, 2:4, 0:3].reshape(-1))
    np.testing.assert_array_equal(operations.folded(x, (4, 6)), x)
    with pytest.raises(ValueError, match="can't be folded to .3, 6."):
        operations.folded(x, (3, 6))


@pytest.mark.parametrize(
    "network, shape",
    [
        (functools.partial(UNet, **SMALL, num_classes=3), (16, 16, 2)),
        (functools.partial(DiT, width=16, depth=1, num_classes=3), (8, 8, 3)),
    ],
)
def test_a_control_stands_beside_x(network, shape):
    """No control is a strength of 0, which a control of zeros is not; the output has x's shape."""
    made = network(control_shape=shape)
    params = {"params": random_params(made, X, LEVEL)}
    called = jax.jit(lambda params, control: made.apply(params, X, LEVEL, LABEL, control=control))
    apply = functools.partial(called, params)
    one = {"image": jnp.ones((BATCH, *shape)), "strength": jnp.ones((BATCH, 1))}
    none = jax.tree.map(jnp.zeros_like, one)
    zeros = {**one, "image": none["image"]}
    plain = apply(None)
    assert plain.shape == X.shape
    np.testing.assert_allclose(apply(none), plain, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(apply({**one, "strength": none["strength"]}), apply(none))
    assert not np.allclose(apply(zeros), plain) and not np.allclose(apply(one), apply(zeros))
    with pytest.raises(ValueError, match="the control's shape is .*, as the network was made"):
        made.apply(params, X, LEVEL, control={**one, "image": jnp.ones((BATCH, 4, 4, 3))})
    with pytest.raises(ValueError, match="this network was made without one"):
        network().apply(params, X, LEVEL, control=one)


@pytest.fixture(scope="module")
def two():
    """A U-Net's parameters, a ControlNet of two controls on it as it starts and with other joints,
    and functions of (control) for each."""
    fields = dict(**SMALL, num_classes=3)
    base = UNet(**fields)
    network = ControlNet(**fields, control_shape=(8, 8, 3), control_channels=(1, 2))
    of_base = random_params(base, X, LEVEL)
    first = jax.jit(network.init)(jax.random.key(5), X, LEVEL)["params"]
    start = control.started(first, of_base)
    other = random_params(network, X, LEVEL, seed=7)

    @jax.jit
    def apply(params, control):
        return network.apply({"params": params}, X, LEVEL, LABEL, control=control)

    plain = jax.jit(lambda params: base.apply({"params": params}, X, LEVEL, LABEL))(of_base)
    return plain, of_base, start, control.trained_part(other), apply


def test_a_controlnet_starts_as_its_base_bit_for_bit(two):
    """And is its base at strength 0, whatever it has learned, or without a control."""
    plain, base, start, other, apply = two
    assert np.std(plain) > 0
    np.testing.assert_array_equal(apply({**start, "base": base}, given(1.0, 0.7)), plain)
    np.testing.assert_array_equal(apply({**other, "base": base}, given(0.0, 0.0)), plain)
    assert not np.allclose(apply({**other, "base": base}, given(0.0, 1e-2)), plain)


def test_a_branch_starts_with_its_base_parameters(two):
    """All that a U-Net's encoder and middle have; what is new are the hint and the joints."""
    _, base, start, _, _ = two
    for branch in ("control_0", "control_1"):
        own = start[branch]
        new = {name for name in own if name not in base}
        assert new == {f"joint_{i}" for i in range(5)} | {f"hint_{i}" for i in range(3)}
        shared = own.keys() - new
        assert shared == {n for n in base if not n.startswith(("up_", "last"))}
        for name in shared:
            jax.tree.map(np.testing.assert_array_equal, own[name], base[name])


def test_controls_are_summed_by_their_strengths(two):
    """Joints add up: at the first joint's place the sum of both is that of each alone."""
    _, base, _, other, apply = two
    both = given(0.6, 0.3)
    single = ControlNet(**SMALL, num_classes=3, control_shape=(8, 8, 1), control_channels=(1,))
    alone = {"image": both["image"][..., :1], "strength": both["strength"][:, :1]}
    params = {"control_0": other["control_0"], "base": base}
    found = jax.jit(
        lambda params: single.apply({"params": params}, X, LEVEL, LABEL, control=alone)
    )(params)
    expected = apply({**other, "base": base}, {**both, "strength": jnp.array([[0.6, 0.0]] * BATCH)})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # Each row has its own strengths.
    rows = jnp.array([[0.6, 0.3], [0.0, 0.0], [0.6, 0.0]])
    mixed = apply({**other, "base": base}, {**both, "strength": rows})
    whole = apply({**other, "base": base}, both)
    for row, same in ((0, whole), (1, two[0]), (2, expected)):
        np.testing.assert_allclose(mixed[row], same[row], rtol=1e-5, atol=1e-5)


# --- controls that are computed from the data -----------------------------------------------------


def picture(size=16):
    """A bright square on black, in colour, and a black picture."""
    x = np.full((2, size, size, 3), -1, np.float32)
    x[0, 4:12, 4:12] = (1, 0.5, 0)
    return x


def test_edges_are_where_the_square_ends():
    x = picture()
    found = controls.edges(x)
    assert found.shape == (2, 16, 16, 1) and set(np.unique(found)) == {-1, 1}
    inside = np.zeros((16, 16), bool)
    inside[3:13, 3:13], inside[5:11, 5:11] = True, False  # a line of 2 along each side
    inside[3:13:9, 3:13:9] = False  # Sobel's kernels see little at a corner's outside
    np.testing.assert_array_equal(found[0, ..., 0] > 0, inside)
    assert np.all(found[1] == -1)  # an even picture has none
    # Brightness and contrast change nothing, and mirroring mirrors.
    np.testing.assert_array_equal(controls.edges(0.3 * x + 0.2), found)
    np.testing.assert_array_equal(controls.edges(x[:, :, ::-1]), found[:, :, ::-1])
    assert controls.edges(x[:, :, 5]).shape == (2, 16, 1)  # signals too


def test_the_other_controls_in_closed_form():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    np.testing.assert_allclose(controls.grey(x)[..., 0], x.mean(-1))
    low = controls.low_resolution(x)
    block = x[1, 4:8, 8:12].mean((0, 1))
    np.testing.assert_allclose(low[1, 4:8, 8:12], np.broadcast_to(block, (4, 4, 3)), atol=1e-6)
    masked = controls.masked(x)
    assert masked.shape == (2, 8, 12, 4)
    assert np.all(masked[:, 2:6, 3:9, :3] == 0) and np.all(masked[:, 2:6, 3:9, 3] == 1)
    hidden = masked[..., 3] > 0
    assert hidden.sum() == 2 * 4 * 6
    np.testing.assert_array_equal(masked[~hidden][:, :3], x[~hidden])
    even = np.full((1, 8, 8, 1), 0.25, np.float32)
    np.testing.assert_allclose(controls.blurred(even), even, rtol=1e-6)
    # A wave of length 4 keeps exp(-(2 pi / 4)^2 / 2) = 0.2912 of its height (deviation 1).
    wave = np.cos(np.arange(64) * np.pi / 2).reshape(1, 64, 1, 1) * np.ones((1, 64, 16, 1))
    wave = wave.astype(np.float32)[:, :16]
    np.testing.assert_allclose(controls.blurred(wave)[:, 4:12], 0.2912 * wave[:, 4:12], atol=0.005)


# --- runs -----------------------------------------------------------------------------------------


def config_of(**changes):
    """A tiny U-Net on digits."""
    unet = {f"model__unet__{name}": value for name, value in SMALL.items()}
    tiny = dict(data__name="digits", model__name="unet", **unet)
    return small_config(**(tiny | changes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, a ControlNet on it that follows edges, and a network with edges as an input."""
    root = tmp_path_factory.mktemp("runs")
    of_control = dict(condition__control="edges", condition__control_dropout=0.25)
    configs = {
        "base": config_of(training__num_steps=4),
        "net": config_of(**of_control, condition__base=str(root / "base"), training__num_steps=6),
        "concat": config_of(**of_control, training__num_steps=6),
    }
    for name, config in configs.items():
        training.train(config, root / name)
    return {name: training.load(root / name) for name in configs}


def test_the_base_is_neither_trained_nor_in_the_gradient_and_the_optimiser(runs):
    base, net = runs["base"].state, runs["net"].state
    assert_equal(net.base, base.ema_params)
    assert set(net.params) == set(net.ema_params) == {"control_0"}
    leaves = {jnp.shape(leaf) for leaf in jax.tree.leaves(net.opt_state)}
    trained = {jnp.shape(leaf) for leaf in jax.tree.leaves(net.params)}
    assert leaves <= trained | {()}
    batch = config_lib.load_data(runs["net"].config).train.batch(np.arange(8))
    gradient = jax.jit(runs["net"].method.gradient, static_argnums=3)(
        net, batch, jax.random.key(0), distributed.LOCAL
    )
    assert jax.tree.structure(gradient) == jax.tree.structure(net.params)
    joints = gradient["control_0"]["joint_0"]["kernel"]
    assert np.any(np.asarray(joints)) and np.any(
        np.asarray(net.params["control_0"]["hint_2"]["kernel"])
    )


def test_it_is_exported_with_its_base(runs, tmp_path):
    net = runs["net"]
    export(net, tmp_path, to="npz")
    arrays = np.load(tmp_path / "model.npz")
    found = flax.traverse_util.unflatten_dict(dict(arrays), sep="/")
    assert_equal(found, {**jax.device_get(net.state.ema_params), "base": net.state.base})
    assert f"condition.base={net.config.condition.base!r}" in (tmp_path / "README.md").read_text()


def test_a_controlnet_begins_with_the_samples_of_its_base(runs):
    """Before the first step, along the whole way of a sampler; it then moves away."""
    config = runs["net"].config
    teacher = teachers.teacher_of(config, runs["net"].dataset)
    method = codecs.build_method(config, runs["net"].dataset, teacher)
    first = jax.jit(method.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    image = jnp.ones((4, 8, 8, 1))

    @jax.jit
    def draw(state, strength):
        cond = {"control": {"image": image, "strength": strength}}
        return method.sample(state, keys, cond)

    plain = jax.jit(lambda state: runs["base"].method.sample(state, keys, {}))(runs["base"].state)
    np.testing.assert_array_equal(draw(first, jnp.ones((4, 1))), plain)
    np.testing.assert_array_equal(draw(runs["net"].state, jnp.zeros((4, 1))), plain)
    assert not np.allclose(draw(runs["net"].state, jnp.ones((4, 1))), plain)


# --- samples and edits ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generators(runs):
    return {name: diffax.Generator(run, num_devices=1) for name, run in runs.items()}


def test_samples_follow_the_held_out_controls_by_default(runs, generators):
    """In turn, as when they are given."""
    held_out = config_lib.load_data(runs["net"].config).eval
    image = controls.edges(held_out.array(np.arange(3)))
    for name in ("net", "concat"):
        plain = generators[name](3, seed=1)
        np.testing.assert_array_equal(generators[name](3, seed=1, control=image), plain)
        # Each sample depends on its own control alone.
        one = generators[name](3, seed=1, control=image[:1])
        np.testing.assert_array_equal(one[0], plain[0])
        assert not np.array_equal(one[1], plain[1])


def test_a_control_may_be_lists_of_numbers(generators):
    image = np.ones((8, 8, 1), np.float32)
    for each in (image.tolist(), [image.tolist()], [image]):
        found = generators["net"].controls(3, each)
        np.testing.assert_array_equal(found[np.arange(3)]["image"], np.stack([image] * 3))


def test_strength_is_free_and_0_is_the_base(runs, generators):
    """One program for all strengths."""
    generate, image = generators["net"], np.ones((8, 8, 1), np.float32)
    at = {s: generate(3, seed=1, control=image, control_strength=s) for s in (0, 0.5, 1)}
    programs = {key: f.compiled._cache_size() for key, f in generate._compiled.items()}
    generate(3, seed=2, control=-image, control_strength=0.123)
    assert programs == {key: f.compiled._cache_size() for key, f in generate._compiled.items()}
    np.testing.assert_array_equal(at[0], generators["base"](3, seed=1))
    apart = [np.abs(at[s] - at[0]).max() for s in (0.5, 1)]
    assert 0 < apart[0] < apart[1]


def test_edits_follow_a_control(runs, generators):
    """By default what is computed from the data; inpainting and starts need one."""
    generate = generators["net"]
    x = config_lib.load_data(runs["net"].config).eval.array(np.arange(2))
    edited = generate.sdedit(x, 0.5)
    np.testing.assert_array_equal(generate.sdedit(x, 0.5, control=controls.edges(x)), edited)
    assert not np.array_equal(generate.sdedit(x, 0.5, control_strength=0), edited)
    np.testing.assert_array_equal(
        generate.sdedit(x, 0.5, control_strength=0), generators["base"].sdedit(x, 0.5)
    )
    between = generate.interpolate(x[0], x[1], [0.0, 1.0])
    assert between.shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="give that of the inpaint data"):
        generate.inpaint(x, 1.0)


def test_guidance_compares_with_no_control(runs, generators):
    """A scale of 1 is the network as it is, 0 that without a control, which is the base."""
    generate, image = generators["net"], np.ones((8, 8, 1), np.float32)
    plain = generators["base"](2, seed=3)
    none = generate(2, seed=3, control=image, guidance_scale=0.0)
    np.testing.assert_allclose(none, plain, rtol=1e-4, atol=1e-5)
    assert not np.allclose(generate(2, seed=3, control=image, guidance_scale=3.0), plain)


def test_controlnets_on_one_base_are_summed(runs, tmp_path):
    """Each by its own strength; at that of one alone they are that one."""
    net = runs["net"]
    config = config_of(
        condition__control="low_resolution",
        condition__base=net.config.condition.base,
        training__num_steps=3,
    )
    training.train(config, tmp_path / "low")
    both = training.combined(net, tmp_path / "low")
    assert both.config.condition.control == "edges,low_resolution"
    generate = diffax.Generator(both, num_devices=1)
    images = [np.ones((8, 8, 1), np.float32), -np.ones((8, 8, 1), np.float32)]
    found = generate(2, seed=4, control=images)
    one = generate(2, seed=4, control=images, control_strength=[1, 0])
    alone = diffax.Generator(net, num_devices=1)(2, seed=4, control=images[0])
    np.testing.assert_allclose(one, alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, alone, atol=1e-4)
    assert generate(2).shape == (2, 8, 8, 1)  # those of the evaluation split
    with pytest.raises(ValueError, match="holds no ControlNet"):
        training.combined(net, runs["concat"])
    with pytest.raises(ValueError, match="control has 1 entries: .* edges, low_resolution"):
        generate(2, control=images[0])
    # Two that follow files would both have those of the first one's data.
    files = config_lib.changed(both.config, {"condition.control": "files,files"})
    with pytest.raises(ValueError, match="control=None: .* files, files, .*: give control, an arr"):
        diffax.Generator(both._replace(config=files), num_devices=1).controls(2)


@pytest.mark.parametrize(
    "name, asked, said",
    [
        ("base", dict(control=np.ones((8, 8, 1))), "this network follows no control"),
        ("base", dict(control_strength=0.5), "this network follows no control"),
        ("net", dict(control=np.ones((4, 4, 1))), r"'edges' is \(8, 8, 1\) for all, or \(2, 8"),
        ("net", dict(control=np.ones((8, 8, 3))), r"control has shape \(8, 8, 3\)"),
        ("net", dict(control=np.ones((5, 8, 8, 1))), r"\(2, 8, 8, 1\) for each of 2"),
        ("net", dict(control=np.full((8, 8, 1), 9.0)), "control has values from 9"),
        ("net", dict(control=np.full((8, 8, 1), np.nan)), "control: 1 of 1 examples are not fin"),
        ("net", dict(control=np.zeros((4, 4, 1)).tolist()), r"control has shape \(4, 4, 1\)"),
        ("net", dict(control_strength=-1), "a number of at least 0"),
        ("net", dict(control_strength=[1, 1]), "a number of at least 0"),
        ("concat", dict(control_strength=0.5), "strength is 1 or 0, which is no control"),
    ],
)
def test_a_control_that_can_not_be_is_refused(generators, name, asked, said):
    with pytest.raises(ValueError, match=said):
        generators[name](2, **asked)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(condition__control="edge"), "did you mean edges"),
        (dict(condition__base="/nowhere"), "a ControlNet is trained beside its base to follow"),
        (
            dict(condition__control="edges", condition__base="b", model__name="dit"),
            "a ControlNet copies the encoder of a 'unet'",
        ),
        (
            dict(
                condition__control="edges",
                condition__base="b",
                method__name="consistency",
                sampling__sampler="consistency",
            ),
            "a ControlNet is trained by method 'diffusion'",
        ),
        (dict(condition__control="edges", model__name="mlp"), "MLP takes no control"),
        (
            dict(condition__control="edges", sampling__guidance_scale=2.0),
            "condition.control_dropout above 0 in training",
        ),
    ],
)
def test_configs_that_can_not_be_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        config_lib.validate(config_of(**changes))


def test_a_base_that_does_not_fit_is_refused_before_training(runs, tmp_path):
    base = runs["net"].config.condition.base
    for changes, said in (
        (dict(model__unet__channels=16), "can't start from the weights of the base"),
        (dict(objective__prediction="v"), "and the base in .* predicts 'eps'"),
        (
            dict(condition__base=str(runs["net"].workdir)),
            "holds a ControlNet",
        ),
        (dict(condition__base=str(tmp_path / "none")), "holds no run"),
        (dict(condition__control="files"), "has no controls: name them in a folder's metadata"),
    ):
        config = config_of(**(dict(condition__control="edges", condition__base=base) | changes))
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            training.train(config, tmp_path / "run")


# --- what is measured -----------------------------------------------------------------------------


def test_edges_are_scored_place_by_place(runs):
    """Held-out data have those of themselves; the score of a run says what chance is."""
    run = runs["net"]
    dataset = config_lib.load_data(run.config)
    rows = evaluation.rows_of_samples(dataset, 20)
    found = evaluation.evaluate(run, dataset, ["edge_f1"], samples=dataset.eval.array(rows))
    assert found["edge_f1"]["edge_f1"] == 1 and 0 < found["edge_f1"]["chance"] < 0.9
    a = np.full((2, 8, 8, 1), -1, np.float32)
    b = a.copy()
    b[0, :, 4:] = 1
    np.testing.assert_allclose(segmentation.edge_f1(a, b), [0, 1])
    with pytest.raises(ValueError, match="known of samples of a run alone"):
        evaluation.score(dataset.eval.x, evaluation.Reference.of(dataset), ["edge_f1"])


def test_masks_are_read_by_a_segmenter_of_the_data(monkeypatch):
    """Intersection over union in closed form, and of what a network that was trained reads."""
    found = np.array([[[0, 0], [1, 1]], [[2, 2], [2, 2]]])
    expected = np.array([[[0, 1], [1, 1]], [[2, 2], [2, 2]]])
    np.testing.assert_allclose(segmentation.iou(found, expected, 3), [(1 / 2 + 2 / 3) / 2, 1])
    rng = np.random.default_rng(0)
    masks = np.zeros((40, 8, 8, 1), np.uint8)
    for mask in masks:
        i, j = rng.integers(0, 5, 2)
        mask[i : i + 3, j : j + 3] = 255
    x = np.clip(masks.astype(float) * 0.6 + rng.normal(60, 20, masks.shape), 0, 255)
    whole = data.Split(x.astype(np.uint8), None, {"control": masks})
    dataset = data.make_dataset("a", whole.take(np.arange(32)), whole.take(np.arange(32, 40)))
    monkeypatch.setitem(segmentation.SETTINGS, "steps", 30)
    segmenter = segmentation.get_segmenter(dataset)
    assert segmenter.values == (-1.0, 1.0) and segmenter.iou > 0.9
    reference = evaluation.Reference.of(dataset)
    score = functools.partial(evaluation.score, reference=reference, names=["mask_iou"])
    own = score(dataset.eval.x, rows=np.arange(8))["mask_iou"]
    assert own["mask_iou"] == pytest.approx(own["segmenter_iou"]) and own["chance"] < 0.7
    other = score(dataset.eval.x, rows=np.roll(np.arange(8), 1))["mask_iou"]
    assert other["mask_iou"] < 0.7
    grey = dataclasses.replace(whole, arrays={"control": x.astype(np.uint8)})
    with pytest.raises(ValueError, match="are no masks"):
        segmentation.get_segmenter(data.make_dataset("a", grey, grey))
    # A mask that was made smaller rings: values near those of a class make no class of their own.
    large = rng.integers(0, 3, (20, 4, 4)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    small = [
        np.asarray(Image.fromarray(127 * one).resize((32, 32), Image.Resampling.LANCZOS))
        for one in large
    ]
    assert segmentation.classes_of(np.stack(small)[..., None]) == (
        *(-1.0, pytest.approx(127 / 127.5 - 1), pytest.approx(254 / 127.5 - 1)),
    )


# --- devices, resuming, other methods, captions ---------------------------------------------------


def test_killed_and_resumed_on_eight_devices_it_is_that_of_one(runs, tmp_path, monkeypatch):
    config = config_lib.changed(
        runs["net"].config, {"parallel.num_devices": 8, "training.checkpoint_every": 3}
    )
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, 4)
        training.train(config, tmp_path)
    assert training.steps_done(tmp_path) == 3
    state, _ = training.train(config, tmp_path)
    assert_equal(jax.device_get(state.base), jax.device_get(runs["base"].state.ema_params))
    expected = runs["net"].state
    assert_close(state.params, expected.params, rtol=1e-2, atol=1e-3)
    assert int(state.step) == int(expected.step) == 6


@pytest.mark.parametrize("name", ["mean_flow", "consistency"])
def test_methods_of_few_steps_take_a_control_as_an_input(name):
    """The loss depends on it."""
    dit = dict(model__name="dit", model__dit__width=16, model__dit__depth=1)
    prediction, solver = {"mean_flow": ("flow", "ddim"), "consistency": ("v", "consistency")}[name]
    config = config_of(
        **dit,
        method__name=name,
        condition__control="edges",
        objective__prediction=prediction,
        sampling__sampler=solver,
    )
    info = training.DatasetInfo("digits", (8, 8, 1), 10, None, (), arrays=EDGES)
    step, state = prepare(config, info)
    batch = {"x": np.asarray(X)[:2], "control_edges": np.ones((2, 8, 8, 1), np.float32)}
    state, first = step(state, batch)  # the output is zero before
    _, metrics = step(state, batch)
    _, other = step(state, {**batch, "control_edges": -batch["control_edges"]})
    # Mean flow's loss is weighted by its own size, and is 1 nearly.
    first, second = (found.get("error", found["loss"]) for found in (metrics, other))
    assert np.isfinite(first) and first != second


def test_a_network_of_captions_has_a_branch_of_its_own():
    """The base's parameters are those of the U-Net alone, its text encoder's with them."""
    fields = dict(**SMALL, text=BytesNetwork(8, 8, 1, jnp.float32))
    alone, both = (
        jax.eval_shape(lambda key, net=net: net.init(key, X, LEVEL), jax.random.key(0))["params"]
        for net in (
            UNet(**fields),
            ControlNet(**fields, control_shape=(8, 8, 1), control_channels=(1,)),
        )
    )
    assert set(both) == {"base", "control_0"}
    assert jax.tree.map(jnp.shape, both["base"]) == jax.tree.map(jnp.shape, alone)
    assert {"text", "text_pooled"} <= both["control_0"].keys()


def test_sample_follows_files_on_the_command_line(runs, generators, tmp_path, capsys):
    """Files come in turn; one of another size or number of channels is refused before work."""
    run = runs["net"]
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, images):
        path.write_bytes(encode_png(image))
    command = ["sample", f"--workdir={run.workdir}", f"--out={tmp_path}/drawn"]
    followed = ["--control", *map(str, paths), "--control-strength=0.7", "--num=3", "--seed=1"]
    assert cli.main([*command, *followed]) == 0
    found = np.load(tmp_path / "drawn.npz")
    control = data.dataset.to_float(images)[[0, 1, 0]]
    np.testing.assert_array_equal(found["control"], control)
    expected = generators["net"](3, seed=1, control=control, control_strength=0.7)
    np.testing.assert_allclose(found["samples"], expected, rtol=1e-4, atol=1e-5)
    paths[0].write_bytes(encode_png(np.zeros((4, 8, 1), np.uint8)))
    paths[1].write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    for flags, said in (
        (["--control", str(paths[0])], "its size and channels are (4, 8, 1), and this network's"),
        (["--control", str(paths[1])], "its size and channels are (8, 8, 3)"),
        (["--control", str(tmp_path / "none.png")], "no such file"),
        (["--control", "a.png", "--control", "b.png"], "--control is given 2 times"),
        (["--control-strength=much"], "must be a number, or numbers joined by commas"),
        ([f"--controlnet={runs['base'].workdir}"], "holds no ControlNet"),
    ):
        capsys.readouterr()
        with contextlib.suppress(SystemExit):
            assert cli.main([*command, *flags]) == 1
        assert said in capsys.readouterr().err
