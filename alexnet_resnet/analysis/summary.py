"""The table of a network: each layer's output, parameters and multiply-adds."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jaxtyping import PyTree

from alexnet_resnet import models

# The fields of a model's configuration that decide how it is run, and not what it computes.
WRITTEN_OUT = {"scan": False, "remat": "none"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One named activation of a network.

    Attributes:
      name: such as 'conv1' or 'stage2/0/bn1'.
      output: the shape for one image.
      parameters: of the layer itself.
      multiply_adds: of the layer itself, for one image; additions of biases, normalisation and pooling count none.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def rows(model, image_shape: tuple[int, int, int], num_classes: int) -> list[Row]:
    """The layers of the network that a configuration's `model` section describes, in the order of computation.

    Nothing is computed: shapes are traced, and multiply-adds are read off the traced program's convolutions and matrix
    products, zeros of the padding included, as the papers count.

    Raises:
      UserError: as `models.create`.
    """
    # Layer by layer, however it is run.
    model = dict(model) | {name: value for name, value in WRITTEN_OUT.items() if name in model}
    network = nnx.eval_shape(lambda: models.create(model, image_shape, num_classes, jax.random.key(0)))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    graphdef, state = nnx.split(network)

    def forward(state, image):
        return models.activations(nnx.merge(graphdef, state, copy=True), image)[1]

    program, shapes = jax.make_jaxpr(forward, return_shape=True)(state, image)
    work = {}
    for scope, count in _multiply_adds(program.jaxpr, ""):
        work[scope] = work.get(scope, 0) + count
    params = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(network, nnx.Param))):
        owner = "/".join(str(key.key) for key in path[:-1])
        params[owner] = params.get(owner, 0) + leaf.size
    unnamed = (params.keys() | work.keys()) - shapes.keys()
    if unnamed:
        raise ValueError(f"{', '.join(sorted(unnamed))}: expected a named activation for every layer.")
    return [
        Row(name, shape.shape[1:], params.get(name, 0), work.get(name, 0)) for name, shape in _in_order(shapes, program)
    ]


def _in_order(shapes: PyTree, program) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """Named shapes in the order in which the program computes them; JAX sorts dictionaries by name."""
    names = list(shapes)
    made = {variable: place for place, equation in enumerate(program.jaxpr.eqns) for variable in equation.outvars}
    # An activation that is another one renamed comes after it: the block after its last layer.
    variables = dict(zip(names, program.jaxpr.outvars, strict=True))
    place = {name: (made.get(variable, -1), -name.count("/")) for name, variable in variables.items()}
    return [(name, shapes[name]) for name in sorted(names, key=place.__getitem__)]


def _multiply_adds(jaxpr, scope: str) -> Iterator[tuple[str, int]]:
    """The scope and the multiply-adds of each convolution and matrix product in a program, inner programs included."""
    for equation in jaxpr.eqns:
        own = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        inputs = [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
        output = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "conv_general_dilated":
            _, *summed = equation.params["dimension_numbers"].rhs_spec
            yield own, output * math.prod(inputs[1][d] for d in summed)
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield own, output * math.prod(inputs[0][d] for d in contracted)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                yield from _multiply_adds(getattr(inner, "jaxpr", inner), own)


def table(config) -> str:
    """The layers of a configuration's network as text, with totals."""
    data = config.data
    layers = rows(config.model, (data.image_size, data.image_size, data.channels), data.num_classes)
    lines = [("layer", "output", "parameters", "multiply-adds")]
    for row in layers:
        output = "x".join(map(str, row.output))
        lines.append((row.name, output, f"{row.parameters:,}" if row.parameters else "", _count(row.multiply_adds)))
    total = [sum(getattr(row, field) for row in layers) for field in ("parameters", "multiply_adds")]
    lines.append(("total", "", *(f"{value:,}" for value in total)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join((cell.ljust if i < 2 else cell.rjust)(widths[i]) for i, cell in enumerate(line)) for line in lines
    ]
    rule = "-" * len(text[0])
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])


def _count(value: int) -> str:
    return f"{value:,}" if value else ""
