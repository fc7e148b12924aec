"""AlexNet as the paper writes it (Krizhevsky et al. 2012, section 3.5 and figure 2), in two columns or one."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from alexnet_resnet.errors import UserError, check_at_least, check_choice
from alexnet_resnet.models.context import Context
from alexnet_resnet.models.layers import COMPUTE_TYPES, Conv, Dense
from alexnet_resnet.ops.columns import Columns, Layout
from alexnet_resnet.ops.dropout import dropout
from alexnet_resnet.ops.lrn import ALPHA_OVER, local_response_norm
from alexnet_resnet.ops.pooling import ceil_padding, max_pool


class AlexNet(nnx.Module):
    """Five convolutions and three fully connected layers, in columns that meet at conv3, fc6, fc7 and fc8.

    With two columns this is the network of the paper's two GPUs: conv2, conv4 and conv5 see the maps of their own
    column only. With one column every layer sees everything.

    Args:
      image_shape: height, width and channels of an image; the paper's is (224, 224, 3).
      num_classes: logits.
      columns: the number of columns, 2 in the paper.
      width: factor on the number of maps and units of every hidden layer.
      lrn_size: the paper's n, channels in the window of local response normalisation.
      lrn_k: its additive constant.
      lrn_alpha: its factor on the squares.
      lrn_beta: its exponent.
      lrn_alpha_over: 'sum' (the text) or 'mean' (alpha / n, the code as it was run).
      dropout: the share of fc6's and fc7's units that training drops.
      dtype: the type activations are computed in; parameters, normalisation and logits are float32.
      rngs: the source of the 'params' key.

    Raises:
      UserError: a field out of its range, a width that the columns do not divide, or images too small for the strides.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        num_classes: int = 1000,
        *,
        columns: int = 2,
        width: float = 1.0,
        lrn_size: int = 5,
        lrn_k: float = 2.0,
        lrn_alpha: float = 1e-4,
        lrn_beta: float = 0.75,
        lrn_alpha_over: str = "sum",
        dropout: float = 0.5,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        check_at_least("model.columns", columns, 1)
        check_at_least("model.lrn_size", lrn_size, 1)
        check_choice("model.lrn_alpha_over", lrn_alpha_over, ALPHA_OVER)
        check_choice("model.dtype", dtype, COMPUTE_TYPES)
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}: expected a share of at least 0 and below 1.")
        maps = [_scaled(features, width, columns) for features in (96, 256, 384, 384, 256)]
        units = _scaled(4096, width, columns)
        height, breadth = (_final_size(size) for size in image_shape[:2])
        if min(height, breadth) < 1:
            raise UserError(
                f"image_shape={tuple(image_shape)}: expected at least 67 pixels a side for AlexNet's strides."
            )

        # N(0, 0.01) everywhere; biases 1 in conv2, conv4, conv5 and the hidden fully connected layers (section 5).
        init = dict(kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.conv1 = Conv(image_shape[-1], maps[0], 11, stride=4, padding="ceil", **init)
        self.conv2 = Conv(maps[0] // columns, maps[1], 5, padding=2, bias_init=1.0, **init)
        self.conv3 = Conv(maps[1], maps[2], 3, padding=1, **init)
        self.conv4 = Conv(maps[2] // columns, maps[3], 3, padding=1, bias_init=1.0, **init)
        self.conv5 = Conv(maps[3] // columns, maps[4], 3, padding=1, bias_init=1.0, **init)
        self.fc6 = Dense(height * breadth * maps[4], units, bias_init=1.0, **init)
        self.fc7 = Dense(units, units, bias_init=1.0, **init)
        self.fc8 = Dense(units, num_classes, **init)
        self.columns = columns
        self.lrn = nnx.static(dict(size=lrn_size, k=lrn_k, alpha=lrn_alpha, beta=lrn_beta, alpha_over=lrn_alpha_over))
        self.dropout = dropout
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"], context: Context = Context()) -> Float[Array, "N K"]:
        layout = context.layout or Layout(Columns(self.columns), Columns(self.columns))
        conv, fc = layout.conv, layout.fc
        keep = context.keep

        def convolved(name, xs):
            return context.run(
                name, lambda xs, _: [jax.nn.relu(x) for x in getattr(self, name).columnwise(xs, conv)], xs
            )

        def normalised(name, xs):
            return keep(name, [local_response_norm(x, **self.lrn) for x in xs])

        def pooled(name, xs):
            return keep(name, [_overlapping_pool(x) for x in xs])

        def connected(name, x):
            return context.run(name, lambda x, _: [jax.nn.relu(y) for y in getattr(self, name).columnwise(x, fc)], x)

        def everywhere(xs):
            return [conv.join(xs)] * conv.here

        xs = [x.astype(self.dtype)] * conv.here
        xs = pooled("pool1", normalised("norm1", convolved("conv1", xs)))
        xs = pooled("pool2", normalised("norm2", convolved("conv2", xs)))
        xs = convolved("conv3", everywhere(xs))
        xs = convolved("conv4", xs)
        xs = pooled("pool5", convolved("conv5", xs))
        x = layout.to_fc(conv.join(xs).reshape(x.shape[0], -1))
        xs = self._drop(6, connected("fc6", x), fc, context)
        xs = self._drop(7, connected("fc7", fc.join(xs)), fc, context)
        xs = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in xs]
        return context.run("fc8", lambda xs, _: self.fc8.add_columns(xs, fc), xs)

    def _drop(self, layer: int, xs: list[Array], columns: Columns, context: Context) -> list[Array]:
        if not context.train or context.key is None or not self.dropout:
            return xs
        key = jax.random.fold_in(context.key, layer)
        return [
            dropout(x, self.dropout, key, context.examples, column)
            for x, column in zip(xs, columns.indices(), strict=True)
        ]


def _scaled(features: int, width: float, columns: int) -> int:
    scaled = round(features * width)
    if scaled < columns or scaled % columns:
        raise UserError(
            f"model.width={width}: {features} features become {scaled}; expected a multiple of model.columns={columns}."
        )
    return scaled


def _overlapping_pool(x: Array) -> Array:
    """Windows of 3, 2 pixels apart (section 3.4); the author's pooling rounds the output size up."""
    return max_pool(x, 3, 2, [ceil_padding(size, 3, 2) for size in x.shape[1:3]])


def _final_size(size: int) -> int:
    """The side of pool5's maps for images of side `size`, 0 or less where nothing is left."""
    size = 1 + -(-(size - 11) // 4)
    for _ in range(3):
        size = 1 + -(-(size - 3) // 2) if size >= 3 else 0
    return size
