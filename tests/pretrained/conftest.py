"""The recorded references (see make_references.py) and the random weights they were made with."""

import functools
import gzip
import importlib.util
import json
import pathlib

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent


def _module(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _names(format: str) -> dict:
    return json.loads(gzip.decompress((FOLDER / "references" / f"{format}.json.gz").read_bytes()))


@pytest.fixture(scope="session")
def random_weights():
    """The module random_weights.py."""
    return _module("random_weights")


@pytest.fixture(scope="session")
def shapes_of():
    """From a format and a model to the shape of every tensor by name, as the library has them."""

    def shapes(format, model):
        return {name: tuple(shape) for name, shape in _names(format)[model].items()}

    return shapes


@pytest.fixture(scope="session")
def tensors_of(shapes_of, random_weights):
    """From a format and a model to its random tensors by name."""
    return lambda format, model: {name: random_weights.weight(name, s) for name, s in shapes_of(format, model).items()}


@pytest.fixture(scope="session")
def recorded():
    """From the name of a file of references to its arrays by name."""

    def arrays(name):
        with np.load(FOLDER / "references" / f"{name}.npz") as file:
            return dict(file)

    return arrays
