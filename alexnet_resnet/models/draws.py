"""The keys that a network draws its initial parameters from."""

import jax
from flax import nnx
from jaxtyping import Array


class _Stream(nnx.RngStream):
    def __init__(self, key: Array, drawn: int | Array):
        super().__init__(key, tag="params")
        self.drawn = drawn

    def __call__(self) -> Array:
        key = jax.random.fold_in(self.key[...], self.drawn)
        self.drawn += 1
        return key


class Draws(nnx.Rngs):
    """The same keys as `nnx.Rngs(params=key)`, counted in Python.

    Under `jax.jit` nnx counts in a traced variable, and each count costs time in proportion to the whole trace so far:
    the 1202-layer network would take minutes to trace, and takes seconds with this.

    Args:
      key: decides all of them.
      drawn: how many of them count as drawn.
    """

    def __init__(self, key: Array, drawn: int | Array = 0):
        self.params = _Stream(key, drawn)

    def starting(self, drawn: int | Array) -> "Draws":
        """The same keys from another one on."""
        return Draws(self.params.key[...], drawn)
