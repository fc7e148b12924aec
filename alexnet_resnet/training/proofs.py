"""What a checkpoint proves itself by: a digest of each array, and a second copy of its validation error."""

import json
import math
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree, UInt32

# Names among the digests, whose other names all begin with a bracket: the validation error that the state was saved
# with, and the one that was measured later.
ERROR, LATER = "error", "error measured later"
# Where they stand in a checkpoint's folder.
FILE = os.path.join("digests", "metadata")


def digest(x: Array) -> UInt32[Array, ""]:
    """A sum, modulo 2^32, of hashes of (bits, place) of every element: any sharding gives the same.

    A change of one element changes it for certain; anything else goes unseen once in 2^32 cases.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = x.dtype.itemsize
    bits = lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32)).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    # MurmurHash3's finaliser: a bijection for each place, so two values never collide there.
    mixed = bits ^ (place * jnp.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


@jax.jit
def _digests(tree: PyTree) -> dict[str, UInt32[Array, ""]]:
    return {jax.tree_util.keystr(path): digest(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def digests(tree: PyTree) -> dict[str, int]:
    """The digest of every array of a tree by its name, such as "['params']['fc']['kernel']"."""
    return {name: int(value) for name, value in jax.device_get(_digests(tree)).items()}


def error_of(metrics: Mapping | None) -> float:
    """The validation error among a checkpoint's metrics; infinite where it was not measured."""
    error = (metrics or {}).get("error")
    return math.inf if error is None else error


def read(checkpoint: str) -> dict:
    """What stands in a checkpoint's folder.

    Raises:
      OSError: there is no such file.
      ValueError: it is no JSON.
    """
    with open(os.path.join(checkpoint, FILE)) as file:
        return json.load(file)
