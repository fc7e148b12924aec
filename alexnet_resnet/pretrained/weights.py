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
        graph, params, stats = _skeleton(self.network | fields, self.num_classes)
        nnx.replace_by_pure_dict(params, jax.tree.map(jnp.asarray, self.params))
        nnx.replace_by_pure_dict(stats, jax.tree.map(jnp.asarray, self.batch_stats))
        return nnx.merge(graph, params, stats)


def load(path: str | pathlib.Path, format: str, model: str) -> Pretrained:
    """Reads a file of published weights.

    Keras' ResNets have a bias in every convolution. Each is followed by a batch normalisation, so the bias b is taken
    from its mean: (x + b - mean) = (x - (mean - b)), the same function with one array less.

    Args:
      path: a .h5 file for Keras (the names of today or of 2017), else .safetensors or, with torch installed, .pth.
      format: 'keras', 'torchvision', 'timm' or 'huggingface'.
      model: 'resnet:18' to 'resnet:152', 'vgg:16', 'vgg:19' or 'alexnet', as the format has them.

    Raises:
      UserError: a format without the model, an unreadable file, or a file whose tensors are not exactly the model's:
        the message names those that are missing, unknown or of another shape.
    """
    path = pathlib.Path(path)
    network = network_of(format, model)
    files.check_suffix(path, FORMATS[format].suffixes)
    tensors = files.read(path)
    namings = namings_of(format, network)
    paths = _shapes(network, num_classes=1).keys()
    naming = max(namings, key=lambda naming: len(tensors.keys() & {e.name for e in tables.entries(naming, paths)}))
    head = tensors.get(next(e.name for e in tables.entries(naming, paths) if e.path in _HEADS))
    num_classes = 1000 if head is None or head.ndim != 1 else len(head)

    shapes = _shapes(network, num_classes)
    rows = tables.entries(naming, shapes)
    _check_names(path, format, model, tensors, rows, set(tables.counters(naming, shapes)))
    _check_shapes(path, format, model, tensors, rows, shapes)
    tree = {row.path: _as_float32(row.layout.to_ours(tensors[row.name])) for row in rows if not row.fold}
    for row in rows:
        if row.fold:
            tree[row.path] = tree[row.path] - _as_float32(tensors[row.name])
    return Pretrained(
        network,
        num_classes,
        *_nested(tree),
        described_beside(path, FORMATS[format].preprocessing),
    )


def save(
    path: str | pathlib.Path, format: str, network: Mapping, params: Mapping, batch_stats: Mapping | None = None
) -> None:
    """Writes our weights as a file of a format, with today's names.

    What the other program computes with the file is what our network computes: a bias of conv1 goes into the mean
    behind it, a difference in epsilon into the variances. Keras' convolution biases are written as zeros.

    Args:
      path: a .h5 file for Keras, else .safetensors or, with torch installed, .pth.
      format: 'keras', 'torchvision', 'timm' or 'huggingface'.
      network: the configuration of the network.
      params: its parameters, nested dictionaries as of `nnx.to_pure_dict`.
      batch_stats: its batch statistics, likewise.

    Raises:
      UserError: a format without the network, or one whose network computes something else.
    """
    path = pathlib.Path(path)
    fields = models.defaults(network["name"]) | dict(network)
    model = f"{fields['name']}:{fields['depth']}" if "depth" in fields else fields["name"]
    expected = network_of(format, model)
    for field, value in expected.items():
        if field != "bn_epsilon" and fields.get(field) != value:
            raise UserError(f"model.{field}={fields.get(field)!r}: expected {value!r}, as {format} has it.")
    files.check_suffix(path, FORMATS[format].suffixes)

    tree = {p: np.asarray(a, np.float32) for t in (params, batch_stats or {}) for p, a in _flat(t).items()}
    bias = tree.pop(("conv1", "bias"), None) if ("bn1", "mean") in tree else None
    if bias is not None:
        tree["bn1", "mean"] = tree["bn1", "mean"] - bias
    if "bn_epsilon" in expected:
        shift = np.float32(fields["bn_epsilon"] - expected["bn_epsilon"])
        tree |= {p: a + shift for p, a in tree.items() if p[-1] == "variance"}
    naming = namings_of(format, expected)[0]
    tensors = {
        row.name: np.zeros_like(tree[row.path]) if row.fold else row.layout.to_file(tree[row.path])
        for row in tables.entries(naming, tree)
    }
    tensors |= {name: np.zeros((), np.int64) for name in tables.counters(naming, tree)}
    files.write(path, tensors)


_HEADS = (("fc", "bias"), ("fc8", "bias"))


def _skeleton(network: Mapping, num_classes: int) -> tuple:
    def build():
        return models.create(network, IMAGE_SHAPE, num_classes, jax.random.key(0))

    return nnx.split(nnx.eval_shape(build), nnx.Param, nnx.BatchStat)


def _shapes(network: Mapping, num_classes: int) -> dict[tables.Path, tuple[int, ...]]:
    """The shape of every parameter and batch statistic by its path."""
    states = _skeleton(network, num_classes)[1:]
    return {path: a.shape for state in states for path, a in _flat(nnx.to_pure_dict(state)).items()}


def _flat(tree: Mapping) -> dict[tables.Path, np.ndarray]:
    return traverse_util.flatten_dict(tree)


def _nested(tree: Mapping[tables.Path, np.ndarray]) -> tuple[dict, dict]:
    """Parameters and batch statistics, each as nested dictionaries."""
    stats = {path: a for path, a in tree.items() if path[-1] in ("mean", "variance")}
    params = {path: a for path, a in tree.items() if path not in stats}
    return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(stats)


def _as_float32(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a, dtype=np.float32)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_names(path, format, model, tensors, rows, counters) -> None:
    expected = {row.name for row in rows}
    missing = [row.name for row in rows if row.name not in tensors]
    unknown = [name for name in tensors if name not in expected and name not in counters]
    faults = [
        f"{len(names)} {what} ({_listed(names)})"
        for names, what in ((missing, "missing"), (unknown, "unknown"))
        if names
    ]
    if faults:
        raise UserError(
            f"weights={str(path)!r}: expected the {len(rows)} tensors of {format} {model}, got {' and '.join(faults)}."
        )


def _check_shapes(path, format, model, tensors, rows, shapes) -> None:
    faults = []
    for row in rows:
        array, expected = tensors[row.name], row.layout.shape_in_file(shapes[row.path])
        if array.shape != expected:
            faults.append(f"{row.name} {array.shape} for {expected}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            faults.append(f"{row.name} of type {array.dtype}")
    if faults:
        raise UserError(
            f"weights={str(path)!r}: expected the shapes of {format} {model} in floating point, "
            f"got {len(faults)} others: {_listed(faults)}."
        )
