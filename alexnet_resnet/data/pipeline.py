"""tf.data pipelines: decode, bring to the canvas, crop, flip, batch. Bytes (uint8) come out, as numpy arrays."""

import weakref
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from alexnet_resnet.data import plan
from alexnet_resnet.data.sources import Examples

# TensorFlow only reads here; the accelerators belong to JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

Batches = Iterator[dict[str, np.ndarray]]


def training_batches(
    data, examples: Examples, batch_size: int, seed: int, start_step: int = 0, stop_step: int | None = None
) -> Batches:
    """Batches of training crops from `start_step` to before `stop_step`, in the order and with the crops of `plan`.

    Yields:
      image: uint8 [B, S, S, C]; label: int32 [B]; offset: int32 [B, 2], each crop's corner on the canvas;
      flip: bool [B]; valid: bool [B], all true.
    """
    return _batches(
        data,
        examples,
        batch_size,
        lambda: plan.training_batches(data, len(examples), batch_size, seed, start_step, stop_step),
    )


def evaluation_batches(data, examples: Examples, batch_size: int) -> Batches:
    """Every example once, as `training_batches` yields them; `valid` is False where the last batch is filled up."""
    return _batches(data, examples, batch_size, lambda: plan.evaluation_batches(data, len(examples), batch_size))


def _batches(data, examples: Examples, batch_size: int, batches: Callable[[], Iterator[plan.Batch]]) -> Batches:
    def fields():
        for batch in batches():
            yield batch.rows, batch.offsets, batch.flips, batch.valid

    canvas_of = _canvas_reader(data, examples)
    labels = tf.constant(examples.labels)

    def read(row, offset, flip, valid):
        canvas = canvas_of(row)
        image = tf.slice(canvas, [offset[0], offset[1], 0], [data.image_size, data.image_size, examples.channels])
        image = tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)
        return {"image": image, "label": labels[row], "offset": offset, "flip": flip, "valid": valid}

    signature = (
        tf.TensorSpec([batch_size], tf.int64),
        tf.TensorSpec([batch_size, 2], tf.int32),
        tf.TensorSpec([batch_size], tf.bool),
        tf.TensorSpec([batch_size], tf.bool),
    )
    options = tf.data.Options()
    options.deterministic = True
    return (
        tf.data.Dataset.from_generator(fields, output_signature=signature)
        .unbatch()
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
        .as_numpy_iterator()
    )


# One copy of each split in TensorFlow's memory, however often it is read.
_TENSORS: weakref.WeakKeyDictionary[Examples, tf.Tensor] = weakref.WeakKeyDictionary()


def _as_tensor(examples: Examples) -> tf.Tensor:
    """The images as a tensor outside of any graph: inside one a constant is limited to 2 GB."""
    if examples not in _TENSORS:
        _TENSORS[examples] = tf.constant(examples.images)
    return _TENSORS[examples]


def _canvas_reader(data, examples: Examples) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from an example's index to its canvas, uint8 [canvas, canvas, C]."""
    size = data.canvas_size
    images = _as_tensor(examples)
    if not examples.encoded:
        height, width, channels = examples.images.shape[1:]
        top, left = (size - height) // 2, (size - width) // 2
        frame = [[top, size - height - top], [left, size - width - left], [0, 0]]

        def framed(row):
            return tf.ensure_shape(tf.pad(images[row], frame), [size, size, channels])

        return framed

    def resized(row):
        image = tf.io.decode_image(images[row], channels=3, expand_animations=False)
        return _centre_square(image, size)

    return resized


def _centre_square(image: tf.Tensor, size: int) -> tf.Tensor:
    """The shorter side resized to `size`, then the central square: AlexNet's section 2."""
    shape = tf.shape(image)[:2]
    scaled = tf.cast(tf.math.round(shape * size / tf.reduce_min(shape)), tf.int32)
    image = tf.image.resize(image, scaled, antialias=True)
    corner = (scaled - size) // 2
    image = tf.slice(image, [corner[0], corner[1], 0], [size, size, 3])
    return tf.cast(tf.clip_by_value(tf.math.round(image), 0, 255), tf.uint8)


def mean_image(data, examples: Examples) -> np.ndarray:
    """The mean canvas of a split, [canvas, canvas, C] in grey levels, as `data.mean` asks; float32.

    'per_channel' has one value a channel everywhere, 'none' is zero. Sums are exact (whole numbers). The frame that
    arrays get on their canvas is zero in the mean as in the images, so it stays zero after subtraction.
    """
    if data.mean == "none":
        return np.zeros((1, 1, examples.channels), np.float32)
    count = min(data.mean_examples or len(examples), len(examples))
    rows = np.linspace(0, len(examples) - 1, count).astype(np.int64)
    if examples.encoded:
        canvas_of = _canvas_reader(data, examples)
        canvases = tf.data.Dataset.from_tensor_slices(rows).map(canvas_of, num_parallel_calls=tf.data.AUTOTUNE)
        mean = sum(canvas.astype(np.int64) for canvas in canvases.prefetch(64).as_numpy_iterator()) / count
    else:
        chunks = np.array_split(rows, -(-count // 4096))
        mean = sum(examples.images[chunk].sum(0, dtype=np.int64) for chunk in chunks) / count
    if data.mean == "per_channel":
        mean = np.broadcast_to(mean.mean((0, 1)), mean.shape)
    room = [data.canvas_size - side for side in mean.shape[:2]]
    return np.pad(mean, [*((r // 2, r - r // 2) for r in room), (0, 0)]).astype(np.float32)
