"""Scores of samples from anywhere: what they are called, what they say, what they refuse.

A random projection stands for the networks that were trained elsewhere.
"""

import dataclasses
import json
import tracemalloc

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from diffax import cli, data, evaluation
from diffax.data.dataset import to_8_bits
from diffax.evaluation import FeatureStatistics, extractors, scoring

WIDTH = 12


class Projection(nn.Module):
    """Of images of any size; as many features for all."""

    @nn.compact
    def __call__(self, x):
        found = nn.Dense(WIDTH, name="features")(x.reshape(len(x), -1))
        return nn.relu(found), nn.Dense(5, name="logits")(found)


def projection(name, seed=0, shape=(8, 8, 1)):
    params = Projection().init(jax.random.key(seed), np.zeros((1, *shape)))["params"]
    fingerprint = f"projection{seed}{shape}"
    return evaluation.Extractor(name, Projection(), params, fingerprint, {"trained": False}, 16)


@pytest.fixture(scope="module")
def digits():
    return data.load({"name": "digits"})


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    found = {name: projection(name, seed) for seed, name in enumerate(("inception", "lite0"))}
    for name, each in found.items():
        monkeypatch.setitem(evaluation.EXTRACTORS, name, lambda each=each: each)
    return found


def plain_features(each, x):
    return np.asarray(Projection().apply({"params": each.params}, data.Split(x).array())[0])


# --- features -------------------------------------------------------------------------------


def test_features_are_the_same_in_batches_over_all_devices(digits, networks, monkeypatch):
    """Eight devices, 16 examples on each at a time, a last batch that isn't full; 8 bits, float."""
    each, x = networks["lite0"], digits.eval.x
    assert len(jax.local_devices()) == 8 and len(x) % (8 * 16)
    plain = plain_features(each, x)
    for given in (x, digits.eval.array()):
        np.testing.assert_allclose(evaluation.features(each, given), plain, rtol=1e-5, atol=1e-5)
    assert evaluation.logits(each, x).shape == (len(x), 5)
    assert evaluation.width(each, x.shape[1:]) == WIDTH
    monkeypatch.setattr(extractors, "NUM_KEPT", 150)  # within the second batch
    found = evaluation.measured(each, x, seed=3)
    np.testing.assert_allclose(found.statistics.mean, plain.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.statistics.covariance, np.cov(plain.T), rtol=1e-4, atol=1e-6)
    order = evaluation.shuffled(len(x), 3)
    np.testing.assert_allclose(found.kept, plain[order[:150]], rtol=1e-5, atol=1e-5)
    assert found.statistics.n == len(x) and len(found.logits) == 150


def test_no_more_than_a_batch_is_float_at_once(digits, networks, monkeypatch):
    sizes, to_float = [], extractors.to_float
    monkeypatch.setattr(extractors, "to_float", lambda x: sizes.append(len(x)) or to_float(x))
    statistics = evaluation.feature_statistics(networks["lite0"], digits.train.x)
    assert statistics.n == len(digits.train) and set(sizes) == {8 * 16}


def test_reference_statistics_are_kept_by_data_preprocessing_and_network(
    digits, networks, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path))
    shape = (12, 12, 1)
    framed = data.load({"name": "digits", "pad_to": 12})
    pairs = [(networks["lite0"], digits), (networks["inception"], digits)]
    pairs += [(projection("lite0", 0, shape), framed)]
    first = [
        evaluation.reference_statistics(*each).mean for each in ((n, d.train) for n, d in pairs)
    ]
    assert len(list((tmp_path / "statistics").iterdir())) == 3
    monkeypatch.setattr(extractors, "feature_statistics", None)  # no more is computed
    again = [
        evaluation.reference_statistics(*each).mean for each in ((n, d.train) for n, d in pairs)
    ]
    np.testing.assert_array_equal(first, again)


