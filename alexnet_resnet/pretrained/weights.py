"""Published weights into our networks and back, every tensor accounted for."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from alexnet_resnet import models
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import stages
from alexnet_resnet.pretrained import files, tables
from alexnet_resnet.pretrained.formats import FORMATS, namings_of, network_of
from alexnet_resnet.pretrained.preprocessing import Preprocessing, described_beside

IMAGE_SHAPE = (224, 224, 3)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights that were read, and what is needed to use them.

    Attributes:
      network: the configuration of the network they belong to, for `models.create`.
      num_classes: its logits.
      params: parameters, nested dictionaries as of `nnx.to_pure_dict`, float32.
      batch_stats: means and variances of the batch normalisations, likewise; empty where there are none.
      preprocessing: what the weights expect of their input.
    """

    network: dict
    num_classes: int
    params: dict
    batch_stats: dict
    preprocessing: Preprocessing

    def module(self, **fields) -> nnx.Module:
        """The network with these weights; `fields` change its configuration, such as dtype='bfloat16'.

        Raises:
          UserError: a field that the network does not have or refuses.
        """
        network = self.network | fields
        graph, params, stats = _skeleton(network, self.num_classes)
        form = stages.stack if network.get("scan") else lambda tree: tree
        nnx.replace_by_pure_dict(params, form(jax.tree.map(jnp.asarray, self.params)))
        nnx.replace_by_pure_dict(stats, form(jax.tree.map(jnp.asarray, self.batch_stats)))
        return nnx.merge(graph, params, stats)


def load(path: str | pathlib.Path, format: str, model: str) -> Pretrained:
    """Reads a file of published weights, with the preprocessing that it or a file beside it asks for.

    Args:
      path: a .h5 file for Keras (the names of today or of 2017), else .safetensors or, with torch installed, .pth.
      format: 'keras', 'torchvision', 'timm' or 'huggingface'.
      model: 'resnet:18' to 'resnet:152', 'vgg:16', 'vgg:19' or 'alexnet', as the format has them.

    Raises:
      UserError: a format without the model, an unreadable file, or whatever `from_tensors` refuses.
    """
    path = pathlib.Path(path)
    network_of(format, model)
    files.check_suffix(path, FORMATS[format].suffixes)
    weights = from_tensors(files.read(path), format, model, str(path))
    return dataclasses.replace(
        weights, preprocessing=described_beside(path, FORMATS[format].description, weights.preprocessing)
    )


def from_tensors(tensors: Mapping[str, np.ndarray], format: str, model: str, source: str = "") -> Pretrained:
    """Published weights, as arrays by the names that a format gives them, in our network.

    Keras' ResNets have a bias in every convolution. Each is followed by a batch normalisation, so the bias b is taken
    from its mean: x + b - mean = x - (mean - b), the same function with one array less.

    Args:
      tensors: every tensor of the file; 16-bit floats become float32.
      format: 'keras', 'torchvision', 'timm' or 'huggingface'.
      model: such as 'resnet:50'.
      source: what errors call the weights.

    Raises:
      UserError: a format without the model, or tensors that are not exactly the model's: the message lists those that
        are missing, unknown or of another shape.
    """
    network = network_of(format, model)
    shapes = _shapes(network, num_classes=1000)
    known = [(naming, tables.entries(naming, shapes)) for naming in namings_of(format, network)]
    naming, rows = max(known, key=lambda pair: sum(row.name in tensors for row in pair[1]))
    head = tensors.get(next(row.name for row in rows if row.path in _HEADS))
    num_classes = 1000 if head is None or head.ndim != 1 else len(head)
    if num_classes != 1000:
        shapes = _shapes(network, num_classes)

    what = f"weights={source!r}: expected the {len(rows)} tensors of {format} {model}, got"
    _check_names(what, tensors, rows, set(tables.counters(naming, shapes)))
    _check_shapes(what, tensors, rows, shapes)
    tree = {row.path: _as_float32(row.layout.to_ours(tensors[row.name])) for row in rows if not row.fold}
    for row in rows:
        if row.fold:
            tree[row.path] = tree[row.path] - _as_float32(tensors[row.name])
    return Pretrained(network, num_classes, *_nested(tree), FORMATS[format].preprocessing)


def save(
    path: str | pathlib.Path, format: str, network: Mapping, params: Mapping, batch_stats: Mapping | None = None
) -> None:
    """Writes our weights as a file of a format; the arguments are those of `to_tensors`.

    Args:
      path: a .h5 file for Keras, else .safetensors or, with torch installed, .pth.

    Raises:
      UserError: a file name of another kind, or whatever `to_tensors` refuses.
    """
    path = pathlib.Path(path)
    tensors = to_tensors(format, network, params, batch_stats)
    files.check_suffix(path, FORMATS[format].suffixes)
    files.write(path, tensors)


