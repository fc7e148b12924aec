"""A trained network as a function from pictures to the probabilities of its classes."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, PyTree, UInt8

from alexnet_resnet import pretrained
from alexnet_resnet.data import labels, photos
from alexnet_resnet.evaluation import runs
from alexnet_resnet.models import Context
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import workdir as workdir_lib

BATCH = 16


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network, what it wants to see, and what its classes are called.

    Attributes:
      label_names: one a class.
      channels: 3 for RGB, 1 for grey.
      view: a picture [H, W, C] as the bytes that the network's preprocessing starts from.
      logits: a batch of views as logits [N, K].
    """

    label_names: tuple[str, ...]
    channels: int
    view: Callable[[np.ndarray], np.ndarray]
    logits: Callable[[UInt8[np.ndarray, "N S S C"]], Float[Array, "N K"]]

    def probabilities(self, pictures: Sequence[np.ndarray]) -> Float[np.ndarray, "N K"]:
        """The softmax of each picture's logits, float32."""
        out = []
        for start in range(0, len(pictures), BATCH):
            views = np.stack([self.view(picture) for picture in pictures[start : start + BATCH]])
            # Filled up to a power of two, so that few sizes are compiled and one picture does not cost sixteen.
            size = 1 << (len(views) - 1).bit_length()
            filled = np.concatenate([views, np.repeat(views[:1], size - len(views), 0)])
            out.append(np.asarray(jax.nn.softmax(self.logits(filled)))[: len(views)])
        return np.concatenate(out)


def from_workdir(workdir: str, checkpoint: str = "last") -> Classifier:
    """The network of a run.

    Args:
      workdir: the run's folder.
      checkpoint: 'last', 'best' or the number of a step.

    Raises:
      UserError: no such run or checkpoint.
    """
    config, state = runs.restore(workdir, checkpoint, SingleDeviceSharding(jax.devices()[0]))
    data, network = config.data, state_lib.from_config(config)
    described = workdir_lib.read_dataset(workdir)
    margin = (data.canvas_size - data.image_size) // 2
    inside = slice(margin, margin + data.image_size)
    mean = state.mean if state.mean.shape[0] == 1 else state.mean[inside, inside]

    def view(picture):
        return _canvas(picture, data.canvas_size, described["array_shape"])[inside, inside]

    judged = state_lib.to_judge(state)
    logits = _logits(network, judged.params, judged.batch_stats, lambda views: (views - mean) / data.divisor)
    return Classifier(labels.readable(tuple(described["label_names"])), data.channels, view, logits)


def _logits(network: state_lib.Network, params: PyTree, batch_stats: PyTree, preprocessing: Callable) -> Callable:
    """A compiled function from views to logits. The weights are its arguments: as constants they are compiled in."""
    params, batch_stats = jax.device_put((params, batch_stats))

    @jax.jit
    def logits(params, batch_stats, views):
        return network.apply(params, batch_stats, preprocessing(views), Context())[0]

    return functools.partial(logits, params, batch_stats)


def _canvas(picture: np.ndarray, size: int, array_shape: Sequence[int] | None) -> np.ndarray:
    """A picture on the canvas that training took its crops from (see `data.pipeline`)."""
    if array_shape is None:
        return photos.centre_square(picture, size)
    height, width = array_shape
    square = photos.centre_square(picture, max(height, width))
    top, left = (square.shape[0] - height) // 2, (square.shape[1] - width) // 2
    part = square[top : top + height, left : left + width]
    room = size - height, size - width
    return np.pad(part, [(room[0] // 2, room[0] - room[0] // 2), (room[1] // 2, room[1] - room[1] // 2), (0, 0)])


def from_weights(path: str, weights_format: str, model: str) -> Classifier:
    """A network with other people's weights and the preprocessing that goes with them.

    Args:
      path: the file.
      weights_format: a key of `pretrained.FORMATS`.
      model: such as 'resnet:50'.

    Raises:
      UserError: as `pretrained.load`.
    """
    weights = pretrained.load(path, weights_format, model)
    preprocessing = weights.preprocessing
    network = state_lib.Network(weights.network, (preprocessing.crop, preprocessing.crop, 3), weights.num_classes)

    logits = _logits(network, weights.params, weights.batch_stats, preprocessing)
    count = weights.num_classes
    names = labels.imagenet() if count == labels.IMAGENET_CLASSES else tuple(map(str, range(count)))
    return Classifier(names, 3, preprocessing.view, logits)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says of one file.

    Attributes:
      file: its path.
      picture: its pixels [H, W, C].
      top: the most probable classes as (index, name, probability), the most probable first.
    """

    file: str
    picture: np.ndarray
    top: tuple[tuple[int, str, float], ...]


def predict(
    classifier: Classifier, files: Sequence[str], broken: Callable[[str], None], count: int = 5
) -> Iterator[Prediction]:
    """The most probable classes of each file, in their order.

    Args:
      classifier: the network.
      files: paths of images.
      broken: called with a message for each file that cannot be read; it is left out.
      count: how many classes.
    """
    for start in range(0, len(files), BATCH):
        read = []
        for file in files[start : start + BATCH]:
            try:
                read.append((file, photos.read(file, classifier.channels)))
            except photos.BrokenImage as error:
                broken(str(error))
        if not read:
            continue
        probabilities = classifier.probabilities([picture for _, picture in read])
        for (file, picture), row in zip(read, probabilities, strict=True):
            best = np.argsort(-row, kind="stable")[:count]
            yield Prediction(file, picture, tuple((int(i), classifier.label_names[i], float(row[i])) for i in best))


def with_labels(classifier: Classifier, path: str) -> Classifier:
    """The classifier with its classes named by a file, one name a line.

    Raises:
      UserError: as `labels.read`.
    """
    return dataclasses.replace(classifier, label_names=labels.read(path, len(classifier.label_names)))
