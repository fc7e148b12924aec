"""The names that other people's files give to the tensors of our networks, one table for each format.

A table maps the modules of a network ('stage2/0/conv1') to the file's ('layer2.0.conv1') and each module's arrays to
the file's with the way they lie there. Both directions, and the check that nothing is left over, come from the tables.
"""

import dataclasses
import functools
import itertools
import re
import string
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from alexnet_resnet.models.vgg import STAGES

Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor lies in a file: the functions from the file's array to ours and back."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_file: Callable[[np.ndarray], np.ndarray]

    def shape_in_file(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The file's shape of a tensor whose shape is `shape` with us."""
        return self.to_file(np.broadcast_to(np.float32(0), shape)).shape


SAME = Layout(lambda a: a, lambda a: a)
OIHW = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
TRANSPOSED = Layout(lambda a: a.T, lambda a: a.T)


def flattened_maps(side: int, as_kernel: bool = False) -> Layout:
    """A dense kernel over flattened maps of side x side: ours flattens H W C, torch C H W.

    Args:
      side: of the maps.
      as_kernel: whether the file has it as a convolution's kernel, [out, C, side, side].
    """

    def to_ours(a):
        return OIHW.to_ours(a.reshape(a.shape[0], -1, side, side)).reshape(-1, a.shape[0])

    def to_file(a):
        kernel = OIHW.to_file(a.reshape(side, side, -1, a.shape[-1]))
        return kernel if as_kernel else kernel.reshape(a.shape[-1], -1)

    return Layout(to_ours, to_file)


@dataclasses.dataclass(frozen=True)
class Naming:
    """One format's names for one network.

    Attributes:
      modules: from our module, in which {s}, {b} and {i} stand for numbers, to a function of these numbers that
        returns the file's.
      leaves: from (kind, our array) to the file's suffix and the layout; a kind is 'conv', 'bn' or 'dense'.
      kernels: modules whose kernel lies otherwise.
      counter: the suffix of a number that batch normalisations carry and nobody uses, or nothing.
      conv_biases: whether every convolution has a bias in the file, ours or not.
      order: modules of a block as the file orders them, where the order means something.
    """

    modules: Mapping[str, Callable[..., str]]
    leaves: Mapping[tuple[str, str], tuple[str, Layout]]
    kernels: Mapping[str, Layout] = dataclasses.field(default_factory=dict)
    counter: str | None = None
    conv_biases: bool = False
    order: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: its path in our tree, its name in the file and how it lies there.

    `fold` marks a bias of the file whose convolution has none in ours: it is taken from the mean of the batch
    normalisation behind it, whose path is here.
    """

    path: Path
    name: str
    layout: Layout
    fold: bool = False


def entries(naming: Naming, paths: Iterable[Path]) -> list[Entry]:
    """The entry of every array of a network, in the file's order.

    Args:
      naming: a format's names.
      paths: of the network's parameters and batch statistics.

    Raises:
      KeyError: a module that the naming does not know.
    """
    paths = set(paths)
    found = []
    for module in sorted({path[:-1] for path in paths}, key=lambda module: _place(module, naming.order)):
        name = _module_name(naming, "/".join(map(str, module)))
        kind = "bn" if (*module, "scale") in paths else "dense" if str(module[-1]).startswith("fc") else "conv"
        for leaf in ("kernel", "scale", "bias", "mean", "variance"):
            path = (*module, leaf)
            if path in paths:
                suffix, layout = naming.leaves[kind, leaf]
                if leaf == "kernel":
                    layout = naming.kernels.get("/".join(map(str, module)), layout)
                found.append(Entry(path, name + suffix, layout))
            elif kind == "conv" and leaf == "bias" and naming.conv_biases:
                suffix, layout = naming.leaves[kind, leaf]
                found.append(Entry((*normalisation_behind(module), "mean"), name + suffix, layout, fold=True))
    return found


def counters(naming: Naming, paths: Iterable[Path]) -> list[str]:
    """The names of the counters that a file may have beside the network's own tensors."""
    if naming.counter is None:
        return []
    modules = [path[:-1] for path in paths if path[-1] == "scale"]
    return [_module_name(naming, "/".join(map(str, module))) + naming.counter for module in modules]


def normalisation_behind(conv: Path) -> Path:
    """The batch normalisation that follows a convolution, by our names: conv1, bn1; shortcut_conv, shortcut_bn."""
    return (*conv[:-1], str(conv[-1]).replace("conv", "bn"))


@functools.cache
def _pattern(module: str) -> re.Pattern:
    return re.compile(re.sub(r"{(\w)}", r"(?P<\1>\\d+)", module))


def _module_name(naming: Naming, module: str) -> str:
    for ours, name in naming.modules.items():
        if match := _pattern(ours).fullmatch(module):
            return name(**{field: int(number) for field, number in match.groupdict().items()})
    raise KeyError(module)


def _place(module: Path, order: tuple[str, ...]) -> tuple:
    """Sorts conv1 and bn1 first, then the blocks, each by `order`, and the head last."""
    name = str(module[-1])
    rank = order.index(name) if name in order else len(order)
    if len(module) == 3:
        return (1, str(module[0]), int(module[1]), rank, name)
    return (2 if name.startswith("fc") else 0, "", 0, rank, name)


_TORCH_LEAVES = {
    ("conv", "kernel"): (".weight", OIHW),
    ("conv", "bias"): (".bias", SAME),
    ("bn", "scale"): (".weight", SAME),
    ("bn", "bias"): (".bias", SAME),
    ("bn", "mean"): (".running_mean", SAME),
    ("bn", "variance"): (".running_var", SAME),
    ("dense", "kernel"): (".weight", TRANSPOSED),
    ("dense", "bias"): (".bias", SAME),
}

_KERAS_LEAVES = {
    ("conv", "kernel"): ("/kernel", SAME),
    ("conv", "bias"): ("/bias", SAME),
    ("bn", "scale"): ("/gamma", SAME),
    ("bn", "bias"): ("/beta", SAME),
    ("bn", "mean"): ("/moving_mean", SAME),
    ("bn", "variance"): ("/moving_variance", SAME),
    ("dense", "kernel"): ("/kernel", SAME),
    ("dense", "bias"): ("/bias", SAME),
}

_TORCH = dict(leaves=_TORCH_LEAVES, counter=".num_batches_tracked")

TORCHVISION_RESNET = Naming(
    {
        "conv1": lambda: "conv1",
        "bn1": lambda: "bn1",
        "stage{s}/{b}/conv{i}": lambda s, b, i: f"layer{s}.{b}.conv{i}",
        "stage{s}/{b}/bn{i}": lambda s, b, i: f"layer{s}.{b}.bn{i}",
        "stage{s}/{b}/shortcut_conv": lambda s, b: f"layer{s}.{b}.downsample.0",
        "stage{s}/{b}/shortcut_bn": lambda s, b: f"layer{s}.{b}.downsample.1",
        "fc": lambda: "fc",
    },
    **_TORCH,
)

HUGGINGFACE_RESNET = Naming(
    {
        "conv1": lambda: "resnet.embedder.embedder.convolution",
        "bn1": lambda: "resnet.embedder.embedder.normalization",
        "stage{s}/{b}/conv{i}": lambda s, b, i: f"{_huggingface_block(s, b)}.layer.{i - 1}.convolution",
        "stage{s}/{b}/bn{i}": lambda s, b, i: f"{_huggingface_block(s, b)}.layer.{i - 1}.normalization",
        "stage{s}/{b}/shortcut_conv": lambda s, b: f"{_huggingface_block(s, b)}.shortcut.convolution",
        "stage{s}/{b}/shortcut_bn": lambda s, b: f"{_huggingface_block(s, b)}.shortcut.normalization",
        "fc": lambda: "classifier.1",
    },
    **_TORCH,
)


def _huggingface_block(s: int, b: int) -> str:
    return f"resnet.encoder.stages.{s - 1}.layers.{b}"


# Keras' loader goes by position unless told otherwise, so a file keeps the order of Keras' layers.
KERAS_RESNET = Naming(
    {
        "conv1": lambda: "conv1_conv",
        "bn1": lambda: "conv1_bn",
        "stage{s}/{b}/conv{i}": lambda s, b, i: f"conv{s + 1}_block{b + 1}_{i}_conv",
        "stage{s}/{b}/bn{i}": lambda s, b, i: f"conv{s + 1}_block{b + 1}_{i}_bn",
        "stage{s}/{b}/shortcut_conv": lambda s, b: f"conv{s + 1}_block{b + 1}_0_conv",
        "stage{s}/{b}/shortcut_bn": lambda s, b: f"conv{s + 1}_block{b + 1}_0_bn",
        "fc": lambda: "predictions",
    },
    _KERAS_LEAVES,
    conv_biases=True,
    order=("conv1", "bn1", "conv2", "bn2", "shortcut_conv", "conv3", "shortcut_bn", "bn3"),
)


def keras_2017_resnet(depth: int) -> Naming:
    """Keras' names until 2018, which are the authors' own in Caffe: 'res3a_branch2b', 'bn4b22_branch2c', 'fc1000'.

    The blocks of a stage are a, b, c, ...; in the long stages (the second and third) of 101 and 152 layers they are
    a, b1, b2, ...
    """

    def block(s: int, b: int) -> str:
        long = depth > 50 and s in (2, 3)
        return f"{s + 1}" + (f"b{b}" if long and b else string.ascii_lowercase[b])

    def branch(i: int) -> str:
        return "branch2" + string.ascii_lowercase[i - 1]

    return Naming(
        {
            "conv1": lambda: "conv1",
            "bn1": lambda: "bn_conv1",
            "stage{s}/{b}/conv{i}": lambda s, b, i: f"res{block(s, b)}_{branch(i)}",
            "stage{s}/{b}/bn{i}": lambda s, b, i: f"bn{block(s, b)}_{branch(i)}",
            "stage{s}/{b}/shortcut_conv": lambda s, b: f"res{block(s, b)}_branch1",
            "stage{s}/{b}/shortcut_bn": lambda s, b: f"bn{block(s, b)}_branch1",
            "fc": lambda: "fc1000",
        },
        _KERAS_LEAVES,
        conv_biases=True,
        order=("conv1", "bn1", "conv2", "bn2", "conv3", "shortcut_conv", "bn3", "shortcut_bn"),
    )


_ALEXNET_FEATURES = (0, 3, 6, 8, 10)

TORCHVISION_ALEXNET = Naming(
    {
        "conv{i}": lambda i: f"features.{_ALEXNET_FEATURES[i - 1]}",
        "fc6": lambda: "classifier.1",
        "fc7": lambda: "classifier.4",
        "fc8": lambda: "classifier.6",
    },
    _TORCH_LEAVES,
    kernels={"fc6": flattened_maps(6)},
)


def _vgg_features(depth: int) -> dict[str, Callable[..., str]]:
    # Each convolution is followed by its ReLU and each block by a max-pool, all of them numbered.
    first = [0, *itertools.accumulate(2 * layers + 1 for layers in STAGES[depth])]
    return {"conv{b}_{i}": lambda b, i: f"features.{first[b - 1] + 2 * (i - 1)}"}


def torchvision_vgg(depth: int) -> Naming:
    """torchvision's VGG without batch normalisation."""
    head = {"fc6": lambda: "classifier.0", "fc7": lambda: "classifier.3", "fc8": lambda: "classifier.6"}
    return Naming(_vgg_features(depth) | head, _TORCH_LEAVES, kernels={"fc6": flattened_maps(7)})


def timm_vgg(depth: int) -> Naming:
    """timm's VGG, whose fc6 and fc7 are convolutions of 7x7 and 1x1."""
    head = {"fc6": lambda: "pre_logits.fc1", "fc7": lambda: "pre_logits.fc2", "fc8": lambda: "head.fc"}
    kernels = {"fc6": flattened_maps(7, as_kernel=True), "fc7": flattened_maps(1, as_kernel=True)}
    return Naming(_vgg_features(depth) | head, _TORCH_LEAVES, kernels=kernels)
