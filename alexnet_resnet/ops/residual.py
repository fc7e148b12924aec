"""The residual block's arithmetic, ResNet's section 3.2, as functions of arrays.

A block computes y = relu(F(x) + s(x)). F is the module's business; s, the shortcut, and the sum are here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def pad_shortcut(x: Float[Array, "N H W C"], features: int, stride: int = 1) -> Float[Array, "N h w D"]:
    """Option A: every `stride`-th pixel, and zeros for the channels that x lacks; no parameters.

    Raises:
      ValueError: `features` below x's own channel count.

    Source: He et al. 2016, section 3.3, option A ("extra zero entries padded for increasing dimensions").
    """
    missing = features - x.shape[-1]
    if missing < 0:
        raise ValueError(f"features={features}: expected at least x's {x.shape[-1]} channels")
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing))) if missing else x


def residual_add(
    residual: Float[Array, "N H W C"], shortcut: Float[Array, "N H W C"] | None
) -> Float[Array, "N H W C"]:
    """relu(F(x) + s(x)); without a shortcut relu(F(x)), which makes the block plain.

    The second nonlinearity stands after the addition. Source: He et al. 2016, section 3.2, equation 1 and figure 2.
    """
    return jax.nn.relu(residual if shortcut is None else residual + shortcut)
