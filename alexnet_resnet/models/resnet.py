"""Residual networks for ImageNet and CIFAR, and the plain networks they are compared with (He et al. 2016)."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet.errors import UserError, check_choice
from alexnet_resnet.models.context import Context
from alexnet_resnet.models.layers import COMPUTE_TYPES, BatchNorm, Conv, Dense
from alexnet_resnet.models.stages import REMAT, ScannedStage, run_stage
from alexnet_resnet.ops.pooling import ceil_padding, global_avg_pool, max_pool
from alexnet_resnet.ops.residual import pad_shortcut, residual_add

SHORTCUTS = ("A", "B", "C")
STRIDE_IN = ("1x1", "3x3")
STEM_POOL = ("torchvision", "ceil")

# Blocks of each stage and whether they are bottlenecks (table 1).
IMAGENET_STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class Block(nnx.Module):
    """relu(F(x) + s(x)): F is a chain of convolutions with batch normalisation after each, s the shortcut (figure 5).

    Between the layers of F stands a ReLU. The layers are called conv1, bn1, conv2, ..., a projection shortcut_conv and
    shortcut_bn.

    Args:
      inputs: channels that come in.
      layers: window, features and stride of each convolution of F.
      shortcut: 'A' pads with zeros, 'B' projects where the shape changes and 'C' always (section 3.3); None leaves the
        shortcut away: the block of a plain network, with the same parameters as under 'A'.
      zero_init: whether the last batch normalisation's scale starts from 0, which makes the block start as s alone.
      norm: the fields of every batch normalisation (see `BatchNorm`).
      rngs: the source of the 'params' key.
    """

    def __init__(
        self,
        inputs: int,
        layers: tuple[tuple[int, int, int], ...],
        shortcut: str | None,
        zero_init: bool,
        norm: dict,
        rngs: nnx.Rngs,
    ):
        size = inputs
        for number, (window, features, stride) in enumerate(layers, start=1):
            conv = Conv(size, features, window, stride, padding=window // 2, use_bias=False, rngs=rngs)
            scale = 0.0 if zero_init and number == len(layers) else 1.0
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", BatchNorm(features, scale_init=scale, **norm))
            size = features
        self.layers = len(layers)
        self.features = size
        self.stride = math.prod(stride for _, _, stride in layers)
        self.shortcut = shortcut
        changes = self.stride != 1 or size != inputs
        project = shortcut == "C" or (shortcut == "B" and changes)
        self.shortcut_conv = Conv(inputs, size, 1, self.stride, use_bias=False, rngs=rngs) if project else None
        self.shortcut_bn = BatchNorm(size, **norm) if project else None

    def __call__(self, x: Float[Array, "N H W C"], context: Context) -> Float[Array, "N h w D"]:
        y = x
        for number in range(1, self.layers + 1):
            y = context.run(f"conv{number}", getattr(self, f"conv{number}"), y)
            y = context.run(f"bn{number}", getattr(self, f"bn{number}"), y)
            if number < self.layers:
                y = jax.nn.relu(y)
        return residual_add(y, self._shortcut(x, context))

    def _shortcut(self, x: Array, context: Context) -> Array | None:
        if self.shortcut is None:
            return None
        if self.shortcut_conv is None:
            return pad_shortcut(x, self.features, self.stride)
        x = context.run("shortcut_conv", self.shortcut_conv, x)
        return context.run("shortcut_bn", self.shortcut_bn, x)


class _StagedNetwork(nnx.Module):
    """What both families share: stages of blocks called stage1, stage2, ..., a global average pool and fc."""

    def _build(
        self,
        inputs,
        stages,
        bottleneck,
        num_classes,
        *,
        shortcut,
        stride_in,
        zero_init,
        norm,
        dtype,
        scan,
        remat,
        rngs,
    ):
        for number, (features, blocks) in enumerate(stages, start=1):

            def build(inputs, stride, rngs, features=features):
                layers = ((3, features, stride), (3, features, 1))
                if bottleneck:
                    first, middle = (stride, 1) if stride_in == "1x1" else (1, stride)
                    layers = ((1, features, first), (3, features, middle), (1, 4 * features, 1))
                return Block(inputs, layers, shortcut, zero_init, norm, rngs)

            first = build(inputs, 2 if number > 1 else 1, rngs)
            inputs = first.features
            another = functools.partial(build, inputs, 1)
            if scan:
                stage = ScannedStage(first, another, blocks - 1, rngs)
            else:
                stage = nnx.List([first, *(another(rngs) for _ in range(blocks - 1))])
            setattr(self, f"stage{number}", stage)
        self.stages = len(stages)
        self.fc = Dense(inputs, num_classes, rngs=rngs)
        self.dtype = dtype
        self.remat = remat

    def _stages_to_logits(self, x: Array, context: Context) -> Array:
        for number in range(1, self.stages + 1):
            x = context.run(f"stage{number}", run_stage, getattr(self, f"stage{number}"), x, self.remat)
        x = context.keep("pool", global_avg_pool(x))
        return context.run("fc", self.fc, x.astype(jnp.promote_types(x.dtype, jnp.float32)))


class ResNet(_StagedNetwork):
    """The networks of table 1: a 7x7 convolution, a max-pool, four stages of blocks, an average pool and fc.

    The stages have 64, 128, 256 and 512 features (times `width`) at 1/4 to 1/32 of the resolution, 18 and 34 layers in
    blocks of two 3x3 convolutions, deeper nets in bottlenecks of 1x1, 3x3 and 1x1 with four times the features at the
    end.

    Args:
      image_shape: height, width and channels of an image; the paper's is (224, 224, 3). Any size from 3 pixels runs.
      num_classes: logits.
      depth: the number of weighted layers: 18, 34, 50, 101 or 152.
      residual: False builds the plain network. It has no shortcuts whatever `shortcut` says, and so exactly the
        parameters of option A.
      shortcut: 'A' zero-padded identities, 'B' projections where the shape changes, 'C' projections everywhere
        (section 4.1, table 3; 50 layers and more are the paper's with B).
      stride_in: the convolution of a bottleneck that halves the resolution: the first '1x1' (the paper) or the '3x3'
        ("v1.5", torchvision). Blocks of two convolutions always do it in their first.
      zero_init_residual: start each block as its shortcut alone, by a zero scale in its last batch normalisation.
      ghost_batch: examples that share batch statistics in training, 0 for the whole batch; the paper's 32 a GPU.
      stem_pool: the max-pool's padding: 'torchvision' has 1 on all sides, 'ceil' none but what makes the output size
        round up, as in the authors' released models.
      conv1_bias: a bias in the first convolution, which the authors' released ResNet-50 has.
      bn_epsilon: added to the variance in every batch normalisation.
      width: factor on the number of features.
      dtype: the type activations are computed in; parameters, statistics and logits are float32.
      scan: run each stage as its first block and a loop over the others, whose arrays have a leading axis: the time to
        compile no longer grows with depth. On processors loops are slow.
      remat: what the backward pass computes again to save memory: 'none', or each 'block' from its input.
      rngs: the source of the 'params' key.

    Raises:
      UserError: a field out of its range, images too small, or a zero-initialised plain network.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        num_classes: int = 1000,
        *,
        depth: int = 50,
        residual: bool = True,
        shortcut: str = "B",
        stride_in: str = "1x1",
        zero_init_residual: bool = False,
        ghost_batch: int = 0,
        stem_pool: str = "torchvision",
        conv1_bias: bool = False,
        bn_epsilon: float = 1e-5,
        width: float = 1.0,
        dtype: str = "float32",
        scan: bool = False,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        check_choice("model.depth", depth, tuple(IMAGENET_STAGES))
        check_choice("model.stride_in", stride_in, STRIDE_IN)
        check_choice("model.stem_pool", stem_pool, STEM_POOL)
        _check_shared(residual, shortcut, zero_init_residual, ghost_batch, bn_epsilon, width, dtype, remat)
        if min(image_shape[:2]) < 3:
            raise UserError(f"image_shape={tuple(image_shape)}: expected at least 3 pixels a side.")
        norm = dict(group=ghost_batch, epsilon=bn_epsilon)
        sizes = [_scaled(features, width) for features in (64, 128, 256, 512)]
        blocks, bottleneck = IMAGENET_STAGES[depth]
        self.conv1 = Conv(image_shape[-1], sizes[0], 7, 2, padding=3, use_bias=conv1_bias, rngs=rngs)
        self.bn1 = BatchNorm(sizes[0], **norm)
        self._build(
            sizes[0],
            tuple(zip(sizes, blocks, strict=True)),
            bottleneck,
            num_classes,
            shortcut=shortcut if residual else None,
            stride_in=stride_in,
            zero_init=zero_init_residual,
            norm=norm,
            dtype=dtype,
            scan=scan,
            remat=remat,
            rngs=rngs,
        )
        self.stem_pool = stem_pool

    def __call__(self, x: Float[Array, "N H W C"], context: Context = Context()) -> Float[Array, "N K"]:
        x = x.astype(self.dtype)
        x = context.run("conv1", self.conv1, x)
        x = jax.nn.relu(context.run("bn1", self.bn1, x))
        padding = [(1, 1) if self.stem_pool == "torchvision" else ceil_padding(size, 3, 2) for size in x.shape[1:3]]
        x = context.keep("pool1", max_pool(x, 3, 2, padding))
        return self._stages_to_logits(x, context)


class CifarResNet(_StagedNetwork):
    """The 6n+2-layer network for 32x32 images: a 3x3 convolution and three stages of n blocks (section 4.2).

    The stages have 16, 32 and 64 features (times `width`) at 1, 1/2 and 1/4 of the resolution; then a global average
    pool and one fully connected layer. In the paper all shortcuts are identities (option A), so residual and plain
    nets of one depth have exactly the same parameters.

    Args:
      image_shape: height, width and channels of an image.
      num_classes: logits.
      depth: the number of weighted layers, 6n + 2: 20, 32, 44, 56, 110 and 1202 in the paper.
      residual: False builds the plain network, without shortcuts whatever `shortcut` says.
      width: factor on the number of features.
      ghost_batch: examples that share batch statistics in training, 0 for the whole batch.
      shortcut: 'A' zero-padded identities (the paper), 'B' projections where the shape changes, 'C' everywhere.
      zero_init_residual: start each block as its shortcut alone, by a zero scale in its last batch normalisation.
      bn_epsilon: added to the variance in every batch normalisation.
      dtype: the type activations are computed in; parameters, statistics and logits are float32.
      scan: run each stage as its first block and a loop over the others, whose arrays have a leading axis: the time to
        compile no longer grows with depth. On processors loops are slow.
      remat: what the backward pass computes again to save memory: 'none', or each 'block' from its input.
      rngs: the source of the 'params' key.

    Raises:
      UserError: a depth that is not 6n + 2, or a field out of its range.
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
        shortcut: str = "A",
        zero_init_residual: bool = False,
        bn_epsilon: float = 1e-5,
        dtype: str = "float32",
        scan: bool = False,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"model.depth={depth}: expected 6n + 2 for n of at least 1, such as 20, 32, 44, 56 or 110.")
        _check_shared(residual, shortcut, zero_init_residual, ghost_batch, bn_epsilon, width, dtype, remat)
        norm = dict(group=ghost_batch, epsilon=bn_epsilon)
        sizes = [_scaled(features, width) for features in (16, 32, 64)]
        self.conv1 = Conv(image_shape[-1], sizes[0], 3, padding=1, use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(sizes[0], **norm)
        self._build(
            sizes[0],
            tuple((features, (depth - 2) // 6) for features in sizes),
            False,
            num_classes,
            shortcut=shortcut if residual else None,
            stride_in="3x3",
            zero_init=zero_init_residual,
            norm=norm,
            dtype=dtype,
            scan=scan,
            remat=remat,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "N H W C"], context: Context = Context()) -> Float[Array, "N K"]:
        x = x.astype(self.dtype)
        x = context.run("conv1", self.conv1, x)
        x = jax.nn.relu(context.run("bn1", self.bn1, x))
        return self._stages_to_logits(x, context)


def _scaled(features: int, width: float) -> int:
    return max(1, round(features * width))


def _check_shared(residual, shortcut, zero_init_residual, ghost_batch, bn_epsilon, width, dtype, remat) -> None:
    check_choice("model.shortcut", shortcut, SHORTCUTS)
    check_choice("model.dtype", dtype, COMPUTE_TYPES)
    check_choice("model.remat", remat, REMAT)
    if ghost_batch < 0:
        raise UserError(f"model.ghost_batch={ghost_batch}: expected a number of at least 0.")
    if not bn_epsilon > 0:
        raise UserError(f"model.bn_epsilon={bn_epsilon}: expected a number above 0.")
    if not width > 0:
        raise UserError(f"model.width={width}: expected a number above 0.")
    if zero_init_residual and not residual:
        raise UserError("model.zero_init_residual=True: expected False with model.residual=False, whose blocks are F.")
