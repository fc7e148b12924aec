"""tf.data pipelines: decode what the view needs, resize, batch. Bytes (uint8) come out, as numpy arrays."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from alexnet_resnet.data import encoded, plan, views
from alexnet_resnet.data.arrays import margins
from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.data.faults import Faults
from alexnet_resnet.data.reading import Read, Reader

# TensorFlow only reads here; the accelerators belong to JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

Batches = Iterator[dict[str, np.ndarray]]
GIB = 2**30

# Images that one call of tf.data's map decodes.
TOGETHER = 8

# PIL's pixels, which a prepared set's statistics are of; TensorFlow's own choice differs by up to 18 levels.
DCT = "INTEGER_ACCURATE"

# How an example is decoded: as a JPEG scaled down by views.REDUCTIONS[way], or as a PNG.
AS_PNG = len(views.REDUCTIONS)


class Pipeline:
    """The batches of one split.

    Each batch is a dictionary of numpy arrays:
      image: uint8 [B, S, S, C], the views, not mirrored yet;
      label: int32 [B];
      row: int32 [B], each example's number in its split, and epoch: int32 [B];
      offset: int32 [B, 2], the corner on the canvas of views that are cropped from it;
      flip: bool [B], which are to be mirrored left to right;
      valid: bool [B], False where the image cannot be read, or only fills up an evaluation's last batch.

    Args:
      data: the configuration's `data` section.
      examples: the split.

    Attributes:
      faults: the examples that could not be read so far.
    """

    def __init__(self, data, examples: Examples | EncodedExamples):
        self._data, self._examples = data, examples
        self.faults = Faults(examples, data.max_unreadable)
        self._reader = Reader(examples, self.faults, data.cache_gib * GIB) if examples.encoded else None

    def training_batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        stop_step: int | None = None,
        share: slice | np.ndarray = slice(None),
    ) -> Batches:
        """Training views from `start_step` to before `stop_step`, in the order and with the draws of `plan`.

        Args:
          batch_size: examples a step, over all hosts.
          seed: the run's seed.
          start_step: the first step to return.
          stop_step: the first not to return; None goes on without end.
          share: the places of every batch that this host reads.

        Raises:
          UserError: more examples than `data.max_unreadable` cannot be read.
        """
        data, size = self._data, self._data.image_size

        def windows(batch: plan.Batch, sizes: np.ndarray) -> np.ndarray:
            heights, widths = sizes.astype(np.int64).T
            if data.view == "canvas":
                return views.canvas_windows(heights, widths, batch.offsets.astype(np.int64), size, data.canvas_size)
            drawn = heights, widths, seed, batch.epochs, batch.rows
            if data.view == "scale":
                return views.scale_windows(*drawn, size, data.scale_range)
            return views.area_windows(*drawn, data.area_range, data.aspect_range)

        def batches(skip: int) -> Iterator[plan.Batch]:
            return plan.training_batches(
                data, len(self._examples), batch_size, seed, start_step + skip, stop_step, share
            )

        return self._batches(batches, windows, size, len(np.arange(batch_size)[share]), data.view == "canvas")

    def evaluation_batches(
        self,
        batch_size: int,
        share: slice | np.ndarray = slice(None),
        whole_canvas: bool = False,
        rows: np.ndarray | None = None,
    ) -> Batches:
        """Every example once, in order, the canvas's centre as its view; the last batch is filled up as invalid.

        Args:
          batch_size: examples a batch, over all hosts.
          share: the places of every batch that this host reads.
          whole_canvas: the whole canvas is the view.
          rows: only these examples, in this order; all by default.
        """
        data, examples = self._data, len(self._examples) if rows is None else len(rows)
        size = data.canvas_size if whole_canvas else data.image_size
        centre = (data.canvas_size - size) // 2

        def windows(batch: plan.Batch, sizes: np.ndarray) -> np.ndarray:
            heights, widths = sizes.astype(np.int64).T
            return views.canvas_windows(heights, widths, np.full((len(sizes), 2), centre), size, data.canvas_size)

        def batches(skip: int) -> Iterator[plan.Batch]:
            planned = plan.evaluation_batches(examples, batch_size, centre, share)
            for batch in itertools.islice(planned, skip, None):
                if rows is not None:
                    batch.rows[:] = rows[batch.rows]
                yield batch

        return self._batches(batches, windows, size, len(np.arange(batch_size)[share]), True)

    def whole_images(self, side: int, batch_size: int) -> Batches:
        """Every encoded image once as a whole, its shorter side brought to `side` (`views.whole_image`).

        The images of a batch have one shape, so they come in the order in which their shapes fill a batch; `row` tells
        which they are. The last ones of every shape are filled up as invalid.

        Args:
          side: of the shorter side.
          batch_size: examples a batch.
        """

        def groups(skip: int) -> Iterator[_Group]:
            with contextlib.closing(self._by_shape(side, batch_size)) as every:
                yield from itertools.islice(every, skip, None)

        return self._from_encoded(groups, batch_size)

    def _by_shape(self, side: int, batch_size: int) -> Iterator["_Group"]:
        waiting = collections.defaultdict(list)
        for batch, read in self._reader.batches(plan.evaluation_batches(len(self._examples), batch_size, 0)):
            for place in np.flatnonzero(batch.valid & read.good).tolist():
                window, shape = views.whole_image(*read.sizes[place].tolist(), side)
                waiting[shape].append((int(batch.rows[place]), read.one(place), window))
                if len(waiting[shape]) == batch_size:
                    yield _Group.of(waiting.pop(shape), shape, batch_size)
        for shape, few in waiting.items():
            yield _Group.of(few, shape, batch_size)

    def _batches(
        self, batches: Callable[[int], Iterator[plan.Batch]], windows, size: int, count: int, from_canvas: bool
    ) -> Batches:
        """Batches of `count` squares, planned by `batches` from a number of them on."""
        if not self._examples.encoded:
            return self._from_arrays(batches(0), windows, size, count, from_canvas)

        def groups(skip: int) -> Iterator[_Group]:
            for batch, read in self._reader.batches(batches(skip)):
                yield _Group(batch, read, windows(batch, read.sizes), (size, size))

        return self._from_encoded(groups, count)

    def _from_encoded(self, groups: Callable[[int], Iterator["_Group"]], count: int) -> Batches:
        done, plain = 0, True
        while True:
            trouble = []
            try:
                for batch in self._decoded(groups(done), count, plain, trouble):
                    yield batch
                    done += 1
                return
            except tf.errors.OpError:
                if trouble and not isinstance(trouble[0], _NotPlain):
                    raise trouble[0] from None
                if trouble:
                    plain = False
                    continue
                # Which of the batch's images it was is found out, and the pipeline starts again from that batch.
                failed = groups(done)
                rows = next(failed).batch.rows.tolist()
                _close(failed)
                if not sum(self._reader.mend(index, _decode) for index in set(rows)):
                    raise

    def _decoded(self, groups: Iterator["_Group"], count: int, plain: bool, trouble: list) -> Batches:
        """Decodes the groups, each of `count` examples; an exception of theirs is left in `trouble`.

        A graph that can resize costs time even where it does not. With `plain`, as long as the groups are cut and
        nothing else, as prepared images are, it cannot; a group that asks for more is `_NotPlain`.
        """
        planned, over = collections.deque(), threading.Event()
        first = next(groups, None)
        if first is None:
            return
        plain = plain and first.is_plain

        def fields():
            try:
                for group in itertools.chain([first], groups):
                    if plain and not group.is_plain:
                        raise _NotPlain
                    planned.append(group)
                    yield group.images(), *group.orders
            except Exception as error:
                # TensorFlow would hand on its text only. What comes once nobody listens is of the groups' own ending.
                if not over.is_set():
                    trouble.append(error)
                raise

        def decoded(image, window, ratio=1):
            return tf.image.decode_and_crop_jpeg(image, window, channels=3, ratio=ratio, dct_method=DCT)

        def view(image, window, rest):
            if plain:
                return decoded(image, window)
            ways = [functools.partial(decoded, image, window, ratio) for ratio in views.REDUCTIONS]
            pixels = tf.switch_case(rest[2], [*ways, lambda: tf.io.decode_png(image, channels=3)])
            return _resized(pixels, rest[:2], self._data.antialias)

        spec = tf.TensorSpec
        signature = spec([count], tf.string), spec([count, 4], tf.int32), spec([count, 3], tf.int32)
        batches = _run(fields, signature, view, count)
        try:
            for images in batches:
                group = planned.popleft()
                yield group.batch.with_views(images, group.read.labels, group.batch.valid & group.read.good)
        finally:
            # TensorFlow never ends a generator that it was given, and this one has threads and images.
            over.set()
            batches.close()
            _close(groups)

    def _from_arrays(self, batches, windows, size: int, count: int, from_canvas: bool) -> Batches:
        data, examples = self._data, self._examples
        images, planned = _as_tensor(examples), collections.deque()
        height, width, channels = examples.images.shape[1:]
        (top, bottom), (left, right) = margins(height, data.canvas_size), margins(width, data.canvas_size)

        def fields():
            for batch in batches:
                planned.append(batch)
                if from_canvas:
                    window = np.concatenate([batch.offsets, np.full_like(batch.offsets, size)], 1)
                else:
                    window = windows(batch, np.broadcast_to([height, width], (count, 2))).astype(np.int32)
                yield batch.rows, window

        def view(row, window):
            image = images[row]
            if from_canvas:
                image = tf.pad(image, [[top, bottom], [left, right], [0, 0]])
            part = tf.slice(image, [window[0], window[1], 0], [window[2], window[3], channels])
            return tf.ensure_shape(
                part if from_canvas else _resized(part, [size, size], data.antialias), [size, size, channels]
            )

        signature = tf.TensorSpec([count], tf.int32), tf.TensorSpec([count, 4], tf.int32)
        for seen in _run(fields, signature, view, count):
            batch = planned.popleft()
            yield batch.with_views(seen, examples.labels[batch.rows], batch.valid)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Encoded images that become one batch: what was planned and read of them, their windows and their common shape."""

    batch: plan.Batch
    read: Read
    windows: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of(cls, waiting: list[tuple[int, Read, tuple]], shape: tuple[int, int], count: int) -> "_Group":
        """A group of images that have waited for it, the first repeated as invalid until there are `count`."""
        filled = waiting + waiting[:1] * (count - len(waiting))
        rows, read, windows = zip(*filled, strict=True)
        batch = plan.unmoved(np.array(rows, np.int32), np.arange(count) < len(waiting))
        return cls(batch, Read.joined(read), np.array(windows), shape)

    @functools.cached_property
    def orders(self) -> tuple[np.ndarray, np.ndarray]:
        """Each example's window after the decoder's halvings, and its shape and the way there: int32 [B, 4], [B, 3]."""
        jpegs, shapes = self.read.jpegs, np.broadcast_to(self.shape, (len(self.windows), 2))
        reductions = np.where(jpegs, views.reduction(self.windows, shapes), 1)
        windows = views.reduced(self.windows, reductions, *self.read.sizes.T)
        ways = np.where(jpegs, np.searchsorted(views.REDUCTIONS, reductions), AS_PNG)
        return windows.astype(np.int32), np.column_stack([shapes, ways]).astype(np.int32)

    @property
    def is_plain(self) -> bool:
        """Whether all are JPEGs of which a part is cut out and nothing else."""
        windows, rest = self.orders
        return bool((rest[:, 2] == 0).all() and (windows[:, 2:] == rest[:, :2]).all())

    def images(self) -> np.ndarray:
        """The encoded images; of those few that are no plain JPEGs only the view, as a PNG."""
        images = self.read.images.copy()
        for place in np.flatnonzero(~self.read.jpegs).tolist():
            images[place] = encoded.view(images[place], self.windows[place].tolist(), self.shape)
        return images


