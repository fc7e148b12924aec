"""VGG-16 and VGG-19, the networks that the ResNet paper compares with (Simonyan and Zisserman, arXiv 1409.1556)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet.errors import UserError, check_choice
from alexnet_resnet.models.context import Context
from alexnet_resnet.models.layers import COMPUTE_TYPES, BatchNorm, Conv, Dense
from alexnet_resnet.ops.dropout import dropout as drop
from alexnet_resnet.ops.pooling import max_pool

# 3x3 convolutions in each of the five stages (their table 1, columns D and E).
STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nnx.Module):
    """Five stages of 3x3 convolutions with a 2x2 max-pool after each, and three fully connected layers.

    The layers are called conv1_1 to conv5_3 (16 layers) or conv5_4 (19), and fc6, fc7 and fc8. Activations under these
    names are after the ReLU; with batch normalisation, conv is before it and bn after it, both before the ReLU.

    The weights start as He et al. 2015 (arXiv 1502.01852) train networks of this depth from scratch, biases from 0.
    (The VGG paper starts from N(0, 0.1^2) and, for the deep nets, from a shallower trained one.)

    Args:
      image_shape: height, width and channels of an image; the paper's is (224, 224, 3).
      num_classes: logits.
      depth: the number of weighted layers, 16 or 19.
      dropout: the share of fc6's and fc7's units that training drops.
      batch_norm: normalise after each convolution, which then has no bias.
      ghost_batch: examples that share batch statistics in training, 0 for the whole batch.
      width: factor on the number of maps and units of every hidden layer.
      dtype: the type activations are computed in; parameters, statistics and logits are float32.
      rngs: the source of the 'params' key.

    Raises:
      UserError: a field out of its range, or images too small for the pools.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        num_classes: int = 1000,
        *,
        depth: int = 16,
        dropout: float = 0.5,
        batch_norm: bool = False,
        ghost_batch: int = 0,
        width: float = 1.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        check_choice("model.depth", depth, tuple(STAGES))
        check_choice("model.dtype", dtype, COMPUTE_TYPES)
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}: expected a share of at least 0 and below 1.")
        if ghost_batch < 0:
            raise UserError(f"model.ghost_batch={ghost_batch}: expected a number of at least 0.")
        if not width > 0:
            raise UserError(f"model.width={width}: expected a number above 0.")
        height, breadth, inputs = image_shape
        if min(height, breadth) < 32:
            raise UserError(f"image_shape={tuple(image_shape)}: expected at least 32 pixels a side for five pools.")
        maps = [max(1, round(features * width)) for features in (64, 128, 256, 512, 512)]
        units = max(1, round(4096 * width))
        for stage, (features, layers) in enumerate(zip(maps, STAGES[depth], strict=True), start=1):
            for layer in range(1, layers + 1):
                conv = Conv(inputs, features, 3, padding=1, use_bias=not batch_norm, rngs=rngs)
                setattr(self, f"conv{stage}_{layer}", conv)
                if batch_norm:
                    setattr(self, f"bn{stage}_{layer}", BatchNorm(features, ghost_batch))
                inputs = features
        self.fc6 = Dense((height // 32) * (breadth // 32) * inputs, units, rngs=rngs)
        self.fc7 = Dense(units, units, rngs=rngs)
        self.fc8 = Dense(units, num_classes, rngs=rngs)
        self.depth = depth
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"], context: Context = Context()) -> Float[Array, "N K"]:
        x = x.astype(self.dtype)
        for stage, layers in enumerate(STAGES[self.depth], start=1):
            for layer in range(1, layers + 1):
                x = self._convolved(f"{stage}_{layer}", x, context)
            x = context.keep(f"pool{stage}", max_pool(x, 2, 2))
        x = x.reshape(x.shape[0], -1)
        for number in (6, 7):
            x = _with_relu(f"fc{number}", getattr(self, f"fc{number}"), x, context)
            if context.train and context.key is not None and self.dropout:
                x = drop(x, self.dropout, jax.random.fold_in(context.key, number), context.examples)
        return context.run("fc8", self.fc8, x.astype(jnp.promote_types(x.dtype, jnp.float32)))

    def _convolved(self, place: str, x: Array, context: Context) -> Array:
        conv = getattr(self, f"conv{place}")
        if not self.batch_norm:
            return _with_relu(f"conv{place}", conv, x, context)
        x = context.run(f"conv{place}", conv, x)
        return jax.nn.relu(context.run(f"bn{place}", getattr(self, f"bn{place}"), x))


def _with_relu(name: str, layer: nnx.Module, x: Array, context: Context) -> Array:
    return context.run(name, lambda x, inner: jax.nn.relu(layer(x, inner)), x)
