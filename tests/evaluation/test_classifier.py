"""A classifier's named activations are the network's own, however pictures are batched."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet import models, pretrained
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import prediction
from alexnet_resnet.evaluation.classifier import Classifier, Forward
from alexnet_resnet.training.state import Network

SIDE, CLASSES, MEAN = 72, 5, 100.0
MODEL = dict(name="alexnet", maps="4-4-8-8-4", units=16, init_std=0.1, middle_init_std=0.1, fc_init_std=0.1)


@pytest.fixture(scope="module")
def tiny():
    """A classifier with a tiny AlexNet in two columns, and the network itself."""
    network = Network(MODEL, (SIDE, SIDE, 3), CLASSES)
    params, stats = jax.jit(network.init)(jax.random.key(0))
    forward = Forward(network, params, stats, lambda views: views - MEAN)
    described = {"name": "alexnet", **models.defaults("alexnet"), **MODEL}
    view = lambda picture: picture[:SIDE, :SIDE]  # noqa: E731
    names = tuple("abcde")
    return Classifier(names, 3, view, forward, described), nnx.merge(network.graphdef, params, stats)


def zeros(network):
    """Parameters and statistics for which nothing needs to be compiled."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.shapes)


def pictures(count):
    return list(np.random.default_rng(0).integers(0, 256, (count, SIDE + 3, SIDE, 3), dtype=np.uint8))


def test_activations_are_those_of_the_module_for_the_same_views(tiny):
    classifier, module = tiny
    seen = np.stack(pictures(3))[:, :SIDE].astype(np.float32) - MEAN
    logits, expected = nnx.jit(lambda module, x: models.activations(module, x))(module, seen)
    names = ["fc7", "conv1", "pool5"]
    found = classifier.activations(pictures(3), names)
    assert list(found) == names
    for name in names:
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(classifier.probabilities(pictures(3)), jax.nn.softmax(logits), rtol=1e-4)
    assert set(classifier.activation_shapes) == set(expected)
    assert all(classifier.activation_shapes[name] == array.shape[1:] for name, array in expected.items())


def test_shapes_come_in_the_network_s_order(tiny):
    names = list(tiny[0].activation_shapes)
    assert names[:4] == ["conv1", "norm1", "pool1", "conv2"] and names[-3:] == ["fc6", "fc7", "fc8"]
    assert tiny[0].activation_shapes["fc8"] == (CLASSES,)


@pytest.mark.parametrize("batch", [4, 16])
def test_batches_do_not_matter_and_an_iterator_is_taken_by_them(tiny, batch):
    classifier, _ = tiny
    alone = np.concatenate([classifier.activations([picture], ["pool5"])["pool5"] for picture in pictures(9)])
    taken, seen = [], []

    def one_by_one():
        for number, picture in enumerate(pictures(9)):
            taken.append(number)
            yield picture

    watched = dataclasses.replace(classifier, view=lambda picture: seen.append(len(taken)) or classifier.view(picture))
    together = watched.activations(one_by_one(), ["pool5"], batch)["pool5"]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert seen[0] == min(batch, 9)


def test_no_pictures_give_no_rows(tiny):
    assert tiny[0].activations([], ["conv1", "fc7"])["fc7"].shape == (0, 16)
    assert tiny[0].activations(iter(()), ["conv1"])["conv1"].shape == (0, *tiny[0].activation_shapes["conv1"])
    assert tiny[0].probabilities([]).shape == (0, CLASSES)


def test_the_network_and_its_parameters_are_at_hand(tiny):
    classifier, module = tiny
    assert classifier.columns == 2 and classifier.network["maps"] == MODEL["maps"]
    np.testing.assert_array_equal(classifier.params["conv1"]["kernel"], module.conv1.kernel[...])


def test_an_unknown_name_is_refused_before_a_picture_is_looked_at(tiny):
    with pytest.raises(UserError, match=r"activation='fc77': expected one of 'conv1', 'norm1', .*Did you mean 'fc7'"):
        tiny[0].activations(iter([None]), ["conv1", "fc77"])


def test_of_a_deep_network_only_the_first_names_are_listed():
    network = Network(dict(name="resnet_cifar", depth=20, width=0.1), (8, 8, 3), 2)
    forward = Forward(network, *zeros(network), lambda views: views / 255.0)
    classifier = Classifier(("a", "b"), 3, lambda picture: picture, forward, {"name": "resnet_cifar"})
    assert classifier.columns == 1 and len(classifier.activation_shapes) > 40
    with pytest.raises(UserError, match=r"activation='pol': expected one of 'conv1', .*, \.\.\.\. Did you mean 'pool'"):
        classifier.activations([], ["pol"])


def test_published_weights_say_what_their_kernels_see(monkeypatch):
    network = dict(name="resnet_cifar", depth=8, width=0.25)
    params, stats = zeros(Network(network, (16, 16, 3), 3))
    preprocessing = pretrained.preprocessing.Preprocessing(resize=16, crop=16, channels="bgr")
    weights = pretrained.weights.Pretrained(network, 3, params, stats, preprocessing)
    monkeypatch.setattr(pretrained, "load", lambda *asked: weights)
    classifier = prediction.from_weights("a.h5", "keras", "resnet:8")
    assert classifier.input_order == "bgr" and classifier.label_names == ("0", "1", "2")
    assert classifier.network == {"name": "resnet_cifar", **models.defaults("resnet_cifar"), **network}
    assert classifier.activation_shapes["pool"] == (16,)
