"""TAEF2 against its authors' code, and the codec that reads their files."""

import json
import os

import jax
import numpy as np
import pytest
import taef2_cases as cases

from diffax import codecs
from diffax import config as config_lib
from diffax.data import DatasetInfo
from diffax.models import taef2
from diffax.training.codecs import codec_of

REFERENCE = json.loads(cases.REFERENCE.read_text())
FOLDER = os.path.join(os.environ.get("DIFFAX_TEST_DATA", ""), "taef2")
pytestmark = pytest.mark.usefixtures("hasty_compiler")


def assert_as_published(encode, decode, name, tolerance):
    """`encode` and `decode`: of batches."""
    found = cases.outputs(
        lambda x: np.asarray(encode(x[None])[0]), lambda z: np.asarray(decode(z[None])[0])
    )
    assert found.keys() == REFERENCE[name].keys()
    for key, values in found.items():
        np.testing.assert_allclose(values, REFERENCE[name][key], atol=tolerance, err_msg=key)


def test_it_computes_what_the_authors_code_does():
    """With weights by a formula, in every layer; far latents too, which the decoder squashes."""
    params = taef2.convert(*map(cases.tensors, REFERENCE["shapes"]))
    apply, network = jax.jit(taef2.TAEF2().apply, static_argnames="method"), {"params": params}
    assert_as_published(
        lambda x: apply(network, x, method="encode"),
        lambda z: apply(network, z, method="decode"),
        "formula",
        1e-4,  # its sums are larger than those of trained weights
    )


def test_the_published_files():
    """As PyTorch reads and runs them."""
    if not os.path.isdir(FOLDER):
        pytest.skip("DIFFAX_TEST_DATA names no folder with taef2/")
    codec = codecs.taef2(FOLDER, (32, 40, 3))
    assert codec.shape == (4, 5, 32)
    assert_as_published(jax.jit(codec.encode), jax.jit(codec.decode), "published", 1e-5)
    assert codecs.taef2(FOLDER, (32, 40, 3)) == codec  # one object, so that programs are shared
    assert codecs.taef2(FOLDER, (64, 64, 3)).fingerprint == codec.fingerprint


def test_other_tensors_are_refused():
    encoder, decoder = map(cases.tensors, REFERENCE["shapes"])
    with pytest.raises(
        ValueError, match="not the tensors of TAEF2's encoder: layer_0.bias is miss"
    ):
        taef2.convert(decoder, decoder)
    with pytest.raises(ValueError, match="TAEF2's decoder: layer_19.bias is missing, and .3,. is"):
        taef2.convert(encoder, {k: v for k, v in decoder.items() if k != "19.bias"})
    with pytest.raises(ValueError, match="layer_20.bias is .3,., and nothing is expected"):
        taef2.convert(encoder, decoder | {"20.bias": decoder["19.bias"]})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((64, 64, 3), "no taef2_encoder.pth: download taef2_encoder.pth and .*from https://github"),
        ((60, 64, 3), r"codec.name='taef2': .*multiples of 8, and the data have shape \(60, 64, 3"),
        ((64, 64, 1), r"takes colour images"),
        ((4096, 1), r"takes colour images"),
    ],
)
def test_what_it_cannot_take_is_refused_in_a_sentence(tmp_path, shape, message):
    config = config_lib.default_config()
    config.codec.update(name="taef2", path=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        codec_of(config, DatasetInfo("pictures", shape, 0, 256, ()))