class _NotPlain(Exception):
    """A group that asks for more than to be cut."""


def _decode(image: bytes) -> tf.Tensor:
    return tf.io.decode_jpeg(image, channels=3, dct_method=DCT)


def _close(generator: Iterator) -> None:
    """Ends a generator that one of TensorFlow's threads may still be in."""
    while True:
        try:
            return generator.close()
        except ValueError:  # generator already executing
            time.sleep(0.01)


def _run(fields: Callable, signature: tuple, view: Callable, count: int) -> Iterator[np.ndarray]:
    """Batches of `count` views: each of the examples that `fields` yields, on whatever processor is free."""
    options = tf.data.Options()
    options.deterministic = True
    # Images are spread over the processors, so that no operation on one of them has to be.
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = 0  # as many threads as there are processors
    # A few images at a time cost as much of tf.data's own work as one.
    together = math.gcd(count, TOGETHER)

    def taken_apart(*arrays):
        return tuple(tf.reshape(array, [count // together, together, *array.shape[1:]]) for array in arrays)

    def some(*arrays):
        return tf.stack([view(*one) for one in zip(*(tf.unstack(array) for array in arrays), strict=True)])

    batches = (
        tf.data.Dataset.from_generator(fields, output_signature=signature)
        .map(taken_apart)
        .unbatch()
        .map(some, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(count // together, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )
    return (parts.reshape(count, *parts.shape[2:]) for parts in batches.as_numpy_iterator())


def _resized(image: tf.Tensor, shape, antialias: bool) -> tf.Tensor:
    """A window as bytes of a height and width; one that has them already comes out as it is."""
    if antialias:
        resized = tf.image.resize(image, shape, antialias=True)
    else:
        resized = tf.raw_ops.ResizeBilinear(images=image[None], size=shape, half_pixel_centers=True)[0]
    return tf.cast(resized + 0.5, tf.uint8)


# One copy of each split in TensorFlow's memory, however often it is read.
_TENSORS: weakref.WeakKeyDictionary[Examples, tf.Tensor] = weakref.WeakKeyDictionary()


def _as_tensor(examples: Examples) -> tf.Tensor:
    """The images as a tensor outside of any graph: inside one a constant is limited to 2 GB."""
    if examples not in _TENSORS:
        _TENSORS[examples] = tf.constant(examples.images)
    return _TENSORS[examples]
