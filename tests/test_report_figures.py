"""Figures draw the numbers; colours differ for everybody; samples become pictures."""

import io
import itertools

import numpy as np
import pytest
from ablation_cases import BPD, SPEC, VARIANCE, make_results
from PIL import Image

from diffax.report import figures
from diffax.report.analysis import analyse


def test_forest_draws_the_numbers():
    analysis = analyse(SPEC, make_results())
    for metric in (VARIANCE, BPD):
        ax = figures.forest(analysis, metric).axes[0]
        lines = [tuple(np.atleast_1d(line.get_xdata())) for line in ax.lines]
        for y, c in enumerate(analysis.of_metric(metric.key)):
            assert (c.difference.low, c.difference.high) in lines
            mark = next(m for m in ax.lines if tuple(np.atleast_1d(m.get_xdata())) == (c.effect,))
            assert np.atleast_1d(mark.get_ydata())[0] == y
            decided = c.outcome in ("lower", "higher")
            assert (mark.get_markerfacecolor() == mark.get_markeredgecolor()) == decided
        assert (c.difference.no_effect,) * 2 in lines
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert labels == ["cosine", "linear beta"]
        assert ax.get_xscale() == metric.scale


def test_curves_draw_means_over_seeds():
    results = make_results()
    analysis = analyse(SPEC, results)
    ax = figures.schedule_log_snr(analysis).axes[0]
    colour = figures.line_style(figures.palette_index(analysis)["cosine"])[0]
    line = next(line for line in ax.lines if line.get_color() == colour)
    mean = np.mean(
        [r["curves"]["schedule"]["log_snr"] for r in results if r["arm"] == "cosine"], axis=0
    )
    np.testing.assert_allclose(line.get_ydata(), mean)
    alpha_bar = figures.schedule_alpha_bar(analysis).axes[0]
    assert len(alpha_bar.lines) == 4  # three arms, and learned before learning
    assert all(0 <= y <= 1 for line in alpha_bar.lines for y in line.get_ydata())


def test_long_curves_are_thinned_by_means():
    loss = figures.curve(analyse(SPEC, make_results()), "training_loss").axes[0].lines[0]
    assert len(loss.get_xdata()) == 300
    np.testing.assert_allclose(loss.get_xdata()[:2], [1, 4])
    assert loss.get_ydata()[0] == pytest.approx(np.exp(-np.arange(3) / 200).mean())


def test_the_end_of_a_long_curve_is_drawn():
    """901 points in blocks of four, the last of one point."""
    results = make_results()
    for r in results:
        steps = np.arange(901)
        r["curves"] = {"training_loss": {"step": steps, "loss": np.where(steps == 900, 5.0, 1.0)}}
    loss = figures.curve(analyse(SPEC, results), "training_loss").axes[0].lines[0]
    assert len(loss.get_xdata()) == 226
    assert loss.get_xdata()[-1] == 900 and loss.get_ydata()[-1] == 5.0
    assert loss.get_xdata()[-2] == 897.5 and loss.get_ydata()[-2] == 1.0


@pytest.mark.parametrize("apart", [False, True], ids=["same x", "each its own x"])
def test_a_curve_of_one_point_is_a_dot(apart):
    results = make_results()
    for r in results:
        step = 100 + apart * r["seed"]
        r["curves"] = {"training_loss": {"step": [step], "loss": [1.0 + r["seed"]]}}
    ax = figures.curve(analyse(SPEC, results), "training_loss").axes[0]
    assert len(ax.lines) == (9 if apart else 3)
    assert all(line.get_marker() == "o" for line in ax.lines)
    if not apart:  # the band from the lowest seed to the highest
        assert all(band.get_linewidth() > 0 for band in ax.collections)
    whole = figures.curve(analyse(SPEC, make_results()), "training_loss").axes[0]
    assert not any(line.get_marker() == "o" for line in whole.lines)


