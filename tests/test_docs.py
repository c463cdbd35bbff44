"""The examples of the documentation are run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest
from small_runs import small_config

import diffax
from diffax import config as config_lib
from diffax import plugins, training

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TEXT, re.DOTALL))
CHANGES = {
    "midpoint": dict(sampling__sampler="midpoint", sampling__fraction=0.4),
    "power": dict(
        schedule__name="power", schedule__p=3.0,
        schedule__log_snr_max=None, schedule__log_snr_min=None,
    ),
    "tower": dict(model__name="tower", model__tower__width=8),
    "line": dict(method__name="line", method__ridge=0.1),
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("hasty_compiler", "registering")


def test_each_example_is_tried():
    assert EXAMPLES.keys() == CHANGES.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_an_example_trains_and_draws(name, tmp_path):
    path = tmp_path / f"{name}.py"
    path.write_text(EXAMPLES[name])
    plugins.load(str(path))
    config = small_config(plugins=(str(path),), training__num_steps=3, **CHANGES[name])
    config_lib.validate(config)
    _, metrics = training.train(config, tmp_path / "run")
    assert np.isfinite(metrics["loss"])
    run = training.load(tmp_path / "run")
    if run.method.sample is not None:
        assert np.isfinite(diffax.Generator(run, num_devices=1)(4)).all()


def test_a_loop_of_ones_own_learns(capsys):
    """The page's program as it stands, in a twentieth of its steps."""
    text = (DOCS / "own_loop.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    lines = list(filter(None, code.splitlines()))
    assert sum(not line.startswith(("import", "from", "#")) for line in lines) <= 45
    assert code.count("range(2000)") == 1
    found = {}
    exec(code.replace("range(2000)", "range(100)"), found)
    assert capsys.readouterr().out.startswith("distance to the data ")
    # A network that says 0 has a bound of about 16 nats for the two dimensions, 11.5 bits/dim.
    assert found["bound"].total.mean() < 3
    start = diffax.schedules.get("learned", log_snr_max=8.0, log_snr_min=-8.0)
    t = np.linspace(0.0, 1.0, 9, dtype=np.float32)
    assert np.abs(found["schedule"].log_snr(t) - start.log_snr(t)).max() > 0.1
    np.testing.assert_allclose(found["schedule"].log_snr(t[[0, -1]]), [8, -8], rtol=1e-5)


def test_the_letters_of_other_libraries_agree_with_ours():
    text = (DOCS / "coming_from.md").read_text(encoding="utf-8")
    _, code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)  # test_import.py tries the first
    assert code.count("assert ") == 6
    exec(code, {})
    names = set(re.findall(r'schedules\.get\("(\w+)"', text))
    assert names <= set(diffax.schedules.names()) and len(names) == 4
    for name in re.findall(r'`?sampler="(\w+)"', text):
        assert diffax.samplers.get(name)
    for name in re.findall(r'grid="(\w+)"', text):
        assert name in diffax.samplers.grids.GRIDS
