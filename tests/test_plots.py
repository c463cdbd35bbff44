"""Pictures: the right pixels in the right places."""

import numpy as np
import pytest

from diffax import plots, schedules


def test_a_grid_holds_every_image_once_in_order():
    x = np.linspace(-1, 1, 5)[:, None, None, None] * np.ones((5, 2, 3, 1))
    grid = plots.image_grid(x, columns=3, gap=1)
    times = grid.shape[1] // 13  # 3 images of 3 pixels and 4 gaps
    small = grid[::times, ::times, 0]
    assert small.shape == (7, 13)
    for i, value in enumerate([0, 64, 128, 191, 255]):
        row, column = divmod(i, 3)
        tile = small[1 + 3 * row : 3 + 3 * row, 1 + 4 * column : 4 + 4 * column]
        assert np.all(np.abs(tile.astype(int) - value) <= 1)


@pytest.mark.parametrize("shape", [(9, 2), (9, 1), (5, 64, 1), (4, 8, 8, 1), (4, 8, 8, 3)])
def test_points_signals_and_images_are_drawn(shape):
    pixels = plots.picture(np.random.default_rng(0).normal(size=shape))
    assert pixels.dtype == np.uint8 and pixels.shape[-1] in (1, 3)
    assert pixels.std() > 5


def test_what_can_not_be_drawn_is_refused():
    with pytest.raises(ValueError, match="drawn are"):
        plots.picture(np.zeros(3))
    with pytest.raises(ValueError, match="images are"):
        plots.image_grid(np.zeros((2, 4, 4, 2)))


def test_schedules_are_drawn_as_they_are():
    chosen = {
        "cosine": schedules.cosine(),
        "table": schedules.linear().discretize(50),
        "learned": schedules.learned(size=8),
    }
    figure = plots.draw_schedules(chosen)
    panels = np.array(figure.axes).reshape(3, 3)
    for row, (name, schedule) in zip(panels, chosen.items()):
        assert row[0].get_ylabel() == name
        t, alpha_bar = row[0].lines[-1].get_data()
        at = t if schedule.num_steps is None else np.round(t * schedule.num_steps).astype(int) - 1
        np.testing.assert_allclose(alpha_bar, schedule.alpha_bar(at), atol=1e-6)
    _, betas = panels[1, 2].lines[-1].get_data()
    np.testing.assert_allclose(betas, chosen["table"].betas)


def test_the_same_noise_is_shown_under_every_schedule():
    image = np.linspace(-1, 1, 16).reshape(4, 4, 1)
    chosen = {"a": schedules.cosine(), "b": schedules.linear_logsnr(60.0, -60.0)}
    figure = plots.draw_noised(chosen, image, num_times=3)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_allclose(shown[0], (image[..., 0] + 1) / 2, atol=1e-6)  # t = 0: the image
    np.testing.assert_allclose(shown[2], shown[5], atol=1e-5)  # t = 1: the noise alone, alike
    assert np.abs(shown[1] - shown[4]).max() < 1 and not np.array_equal(shown[0], shown[2])


def test_names_are_no_formulas(tmp_path):
    odd, image = r"$\frac{$", np.zeros((8, 8, 1))
    chosen = {odd: schedules.get("cosine")}
    for figure in (
        plots.draw_comparison({odd: image[None]}),
        plots.draw_schedules(chosen),
        plots.draw_noised(chosen, image, num_times=2),
    ):
        figure.savefig(tmp_path / "drawn.png")
