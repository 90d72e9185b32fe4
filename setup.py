"""Package definition: what vidmotion needs, and the extras that widen it."""

from pathlib import Path

from setuptools import find_packages, setup

TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "hypothesis>=6",
    "scikit-image>=0.26",
    "tensorboard>=2.21",
    "matplotlib>=3.9",
]

setup(
    name="vidmotion",
    version="0.1.0",
    description="Motion and content, learned apart: BCD, VidTwin, X-NeMo and WarpFace in JAX.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vidmotion", "vidmotion.*", "configs", "configs.*"]),
    entry_points={"console_scripts": ["vidmotion = vidmotion.__main__:main"]},
    package_data={"vidmotion.weights": ["*.json", "*.safetensors"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8.6",
        "av>=17",
        "clu>=0.0.12",
        "einops>=0.8",
        "etils[epath]>=1.12",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "jax>=0.10.2,<0.12",
        "ml_collections>=1.1,<2",
        "numpy>=2.0,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pillow>=11",
        "safetensors>=0.5",
        "tensorboardX>=2.6",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": TEST,
        "lint": ["ruff>=0.8"],
        "docs": ["mkdocs>=1.6,<2", "mkdocstrings[python]>=0.27"],
        "face": ["scikit-image>=0.26"],
        "plot": ["matplotlib>=3.9"],
        # Reference implementations that the comparison tests run against.
        # The exact torch pin selects a CPU build where one is offered.
        "oracle": ["torch==2.13.0", "transformers>=5,<6", "diffusers>=0.42,<0.43"],
        # Its builders ask for importlib_resources without saying so.
        "tfds": ["tensorflow-datasets>=4.9.10", "importlib_resources>=6"],
        "beam": ["apache-beam>=2.70"],
        "cuda": ["jax[cuda12]>=0.10.2,<0.12"],
        "tpu": ["jax[tpu]>=0.10.2,<0.12", "gcsfs>=2025.2"],
        # Compilers of accelerators for --mode=plan, on machines that have none.
        "aot-tpu": ["libtpu>=0.0.42"],
        "aot-gpu": ["jax[cuda12]>=0.10.2,<0.12"],
        "gcs": ["gcsfs>=2025.2"],  # workdirs in buckets, gs://
    },
)
