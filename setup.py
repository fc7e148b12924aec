"""Package metadata. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "alexnet_resnet" / "__init__.py").read_text())[1]

setup(
    name="alexnet_resnet",
    version=VERSION,
    description="AlexNet (2012) and ResNet (2015) in JAX and Flax: every table and figure a config and a command",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["alexnet_resnet", "alexnet_resnet.*"]),
    package_data={"alexnet_resnet": ["**/*.txt", "**/*.json"]},
    python_requires=">=3.11",
    # Lower bounds are the versions the tests have run with; nothing is pinned from above.
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12",
        "h5py>=3.11",
        "jax>=0.10",
        "jaxtyping>=0.3",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.20",
        "pillow>=10.3",
        "safetensors>=0.4.3",
        "scikit-learn>=1.5",
        "tensorboardX>=2.6.2",
        "tqdm>=4.66",
        "tensorflow-datasets>=4.9.7",
        # TFDS imports it without asking for it.
        "importlib_resources>=6.4",
        # The CPU build where it exists, so that TensorFlow never takes the accelerator.
        "tensorflow-cpu>=2.18; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
        "tensorflow>=2.18; platform_machine != 'x86_64' and platform_machine != 'AMD64'",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10"],
        "cuda13": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "notebooks": ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"],
        "dev": ["beartype>=0.19", "pytest>=8", "ruff>=0.8"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
