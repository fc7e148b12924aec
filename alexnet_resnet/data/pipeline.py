"""tf.data pipelines: decode what the view needs, resize, batch. Bytes (uint8) come out, as numpy arrays."""

import collections
import itertools
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from alexnet_resnet.data import plan, views
from alexnet_resnet.data.arrays import margins
from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.data.faults import Faults
from alexnet_resnet.data.reading import Reader

# TensorFlow only reads here; the accelerators belong to JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

Batches = Iterator[dict[str, np.ndarray]]
GIB = 2**30

# PIL's pixels, which a prepared set's statistics are of; TensorFlow's own choice differs by up to 18 levels.
DCT = "INTEGER_ACCURATE"

# How an example is decoded: as a JPEG that needs no resizing, as one scaled down by views.REDUCTIONS[way], or as a PNG.
AS_IT_IS, CUT = -1, len(views.REDUCTIONS)


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
        share: slice = slice(None),
    ) -> Batches:
        """Training views from `start_step` to before `stop_step`, in the order and with the draws of `plan`.

        Args:
          batch_size: examples a step, over all hosts.
          seed: the run's seed.
          start_step: the first step to return.
          stop_step: the first not to return; None goes on without end.
          share: the part of every batch that this host reads.

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

        return self._batches(batches, windows, size, len(range(batch_size)[share]), data.view == "canvas")

    def evaluation_batches(
        self, batch_size: int, share: slice = slice(None), whole_canvas: bool = False, rows: np.ndarray | None = None
    ) -> Batches:
        """Every example once, in order, the canvas's centre as its view; the last batch is filled up as invalid.

        Args:
          batch_size: examples a batch, over all hosts.
          share: the part of every batch that this host reads.
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

        return self._batches(batches, windows, size, len(range(batch_size)[share]), True)

    def _batches(
        self, batches: Callable[[int], Iterator[plan.Batch]], windows, size: int, count: int, from_canvas: bool
    ) -> Batches:
        """Batches of `count`, planned by `batches` from a number of them on."""
        if not self._examples.encoded:
            yield from self._from_arrays(batches(0), windows, size, count, from_canvas)
            return
        done = 0
        while True:
            trouble = []
            try:
                for batch in self._from_encoded(batches(done), windows, size, count, trouble):
                    yield batch
                    done += 1
                return
            except tf.errors.OpError:
                if trouble:
                    raise trouble[0] from None
                self._mend(next(batches(done)))

    def _mend(self, batch: plan.Batch) -> None:
        """Finds out what in a batch could not be decoded. The pipeline then starts again from that batch."""
        decode = lambda image: tf.io.decode_jpeg(image, channels=3, dct_method=DCT)  # noqa: E731
        if not sum(self._reader.mend(int(index), decode) for index in set(batch.rows.tolist())):
            raise RuntimeError(f"{self._examples.name}: the decoder stopped at images that it can decode one by one.")

    def _from_encoded(self, batches, windows, size: int, count: int, trouble: list) -> Batches:
        planned = collections.deque()

        def fields():
            try:
                for batch, read in self._reader.batches(batches):
                    planned.append((batch, read.labels, batch.valid & read.good))
                    window = windows(batch, read.sizes)
                    reductions = np.where(read.jpegs, views.reduction(window, size), 1)
                    window = views.reduced(window, reductions, *read.sizes.T)
                    ways = np.where(read.jpegs, np.searchsorted(views.REDUCTIONS, reductions), CUT)
                    ways[(ways == 0) & (window[:, 2:] == size).all(1)] = AS_IT_IS
                    yield read.images, np.column_stack([window, ways]).astype(np.int32)
            except Exception as error:
                # TensorFlow would hand on its text only.
                trouble.append(error)
                raise

        def decoded(image, window, ratio):
            return tf.image.decode_and_crop_jpeg(image, window, channels=3, ratio=ratio, dct_method=DCT)

        def halved(image, window, ratio):
            return lambda: _resized(decoded(image, window, ratio), size, self._data.antialias)

        def whole(image, window):
            part = tf.slice(
                tf.io.decode_png(image, channels=3), [*tf.unstack(window[:2]), 0], [*tf.unstack(window[2:]), 3]
            )
            # No decoder has halved it, and these are few.
            return _resized(part, size, antialias=True)

        def general(image, window, way):
            branches = [halved(image, window, ratio) for ratio in views.REDUCTIONS]
            return tf.switch_case(way, [*branches, lambda: whole(image, window)])

        def view(image, window_and_way):
            window, way = window_and_way[:4], window_and_way[4]
            # Nearly all views of prepared images take the first way: few operations, few microseconds.
            as_it_is, other = lambda: decoded(image, window, 1), lambda: general(image, window, way)
            return tf.ensure_shape(tf.cond(way == AS_IT_IS, as_it_is, other), [size, size, 3])

        signature = tf.TensorSpec([count], tf.string), tf.TensorSpec([count, 5], tf.int32)
        for images in _run(fields, signature, view, count):
            batch, labels, valid = planned.popleft()
            yield batch.with_views(images, labels, valid)

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
                part if from_canvas else _resized(part, size, data.antialias), [size, size, channels]
            )

        signature = tf.TensorSpec([count], tf.int32), tf.TensorSpec([count, 4], tf.int32)
        for seen in _run(fields, signature, view, count):
            batch = planned.popleft()
            yield batch.with_views(seen, examples.labels[batch.rows], batch.valid)


def _run(fields: Callable, signature: tuple, view: Callable, count: int) -> Iterator[np.ndarray]:
    """Batches of `count` views: each of the examples that `fields` yields, on whatever processor is free."""
    options = tf.data.Options()
    options.deterministic = True
    return (
        tf.data.Dataset.from_generator(fields, output_signature=signature)
        .unbatch()
        .map(view, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(count, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
        .as_numpy_iterator()
    )


def _resized(image: tf.Tensor, size: int, antialias: bool) -> tf.Tensor:
    """A window as a square of bytes; one that has this size already stays as it is."""

    def resize():
        if antialias:
            resized = tf.image.resize(image, [size, size], antialias=True)
        else:
            resized = tf.raw_ops.ResizeBilinear(images=image[None], size=[size, size], half_pixel_centers=True)[0]
        return tf.cast(resized + 0.5, tf.uint8)

    shape = tf.shape(image)
    return tf.cond((shape[0] == size) & (shape[1] == size), lambda: image, resize)


# One copy of each split in TensorFlow's memory, however often it is read.
_TENSORS: weakref.WeakKeyDictionary[Examples, tf.Tensor] = weakref.WeakKeyDictionary()


def _as_tensor(examples: Examples) -> tf.Tensor:
    """The images as a tensor outside of any graph: inside one a constant is limited to 2 GB."""
    if examples not in _TENSORS:
        _TENSORS[examples] = tf.constant(examples.images)
    return _TENSORS[examples]
