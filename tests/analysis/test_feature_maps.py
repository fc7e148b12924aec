"""The maps that are chosen, what is drawn of them, and a network's own layers."""

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import models
from alexnet_resnet.analysis import feature_maps
from alexnet_resnet.analysis.feature_maps import Layer
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.classifier import Classifier, Forward
from alexnet_resnet.training.state import Network

SIDE = 67


def constant_maps(*levels, columns=1):
    return Layer("conv", np.tile(np.float32(levels), (4, 5, 1)), columns)


def test_the_most_active_come_first_in_each_column():
    layer = constant_maps(1, -6, 3, 2, 9, 0, 2, 8, columns=2)
    assert feature_maps.choose(layer, 4).tolist() == [[1, 2], [4, 7]]
    assert feature_maps.choose(layer, 5).tolist() == [[1, 2], [4, 7]]
    assert feature_maps.choose(layer, 100).tolist() == [[1, 2, 3, 0], [4, 7, 6, 5]]
    assert feature_maps.choose(layer, 1).tolist() == [[1], [4]]
    assert feature_maps.choose(layer, 4, "number").tolist() == [[0, 1], [4, 5]]
    # Of equal ones the first; a single column; units as they are maps.
    assert feature_maps.choose(constant_maps(2, 5, 2, 5), 3).tolist() == [[1, 3, 0]]
    assert feature_maps.choose(Layer("fc", np.float32([1, -4, 2, 0])), 2).tolist() == [[1, 2]]


def test_activity_is_the_mean_magnitude_of_the_whole_map():
    values = np.random.default_rng(0).normal(size=(6, 7, 20)).astype(np.float32)
    expected = np.argsort(-np.abs(values.astype(np.float64)).mean((0, 1)))
    assert feature_maps.choose(Layer("conv", values), 20)[0].tolist() == expected.tolist()


@pytest.fixture(scope="module")
def classifier():
    """A tiny AlexNet in two columns."""
    model = dict(name="alexnet", width=0.0625, init_std=0.1, middle_init_std=0.1, fc_init_std=0.1)
    network = Network(model, (SIDE, SIDE, 3), 5)
    forward = Forward(network, *jax.jit(network.init)(jax.random.key(0)), lambda views: views - 100.0)
    described = {"name": "alexnet", **models.defaults("alexnet"), **model}
    return Classifier(tuple("abcde"), 3, lambda picture: picture, forward, described)


def test_a_network_s_layers_are_drawn_by_column(classifier, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    sheets, imshow = [], Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **style: sheets.append((x, style)) or imshow(self, x, **style))
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    names = ["conv1", "pool2", "conv3", "fc7", "fc8"]
    layers = feature_maps.layers(classifier, picture, names)
    expected = classifier.activations([picture], names)
    for layer, name in zip(layers, names, strict=True):
        assert layer.name == name and layer.columns == (1 if name == "fc8" else 2)
        np.testing.assert_array_equal(layer.values, expected[name][0])
    assert layers[0].size == "15x15x6" and layers[3].size == "256"
    feature_maps.draw(layers, str(tmp_path / "a.png"), classifier.view(picture), 4, title="a $ net")
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert min(image.shape[:2]) > 500 and image.std() > 10
    # The input, and two sheets for each of three layers with maps.
    assert len(sheets) == 7
    np.testing.assert_array_equal(sheets[0][0], picture)
    factor = 4  # 15 pixels to 60
    for column, (sheet, style) in enumerate(sheets[1:3]):
        chosen = feature_maps.choose(layers[0], 4)
        shown = layers[0].values[..., chosen.ravel()]
        assert (style["cmap"], style["vmin"], style["vmax"]) == ("gray", 0, shown.max())
        for place, number in enumerate(chosen[column]):
            part = sheet[: 15 * factor : factor, 63 * place : 63 * place + 60 : factor]
            np.testing.assert_array_equal(part, layers[0].values[..., number])
        assert sheet.shape == (60, 8 * 63 - 3) and np.isnan(sheet[:, 60:63]).all() and np.isnan(sheet[:, 126:]).all()


def test_signed_maps_of_many_sizes_in_several_lines(tmp_path):
    random = np.random.default_rng(0)
    layers = [Layer(f"stage1/{side}", random.normal(size=(side, side + 1, 40))) for side in (1, 7, 50)]
    layers.append(Layer("dead", np.zeros((3, 3, 2)), 2))
    layers += [Layer("pool", np.zeros(6)), Layer("fc", random.normal(size=30), 3)]
    feature_maps.draw(layers, str(tmp_path / "a.png"), count=20, order="number")
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert image.std() > 10
    assert (image[..., 0] - image[..., 2]).max() > 100 and (image[..., 2] - image[..., 0]).max() > 100
    feature_maps.draw(layers[:1], str(tmp_path / "grey.png"), np.zeros((8, 8, 1), np.uint8))
    assert (tmp_path / "grey.png").exists()


def test_what_cannot_be_is_refused(classifier, tmp_path):
    path = str(tmp_path / "a.png")
    with pytest.raises(UserError, match="activation='conv9': expected one of 'conv1'"):
        feature_maps.layers(classifier, np.zeros((SIDE, SIDE, 3), np.uint8), ["conv9"])
    with pytest.raises(UserError, match="columns=3: expected a number that divides the 4 maps or units of conv"):
        constant_maps(1, 2, 3, 4, columns=3)
    with pytest.raises(UserError, match="columns=0: expected"):
        constant_maps(1, 2, columns=0)
    with pytest.raises(UserError, match=r"layer 'x': expected maps \[H, W, C\] or units \[C\], found \[2, 3\]"):
        Layer("x", np.zeros((2, 3)))
    with pytest.raises(UserError, match="layers: expected at least one"):
        feature_maps.draw([], path)
    with pytest.raises(UserError, match="order='best': expected one of 'active', 'number'"):
        feature_maps.draw([constant_maps(1, 2)], path, order="best")
    with pytest.raises(UserError, match="count=0: expected"):
        feature_maps.draw([constant_maps(1, 2)], path, count=0)
    with pytest.raises(UserError, match="figure=.*a.xyz"):
        feature_maps.draw([constant_maps(1, 2)], str(tmp_path / "a.xyz"))
