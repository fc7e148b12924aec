"""Ensembles: one network twice is that network, of two the mean of their softmax outputs is taken."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.data.examples import Examples
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import ensemble, runs
from alexnet_resnet.evaluation.classification import Evaluator
from alexnet_resnet.evaluation.ensemble import Member
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib


def make(seed, image_size=32, canvas_size=40, batch_size=8, view="centre"):
    """A network with random weights and its state."""
    config = config_lib.default("resnet_cifar")
    config.model.update(depth=8, width=0.25)
    config.data.update(canvas_size=canvas_size, image_size=image_size, num_classes=7, loader="resident")
    # Or else the logits are so far apart that float32 has no number for the smaller probabilities.
    config.data.divisor = 128.0
    config.evaluation.update(batch_size=batch_size, views=view)
    network = state_lib.from_config(config)
    optimizer = optimizer_lib.create(config.optimizer, lambda step: 0.0)
    shape = (canvas_size, canvas_size, 3)
    mean = jnp.asarray(np.random.default_rng(seed).uniform(90, 130, shape), jnp.float32)
    state = jax.jit(lambda m: state_lib.create(network, optimizer, seed, m, jnp.zeros((3, 3))))(mean)
    return config, network, state


IMAGES = np.random.default_rng(1).integers(0, 256, (19, 32, 32, 3)).astype(np.uint8)
LABELS = (np.arange(19) % 7).astype(np.int32)
EXAMPLES = Examples(IMAGES, LABELS, tuple("abcdefg"), "random")


def member(made, examples=EXAMPLES, name="workdir='a'"):
    config, network, state = made
    return Member(name, config, network, examples, lambda strategy: state, {"workdir": name})


@pytest.fixture(scope="module")
def two():
    """Networks that see images of different sizes."""
    return make(0), make(1, image_size=24, canvas_size=32, batch_size=16)


def softmax(made):
    """The outputs for the canvas's centre, in numpy but for the network itself."""
    config, network, state = made
    size, canvas = config.data.image_size, config.data.canvas_size
    frame, margin = (canvas - 32) // 2, (canvas - size) // 2
    canvases = np.pad(IMAGES, [(0, 0), (frame, frame), (frame, frame), (0, 0)])
    inside = slice(margin, margin + size)
    images = canvases[:, inside, inside].astype(np.float32) - np.asarray(state.mean)[inside, inside]
    images /= 128
    logits = np.asarray(network.apply(state.params, state.batch_stats, jnp.asarray(images))[0], np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def kept(outputs):
    return np.concatenate([probabilities for _, _, probabilities in outputs.chunks()])


def test_of_two_the_mean_softmax_is_judged(two):
    verdict = ensemble.judge([member(made) for made in two], runs.over_all_devices())
    mean = (softmax(two[0]) + softmax(two[1])) / 2
    np.testing.assert_allclose(kept(verdict.outputs), mean, rtol=2e-4, atol=1e-7)
    right = mean[np.arange(19), LABELS]
    ranks = (mean >= right[:, None]).sum(1)
    assert verdict.result.examples == 19
    assert (verdict.result.top1_errors, verdict.result.top5_errors) == ((ranks > 1).sum(), (ranks > 5).sum())
    assert verdict.result.loss == pytest.approx(-np.log(right).mean(), rel=1e-4)
    for made, alone in zip(two, verdict.results, strict=True):
        right = softmax(made)[np.arange(19), LABELS]
        assert alone.loss == pytest.approx(-np.log(right).mean(), rel=1e-4)


@pytest.mark.parametrize("view", ["centre", "ten_crop"])
def test_one_network_twice_is_that_network(view):
    made = make(2, view=view)
    once = ensemble.judge([member(made)], runs.over_all_devices(), keep=True)
    twice = ensemble.judge([member(made), member(made)], runs.over_all_devices())
    np.testing.assert_allclose(kept(twice.outputs), kept(once.outputs), rtol=1e-6)
    assert twice.results == (once.result, once.result)
    assert dataclasses.replace(twice.result, loss=0) == dataclasses.replace(once.result, loss=0)
    assert twice.result.loss == pytest.approx(once.result.loss, rel=1e-5)


@pytest.mark.parametrize("view", ["centre", "ten_crop", "nine_crop"])
def test_keeping_the_outputs_changes_no_bit_of_the_sums(view):
    made = make(3, view=view)
    plain = Evaluator(made[0], made[1], runs.over_all_devices())(made[2], EXAMPLES)
    verdict = ensemble.judge([member(made)], runs.over_all_devices(), keep=True)
    assert verdict.result == plain, "the loss too, to the last bit"
    assert ensemble.judge([member(made)], runs.over_all_devices()).outputs is None
    right = kept(verdict.outputs)[np.arange(19), LABELS].astype(np.float64)
    assert plain.loss == pytest.approx(-np.log(right).mean(), rel=1e-5)


@pytest.mark.parametrize("view", ["centre", "ten_crop"])
def test_probabilities_too_small_for_a_number_keep_their_ranks(view):
    """One network twice is that network also where most of its softmax outputs are zero in float32."""
    config, network, state = make(2, view=view)
    config.data.divisor = 0.02
    made = config, network, state
    once = ensemble.judge([member(made)], runs.over_all_devices(), keep=True)
    assert np.mean(kept(once.outputs) == 0) > 0.3, "else nothing is proved"
    twice = ensemble.judge([member(made), member(made)], runs.over_all_devices())
    assert np.isfinite(once.result.loss) and once.result.loss > 100
    assert twice.result.loss == pytest.approx(once.result.loss, rel=1e-5)
    assert dataclasses.replace(twice.result, loss=0) == dataclasses.replace(once.result, loss=0)


def test_all_states_are_loaded_before_the_first_is_judged(two):
    def damaged(strategy):
        raise UserError("checkpoint: damaged")

    judged = []
    broken = dataclasses.replace(member(two[1]), load=damaged)
    first = member(two[0])
    first = dataclasses.replace(first, open_loader=lambda examples: judged.append(examples))
    with pytest.raises(UserError, match="checkpoint: damaged"):
        ensemble.judge([first, broken], runs.over_all_devices())
    assert not judged


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (Examples(IMAGES, LABELS, tuple("abcdefx"), "other"), "workdir='b': expected the 7 classes of random"),
        (Examples(IMAGES[1:], LABELS[1:], EXAMPLES.label_names, "fewer"), "expected the 19 examples of random.*has 18"),
        (Examples(IMAGES[::-1], LABELS, EXAMPLES.label_names, "turned"), "turned has 19, or other images"),
    ],
)
def test_members_that_do_not_agree_are_refused(two, examples, message):
    with pytest.raises(UserError, match=message):
        ensemble.check([member(two[0]), member(two[1], examples, "workdir='b'")])
    ensemble.check([member(two[0]), member(two[1])])
