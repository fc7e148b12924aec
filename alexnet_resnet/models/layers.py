"""The layers that networks are built from: Flax NNX modules around `ops`, called with (x, context)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from alexnet_resnet.models.context import Context
from alexnet_resnet.ops.batch_norm import batch_moments, batch_normalise, split_batch_moments
from alexnet_resnet.ops.columns import Columns
from alexnet_resnet.ops.linear import convolve, dense
from alexnet_resnet.ops.pooling import ceil_padding

Initializer = Callable

COMPUTE_TYPES = ("float32", "bfloat16", "float64")

# He et al. 2015 (arXiv 1502.01852), equation 10: a normal with variance 2 / fan-in, not truncated.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


def is_wide(xs: list[Array]) -> bool:
    """Whether columns with these inputs are computed as one convolution: where they see the same, on accelerators."""
    return len(xs) > 1 and all(x is xs[0] for x in xs) and jax.default_backend() != "cpu"


class Conv(nnx.Module):
    """A convolution of NHWC activations; over the columns of a network, one for each.

    Args:
      inputs: channels that one column sees.
      features: output channels of all columns together.
      window: side of the square kernel.
      stride: pixels between outputs.
      padding: the same number of zeros on all four sides, or 'ceil' for none but what makes the output size round up.
      use_bias: whether a bias is added.
      kernel_init: how the kernel [window, window, inputs, features] starts.
      bias_init: the constant that biases start from.
      rngs: the source of the 'params' key.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        window: int,
        stride: int = 1,
        padding: int | str = 0,
        use_bias: bool = True,
        kernel_init: Initializer = he_normal,
        bias_init: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (window, window, inputs, features), jnp.float32))
        self.bias = nnx.Param(jnp.full(features, bias_init, jnp.float32)) if use_bias else None
        self.stride = stride
        self.padding = padding

    def _padding(self, size: Sequence[int]) -> tuple[tuple[int, int], ...]:
        if self.padding == "ceil":
            return tuple(ceil_padding(s, self.kernel.shape[0], self.stride) for s in size)
        return ((self.padding, self.padding),) * 2

    def columnwise(self, xs: list[Float[Array, "N H W C"]], columns: Columns) -> list[Float[Array, "N h w D"]]:
        """Convolves each column with its own slice of the kernel.

        Where columns see the same input, as where they meet, accelerators are faster with one wide convolution.
        """
        if is_wide(xs):
            bias = None if self.bias is None else self.bias[...]
            wide = convolve(xs[0], self.kernel[...], bias, self.stride, self._padding(xs[0].shape[1:3]))
            return columns.split(wide)
        kernels = columns.split(self.kernel[...])
        biases = [None] * len(kernels) if self.bias is None else columns.split(self.bias[...])
        return [
            convolve(x, kernel, bias, self.stride, self._padding(x.shape[1:3]))
            for x, kernel, bias in zip(xs, kernels, biases, strict=True)
        ]

    def __call__(self, x: Float[Array, "N H W C"], context: Context) -> Float[Array, "N h w D"]:
        return self.columnwise([x], Columns())[0]


class Dense(nnx.Module):
    """A fully connected layer; over the columns of a network, each computes its share of the features.

    Args:
      inputs: features that come in.
      features: features that go out, of all columns together.
      kernel_init: how the kernel [inputs, features] starts.
      bias_init: the constant that biases start from.
      rngs: the source of the 'params' key.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        kernel_init: Initializer = he_normal,
        bias_init: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, features), jnp.float32))
        self.bias = nnx.Param(jnp.full(features, bias_init, jnp.float32))

    def columnwise(self, x: Float[Array, "N F"], columns: Columns) -> list[Float[Array, "N G"]]:
        """The features of each column present here, from an input that all columns see."""
        return [
            dense(x, kernel, bias)
            for kernel, bias in zip(columns.split(self.kernel[...]), columns.split(self.bias[...]), strict=True)
        ]

    def add_columns(self, xs: list[Float[Array, "N F"]], columns: Columns) -> Float[Array, "N G"]:
        """All features, from an input of which each column holds a share: partial sums, then the bias once."""
        kernels = columns.split(self.kernel[...], axis=0)
        total = columns.add([dense(x, kernel) for x, kernel in zip(xs, kernels, strict=True)])
        return total + self.bias[...].astype(total.dtype)

    def __call__(self, x: Float[Array, "N F"], context: Context) -> Float[Array, "N G"]:
        return dense(x, self.kernel[...], self.bias[...])


class BatchNorm(nnx.Module):
    """Batch normalisation with running moments for evaluation.

    Args:
      features: channels.
      group: examples over which training takes its moments; 0 for the whole global batch.
      momentum: what the running moments keep of themselves each step.
      epsilon: added to the variance.
      scale_init: the constant that scales start from.
    """

    def __init__(
        self,
        features: int,
        group: int = 0,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        scale_init: float = 1.0,
    ):
        self.scale = nnx.Param(jnp.full(features, scale_init, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.variance = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.group = group
        self.momentum = momentum
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "N ... C"], context: Context) -> Float[Array, "N ... C"]:
        if context.train:
            axes, batch = context.batch_axes, x.shape[0]
            if axes:
                batch *= lax.axis_size(axes)
                mean, variance = split_batch_moments(x, axes, self.group)
            else:
                mean, variance = batch_moments(x, self.group)
            values = (self.group or batch) * (x.size // x.shape[-1] // x.shape[0])
            # Of all groups; one that spans several devices counts once on each of them.
            new = (jnp.mean(mean, 0), jnp.mean(variance, 0) * (values / max(values - 1, 1)))
            new_mean, new_variance = lax.pmean(new, axes) if axes else new
            keep = self.momentum
            # Not by `[...] =`, which asks for the sharding of a traced array: JAX then walks through the trace so far
            # for a message that nobody reads, more than half of the time that a deep network takes to trace.
            self.mean.set_value(keep * self.mean[...] + (1 - keep) * new_mean)
            self.variance.set_value(keep * self.variance[...] + (1 - keep) * new_variance)
        else:
            mean, variance = self.mean[...][None], self.variance[...][None]
        return batch_normalise(x, mean, variance, self.scale[...], self.bias[...], self.epsilon)
