"""Package metadata. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "alexnet_resnet" / "__init__.py").read_text(encoding="utf-8"))[1]
# What runs the notebooks without a browser. Low bounds: Colab depends on the kernel that it comes with.
NOTEBOOKS = ["ipykernel>=6.17", "nbclient>=0.10", "nbformat>=5.10"]

setup(
    name="alexnet_resnet",
    version=VERSION,
    description="AlexNet (2012) and ResNet (2015) in JAX and Flax: every table and figure a config and a command",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["alexnet_resnet", "alexnet_resnet.*"]),
    package_data={"alexnet_resnet": ["**/*.txt", "**/*.json"]},
    python_requires=">=3.11",
    # Lower bounds are the versions the tests have run with; nothing is pinned from above.
    install_requires=[
        "absl-py>=2.5",
        "flax>=0.12.8",
        "google-crc32c>=1.8",
        "h5py>=3.14",
        "jax>=0.10.2",
        "jaxtyping>=0.3.11",
        "matplotlib>=3.11",
        "ml-collections>=1.1",
        "numpy>=2.4",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pillow>=12",
        "safetensors>=0.8",
        "scikit-learn>=1.9",
        "tensorboardX>=2.6.5",
        "tqdm>=4.70",
        "tensorflow-datasets>=4.9.10",
        # TFDS imports it without asking for it.
        "importlib_resources>=7.1",
        # The CPU build where it exists, so that TensorFlow never takes the accelerator.
        "tensorflow-cpu>=2.21; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
        "tensorflow>=2.21; platform_machine != 'x86_64' and platform_machine != 'AMD64'",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "cuda13": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "notebooks": NOTEBOOKS,
        "dev": ["beartype>=0.23", "pytest>=9", "pytest-xdist>=3.8", "ruff>=0.17", *NOTEBOOKS],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
