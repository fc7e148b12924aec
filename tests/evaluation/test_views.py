"""Ten crops, nine crops and several scales: the mean softmax is that of the views, one by one, in numpy."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import views
from alexnet_resnet.data.examples import EncodedExamples, Examples, InMemory
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.classification import Evaluator
from alexnet_resnet.evaluation.views import check_views
from alexnet_resnet.parallel import hosts
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib


@pytest.fixture(scope="module")
def run():
    config = config_lib.default("resnet_cifar")
    config.model.update(depth=8, width=0.25)
    # In grey levels these logits are so far apart that numpy has no number for some of the probabilities.
    config.data.update(canvas_size=40, image_size=32, num_classes=5, divisor=128.0)
    config.evaluation.update(batch_size=8, scales=(32, 64))
    network = state_lib.from_config(config)
    optimizer = optimizer_lib.create(config.optimizer, lambda step: 0.0)
    mean = jnp.asarray(np.random.default_rng(0).uniform(90, 130, (40, 40, 3)), jnp.float32)
    state = jax.jit(lambda m: state_lib.create(network, optimizer, 0, m, jnp.zeros((3, 3))))(mean)
    return config, network, state


def spread():
    return Strategy("data", mesh_lib.create(2, 1, jax.devices()[:2]))


def compiled(network, state):
    """The network as a function of images."""
    return jax.jit(lambda images: network.apply(state.params, state.batch_stats, images)[0])


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, 1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def check(result, probabilities, labels):
    right = probabilities[np.arange(len(labels)), labels]
    assert result.loss == pytest.approx(-np.log(right).mean(), rel=1e-3)
    assert result.top1_error == pytest.approx(((probabilities >= right[:, None]).sum(1) > 1).mean())
    assert result.examples == len(labels)


@pytest.mark.parametrize("position", ["own", "centre"])
def test_ten_crops_are_averaged(run, position):
    config, network, state = run
    config = config.copy_and_resolve_references()
    config.evaluation.views, config.data.mean_position = "ten_crop", position
    images = np.random.default_rng(1).integers(0, 256, (11, 40, 40, 3)).astype(np.uint8)
    labels = (np.arange(11) % 5).astype(np.int32)
    result = Evaluator(config, network, spread())(state, Examples(images, labels, tuple("abcde"), "random"))

    mean, total, outputs = np.asarray(state.mean), 0, compiled(network, state)
    for top, left, mirrored in views.ten_crops(40, 32):
        part = (slice(None), slice(top, top + 32), slice(left, left + 32))
        crops = images[part].astype(np.float32)
        if position == "own":
            crops = crops - mean[part[1:]]
        crops = crops[:, :, ::-1] if mirrored else crops
        if position == "centre":
            crops = crops - mean[4:36, 4:36]
        total = total + softmax(outputs(crops / 128))
    check(result, total / 10, labels)


def test_nine_crops_are_averaged():
    config = config_lib.default("cuda_convnet")
    config.model.variant = "11pct"
    config.data.update(canvas_size=32, image_size=24)
    config.evaluation.update(batch_size=4, views="nine_crop")
    network = state_lib.from_config(config)
    optimizer = optimizer_lib.create(config.optimizer, lambda step: 0.0)
    random = np.random.default_rng(2)
    mean = jnp.asarray(random.uniform(90, 130, (32, 32, 3)), jnp.float32)
    state = jax.jit(lambda m: state_lib.create(network, optimizer, 0, m, jnp.zeros((3, 3))))(mean)
    # The author's first kernels are so small that all answers would be the same.
    state.params["conv1"]["kernel"] = state.params["conv1"]["kernel"] * 500
    images = random.integers(0, 256, (7, 32, 32, 3)).astype(np.uint8)
    labels = (np.arange(7) % 10).astype(np.int32)
    kept = np.zeros((7, 10), np.float32)

    def take(rows, labels, outputs):
        kept[rows] = outputs

    names = tuple(map(str, range(10)))
    result = Evaluator(config, network, spread())(state, Examples(images, labels, names, "random"), take)
    seen, apply = [], compiled(network, state)
    for top in (0, 4, 8):
        for left in (0, 4, 8):
            part = (slice(None), slice(top, top + 24), slice(left, left + 24))
            crops = images[part].astype(np.float32) - np.asarray(mean)[part[1:]]
            seen.append(softmax(apply(crops)))
    assert np.ptp(seen, 0).max() > 0.01, "views that all look the same would prove nothing"
    np.testing.assert_allclose(np.exp(kept), np.mean(seen, 0), rtol=1e-3, atol=1e-6)
    check(result, np.mean(seen, 0), labels)


@pytest.mark.parametrize("size", [31, 32])
def test_nine_crops_that_would_fall_together_are_refused(run, size):
    config, network, _ = run
    config = config.copy_and_resolve_references()
    config.evaluation.views = "nine_crop"
    check_views(config, network, [])
    config.data.update(canvas_size=32, image_size=size)
    with pytest.raises(UserError) as caught:
        check_views(config, network, [])
    assert str(caught.value) == (
        "evaluation.views='nine_crop': expected at least two pixels between data.canvas_size=32 and "
        f"data.image_size={size}, for nine crops that differ."
    )


def photograph(height, width, seed):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [
        127 + 120 * np.sin((rows * a + columns * b) / 50) for a, b in np.random.default_rng(seed).normal(size=(3, 2))
    ]
    return np.stack(waves, -1).astype(np.uint8)


def test_scales_are_averaged_and_every_image_is_judged_once(run):
    config, network, state = run
    config = config.copy_and_resolve_references()
    config.evaluation.views = "multi_scale"
    sizes = [(64, 64), (64, 96), (130, 64), (64, 100), (64, 64), (64, 64), (70, 400)]
    pictures = [photograph(*size, seed) for seed, size in enumerate(sizes)]
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    labels = np.arange(7) % 5
    encoded[4] = b"unreadable"
    config.data.max_unreadable = 0.2
    examples = EncodedExamples(InMemory(encoded, labels), range(7), tuple("abcde"), "photographs")
    result = Evaluator(config, network, spread())(state, examples)
    assert result.unreadable == 1

    colour, total, outputs = np.asarray(state.mean).mean((0, 1)), np.zeros((7, 5)), compiled(network, state)
    for side in (32, 64):
        for index, picture in enumerate(pictures):
            (top, left, height, width), shape = views.whole_image(*picture.shape[:2], side)
            part = Image.fromarray(picture[top : top + height, left : left + width])
            resized = np.asarray(part.resize(shape[::-1], Image.Resampling.BILINEAR), np.float32) - colour
            total[index] += softmax(outputs(resized[None] / 128))[0]
    keep = np.arange(7) != 4
    check(result, total[keep] / 2, labels[keep])


def test_what_views_cannot_be_had_of_is_refused(run, monkeypatch):
    config, network, _ = run
    config = config.copy_and_resolve_references()
    config.evaluation.views = "multi_scale"
    arrays = Examples(np.zeros((3, 40, 40, 3), np.uint8), np.zeros(3, np.int32), ("a",), "arrays")
    with pytest.raises(
        UserError, match="evaluation.views='multi_scale': expected 'centre', 'ten_crop' or 'nine_crop' for"
    ):
        check_views(config, network, [arrays])
    # How the network is spread plays no part.
    check_views(config, network.over(Strategy("fsdp", mesh_lib.create(-1, 1))), [])
    monkeypatch.setattr(hosts, "several", lambda: True)
    with pytest.raises(UserError, match="expected one process, as hosts would see other shapes"):
        check_views(config, network, [])
    config.evaluation.views = "centre"
    check_views(config, network, [arrays])


def test_a_network_of_one_size_refuses_other_scales():
    config = config_lib.default("lenet")
    config.data.update(canvas_size=32, image_size=32, channels=3, num_classes=10)
    config.evaluation.update(views="multi_scale", scales=(64,))
    with pytest.raises(UserError, match="expected a network that takes images of any size, not lenet"):
        check_views(config, state_lib.from_config(config), [])
