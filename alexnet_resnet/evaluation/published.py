"""Published weights as a member of an evaluation, with the very views that they were published with."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np

from alexnet_resnet import config as config_lib
from alexnet_resnet import pretrained
from alexnet_resnet.data import encoded, plan, sources, views
from alexnet_resnet.data.examples import EncodedExamples, Examples, Unreadable
from alexnet_resnet.data.faults import Faults
from alexnet_resnet.data.reading import Reader
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.ensemble import Member
from alexnet_resnet.evaluation.records import file_hash
from alexnet_resnet.models import Context
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.pretrained import Preprocessing, Pretrained
from alexnet_resnet.training.state import Network, TrainState

# Images at a time, unless the user says otherwise: the networks are those of ImageNet.
BATCH_SIZE = 32
ANY_SIZE = 2**31 - 1


def member(
    path: str, weights_format: str, model: str, dataset: str, data_dir: str, split: str, view: str, batch_size: int = 0
) -> Member:
    """A file of published weights that judges a split of a dataset.

    Args:
      path: the file.
      weights_format: a key of `pretrained.FORMATS`.
      model: such as 'resnet:50'.
      dataset: as the configuration's `data.dataset`.
      data_dir: as `data.data_dir`.
      split: a split or a slice of one.
      view: one of `config.EVALUATION_VIEWS`.
      batch_size: images at a time; 0 for `BATCH_SIZE`.

    Raises:
      UserError: as `pretrained.load` and `sources.load`; weights for other classes than the dataset has.
    """
    weights = pretrained.load(path, weights_format, model)
    preprocessing = weights.preprocessing
    config = config_lib.default(weights.network["name"])
    config.model.update(weights.network)
    config.evaluation.update(views=view, batch_size=batch_size or BATCH_SIZE)
    # The divisor and the mean are the network's own affair, before its first layer. Arrays of any size are resized.
    config.data.update(dataset=dataset, data_dir=data_dir, num_classes=0, channels=3, mean="none")
    config.data.canvas_size = preprocessing.resize if dataset == "prepared" else ANY_SIZE
    examples = sources.load(config.data, split)
    if weights.num_classes != len(examples.label_names):
        raise UserError(
            f"weights={path!r}: expected a network of {len(examples.label_names)} classes, as {examples.name} has, got "
            f"one of {weights.num_classes}."
        )
    config.data.update(canvas_size=preprocessing.resize, image_size=preprocessing.crop, num_classes=weights.num_classes)
    origin = {"weights": path, "format": weights_format, "model": model, "sha256": file_hash(path)}
    return Member(
        name=f"weights={path!r}",
        config=config,
        network=Preprocessed(weights),
        examples=examples,
        load=functools.partial(_load, weights),
        origin=origin,
        open_loader=lambda examples: Published(config.data, examples, preprocessing),
    )


class Preprocessed(Network):
    """A network of published weights that takes pixels of 0 to 255: their preprocessing comes before the first layer.

    Args:
      weights: what was read.
    """

    def __init__(self, weights: Pretrained):
        side = weights.preprocessing.crop
        super().__init__(weights.network, (side, side, 3), weights.num_classes)
        self._preprocessing = weights.preprocessing

    def apply(self, params, batch_stats, images, context: Context = Context()):
        return super().apply(params, batch_stats, self._preprocessing(images), context)


def _load(weights: Pretrained, strategy: Strategy) -> TrainState:
    def put(array):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, strategy.everywhere, lambda part: array[part])

    return TrainState(
        step=0,
        params=jax.tree.map(put, weights.params),
        batch_stats=jax.tree.map(put, weights.batch_stats),
        opt_state=None,
        key=None,
        mean=put(np.zeros((1, 1, 3), np.float32)),
        colours=None,
    )


class Published:
    """Batches for an evaluation as `data.pipeline.Pipeline` gives them, of the views that published weights expect.

    PIL resizes, as it did for those who published them, with the filter they name.

    Args:
      data: the `data` section of the member's configuration.
      examples: the split.
      preprocessing: sizes and filter.

    Attributes:
      faults: the examples that could not be read so far.
    """

    def __init__(self, data, examples: Examples | EncodedExamples, preprocessing: Preprocessing):
        self._examples, self._preprocessing = examples, preprocessing
        self.faults = Faults(examples, data.max_unreadable if examples.encoded else 0)
        # Nothing is kept: an evaluation reads an image once a scale.
        self._reader = Reader(examples, self.faults) if examples.encoded else None

    def evaluation_batches(
        self, batch_size: int, share: slice | np.ndarray = slice(None), whole_canvas: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        """As `data.pipeline.Pipeline.evaluation_batches`; the canvas is the square from which the crop is cut."""
        seen, offset = self._preprocessing, (self._preprocessing.resize - self._preprocessing.crop) // 2
        if whole_canvas:
            seen, offset = dataclasses.replace(seen, crop=seen.resize), 0
        planned = plan.evaluation_batches(len(self._examples), batch_size, offset, share)
        shape = (seen.crop, seen.crop)
        yield from self._decoded(
            (batch, *read, [seen.view] * len(batch.rows), shape) for batch, *read in self._read(planned)
        )

    def whole_images(self, side: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """As `data.pipeline.Pipeline.whole_images`."""
        yield from self._decoded(self._by_shape(side, batch_size))

    def _read(self, planned: Iterator[plan.Batch]) -> Iterator[tuple]:
        """Batches with their images (encoded, or arrays), labels, and which of them are good."""
        if self._reader:
            for batch, read in self._reader.batches(planned):
                yield batch, list(read.images), read.labels, batch.valid & read.good
        else:
            for batch in planned:
                yield batch, list(self._examples.images[batch.rows]), self._examples.labels[batch.rows], batch.valid

    def _by_shape(self, side: int, batch_size: int) -> Iterator[tuple]:
        waiting = collections.defaultdict(list)

        def group(images: list, shape: tuple[int, int]) -> tuple:
            filled = images + images[:1] * (batch_size - len(images))
            rows, contents, labels, windows = zip(*filled, strict=True)
            valid = np.arange(batch_size) < len(images)
            batch = plan.unmoved(np.array(rows, np.int32), valid)
            cuts = [functools.partial(self._cut, window, shape) for window in windows]
            return batch, list(contents), np.array(labels, np.int32), valid, cuts, shape

        for batch, read in self._reader.batches(plan.evaluation_batches(len(self._examples), batch_size, 0)):
            for place in np.flatnonzero(batch.valid & read.good).tolist():
                window, shape = views.whole_image(*read.sizes[place].tolist(), side)
                waiting[shape].append((int(batch.rows[place]), read.images[place], int(read.labels[place]), window))
                if len(waiting[shape]) == batch_size:
                    yield group(waiting.pop(shape), shape)
        for shape, few in waiting.items():
            yield group(few, shape)

    def _cut(self, window: tuple[int, int, int, int], shape: tuple[int, int], image: np.ndarray) -> np.ndarray:
        from PIL import Image

        top, left, height, width = window
        part = Image.fromarray(image[top : top + height, left : left + width])
        filter_ = getattr(Image.Resampling, self._preprocessing.interpolation.upper())
        return np.asarray(part.resize(shape[::-1], filter_))

    def _decoded(self, groups: Iterator[tuple]) -> Iterator[dict[str, np.ndarray]]:
        """The views of each group, those of the next one made meanwhile."""
        waiting = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "views") as pool:
            for batch, images, labels, good, cuts, shape in groups:
                each = zip(batch.rows.tolist(), images, good.tolist(), cuts, strict=True)
                made = [pool.submit(self._view, *one) for one in each]
                waiting.append((batch, labels, made, shape))
                if len(waiting) > 1:
                    yield _batch(*waiting.popleft())
            while waiting:
                yield _batch(*waiting.popleft())

    def _view(self, row: int, image: bytes | np.ndarray, good: bool, cut: Callable) -> np.ndarray | None:
        if not good:
            return None
        try:
            pixels = encoded.as_rgb(image) if isinstance(image, bytes) else image
        except Unreadable as error:
            self.faults.add(row, f"{self._examples.name_of(row)}: {error}")
            return None
        return cut(pixels)


def _batch(batch: plan.Batch, labels: np.ndarray, made: list, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    found = [future.result() for future in made]
    valid = np.array([image is not None for image in found]) & batch.valid
    nothing = np.zeros((*shape, 3), np.uint8)
    images = np.stack([nothing if image is None else image for image in found])
    return batch.with_views(images, labels, valid)
