"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition")."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet.errors import UserError, check_choice
from alexnet_resnet.models.context import Context
from alexnet_resnet.models.layers import COMPUTE_TYPES, Conv, Dense
from alexnet_resnet.ops.linear import convolve
from alexnet_resnet.ops.pooling import avg_pool

CONNECTIONS = ("sparse", "full")
SUBSAMPLING = ("trainable", "average")
OUTPUTS = ("rbf", "linear")

# The maps of s2 that each map of c3 sees (their table I): three neighbours, four neighbours, two pairs, all.
C3_SEES = (
    *(tuple((first + i) % 6 for i in range(3)) for first in range(6)),
    *(tuple((first + i) % 6 for i in range(4)) for first in range(6)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    tuple(range(6)),
)


def squash(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A tanh(S x) with A = 1.7159 and S = 2/3, which maps +-1 to +-1 (section II.B and appendix A)."""
    return 1.7159 * jnp.tanh(x * (2 / 3))


def uniform_over_fan_in(key: Array, shape: tuple[int, ...], dtype, fan_in: int) -> Array:
    """Uniform between -2.4 / fan_in and 2.4 / fan_in, the paper's initial weights (appendix A)."""
    return nnx.initializers.uniform(2 * 2.4 / fan_in)(key, shape, dtype) - 2.4 / fan_in


@functools.cache
def codes(classes: int) -> np.ndarray:
    """A word of 84 components +-1 for each of at most 84 classes, any two of which differ in 42.

    The paper's output units compare f6 with hand-drawn 7x12 pictures of the characters; it names random and error
    correcting codes as the alternatives for other tasks. These are rows of Paley's Hadamard matrix for the prime 83.
    """
    squares = {i * i % 83 for i in range(1, 83)}
    core = np.array([[1 if (j - i) % 83 in squares else -1 for j in range(83)] for i in range(83)])
    matrix = np.ones((84, 84), np.float32)
    matrix[1:, 1:] = core
    return matrix[:classes]


class SparseConv(nnx.Module):
    """A 5x5 convolution whose maps see the maps that `C3_SEES` lists, with exactly these weights as parameters.

    Args:
      rngs: the source of the 'params' key.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        key = rngs.params()
        fans = np.repeat([25 * len(seen) for seen in C3_SEES], [len(seen) for seen in C3_SEES])
        unit = nnx.initializers.uniform(2.0)(key, (5, 5, len(fans)), jnp.float32) - 1
        self.kernel = nnx.Param(unit * (2.4 / fans).astype(np.float32))
        self.bias = nnx.Param(jnp.zeros(len(C3_SEES), jnp.float32))

    def __call__(self, x: Float[Array, "N H W 6"], context: Context) -> Float[Array, "N h w 16"]:
        return convolve(x, self.dense_kernel(), self.bias[...])

    def dense_kernel(self) -> Float[Array, "5 5 6 16"]:
        """The kernel of the full convolution that this is: zeros where there is no connection."""
        inputs = [i for seen in C3_SEES for i in seen]
        outputs = [number for number, seen in enumerate(C3_SEES) for _ in seen]
        return jnp.zeros((5, 5, 6, len(C3_SEES)), jnp.float32).at[:, :, inputs, outputs].set(self.kernel[...])


class Subsampling(nnx.Module):
    """The sum of each 2x2 cell times a coefficient plus a bias, both trainable and one for each map; then squashed.

    The coefficient starts from 1/4, which makes the layer start as the average (the paper does not say).
    """

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.full(features, 0.25, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))

    def __call__(self, x: Float[Array, "N H W C"], context: Context) -> Float[Array, "N h w C"]:
        total = 4 * avg_pool(x, 2, 2)
        return squash(total * self.scale[...].astype(x.dtype) + self.bias[...].astype(x.dtype))


class LeNet(nnx.Module):
    """LeNet-5: c1 (6 maps), s2, c3 (16 maps), s4, c5 (120 units), f6 (84 units) and the output.

    With the defaults it has the paper's 60,000 trainable parameters; with full connections, average pooling and a
    linear output 61,706.

    Args:
      image_shape: height, width and channels of an image; the paper's is (32, 32, 1), the digit 20x20 in its middle,
        white -0.1 and black 1.175.
      num_classes: logits.
      connections: 'sparse' is the paper's table I between s2 and c3, 'full' connects all maps.
      subsampling: 'trainable' is the paper's (see `Subsampling`), 'average' has no parameters and no squashing.
      output: 'rbf' is the paper's: minus the squared distance between f6 and a fixed word of 84 +-1 for each class (see
        `codes`); softmax cross entropy of these logits is the paper's equation 9, with `train.rubbish` its constant
        j. 'linear' is a fully connected layer.
      dtype: the type activations are computed in; parameters and logits are float32.
      rngs: the source of the 'params' key.

    Raises:
      UserError: a field out of its range, images too small, or more classes than the words of the 'rbf' output.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (32, 32, 1),
        num_classes: int = 10,
        *,
        connections: str = "sparse",
        subsampling: str = "trainable",
        output: str = "rbf",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        check_choice("model.connections", connections, CONNECTIONS)
        check_choice("model.subsampling", subsampling, SUBSAMPLING)
        check_choice("model.output", output, OUTPUTS)
        check_choice("model.dtype", dtype, COMPUTE_TYPES)
        if output == "rbf" and num_classes > 84:
            raise UserError(f"model.output='rbf': expected 'linear' for {num_classes} classes, of which it has 84.")
        *size, channels = image_shape
        for _ in range(2):
            size = [(s - 4) // 2 for s in size]
        if min(size) < 1:
            raise UserError(f"image_shape={tuple(image_shape)}: expected at least 16 pixels a side.")

        def init(fan_in):
            return dict(kernel_init=functools.partial(uniform_over_fan_in, fan_in=fan_in), rngs=rngs)

        units = size[0] * size[1] * 16
        self.c1 = Conv(channels, 6, 5, **init(25 * channels))
        self.c3 = SparseConv(rngs=rngs) if connections == "sparse" else Conv(6, 16, 5, **init(150))
        self.s2 = Subsampling(6) if subsampling == "trainable" else None
        self.s4 = Subsampling(16) if subsampling == "trainable" else None
        # In the paper c5 is a 5x5 convolution over maps of 5x5, which is this.
        self.c5 = Dense(units, 120, **init(units))
        self.f6 = Dense(120, 84, **init(120))
        self.output = Dense(84, num_classes, **init(84)) if output == "linear" else None
        self.num_classes = num_classes
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"], context: Context = Context()) -> Float[Array, "N K"]:
        def squashed(name, x):
            layer = getattr(self, name)
            return context.run(name, lambda x, inner: squash(layer(x, inner)), x)

        def subsampled(name, x):
            layer = getattr(self, name)
            return context.keep(name, avg_pool(x, 2, 2)) if layer is None else context.run(name, layer, x)

        x = subsampled("s2", squashed("c1", x.astype(self.dtype)))
        x = subsampled("s4", squashed("c3", x))
        x = squashed("f6", squashed("c5", x.reshape(x.shape[0], -1)))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return context.run("output", self._distance if self.output is None else self.output, x)

    def _distance(self, x: Array, context: Context) -> Array:
        return -jnp.sum(jnp.square(x[:, None] - codes(self.num_classes)), -1)