def to_tensors(
    format: str, network: Mapping, params: Mapping, batch_stats: Mapping | None = None
) -> dict[str, np.ndarray]:
    """Our weights as arrays by the (current) names of a format, so that its program computes what our network does.

    A bias of ResNet's conv1 goes into the mean behind it and a difference in epsilon into the variances. Keras'
    convolution biases are zeros.

    Args:
      format: 'keras', 'torchvision', 'timm' or 'huggingface'.
      network: the configuration of the network.
      params: its parameters, nested dictionaries as of `nnx.to_pure_dict`.
      batch_stats: its batch statistics, likewise.

    Raises:
      UserError: a format without the network, or whose network computes something else.
    """
    defaults = models.defaults(network["name"])
    fields = defaults | dict(network)
    expected = network_of(format, f"{fields['name']}:{fields['depth']}" if "depth" in fields else fields["name"])
    for field, value in (defaults | expected).items():
        if field not in _FREE and fields[field] != value:
            raise UserError(f"model.{field}={fields[field]!r}: expected {value!r}, as {format} has it.")

    if fields.get("scan"):
        params, batch_stats = stages.unstack(params), stages.unstack(batch_stats or {})
        fields["scan"] = False
    flat = traverse_util.flatten_dict(dict(params)) | traverse_util.flatten_dict(dict(batch_stats or {}))
    tree = {path: np.asarray(array, np.float32) for path, array in flat.items()}
    _check_tree(fields, tree)
    if fields["name"] == "resnet":
        tree["bn1", "mean"] = tree["bn1", "mean"] - tree.pop(("conv1", "bias"), np.float32(0))
        shift = np.float32(fields["bn_epsilon"] - expected["bn_epsilon"])
        tree |= {path: array + shift for path, array in tree.items() if path[-1] == "variance"}
    naming = namings_of(format, expected)[0]
    tensors = {
        row.name: np.zeros_like(tree[row.path]) if row.fold else row.layout.to_file(tree[row.path])
        for row in tables.entries(naming, tree)
    }
    return tensors | {name: np.zeros((), np.int64) for name in tables.counters(naming, tree)}


# Fields in which a network may differ from a format's: they tell how it starts, trains or rounds, not what it computes,
# or `to_tensors` makes up for them.
_FREE = {
    *("bn_epsilon", "conv1_bias", "dropout", "dtype", "ghost_batch", "zero_init_residual", "scan", "remat"),
    *("init_std", "middle_init_std", "fc_init_std", "hidden_bias"),
}

_HEADS = (("fc", "bias"), ("fc8", "bias"))


def _skeleton(network: Mapping, num_classes: int) -> tuple:
    def build():
        return models.create(network, IMAGE_SHAPE, num_classes, jax.random.key(0))

    return nnx.split(nnx.eval_shape(build), nnx.Param, nnx.BatchStat)


def _shapes(network: Mapping, num_classes: int) -> dict[tables.Path, tuple[int, ...]]:
    """The shape of every parameter and batch statistic of a network by its path."""
    states = _skeleton(network, num_classes)[1:]
    return {path: a.shape for state in states for path, a in _flat(state).items()}


def _flat(state: nnx.State) -> dict:
    return traverse_util.flatten_dict(nnx.to_pure_dict(state))


def _nested(tree: Mapping[tables.Path, np.ndarray]) -> tuple[dict, dict]:
    """Parameters and batch statistics, each as nested dictionaries."""
    stats = {path: a for path, a in tree.items() if path[-1] in ("mean", "variance")}
    params = {path: a for path, a in tree.items() if path not in stats}
    return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(stats)


def _as_float32(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a, dtype=np.float32)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_tree(network: Mapping, tree: Mapping[tables.Path, np.ndarray]) -> None:
    """Raises UserError unless the arrays are exactly the network's, whatever the number of its classes."""
    head = next((tree[path] for path in _HEADS if path in tree), np.zeros(0))
    shapes = _shapes(network, num_classes=max(head.size, 1))
    faults = [f"{'.'.join(map(str, path))} is missing" for path in shapes if path not in tree]
    faults += [f"{'.'.join(map(str, path))} is unknown" for path in tree if path not in shapes]
    faults += [
        f"{'.'.join(map(str, path))} is {tree[path].shape} for {shape}"
        for path, shape in shapes.items()
        if path in tree and tree[path].shape != shape
    ]
    if faults:
        raise UserError(f"params: expected the {len(shapes)} arrays of {network['name']}, but {_listed(faults)}.")


def _check_names(what, tensors, rows, counters) -> None:
    expected = {row.name for row in rows}
    missing = [row.name for row in rows if row.name not in tensors]
    unknown = [name for name in tensors if name not in expected and name not in counters]
    faults = [f"{len(names)} {kind}: {_listed(names)}" for names, kind in ((missing, "missing"), (unknown, "unknown"))]
    if missing or unknown:
        raise UserError(f"{what} {'; '.join(fault for fault in faults if fault[0] != '0')}.")


def _check_shapes(what, tensors, rows, shapes) -> None:
    faults = []
    for row in rows:
        array, expected = tensors[row.name], row.layout.shape_in_file(shapes[row.path])
        if array.shape != expected:
            faults.append(f"{row.name} {array.shape} for {expected}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            faults.append(f"{row.name} {array.dtype} for a float")
    if faults:
        raise UserError(f"{what} {len(faults)} of another shape: {_listed(faults)}.")