def test_what_is_of_the_reference_alone_is_computed_once(digits, networks, tmp_path, monkeypatch):
    """For all samples, by number and seed; what is read again is what was computed."""
    monkeypatch.setenv("DIFFAX_CACHE", str(tmp_path))
    reference, names = evaluation.Reference.of(digits), ["fd_lite0", "kid_lite0", "prdc_lite0"]
    sizes, outputs = [], extractors._outputs

    def counted(each, x, order):
        sizes.append(len(order))
        return outputs(each, x, order)

    monkeypatch.setattr(extractors, "_outputs", counted)
    x = digits.eval.x[:200]

    def score(x, seed):
        sizes.clear()
        return evaluation.score(x, reference, names, seed), list(sizes)

    first, taken = score(x, 0)
    train, held_out = len(digits.train), len(digits.eval)
    assert sorted(taken) == sorted([200, train, held_out, 200, 200])
    again, taken = score(x, 0)
    assert taken == [200] and again == first  # of the samples alone
    other, taken = score(x, 1)
    assert taken == [200] * 3 and other["kid_lite0"]["floor"] != first["kid_lite0"]["floor"]
    _, taken = score(x[:150], 0)
    assert taken == [150] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "floors", "statistics"]


# --- scores ---------------------------------------------------------------------------------


def test_names_are_measures_times_networks():
    found = evaluation.scores()
    assert {"frechet", "frechet_infinity", "kid", "prdc", "swd"} < set(found)
    assert {"fid", "fid_infinity", "kid_inception", "prdc_inception", "is"} < set(found)
    assert {"fd_lite0", "fd_infinity_lite0", "kid_lite0", "prdc_lite0"} < set(found)
    assert "is_lite0" not in found and "fd_inception" not in found
    for name, each in found.items():
        assert ("fid" in name) <= (each.extractor == "inception")


def test_numbers_have_keys_of_their_own_and_labels_of_the_field():
    found = {n.key: n for name in evaluation.scores() for n in evaluation.numbers(name)}
    assert len(found) == sum(len(evaluation.numbers(name)) for name in evaluation.scores())
    assert len({(n.label, n.unit) for n in found.values()}) == len(found)
    labels = {
        "fid": "FID",
        "fid_infinity": "FID∞",
        "fd_lite0": "FD (EfficientNet-Lite0)",
        "fd_mobilenet": "FD (MobileNetV2)",
        "kid_inception": "KID (Inception)",
        "precision_lite0": "Precision (EfficientNet-Lite0)",
        "is": "Inception score",
        "frechet": "Fréchet distance",
    }
    assert {key: found[key].label for key in labels} == labels
    names = ("fid", "fd_inception_half_pixel", "fd_lite0", "frechet", "swd")
    networks = ["Inception", "Inception", "EfficientNet-Lite0", "", ""]
    assert [found[name].network for name in names] == networks
    assert len({found[name].measure for name in names[:4]}) == 1


def test_a_network_of_ones_own_is_called_by_its_name(monkeypatch):
    monkeypatch.setitem(evaluation.EXTRACTORS, "mine", lambda: projection("mine"))
    (number,) = evaluation.numbers("fd_mine")
    assert (number.label, number.network) == ("FD (mine)", "mine")


