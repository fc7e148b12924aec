"""Residual networks for CIFAR, and the plain networks they are compared with (He et al. 2016, section 4.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet.errors import UserError, check_choice
from alexnet_resnet.models.context import Context
from alexnet_resnet.models.layers import COMPUTE_TYPES, BatchNorm, Conv, Dense
from alexnet_resnet.ops.pooling import global_avg_pool
from alexnet_resnet.ops.residual import pad_shortcut, residual_add


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions, each followed by batch normalisation, and the shortcut around them (figure 5, left).

    Args:
      inputs: channels that come in.
      features: channels that go out.
      stride: that of the first convolution and of the shortcut.
      residual: False leaves the shortcut away: the block of a plain network, with the same parameters.
      ghost_batch: examples that share batch statistics, 0 for all.
      rngs: the source of the 'params' key.
    """

    def __init__(self, inputs: int, features: int, stride: int, residual: bool, ghost_batch: int, rngs: nnx.Rngs):
        self.conv1 = Conv(inputs, features, 3, stride, padding=1, use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(features, ghost_batch)
        self.conv2 = Conv(features, features, 3, padding=1, use_bias=False, rngs=rngs)
        self.bn2 = BatchNorm(features, ghost_batch)
        self.features = features
        self.stride = stride
        self.residual = residual

    def __call__(self, x: Float[Array, "N H W C"], context: Context) -> Float[Array, "N h w D"]:
        y = context.run("conv1", self.conv1, x)
        y = jax.nn.relu(context.run("bn1", self.bn1, y))
        y = context.run("conv2", self.conv2, y)
        y = context.run("bn2", self.bn2, y)
        shortcut = pad_shortcut(x, self.features, self.stride) if self.residual else None
        return residual_add(y, shortcut)


class CifarResNet(nnx.Module):
    """The 6n+2-layer network for 32x32 images: a 3x3 convolution and three stages of n blocks, shortcuts of option A.

    The stages have 16, 32 and 64 features (times `width`) at 1, 1/2 and 1/4 of the resolution; then a global average
    pool and one fully connected layer. All shortcuts are identities, so residual and plain nets of one depth have
    exactly the same parameters.

    Args:
      image_shape: height, width and channels of an image.
      num_classes: logits.
      depth: the number of weighted layers, 6n + 2: 20, 32, 44, 56, 110 and 1202 in the paper.
      residual: False builds the plain network.
      width: factor on the number of features.
      ghost_batch: examples that share batch statistics in training, 0 for the whole batch.
      dtype: the type activations are computed in; parameters, statistics and logits are float32.
      rngs: the source of the 'params' key.

    Raises:
      UserError: a depth that is not 6n + 2, or a field of the wrong type.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int = 20,
        residual: bool = True,
        width: float = 1.0,
        ghost_batch: int = 0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"model.depth={depth}: expected 6n + 2 for n of at least 1, such as 20, 32, 44, 56 or 110.")
        check_choice("model.dtype", dtype, COMPUTE_TYPES)
        blocks = (depth - 2) // 6
        sizes = [max(1, round(features * width)) for features in (16, 32, 64)]
        self.conv1 = Conv(image_shape[-1], sizes[0], 3, padding=1, use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(sizes[0], ghost_batch)
        inputs = sizes[0]
        for stage, features in enumerate(sizes, start=1):
            stack = []
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                stack.append(BasicBlock(inputs, features, stride, residual, ghost_batch, rngs))
                inputs = features
            setattr(self, f"stage{stage}", nnx.List(stack))
        self.fc = Dense(inputs, num_classes, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"], context: Context = Context()) -> Float[Array, "N K"]:
        x = x.astype(self.dtype)
        x = context.run("conv1", self.conv1, x)
        x = jax.nn.relu(context.run("bn1", self.bn1, x))
        for stage in ("stage1", "stage2", "stage3"):
            x = context.run(stage, run_blocks, getattr(self, stage), x)
        x = context.keep("pool", global_avg_pool(x))
        return context.run("fc", self.fc, x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def run_blocks(blocks: nnx.List, x: Float[Array, "N H W C"], context: Context) -> Float[Array, "N h w D"]:
    """Calls the blocks of one stage in turn, each under its number."""
    for number, block in enumerate(blocks):
        x = context.run(str(number), block, x)
    return x