def test_seeds_on_their_own_grids_are_drawn_one_by_one():
    results = make_results()
    for r in results:
        r["curves"] = {"loss_by_log_snr": {"log_snr": [r["seed"], 3.0 + r["seed"]], "loss": [1, 2]}}
    ax = figures.curve(analyse(SPEC, results), "loss_by_log_snr").axes[0]
    assert len(ax.lines) == 9


def simulated(colour, matrix):
    """CIELAB of a colour as seen with a colour-vision deficiency (Machado 2009, severity 1)."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(np.array(matrix).reshape(3, 3) @ linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    "matrix",
    [
        (
            0.152286,
            1.052583,
            -0.204868,
            0.114503,
            0.786281,
            0.099216,
            -0.003882,
            -0.048116,
            1.051998,
        ),
        (0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.01182, 0.04294, 0.968881),
        (1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.3039),
    ],
    ids=["protanopia", "deuteranopia", "tritanopia"],
)
@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_differ_for_the_colour_blind(matrix, scheme):
    seen = [simulated(pair[scheme], matrix) for pair in figures.PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 13


def test_many_arms_stay_apart():
    assert len({figures.line_style(i) for i in range(24)}) == 24


def png(array, directory="."):
    return figures.sample_pictures([(array, directory)])[0]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_sample_grids():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    grid = pixels(png(images))
    # Five images in three columns: (3 + 3 + 3 + 4 gaps) wide, magnified 40 times.
    assert grid.shape == (7 * 40, 13 * 40, 3)
    small = grid[20::40, 20::40, 0]
    expected = np.full((7, 13), 128)
    for i, (top, left) in enumerate([(1, 1), (1, 5), (1, 9), (4, 1), (4, 5)]):
        expected[top : top + 2, left : left + 3] = i
    np.testing.assert_array_equal(small, expected)
    np.testing.assert_array_equal(pixels(png(images[..., :1].tolist())), grid[..., 0])
    np.testing.assert_array_equal(pixels(png(images[..., 0])), grid[..., 0])
    # Real images in [-1, 1], beyond which they are clipped.
    real = images[..., :1] / 127.5 - 1
    np.testing.assert_array_equal(pixels(png(real)), grid[..., 0])
    assert pixels(png(np.full((1, 2, 2, 1), 1.7)))[200, 200] == 255
    # 32 images leave no place empty.
    assert pixels(png(np.zeros((32, 8, 8), np.uint8))).shape == (37 * 8, 73 * 8)


def test_points_and_signals_share_their_axes():
    near, far = np.zeros((1, 2)), np.full((1, 2), 4.0)
    dark = [pixels(p)[..., 3] for p in figures.sample_pictures([(near, "."), (far, ".")])]
    rows, columns = (np.argwhere(d).mean(axis=0) for d in dark)
    # The origin lies at the lower left end of the shared axes, the other point at the upper right.
    assert rows[0] > 450 > 50 > columns[0]
    assert columns[1] > 450 > 50 > rows[1]
    quiet, loud = (a * np.sin(np.linspace(0, 20, 200))[None, :, None] for a in (0.1, 1.0))
    heights = [
        np.ptp(np.argwhere(pixels(p)[..., 3])[:, 0])
        for p in figures.sample_pictures([(quiet, "."), (loud, ".")])
    ]
    assert heights[0] == pytest.approx(heights[1] / 10, abs=4)


def test_samples_from_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4), np.uint8)
    np.savez(tmp_path / "samples.npz", samples=images, other=np.zeros(3))
    assert png("samples.npz", tmp_path) == png(images)
    (tmp_path / "grid.png").write_bytes(png(images))
    assert png("grid.png", tmp_path) == png(images)
    with pytest.raises(FileNotFoundError, match=r"samples: no file .*absent\.npz"):
        png("absent.npz", tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(4),
        np.zeros((4, 4), np.uint8),
        np.zeros((2, 4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 4)),
        np.array(["a"]),
    ],
)
def test_samples_of_another_kind_are_refused(bad):
    with pytest.raises(ValueError, match="samples must be uint8 images"):
        png(bad)
