"""The tf.data pipeline against numpy, pixel for pixel."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import pipeline, plan
from alexnet_resnet.data.sources import Examples


def make_data(canvas, image, **fields):
    data = config_lib.default("resnet_cifar").data
    data.update(canvas_size=canvas, image_size=image, **fields)
    return data


def array_examples(count=13, height=6, width=7, channels=3):
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, channels)).astype(np.uint8)
    return Examples(images, (np.arange(count) % 5).astype(np.int32), tuple("abcde"), "random")


@pytest.mark.parametrize("channels", [1, 3])
def test_training_crops_are_numpys(channels):
    data, examples = make_data(12, 8, random_crop=True, random_flip=True), array_examples(channels=channels)
    wanted = plan.training_batches(data, len(examples), 4, seed=1)
    batches = pipeline.training_batches(data, examples, 4, seed=1)
    flipped = 0
    for batch, expected in itertools.islice(zip(batches, wanted, strict=False), 8):
        np.testing.assert_array_equal(batch["label"], examples.labels[expected.rows])
        np.testing.assert_array_equal(batch["offset"], expected.offsets)
        np.testing.assert_array_equal(batch["flip"], expected.flips)
        assert batch["image"].dtype == np.uint8 and batch["valid"].all()
        for image, row, (top, left), flip in zip(
            batch["image"], expected.rows, expected.offsets, expected.flips, strict=True
        ):
            canvas = np.pad(examples.images[row], ((3, 3), (2, 3), (0, 0)))
            crop = canvas[top : top + 8, left : left + 8]
            np.testing.assert_array_equal(image, crop[:, ::-1] if flip else crop)
            flipped += flip
    assert 0 < flipped < 32


def test_a_resumed_pipeline_gives_the_same_batches():
    data, examples = make_data(12, 8, random_crop=True, random_flip=True), array_examples()
    whole = list(itertools.islice(pipeline.training_batches(data, examples, 5, seed=0), 9))[6:]
    resumed = itertools.islice(pipeline.training_batches(data, examples, 5, seed=0, start_step=6), 3)
    for a, b in zip(whole, resumed, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("batch_size", [1, 4, 13, 32])
def test_an_evaluation_yields_every_example_once_with_its_label(batch_size):
    data, examples = make_data(8, 8), array_examples()
    batches = list(pipeline.evaluation_batches(data, examples, batch_size))
    images = np.concatenate([b["image"][b["valid"]] for b in batches])
    labels = np.concatenate([b["label"][b["valid"]] for b in batches])
    np.testing.assert_array_equal(labels, examples.labels)
    np.testing.assert_array_equal(images, np.pad(examples.images, ((0, 0), (1, 1), (0, 1), (0, 0))))


def encode(image, kind):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("height", "width"), [(40, 70), (70, 40), (33, 32), (16, 16)])
def test_an_encoded_image_is_resized_by_its_shorter_side_and_cut_to_the_centre(kind, height, width):
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) * 127 / (height + width)], -1)
    image = smooth.astype(np.uint8)
    examples = Examples([encode(image, kind)], np.zeros(1, np.int32), ("a", "b"), "one")
    (batch,) = pipeline.evaluation_batches(make_data(32, 32), examples, 1)

    scale = 32 / min(height, width)
    size = (max(32, round(width * scale)), max(32, round(height * scale)))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.float64)
    top, left = (resized.shape[0] - 32) // 2, (resized.shape[1] - 32) // 2
    expected = resized[top : top + 32, left : left + 32]
    # PIL rounds between its two passes, and JPEG is lossy; a shift by one pixel would be 5 levels or more.
    assert np.abs(batch["image"][0] - expected).mean() < 2.5


def test_grey_and_transparent_images_become_rgb():
    grey = np.full((32, 32), 77, np.uint8)
    rgba = np.dstack([np.full((32, 32, 3), 50, np.uint8), np.full((32, 32, 1), 9, np.uint8)])
    examples = Examples([encode(grey, "PNG"), encode(rgba, "PNG")], np.zeros(2, np.int32), ("a", "b"), "two")
    (batch,) = pipeline.evaluation_batches(make_data(32, 32), examples, 2)
    assert (batch["image"][0] == 77).all() and (batch["image"][1] == 50).all()


def test_the_mean_image_is_numpys_inside_and_zero_in_the_frame():
    examples = array_examples(count=5000)
    mean = pipeline.mean_image(make_data(10, 8, mean="per_pixel"), examples)
    expected = np.pad(examples.images.astype(np.float64).mean(0), ((2, 2), (1, 2), (0, 0)))
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    by_channel = pipeline.mean_image(make_data(10, 8, mean="per_channel"), examples)
    np.testing.assert_allclose(by_channel[2:8, 1:8], np.broadcast_to(expected.sum((0, 1)) / 42, (6, 7, 3)), rtol=1e-6)
    assert by_channel[:2].sum() == 0
    assert pipeline.mean_image(make_data(10, 8, mean="none"), examples).tolist() == [[[0, 0, 0]]]


def test_the_mean_of_some_examples_and_of_encoded_ones():
    examples = array_examples(count=100, height=8, width=8)
    few = pipeline.mean_image(make_data(8, 8, mean_examples=2), examples)
    np.testing.assert_allclose(few, examples.images[[0, 99]].mean(0), rtol=1e-6)
    encoded = Examples([encode(image, "PNG") for image in examples.images], examples.labels, ("a",) * 5, "png")
    np.testing.assert_allclose(
        pipeline.mean_image(make_data(8, 8), encoded), examples.images.mean(0, dtype=np.float64), rtol=1e-6
    )
