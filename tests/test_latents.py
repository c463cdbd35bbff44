"""Latents that are encoded once: the cache, their statistics, flips."""

import dataclasses
import logging

import numpy as np
import pytest
from small_runs import small_config

from diffax import data, training
from diffax.methods.codec import Codec, normalised
from diffax.training import latents

pytestmark = pytest.mark.usefixtures("hasty_compiler")
INFO = training.DatasetInfo("pictures", (4, 3, 2), 0, None, (), fingerprint="data", codec="codec")


@pytest.fixture
def codec():
    """Sums over pairs of rows, the right weighed more: no symmetry. It counts its calls."""
    weight = np.array([1.0, 2.0, 4.0], np.float32)[None, None, :, None]
    calls = []

    def encode(x):
        calls.append(x.shape)
        return 3 + 5 * (x[:, ::2] + 2 * x[:, 1::2]) * weight

    return Codec((2, 3, 2), encode, lambda z: z, f"sums-{id(calls)}"), calls


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (50, 4, 3, 2)).astype(np.float32)
    label = np.arange(50, dtype=np.int32) % 2
    splits = data.Split(x[:40], label[:40]), data.Split(x[40:], label[40:])
    return data.make_dataset("pictures", *splits, label_names=("a", "b"))


def test_cached_latents_equal_fresh_ones(codec, pictures, caplog):
    codec, calls = codec
    with caplog.at_level(logging.INFO, "diffax"):
        fresh = latents.encoded(codec, pictures, flip=True)
        traced = len(calls)
        again = latents.encoded(codec, pictures, flip=True)
    assert traced > 0 and len(calls) == traced  # read, not encoded
    for split in ("train", "eval"):
        own, kept, given = (getattr(d, split) for d in (fresh, again, pictures))
        np.testing.assert_array_equal(own.x, kept.x)
        np.testing.assert_array_equal(own.label, given.label)
        np.testing.assert_allclose(own.x, codec.encode(given.x), rtol=1e-6)
    np.testing.assert_array_equal(fresh.train.mirrored, again.train.mirrored)
    flipped = codec.encode(pictures.train.x[:, :, ::-1])
    np.testing.assert_allclose(fresh.train.mirrored, flipped, rtol=1e-6)
    assert np.abs(fresh.train.mirrored - fresh.train.x[:, :, ::-1]).max() > 1
    first, *_, last = [r.getMessage() for r in caplog.records if "latents" in r.getMessage()]
    assert first.startswith("latents, 40 + 10 of 2x3x2, 0.0 MB: encoded, and kept as ")
    assert last.startswith("mirrored latents, 40 of 2x3x2") and "read from" in last


def test_another_codec_or_other_data_have_other_latents(codec, pictures):
    codec, _ = codec
    first = latents.encoded(codec, pictures)
    doubled = codec._replace(encode=lambda x: 2 * codec.encode(x), fingerprint="doubled")
    np.testing.assert_allclose(latents.encoded(doubled, pictures).train.x, 2 * first.train.x)
    other = data.make_dataset(
        "pictures", data.Split(-pictures.train.x), data.Split(pictures.eval.x)
    )
    np.testing.assert_allclose(
        latents.encoded(codec, other).train.x, codec.encode(-pictures.train.x), rtol=1e-6
    )


def test_statistics_make_unit_variance_and_the_codec_inverts(codec, pictures):
    codec, _ = codec
    config = small_config()
    seen, info = latents.prepared(config, codec, pictures, INFO)
    np.testing.assert_allclose(seen.train.x.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(seen.train.x.std((0, 1, 2)), 1, atol=1e-3)
    assert seen.shape == (2, 3, 2) and seen.levels is None and seen.train.label is not None
    config.codec.cache = False
    same, streamed = latents.prepared(config, codec, pictures, INFO)
    assert same is pictures and streamed == info
    through = normalised(codec, info.latent_mean, info.latent_deviation)
    z = through.encode(pictures.eval.x)
    np.testing.assert_allclose(z, seen.eval.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(through.decode(z), codec.encode(pictures.eval.x), rtol=1e-5)
    assert training.DatasetInfo.from_json(info.to_json()) == info
    assert INFO.changes(info) == []  # statistics follow from data and codec


def test_what_a_run_was_trained_with_holds(codec, pictures):
    codec, _ = codec
    known = dataclasses.replace(INFO, latent_mean=(1.0, 2.0), latent_deviation=(3.0, 4.0))
    seen, info = latents.prepared(small_config(), codec, pictures, INFO, known)
    assert info == known
    np.testing.assert_allclose(
        seen.train.x, (codec.encode(pictures.train.x) - [1, 2]) / [3, 4], rtol=1e-5, atol=1e-6
    )
    raw, info = latents.prepared(small_config(), codec, pictures, INFO, INFO)  # an older run
    np.testing.assert_allclose(raw.train.x, codec.encode(pictures.train.x), rtol=1e-6)
    assert info.latent_mean == ()


def test_a_constant_channel_is_left_as_large_as_it_is(codec, pictures):
    codec, _ = codec
    flat = codec._replace(encode=lambda x: 0 * codec.encode(x) + 7, fingerprint="flat")
    (mean, deviation) = latents.statistics(None, flat, pictures)
    assert mean == (7.0, 7.0) and deviation == (1.0, 1.0)


def test_latents_larger_than_the_memory_are_refused(codec, pictures, monkeypatch):
    monkeypatch.setattr("diffax.runtime.available_memory", lambda: 1000)
    with pytest.raises(
        ValueError, match="latents of pictures would take .*config.codec.cache=Fals"
    ):
        latents.encoded(codec[0], pictures)


def test_a_mirrored_split_is_what_batches_flip_to():
    x = np.arange(24, dtype=np.float32).reshape(6, 1, 2, 2)
    plain, own = data.Split(x), data.Split(x, mirrored=-1 - x)
    batch, mirrored = (next(data.batches(s, 6, seed=3, flip=True))["x"] for s in (plain, own))
    kept = mirrored >= 0
    np.testing.assert_array_equal(batch[kept], mirrored[kept])
    np.testing.assert_array_equal(
        batch[~kept].reshape(-1, 2, 2)[:, ::-1].ravel(), -1 - mirrored[~kept]
    )
    assert 0 < kept.sum() < kept.size
    with pytest.raises(ValueError, match="Split.mirrored must be float32"):
        data.Split(x, mirrored=x[:3])
