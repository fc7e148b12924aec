"""Figure 7's standard deviations are numpy's of the collected activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet import models
from alexnet_resnet.analysis import responses
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import Context

SIZES = (3, 1, 5)


def build(image=(8, 8, 3), **model):
    model = dict(name="resnet_cifar", depth=8, width=0.25) | model
    network = nnx.jit(lambda: models.create(model, image, 4, jax.random.key(0, impl="rbg")))()
    random = np.random.default_rng(0)
    for path, leaf in nnx.to_flat_state(nnx.state(network)):
        if path[-1] in ("scale", "variance"):
            leaf[...] = jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        elif path[-1] in ("bias", "mean"):
            leaf[...] = jnp.asarray(random.normal(0, 0.5, leaf.shape), jnp.float32)
    return network


@pytest.fixture(scope="module")
def network():
    return build()


@pytest.fixture(scope="module")
def batches():
    # Far from zero and unlike each other: deviations between batches count as much as those within.
    return [np.random.default_rng(n).normal(3 * n, 1 + n, (n, 8, 8, 3)).astype(np.float32) for n in SIZES]


def collected(network, batches, context):
    every = [models.activations(nnx.clone(network), jnp.asarray(x), context)[1] for x in batches]
    flat = {name: np.concatenate([np.float64(named[name]).ravel() for named in every]) for name in every[0]}
    return {name: values.std() for name, values in flat.items()}


@pytest.mark.parametrize("train", [False, True])
def test_they_are_numpys_over_unequal_batches(network, batches, train):
    before = jax.tree.map(np.array, nnx.state(network))
    found = responses.standard_deviations(network, iter(batches), batch_statistics=train)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(network)))
    expected = collected(network, batches, Context(train=train))
    layers = ["bn1", *(f"stage{stage}/0/bn{layer}" for stage in (1, 2, 3) for layer in (1, 2))]
    assert list(found) == layers, "depth - 1 layers of 3x3, in their order"
    for name, deviation in found.items():
        assert deviation == pytest.approx(expected[name], rel=1e-5)


def test_any_activations_may_be_asked_for(network, batches):
    expected = collected(network, batches, Context())
    found = responses.standard_deviations(network, batches, names=["fc", "pool", "stage1/0"])
    assert list(found) == ["stage1/0", "pool", "fc"], "in the order of computation"
    for name, deviation in found.items():
        assert deviation == pytest.approx(expected[name], rel=1e-5)


def test_moments_of_numbers_far_from_zero_lose_nothing():
    values = 1e8 + np.random.default_rng(0).normal(size=300)
    parts = np.split(values, (10, 10, 150))
    total = sum(
        (responses.Moments(len(p), p.mean(), p.var() * len(p)) if len(p) else responses.Moments() for p in parts),
        responses.Moments(),
    )
    assert total.count == 300 and total.deviation == pytest.approx(values.std(), rel=1e-6)


def test_at_initialisation_only_a_batchs_own_moments_normalise(batches):
    """A scale of 1 and a shift of 0 make every response's deviation 1; the first running moments change nothing."""
    network = nnx.jit(
        lambda: models.create(
            dict(name="resnet_cifar", depth=8, width=0.25, residual=False), (8, 8, 3), 4, jax.random.key(0, impl="rbg")
        )
    )()
    own = responses.standard_deviations(network, batches[:1], batch_statistics=True)
    np.testing.assert_allclose(list(own.values()), 1, rtol=1e-3)
    names = ["conv1", "bn1"]
    running = responses.standard_deviations(network, batches[:1], names)
    assert running["bn1"] == pytest.approx(running["conv1"], rel=1e-4)


def test_only_3x3_layers_and_only_those_with_a_normalisation_that_is_named_apart():
    def traced(image, **model):
        return nnx.eval_shape(lambda: models.create(model, image, 4, jax.random.key(0)))

    image = (64, 64, 3)
    bottlenecks = responses.layers(traced(image, name="resnet", depth=50, width=0.0625), image)
    assert bottlenecks == [
        f"stage{stage}/{block}/bn2" for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)) for block in range(blocks)
    ]
    assert len(responses.layers(traced(image, name="resnet", depth=18, width=0.0625, shortcut="C"), image)) == 16
    with pytest.raises(UserError, match="network: expected batch normalisation after its 3x3 conv.*found none"):
        responses.layers(traced(image, name="vgg", width=0.0625), image)


def test_what_cannot_be_measured(network, batches):
    with pytest.raises(UserError, match="batches: expected at least one, found none"):
        responses.standard_deviations(network, [])
    with pytest.raises(UserError, match="names='stage1/0/bn3': expected an activation .* Did you mean 'stage1/0/bn"):
        responses.standard_deviations(network, batches, ["bn1", "stage1/0/bn3"])
    with pytest.raises(UserError, match="names: expected at least one activation"):
        responses.standard_deviations(network, batches, [])


def test_the_figure_has_both_orders(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self))
    curves = {"plain-8": {"bn1": 1.0, "a": 3.0, "b": 2.0}, "ResNet-8": [0.5, 0.25, 1.0, 0.75]}
    responses.draw(curves, str(tmp_path / "figure.png"), note="$after 1 epoch")
    above, below = drawn[0].axes
    assert [list(line.get_ydata()) for line in above.lines] == [[1, 3, 2], [0.5, 0.25, 1, 0.75]]
    assert [list(line.get_ydata()) for line in below.lines] == [[3, 2, 1], [1, 0.75, 0.5, 0.25]]
    assert [list(line.get_xdata()) for line in above.lines] == [[1, 2, 3], [1, 2, 3, 4]]
    assert [line.get_linestyle() for line in above.lines] == ["--", "-"]
    assert above.get_ylim()[0] == 0 and above.get_ylim()[1] > 3
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["plain-8", "ResNet-8"]
    monkeypatch.undo()
    responses.draw(curves, str(tmp_path / "figure.png"), dashed=(), note="$after 1 epoch")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
