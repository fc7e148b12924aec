"""Published weights judge the views that they were published with: every average is that of the views, in numpy."""

import io

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import models
from alexnet_resnet.data import views
from alexnet_resnet.data.examples import EncodedExamples, Examples, InMemory
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import ensemble, published, runs
from alexnet_resnet.pretrained import Preprocessing, Pretrained

NAMES = tuple("abcde")
PREPROCESSING = Preprocessing(
    resize=40,
    crop=32,
    interpolation="bicubic",
    channels="bgr",
    divisor=255.0,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
)
FILTER = Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def weights():
    """Those of a small network, made up."""
    network = {"name": "resnet_cifar", "depth": 8, "width": 0.25}
    module = nnx.jit(lambda: models.create(network, (32, 32, 3), 5, jax.random.key(0)))()
    _, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    return Pretrained(network, 5, nnx.to_pure_dict(params), nnx.to_pure_dict(stats), PREPROCESSING)


def photograph(height, width, seed):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.random.default_rng(seed).normal(size=(3, 2))
    return np.stack([127 + 120 * np.sin((rows * a + columns * b) / 50) for a, b in waves], -1).astype(np.uint8)


PICTURES = [photograph(*size, seed) for seed, size in enumerate([(64, 96), (130, 64), (64, 64), (50, 45), (70, 300)])]
LABELS = np.arange(5) % 5


@pytest.fixture
def encoded():
    """The pictures as PNGs, and one that is cut off."""
    files = []
    for picture in PICTURES:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        files.append(file.getvalue())
    files.insert(2, files[0][: len(files[0]) // 2])
    return EncodedExamples(InMemory(files, [0, 1, 4, 2, 3, 4]), range(6), NAMES, "photographs")


def judge(weights, examples, view, monkeypatch):
    monkeypatch.setattr(published.sources, "load", lambda data, split: examples)
    monkeypatch.setattr(published.pretrained, "load", lambda *file: weights)
    monkeypatch.setattr(published, "file_hash", lambda path: "0")
    member = published.member("w.h5", "keras", "resnet:8", "folder", "", "val", view, batch_size=4)
    member.config.data.max_unreadable = 0.2
    member.config.evaluation.scales = (32, 64)
    return ensemble.judge([member], runs.over_all_devices(), keep=True)


def softmax(weights, images):
    """Of pixels of 0 to 255: colours turned, scaled and normalised in numpy."""
    mean, std = np.float32(PREPROCESSING.mean), np.float32(PREPROCESSING.std)
    seen = (np.asarray(images)[..., ::-1].astype(np.float32) / np.float32(255) - mean) / std
    logits = np.asarray(nnx.jit(lambda module, x: module(x))(weights.module(), jnp.asarray(seen)), np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def canvas(picture):
    """The shorter side brought to 40 and the centre cut out, by PIL alone."""
    height, width = picture.shape[:2]
    shorter = min(height, width)
    size = int(40 * width / shorter), int(40 * height / shorter)
    left, top = (round((side - 40) / 2) for side in size)
    return np.asarray(Image.fromarray(picture).resize(size, FILTER))[top : top + 40, left : left + 40]


def compare(verdict, expected):
    (rows, labels, found), *more = verdict.outputs.chunks()
    assert not more
    assert verdict.result.unreadable == 1 and rows.tolist() == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(labels, LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    right = expected[np.arange(5), LABELS]
    assert verdict.result.loss == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert verdict.result.top1_errors == ((expected >= right[:, None]).sum(1) > 1).sum()


def test_the_centre_is_what_predict_sees(weights, encoded, monkeypatch):
    verdict = judge(weights, encoded, "centre", monkeypatch)
    compare(verdict, softmax(weights, [PREPROCESSING.view(picture) for picture in PICTURES]))
    assert verdict.steps == (0,)


def test_ten_crops_come_from_the_square_of_the_shorter_side(weights, encoded, monkeypatch):
    verdict = judge(weights, encoded, "ten_crop", monkeypatch)
    canvases, total = np.stack([canvas(picture) for picture in PICTURES]), 0
    for top in (0, 8):
        for left in (0, 8):
            crop = canvases[:, top : top + 32, left : left + 32]
            total = total + softmax(weights, crop) + softmax(weights, crop[:, :, ::-1])
    crop = canvases[:, 4:36, 4:36]
    compare(verdict, (total + softmax(weights, crop) + softmax(weights, crop[:, :, ::-1])) / 10)


def test_every_scale_is_of_the_whole_image(weights, encoded, monkeypatch):
    verdict = judge(weights, encoded, "multi_scale", monkeypatch)
    total = np.zeros((5, 5))
    for side in (32, 64):
        for index, picture in enumerate(PICTURES):
            (top, left, height, width), shape = views.whole_image(*picture.shape[:2], side)
            part = Image.fromarray(picture[top : top + height, left : left + width])
            total[index] += softmax(weights, np.asarray(part.resize(shape[::-1], FILTER))[None])[0]
    compare(verdict, total / 2)


def test_arrays_are_brought_to_the_network_s_size(weights, monkeypatch):
    images = np.stack([photograph(8, 8, seed) for seed in range(5)])
    examples = Examples(images, LABELS.astype(np.int32), NAMES, "small")
    verdict = judge(weights, examples, "centre", monkeypatch)
    expected = softmax(weights, [PREPROCESSING.view(image) for image in images])
    np.testing.assert_allclose(next(verdict.outputs.chunks())[2], expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(UserError, match="expected 'centre', 'ten_crop' or 'nine_crop' for small"):
        judge(weights, examples, "multi_scale", monkeypatch)


def test_weights_for_other_classes_are_refused(weights, monkeypatch):
    examples = Examples(np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, np.int32), ("a", "b"), "pairs")
    message = "weights='w.h5': expected a network of 2 classes, as pairs has, got one of 5"
    with pytest.raises(UserError, match=message):
        judge(weights, examples, "centre", monkeypatch)


def test_too_many_that_cannot_be_read_end_it(weights, encoded, monkeypatch):
    store = InMemory([b"no image"] * 3, [0, 1, 2])
    with pytest.raises(UserError, match="expected at most this share of broken to be unreadable"):
        judge(weights, EncodedExamples(store, range(3), NAMES, "broken"), "centre", monkeypatch)
