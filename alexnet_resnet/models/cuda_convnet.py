"""The CIFAR-10 networks of AlexNet's author, as the layer files of cuda-convnet define them."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet.errors import UserError, check_choice
from alexnet_resnet.models.context import Context
from alexnet_resnet.models.layers import COMPUTE_TYPES, Conv, Dense, Initializer
from alexnet_resnet.ops.local import locally_connect
from alexnet_resnet.ops.lrn import local_response_norm
from alexnet_resnet.ops.pooling import avg_pool, ceil_padding, max_pool
from alexnet_resnet.ops.spatial_norm import within_map_norm

POOLS = ("max", "avg")
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


@dataclasses.dataclass(frozen=True)
class Layers:
    """One variant.

    Attributes:
      convs: features of each convolution, all 5x5 with padding 2.
      then: after each convolution and its activation, in order: 'max', 'avg', 'within' (normalisation within each map)
        or 'across' (LRN across channels).
      locals: features of each locally connected layer, all 3x3 with padding 1.
      stds: the standard deviation that the kernels of convolutions, local layers and fc10 start with.
    """

    convs: tuple[int, ...]
    then: tuple[tuple[str, ...], ...]
    locals: tuple[int, ...]
    stds: tuple[float, ...]


VARIANTS = {
    "18pct": Layers((32, 32, 64), (("max", "within"), ("avg", "within"), ("avg",)), (), (1e-4, 0.01, 0.01, 0.01)),
    "11pct": Layers((64, 64), (("max", "across"), ("across", "max")), (64, 32), (1e-4, 0.01, 0.04, 0.04, 0.01)),
    "13pct": Layers((64, 64), (("max",), ("max",)), (32, 32), (1e-4, 0.01, 0.04, 0.04, 0.01)),
    "fig1": Layers((32, 32, 64), (("max",), ("avg",), ("avg",)), (), (1e-4, 0.01, 0.01, 0.01)),
}


class LocallyConnected(nnx.Module):
    """A 3x3 layer with padding 1 whose kernels and biases are not shared between places.

    Args:
      size: height and width of its maps.
      inputs: channels that come in.
      features: channels that go out.
      kernel_init: how the kernel [height, width, 3, 3, inputs, features] starts; biases start from 0.
      rngs: the source of the 'params' key.
    """

    def __init__(self, size: tuple[int, int], inputs: int, features: int, kernel_init: Initializer, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*size, 3, 3, inputs, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((*size, features), jnp.float32))

    def __call__(self, x: Float[Array, "N H W C"], context: Context) -> Float[Array, "N H W D"]:
        return locally_connect(x, self.kernel[...], self.bias[...], padding=1)


class CudaConvnet(nnx.Module):
    """Two or three 5x5 convolutions, perhaps two locally connected layers, and a fully connected one.

    The layers are called conv1, conv2, conv3 or conv1, conv2, local3, local4; then fc10. All pools are 3x3, 2 pixels
    apart, and round up; average pools divide by the cells inside the image.

    - '18pct': three convolutions with normalisation within each map; 89,578 parameters on 32x32x3.
    - '11pct': two convolutions with LRN over 9 channels and two locally connected layers; 2,112,970 parameters on
      the 24x24x3 crops that it is trained on. The four-layer net of the paper's section 3.3 (11% with LRN).
    - '13pct': the published net without LRN (13% in section 3.3). Its first local layer has 32 filters, not 64.
    - 'fig1': a four-layer net for figure 1. The paper does not describe it beyond its depth and "no regularization of
      any kind". Ours is '18pct' without normalisation: four layers with weights, and nothing between them that
      favours one activation.

    Args:
      image_shape: height, width and channels of an image: (32, 32, 3), or (24, 24, 3) for '11pct' and '13pct'.
      num_classes: logits.
      variant: '18pct', '11pct', '13pct' or 'fig1'.
      activation: 'relu' or, for figure 1's dashed line, 'tanh'.
      norm: False leaves the variant's normalisations out, and nothing else.
      dtype: the type activations are computed in; parameters, normalisation and logits are float32.
      rngs: the source of the 'params' key.

    Raises:
      UserError: an unknown variant, activation or type, or images too small for the pools.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        num_classes: int = 10,
        *,
        variant: str = "18pct",
        activation: str = "relu",
        norm: bool = True,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        check_choice("model.variant", variant, tuple(VARIANTS))
        check_choice("model.activation", activation, tuple(ACTIVATIONS))
        check_choice("model.dtype", dtype, COMPUTE_TYPES)
        layers = VARIANTS[variant]
        *size, inputs = image_shape
        stds = iter(layers.stds)
        for number, features in enumerate(layers.convs, start=1):
            init = nnx.initializers.normal(next(stds))
            setattr(self, f"conv{number}", Conv(inputs, features, 5, padding=2, kernel_init=init, rngs=rngs))
            inputs = features
            # A window of 3 that rounds up leaves nothing of a single pixel.
            size = [s // 2 for s in size]
        if min(size) < 1:
            raise UserError(
                f"image_shape={tuple(image_shape)}: expected at least {2 ** len(layers.convs)} pixels a side."
            )
        for number, features in enumerate(layers.locals, start=len(layers.convs) + 1):
            init = nnx.initializers.normal(next(stds))
            setattr(self, f"local{number}", LocallyConnected(tuple(size), inputs, features, init, rngs=rngs))
            inputs = features
        init = nnx.initializers.normal(next(stds))
        self.fc10 = Dense(size[0] * size[1] * inputs, num_classes, kernel_init=init, rngs=rngs)
        self.variant = variant
        self.activation = activation
        self.norm = norm
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"], context: Context = Context()) -> Float[Array, "N K"]:
        layers = VARIANTS[self.variant]
        activation = ACTIVATIONS[self.activation]

        def activated(name, x):
            layer = getattr(self, name)
            return context.run(name, lambda x, inner: activation(layer(x, inner)), x)

        x = x.astype(self.dtype)
        for number, then in enumerate(layers.then, start=1):
            x = activated(f"conv{number}", x)
            for step in then if self.norm else (step for step in then if step in POOLS):
                name = "pool" if step in POOLS else "norm"
                x = context.keep(f"{name}{number}", _STEPS[step](x))
        for number in range(len(layers.then) + 1, len(layers.then) + 1 + len(layers.locals)):
            x = activated(f"local{number}", x)
        x = x.reshape(x.shape[0], -1)
        return context.run("fc10", self.fc10, x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def _pool(x: Array, pool) -> Array:
    return pool(x, 3, 2, [ceil_padding(size, 3, 2) for size in x.shape[1:3]])


_STEPS = {
    "max": lambda x: _pool(x, max_pool),
    "avg": lambda x: _pool(x, avg_pool),
    "within": lambda x: within_map_norm(x, size=3, k=1.0, alpha=5e-5, beta=0.75),
    "across": lambda x: local_response_norm(x, size=9, k=1.0, alpha=1e-3, beta=0.75, alpha_over="mean"),
}
