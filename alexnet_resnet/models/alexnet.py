"""AlexNet (Krizhevsky et al. 2012, section 3.5 and figure 2): two columns or one, as written, as run, as varied."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from alexnet_resnet.errors import UserError, check_at_least, check_choice
from alexnet_resnet.models.context import Context
from alexnet_resnet.models.layers import COMPUTE_TYPES, BatchNorm, Conv, Dense
from alexnet_resnet.ops.columns import Columns, Layout
from alexnet_resnet.ops.dropout import dropout
from alexnet_resnet.ops.lrn import ALPHA_OVER, local_response_norm
from alexnet_resnet.ops.pooling import ceil_padding, max_pool
from alexnet_resnet.ops.spatial_norm import within_map_norm

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}
POOLINGS = {"overlapping": (3, 2), "2x2": (2, 2)}
CHOICES = {
    "activation": tuple(ACTIVATIONS),
    "norm": ("lrn", "batch", "none"),
    "norm_place": ("after_activation", "before_activation"),
    "conv1_order": ("pool_last", "activation_last"),
    "conv2_second_norm": ("none", "within_map"),
    "conv5_order": ("pool_last", "activation_last"),
    "lrn_alpha_over": ALPHA_OVER,
    "lrn_across": ("column", "all"),
    "pooling": tuple(POOLINGS),
    "borders": ("ceil", "torchvision"),
    "without": ("none", "conv3", "conv4", "conv5"),
    "dropout_form": ("2012", "inverted"),
    "dropout_at": ("outputs", "inputs"),
    "dtype": COMPUTE_TYPES,
}

# The sides of the kernels of conv1 to conv6, and the maps of CNN*'s conv6 in both columns together.
WINDOWS = {1: 11, 2: 5, 3: 3, 4: 3, 5: 3, 6: 3}
CONV6_MAPS = 256

# The normalisation within each map of net 145 (layer-params-145.cfg: scale, pow; size in layers-145.cfg).
WITHIN_MAP = dict(size=5, k=1.0, alpha=0.001, beta=0.75, alpha_over="mean")


class AlexNet(nnx.Module):
    """Five convolutions and three fully connected layers, in columns that meet at conv3, fc6, fc7 and fc8.

    With two columns this is the network of the paper's two GPUs: conv2, conv4 and conv5 see the maps of their own
    column only. With one column every layer sees everything. The defaults are the paper's text;
    `alexnet_variants.VARIANTS` names others, and docs/alexnet_as_written_and_as_run.md lists the differences.

    Activations are named conv1, norm1, pool1, conv2, norm2, within_map2, ..., fc8. The activation function belongs to
    the step it follows, as in the author's layer files: with it right after the convolution conv1 is what it
    returns, and under conv1_order='activation_last' pool1 is.

    Args:
      image_shape: height, width and channels of an image; the paper's is (224, 224, 3).
      num_classes: logits.
      columns: the number of columns, 2 in the paper.
      maps: of conv1 to conv5, all columns together.
      units: of fc6 and of fc7, all columns together.
      width: factor on the number of maps and units of every hidden layer.
      without: the middle layer that is removed. The first convolution after pool2 sees both columns, whichever it is.
      conv6: CNN*'s sixth convolution, between pool5 and fc6: 3x3, 128 maps a column, seeing both columns.
      activation: 'relu', or 'tanh' or 'sigmoid' for comparison (section 3.1).
      norm: 'lrn' (section 3.3), 'batch' in its place, or 'none'.
      norm_place: 'after_activation' as in the paper, or 'before_activation'.
      norm_layers: the convolutions that are normalised, by their numbers.
      conv1_order: 'pool_last' for convolution, activation, normalisation, pool with the first two as `norm_place`
        has them, or 'activation_last' for convolution, normalisation, pool, activation.
      conv2_second_norm: 'within_map' normalises over 5x5 neighbours too, between norm2 and pool2, or 'none'.
      conv5_order: 'pool_last' or 'activation_last', of conv5 and pool5; the values are the same.
      lrn_size: the paper's n, channels in the window of local response normalisation.
      lrn_k: its additive constant.
      lrn_alpha: its factor on the squares.
      lrn_beta: its exponent.
      lrn_alpha_over: 'sum' (the text) or 'mean' (alpha / n, the code as it was run).
      lrn_across: the maps it runs over: those of its own 'column', or 'all' (Caffe).
      ghost_batch: examples that share batch statistics in training, 0 for the whole batch.
      bn_epsilon: added to the variance in batch normalisation.
      pooling: 'overlapping' (3x3 windows 2 apart, section 3.4) or '2x2'.
      borders: 'ceil' pads conv1 and the pools by nothing but what makes sizes round up, as the author's code does;
        'torchvision' pads conv1 by 2 and rounds down.
      conv2_padding: pixels of zeros around conv2's input; 1 fits pooling='2x2' to the paper's sizes.
      conv5_padding: around conv5's; 0 fits pooling='2x2'.
      dropout: the share of units that training drops.
      dropout_form: '2012' leaves the rest as they are and scales all by 1 - dropout at test; 'inverted' divides the
        rest by 1 - dropout in training.
      dropout_at: the 'outputs' of fc6 and fc7, or their 'inputs' (torchvision).
      init_std: standard deviation of the initial weights of conv1, conv2 and fc8 (section 5).
      middle_init_std: of conv3 to conv6.
      fc_init_std: of fc6 and fc7.
      hidden_bias: the first biases of conv2, conv4, conv5, conv6, fc6 and fc7; the others' are 0.
      dtype: the type activations are computed in; parameters, normalisation and logits are float32.
      rngs: the source of the 'params' key.

    Raises:
      UserError: a field out of its range, a width that the columns do not divide, or images too small for the strides.
    """

    # The fully connected layers, which may be split over other devices than the convolutions.
    CONNECTED = ("fc6", "fc7", "fc8")

    @staticmethod
    def column_axis(path: tuple[str, ...]) -> int | None:
        """The axis along which an array of parameters or statistics falls into columns; None for fc8's bias.

        Args:
          path: the array's name, such as ('conv1', 'kernel').
        """
        if path[0] != "fc8":
            return -1
        return 0 if path[-1] == "kernel" else None

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        num_classes: int = 1000,
        *,
        columns: int = 2,
        maps: str = "96-256-384-384-256",
        units: int = 4096,
        width: float = 1.0,
        without: str = "none",
        conv6: bool = False,
        activation: str = "relu",
        norm: str = "lrn",
        norm_place: str = "after_activation",
        norm_layers: str = "1,2",
        conv1_order: str = "pool_last",
        conv2_second_norm: str = "none",
        conv5_order: str = "pool_last",
        lrn_size: int = 5,
        lrn_k: float = 2.0,
        lrn_alpha: float = 1e-4,
        lrn_beta: float = 0.75,
        lrn_alpha_over: str = "sum",
        lrn_across: str = "column",
        ghost_batch: int = 0,
        bn_epsilon: float = 1e-5,
        pooling: str = "overlapping",
        borders: str = "ceil",
        conv2_padding: int = 2,
        conv5_padding: int = 1,
        dropout: float = 0.5,
        dropout_form: str = "2012",
        dropout_at: str = "outputs",
        init_std: float = 0.01,
        middle_init_std: float = 0.01,
        fc_init_std: float = 0.01,
        hidden_bias: float = 1.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        given = dict(locals())
        for field, choices in CHOICES.items():
            check_choice(f"model.{field}", given[field], choices)
        for field, least in _LEAST.items():
            check_at_least(f"model.{field}", given[field], least)
        for field in ("width", "lrn_k", "bn_epsilon"):
            if not 0 < given[field] < math.inf:
                raise UserError(f"model.{field}={given[field]}: expected a number above 0.")
        if norm != "lrn" and conv2_second_norm != "none":
            raise UserError(f"model.conv2_second_norm={conv2_second_norm!r}: expected 'none' with model.norm={norm!r}.")
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}: expected a share of at least 0 and below 1.")

        convs = [number for number in range(1, 7 if conv6 else 6) if without != f"conv{number}"]
        features = [_scaled(number, width, columns) for number in (*_maps(maps), *(CONV6_MAPS,) * conv6)]
        self.norm = norm
        normalised = _norm_layers(norm_layers, convs) if norm != "none" else ()
        # Where the columns meet; conv6 by the definition of CNN*.
        self.meeting = nnx.static((next(number for number in convs if number > 2), 6))
        self.activation = activation
        self.pooling = pooling
        self.borders = borders
        self.stages = nnx.static(
            tuple(
                (number, *_steps(number, convs, normalised, conv2_second_norm, norm_place, conv1_order, conv5_order))
                for number in convs
            )
        )

        inputs = image_shape[-1]
        paddings = {1: "ceil" if borders == "ceil" else 2, 2: conv2_padding, 5: conv5_padding}
        for number in convs:
            setattr(
                self,
                f"conv{number}",
                Conv(
                    inputs if number in (1, *self.meeting) else inputs // columns,
                    features[number - 1],
                    WINDOWS[number],
                    stride=4 if number == 1 else 1,
                    padding=paddings.get(number, 1),
                    kernel_init=nnx.initializers.normal(middle_init_std if number > 2 else init_std),
                    bias_init=0.0 if number in (1, 3) else hidden_bias,
                    rngs=rngs,
                ),
            )
            inputs = features[number - 1]
            if norm == "batch" and number in normalised:
                setattr(self, f"norm{number}", BatchNorm(inputs, ghost_batch, epsilon=bn_epsilon))

        height, breadth = (self._side_at_fc6(size) for size in image_shape[:2])
        if min(height, breadth) < 1:
            least = next(size for size in range(1, 10_000) if self._side_at_fc6(size) > 0)
            raise UserError(
                f"image_shape={tuple(image_shape)}: expected at least {least} pixels a side for AlexNet's strides."
            )
        units = _scaled(units, width, columns)
        init = dict(kernel_init=nnx.initializers.normal(fc_init_std), bias_init=hidden_bias, rngs=rngs)
        self.fc6 = Dense(height * breadth * inputs, units, **init)
        self.fc7 = Dense(units, units, **init)
        self.fc8 = Dense(units, num_classes, kernel_init=nnx.initializers.normal(init_std), rngs=rngs)
        self.columns = columns
        self.lrn = nnx.static(dict(size=lrn_size, k=lrn_k, alpha=lrn_alpha, beta=lrn_beta, alpha_over=lrn_alpha_over))
        self.lrn_across = lrn_across
        self.dropout = dropout
        self.dropout_form = dropout_form
        self.dropout_at = dropout_at
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"], context: Context = Context()) -> Float[Array, "M K"]:
        # M is N, unless the fully connected layers see the examples of several devices (`layout.to_fc`).
        layout = context.layout or Layout(Columns(self.columns), Columns(self.columns))
        conv, fc = layout.conv, layout.fc
        activate = ACTIVATIONS[self.activation]

        def connected(layer, x, _):
            return [activate(y) for y in layer.columnwise(x, fc)]

        xs = [x.astype(self.dtype)] * conv.here
        for number, steps, active in self.stages:
            if number in self.meeting:
                with jax.named_scope(f"conv{number}"):
                    xs = [conv.join(xs)] * conv.here
            for step in steps:
                xs = context.run(f"{step}{number}", self._step, step, number, step == active, xs, conv)
        with jax.named_scope("fc6"):
            x = conv.join(xs)
            x = layout.to_fc(x.reshape(x.shape[0], -1))
        if self.dropout_at == "inputs":
            (x,) = self._drop(5, [x], Columns(), context)
        xs = self._drop(6, context.run("fc6", connected, self.fc6, x), fc, context)
        with jax.named_scope("fc7"):
            x = fc.join(xs)
        xs = context.run("fc7", connected, self.fc7, x)
        if self.dropout_at == "outputs":
            xs = self._drop(7, xs, fc, context)
        xs = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in xs]
        return context.run("fc8", lambda xs, _: self.fc8.add_columns(xs, fc), xs)

    def _step(
        self, step: str, number: int, active: bool, xs: list[Array], columns: Columns, context: Context
    ) -> list[Array]:
        """One step of a stage on the columns that are here, and the activation function if it belongs to the step."""
        if step == "conv":
            xs = getattr(self, f"conv{number}").columnwise(xs, columns)
        elif step == "norm" and self.norm == "batch":
            # Moments are a channel's own: the module holds those of the columns here, side by side.
            xs = columns.split(getattr(self, f"norm{number}")(jnp.concatenate(xs, -1), context))
        elif step == "norm" and self.lrn_across == "all":
            size = xs[0].shape[-1]
            x = local_response_norm(columns.join(xs), **self.lrn)
            xs = [lax.dynamic_slice_in_dim(x, index * size, size, axis=-1) for index in columns.indices()]
        elif step == "norm":
            xs = [local_response_norm(x, **self.lrn) for x in xs]
        elif step == "within_map":
            xs = [within_map_norm(x, **WITHIN_MAP) for x in xs]
        else:
            xs = [max_pool(x, *POOLINGS[self.pooling], [self._pool_padding(s) for s in x.shape[1:3]]) for x in xs]
        return [ACTIVATIONS[self.activation](x) for x in xs] if active else xs

    def _pool_padding(self, size: int) -> tuple[int, int]:
        return ceil_padding(size, *POOLINGS[self.pooling]) if self.borders == "ceil" else (0, 0)

    def _drop(self, layer: int, xs: list[Array], columns: Columns, context: Context) -> list[Array]:
        inverted = self.dropout_form == "inverted"
        if not self.dropout:
            return xs
        if not context.train or context.key is None:
            return xs if inverted else [x * (1 - self.dropout) for x in xs]
        key = jax.random.fold_in(context.key, layer)
        xs = [
            dropout(x, self.dropout, key, context.examples, column)
            for x, column in zip(xs, columns.indices(), strict=True)
        ]
        return xs if inverted else [x * (1 - self.dropout) for x in xs]

    def _side_at_fc6(self, size: int) -> int:
        """The side of fc6's input maps for images of side `size`, 0 where a window finds nothing to cover."""
        window, stride = POOLINGS[self.pooling]
        for number, steps, _ in self.stages:
            conv = getattr(self, f"conv{number}")
            if size < 1:
                return 0
            if conv.padding == "ceil":
                size += sum(ceil_padding(size, WINDOWS[number], conv.stride)) if size >= WINDOWS[number] else 0
            else:
                size += 2 * conv.padding
            size = max(0, (size - WINDOWS[number]) // conv.stride + 1)
            if "pool" in steps:
                size = (size + sum(self._pool_padding(size)) - window) // stride + 1 if size >= window else 0
        return size


_LEAST = dict(
    columns=1,
    units=1,
    lrn_size=1,
    lrn_alpha=0,
    lrn_beta=0,
    ghost_batch=0,
    conv2_padding=0,
    conv5_padding=0,
    init_std=0,
    middle_init_std=0,
    fc_init_std=0,
)


def _steps(
    number: int,
    convs: list[int],
    normalised: tuple[int, ...],
    second_norm: str,
    norm_place: str,
    conv1_order: str,
    conv5_order: str,
) -> tuple[tuple[str, ...], str]:
    """The steps that a convolution's stage consists of, and the one that the activation function follows."""
    pooled = (1, 2, max(n for n in convs if n < 6))
    norms = ("norm",) * (number in normalised) + ("within_map",) * (number == 2 and second_norm == "within_map")
    steps = ("conv", *norms, *("pool",) * (number in pooled))
    orders = {1: conv1_order, pooled[-1]: conv5_order}
    if orders.get(number) == "activation_last":
        return steps, "pool"
    return steps, norms[-1] if norms and norm_place == "before_activation" else "conv"


def _maps(text: str) -> list[int]:
    parts = text.split("-")
    if len(parts) != 5 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"model.maps={text!r}: expected the maps of five layers, such as '96-256-384-384-256'.")
    return [int(part) for part in parts]


def _norm_layers(text: str, convs: list[int]) -> tuple[int, ...]:
    parts = text.split(",")
    if not set(parts) <= {str(number) for number in convs}:
        raise UserError(f"model.norm_layers={text!r}: expected numbers out of {','.join(map(str, convs))}.")
    return tuple(int(part) for part in parts)


def _scaled(features: int, width: float, columns: int) -> int:
    scaled = round(features * width)
    if scaled < columns or scaled % columns:
        raise UserError(
            f"model.width={width}: {features} maps or units become {scaled}; "
            f"expected a multiple of model.columns={columns}."
        )
    return scaled