def test_scores_are_those_of_the_plain_functions(digits, networks):
    """And say what they depend on."""
    x, each = digits.eval.x, networks["inception"]
    names = ["fid", "fid_infinity", "kid_inception", "is", "fd_lite0"]
    found = evaluation.score(x, evaluation.Reference.of(digits), names, seed=4)
    own, train = plain_features(each, x), plain_features(each, digits.train.x)
    distance = evaluation.frechet_distance(*map(FeatureStatistics.of, (own, train)))
    fid = found["fid"]
    assert fid["fid"] == pytest.approx(distance, rel=1e-4)
    error = evaluation.frechet_standard_error(own, FeatureStatistics.of(train))
    assert fid["standard_error"] == pytest.approx(error, rel=1e-3)
    assert (fid["low"], fid["high"]) == pytest.approx(
        evaluation.normal_interval(fid["fid"], error), rel=1e-3
    )
    assert fid["floor"] == pytest.approx(fid["fid"])  # the samples are the evaluation split
    assert (fid["num_samples"], fid["num_floor"]) == (len(x), len(x))
    assert fid["reference"] == f"digits, train, {len(train)} examples"
    assert (fid["features"], fid["features_fingerprint"]) == ("inception", each.fingerprint)
    assert (fid["trained"], fid["sample_values"], fid["seed"]) == (False, "uint8", 4)
    infinity = found["fid_infinity"]
    assert infinity["fid_infinity"] < fid["fid"] == pytest.approx(infinity["distances"][0])
    assert infinity["sizes"][:2] == [len(x), len(x) // 2]
    assert infinity["low"] < infinity["fid_infinity"] < infinity["high"]
    some = train[evaluation.shuffled(len(train), 4)[: len(x)]]
    kid = evaluation.kernel_distance(own[evaluation.shuffled(len(x), 4)], some)
    assert found["kid_inception"]["kid_inception"] == pytest.approx(kid.value, rel=1e-3)
    assert found["kid_inception"]["num_floor"] == len(x)
    score = evaluation.inception_score(evaluation.logits(each, x[evaluation.shuffled(len(x), 4)]))
    assert found["is"]["is"] == pytest.approx(score.mean, rel=1e-5)
    assert found["is"]["standard_deviation"] == pytest.approx(score.standard_deviation, rel=1e-3)
    assert found["fd_lite0"]["fd_lite0"] != fid["fid"] and "fid" not in found["fd_lite0"]
    assert json.loads(json.dumps(found)) == found


NAMES = ("fid", "fid_infinity", "kid_inception", "prdc_inception", "swd")
BLIND_TO_NOISE, BLIND_TO_DROPPED = {"recall"}, {"precision", "density"}


def test_every_score_is_worse_for_worse_samples(digits):
    """Than the real held-out digits: noise added in two steps, and seven classes of ten dropped."""
    reference = evaluation.Reference.of(digits)
    x, rng = digits.eval.array(), np.random.default_rng(0)
    noise = rng.normal(size=x.shape).astype(np.float32)
    sets = [x, x + 0.5 * noise, x + noise, x[digits.eval.label < 3]]
    found = [evaluation.score(samples, reference, NAMES) for samples in sets]
    for name in NAMES:
        for number in evaluation.numbers(name):
            sign = 1 if number.lower_is_better else -1
            real, noisy, noisier, dropped = (sign * each[name][number.entry] for each in found)
            assert number.entry in BLIND_TO_NOISE or real < noisy < noisier, number.key
            assert number.entry in BLIND_TO_DROPPED or real < dropped, number.key


def test_a_negative_distance_lies_in_its_interval(digits):
    """The reference's own examples have distance 0 as they are, and extrapolated less."""
    x = digits.train.x
    found = evaluation.score(x, evaluation.Reference.of(digits), ["fid_infinity"])["fid_infinity"]
    assert found["low"] < found["fid_infinity"] < found["high"] < 0
    sampling = found["high"] - found["fid_infinity"]
    assert sampling > 1.96 * found["standard_error"]
    assert "by a parabola" in found["interval"]


def small(digits, train, held_out):
    """A reference of so many examples."""
    splits = [data.Split(s.x[:n]) for s, n in ((digits.train, train), (digits.eval, held_out))]
    return evaluation.Reference.of(dataclasses.replace(digits, train=splits[0], eval=splits[1]))


def test_a_floor_of_too_few_held_out_examples_is_left_out(digits):
    """The score is what it is with more of them; KID's floor says of how many it is."""
    names = ["fid", "kid_inception", "prdc_inception", "swd"]
    for num, fewest in ((1, {}), (3, {"fid"}), (4, {"fid", "kid_inception"})):
        found = evaluation.score(digits.eval.x[:12], small(digits, 27, num), names)
        more = evaluation.score(digits.eval.x[:12], small(digits, 27, 40), names)
        for name in names:
            assert found[name].get(name) == more[name].get(name)
            assert ("floor" in found[name]) == ("num_floor" in found[name]) == (name in fewest)
        assert found["kid_inception"].get("num_floor", num) == num
        assert more["swd"]["num_floor"] == more["kid_inception"]["num_floor"] == 12


def test_the_floor_of_swd_is_that_of_as_many_as_the_samples(digits):
    """Held-out examples as samples have the floor itself for their distance."""
    x = digits.eval.x[evaluation.shuffled(len(digits.eval), 3)[:20]]
    found = evaluation.score(x, evaluation.Reference.of(digits), ["swd"], seed=3)["swd"]
    assert found["floor"] == pytest.approx(found["swd"])
    assert found["num_floor"] == found["num_samples"] == 20


def test_too_few_on_either_side_are_refused_before_any_work(digits, monkeypatch):
    """The classifier would be trained first."""
    monkeypatch.setattr(extractors, "get_classifier", None)
    for name, fewest in {"frechet": 2, "frechet_infinity": 2, "kid": 4, "prdc": 6}.items():
        reference = small(digits, fewest - 1, 1)
        said = f"'{name}': it needs at least {fewest} reference examples, and the training split"
        with pytest.raises(ValueError, match=f"{said} of 'digits' has {fewest - 1}"):
            evaluation.plan([name], reference, digits.shape, 999)
        if name != "frechet_infinity":  # of which the network says how many
            with pytest.raises(ValueError, match=f"{fewest} samples, and there are {fewest - 1}"):
                evaluation.plan([name], evaluation.Reference.of(digits), digits.shape, fewest - 1)
    for name, fewest in {"fid": 2, "kid_inception": 4, "prdc_inception": 6, "swd": 1}.items():
        evaluation.score(digits.eval.x[:fewest], small(digits, fewest, 1), [name])


def test_integers_are_not_looked_through_for_what_is_not_finite(digits):
    x = np.zeros((20_000, *digits.shape), np.uint8)
    tracemalloc.start()
    scoring._check_finite(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes / 10


# --- samples from files ---------------------------------------------------------------------


@pytest.fixture
def files(digits, tmp_path):
    """Samples as float, and as images in two folders and an .npz of 8 bits."""
    x = digits.eval.array(np.arange(120)) * 0.8 + 0.05
    np.savez(tmp_path / "float.npz", samples=x)
    np.savez(tmp_path / "eight.npz", arr_0=to_8_bits(x), arr_1=np.arange(120))
    for i, image in enumerate(to_8_bits(x)[..., 0]):
        path = tmp_path / "images" / f"{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path


def evaluate(path, *more):
    return cli.main(["evaluate", f"--samples={path}", "--json", *more])


def test_a_folder_and_an_npz_have_the_score_of_the_samples(digits, files, capsys):
    reference = evaluation.Reference.of(digits)
    x = np.load(files / "float.npz")["samples"]
    expected = evaluation.score(x, reference, ["fid", "swd"])
    for name in ("float.npz", "eight.npz", "images"):
        assert evaluate(files / name, "--data=digits", "--metrics=fid,swd") == 0
        found = json.loads((files / f"{name}.evaluation.json").read_text())
        assert json.loads(capsys.readouterr().out) == found
        for metric in ("fid", "swd"):
            assert found[metric][metric] == pytest.approx(expected[metric][metric], rel=1e-4)
        assert found["fid"]["samples"] == str(files / name) and found["fid"]["samples_hash"]
        assert found["fid"]["data"] == {"name": "digits"}


def test_published_statistics_give_the_score_of_the_data(digits, files, networks, capsys):
    train = plain_features(networks["inception"], digits.train.x)
    np.savez(files / "stats.npz", mu=train.mean(axis=0), sigma=np.cov(train.T))
    x = np.load(files / "float.npz")["samples"]
    expected = evaluation.score(x, evaluation.Reference.of(digits), ["fid"])["fid"]
    reference, out = f"--reference={files}/stats.npz", f"--out={files}/new/scores.json"
    assert evaluate(files / "images", reference, out) == 0  # fid is the default
    found = json.loads((files / "new" / "scores.json").read_text())["fid"]
    for key in ("fid", "low", "high"):
        assert found[key] == pytest.approx(expected[key], rel=1e-3)
    assert "floor" not in found and found["reference"] == f"mu and sigma of {files}/stats.npz"
    capsys.readouterr()
    for metric, said in {
        "kid_inception": "it needs reference examples",
        "frechet": "the classifier is trained on the data",
    }.items():
        assert evaluate(files / "images", reference, f"--metrics={metric}") == 1
        assert said in capsys.readouterr().err
    np.savez(files / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert evaluate(files / "images", reference) == 1
    assert "has 3 features and inception 12" in capsys.readouterr().err


def test_what_is_refused_says_why(digits, files, capsys):
    x = np.load(files / "float.npz")["samples"]
    np.savez(files / "wide.npz", x=x[:, :4])
    np.savez(files / "unit.npz", x=(x + 1) / 2)
    np.savez(files / "few.npz", x=x[:50])
    np.savez(files / "several.npz", a=x, b=x)
    (files / "empty").mkdir()
    sizes = {"one": [(8, 8)], "mixed": [(8, 8), (9, 8)]}
    for name, each in sizes.items():
        (files / name).mkdir()
        for i, size in enumerate(each):
            Image.new("L", size).save(files / name / f"{i}.png")
    cases = {
        ("one", "--data=digits"): "'fid': it needs at least 2 samples, and there are 1",
        ("mixed", "--data=digits"): "1.png is 8 by 9 pixels; bring them to one size",
        ("wide.npz", "--data=digits"): "(4, 8, 1) and 'digits' has (8, 8, 1): bring both to one",
        ("unit.npz", "--data=digits"): "floats must be in [-1, 1]",
        ("several.npz", "--data=digits"): "name the array",
        ("none", "--data=digits"): "no such file or folder",
        ("empty", "--data=digits"): "no image found",
        ("few.npz", "--data=digits", "--metrics=fid_infinity"): "at least 96 samples",
        (
            "few.npz",
            "--data=digits",
            "--metrics=fid,fic",
        ): "'fic' (did you mean fid?): allowed are frechet",
        ("few.npz", "--data=digits", "--metrics=bpd"): "'bpd': allowed are frechet",
        ("few.npz", "--data=digits", "--steps=5"): "--steps=5: only with --workdir",
        ("few.npz", "--reference=r.npz", "--pad-to=9"): "--pad-to=9: only with --data",
        ("few.npz", "--reference=r.npz"): "r.npz: no such file",
        ("few.npz",): "--data=NAME, or --reference=FILE",
    }
    for (name, *flags), said in cases.items():
        flags = flags if any("metrics" in flag for flag in flags) else [*flags, "--metrics=fid"]
        assert evaluate(files / name, *flags) == 1
        assert said in capsys.readouterr().err, (name, flags)
    assert evaluate(files / "several.npz", "--data=digits", "--metrics=fid", "--array=a") == 0
    assert evaluate(files / "one", "--data=digits", "--metrics=swd") == 0
    assert cli.main(["evaluate", "--workdir=w", "--data=digits"]) == 1
    assert "--data=digits: only with --samples" in capsys.readouterr().err


def test_samples_that_are_not_finite_have_no_score(digits):
    x = digits.eval.array()
    x[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match=f"1 of {len(x)} samples have values that are not finite"):
        evaluation.score(x, evaluation.Reference.of(digits), ["swd"])


def test_networks_for_images_refuse_points():
    mixture = data.load({"name": "mixture2d"})
    with pytest.raises(ValueError, match=r"inception takes images .* shape \(2,\)"):
        evaluation.score(mixture.eval.x, evaluation.Reference.of(mixture), ["fid"])


def test_data_flags_are_fields_of_the_config():
    fields = {flag.replace("-", "_") for flag in cli.evaluate.DATA_FLAGS}
    assert fields == data.known_fields().keys() - {"name", "flip", "array"}
