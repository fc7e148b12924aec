"""How the program that draws initial parameters is compiled."""

import jax
import numpy as np
import pytest

from alexnet_resnet.models.layers import he_normal
from alexnet_resnet.training import state as state_lib

LEVEL = "xla_backend_optimization_level"


def draw(key):
    return he_normal(key, (3, 3, 4, 5)), jax.random.uniform(key, (7, 3), minval=-0.3, maxval=0.3)


def test_what_is_compiled_sooner_draws_the_same_bits(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    key = jax.random.key(3)
    usual = jax.jit(lambda key: draw(key), compiler_options={LEVEL: 3})(key)
    for found, expected in zip(state_lib.jit_once(draw)(key), usual, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("backend", "flags", "options"),
    [
        ("cpu", "--xla_dump_to=x", {"compiler_options": {LEVEL: 1}}),
        ("cpu", f"--{LEVEL}=0", {}),
        ("gpu", "", {}),
    ],
)
def test_other_devices_and_a_level_that_is_named_are_left_alone(backend, flags, options, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    seen = []
    monkeypatch.setattr(jax, "jit", lambda function, **given: seen.append(given) or function)
    state_lib.jit_once(draw, static_argnums=0)
    assert seen == [{"static_argnums": 0} | options]
