"""The networks of runs and of published weights, asked for what is in pictures."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from alexnet_resnet import models, pretrained
from alexnet_resnet.data import labels, photos
from alexnet_resnet.evaluation import runs
from alexnet_resnet.evaluation.classifier import BATCH, Classifier, Forward
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import workdir as workdir_lib


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
    forward = Forward(network, judged.params, judged.batch_stats, lambda views: (views - mean) / data.divisor)
    names = labels.readable(tuple(described["label_names"]))
    return Classifier(names, data.channels, view, forward, _described(config.model.to_dict()))


def _described(model: Mapping) -> dict:
    """A network's configuration with the default of every field that it does not name."""
    return {"name": model["name"], **models.defaults(model["name"]), **model}


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
    forward = Forward(network, weights.params, weights.batch_stats, preprocessing)
    count = weights.num_classes
    names = labels.imagenet() if count == labels.IMAGENET_CLASSES else tuple(map(str, range(count)))
    return Classifier(names, 3, preprocessing.view, forward, _described(weights.network), preprocessing.channels)


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
