"""The two peers of `input_pipeline.py`, written from their published recipes, for that benchmark only.

Each yields the number of images of a batch once it is there, and the processor time of other processes up to then in
seconds. Imports nothing of the project, and TensorFlow only where it is used: the process pool should fork before
threads are there.
"""

import collections
import itertools
import mmap
import multiprocessing
import os
import resource

import numpy as np

SIDE, BATCH = 224, 64
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # as both recipes have them


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def flax(images: list[bytes]):
    """The pipeline of the Flax ImageNet example, from memory."""
    import tensorflow as tf

    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])

    def view(image):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(image),
            whole,
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        pixels = tf.image.decode_and_crop_jpeg(image, tf.concat([begin[:2], size[:2]], 0), channels=3)
        pixels = tf.image.resize(pixels, [SIDE, SIDE], method=tf.image.ResizeMethod.BICUBIC)
        return (tf.image.random_flip_left_right(pixels) - 255 * MEAN) / (255 * STD)

    options = tf.data.Options()
    options.deterministic = False
    encoded = tf.data.Dataset.from_tensor_slices(images).repeat().shuffle(16 * BATCH)
    batches = encoded.map(view, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True)
    for batch in batches.prefetch(tf.data.AUTOTUNE).with_options(options).as_numpy_iterator():
        yield len(batch), 0.0


def pil(files: list[str]):
    """A pool of processes that open, crop, resize and normalise with PIL and NumPy, a batch each."""
    workers = os.cpu_count() or 1
    shape = 2 * workers, BATCH, 3, SIDE, SIDE
    memory = mmap.mmap(-1, int(np.prod(shape)) * 4)  # what is forked shares it
    slots = np.frombuffer(memory, np.float32).reshape(shape)
    random = np.random.default_rng(0)
    order = itertools.chain.from_iterable(random.permutation(len(files)).tolist() for _ in itertools.count())
    used: dict[int, float] = {}
    with multiprocessing.get_context("fork").Pool(workers, _share, (files, slots)) as pool:
        waiting = collections.deque()
        for slot in itertools.cycle(range(len(slots))):
            if len(waiting) == len(slots):
                count, process, seconds = waiting.popleft().get()
                used[process] = seconds
                yield count, sum(used.values())
            waiting.append(
                pool.apply_async(_fill, (slot, list(itertools.islice(order, BATCH)), random.integers(2**32)))
            )


_shared = {}


def _share(files, slots):
    _shared.update(files=files, slots=slots)


def _fill(slot: int, rows: list[int], seed: int) -> tuple[int, int, float]:
    from PIL import Image

    random, views = np.random.default_rng(seed), []
    for row in rows:
        with open(_shared["files"][row], "rb") as file, Image.open(file) as image:
            view = image.convert("RGB").crop(_inception_box(*image.size, random))
        view = view.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(view).transpose(2, 0, 1).astype(np.float32) / 255
        views.append((pixels - MEAN[:, None, None]) / STD[:, None, None])
    np.stack(views, out=_shared["slots"][slot])
    return len(rows), os.getpid(), processor_seconds()


def _inception_box(width: int, height: int, random) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of 8% to 100% of the area with an aspect of 3/4 to 4/3; the centre where none fits."""
    for _ in range(10):
        area, aspect = width * height * random.uniform(0.08, 1), np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        wide, high = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            left, top = random.integers(width - wide + 1), random.integers(height - high + 1)
            return left, top, left + wide, top + high
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2
