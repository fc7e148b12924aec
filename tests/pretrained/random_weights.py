"""Random weights that anybody can make again from a tensor's name and shape: no torch, no file, no state.

The bits are Philox's, keyed by the name's CRC-32; `random_raw` is the part of numpy's generators that never changes.
"""

import zlib

import numpy as np


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [0, 1) in float32, decided by `name`."""
    size = int(np.prod(shape))
    bits = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(-(-size // 2))
    whole = (bits.astype("<u8", copy=False).view("<u4")[:size] >> 8).astype(np.float32)
    whole *= np.float32(2**-24)
    return whole.reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor as a trained network might have it, so that activations keep their size through many layers."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    u = uniform(name, shape)
    if name.endswith(("running_var", "moving_variance")):
        return u + np.float32(0.5)
    if name.endswith(("bias", "beta", "mean")):
        return (u - np.float32(0.5)) * np.float32(0.2)
    if len(shape) == 1:
        return u * np.float32(0.4) + np.float32(0.4)
    fan_in = np.prod(shape[:-1] if name.endswith("kernel") else shape[1:])
    u -= np.float32(0.5)
    u *= np.float32(np.sqrt(24 / fan_in))
    return u


def image(size: int) -> np.ndarray:
    """One network input of size x size, [1, size, size, 3], between -1 and 1."""
    return 2 * uniform(f"image {size}", (1, size, size, 3)) - np.float32(1)


def photograph() -> np.ndarray:
    """An RGB image of uneven sides with coarse shapes and fine grain, [301, 447, 3] in uint8."""
    coarse = np.kron(uniform("coarse", (31, 45, 3)), np.ones((10, 10, 1)))[:301, :447]
    return (coarse * 200 + uniform("grain", (301, 447, 3)) * 55).astype(np.uint8)
