import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet.models import Context
from alexnet_resnet.models.layers import BatchNorm, Conv
from alexnet_resnet.models.statistics import average_statistics


class TwoLayers(nnx.Module):
    """A batch normalisation whose input depends on the one before it."""

    def __init__(self):
        rngs = nnx.Rngs(params=jax.random.key(0, impl="rbg"))
        self.conv1, self.bn1 = Conv(3, 4, 1, rngs=rngs), BatchNorm(4)
        self.conv2, self.bn2 = Conv(4, 5, 1, rngs=rngs), BatchNorm(5)

    def __call__(self, x, context):
        x = self.bn1(self.conv1(x, context), context)
        return self.bn2(self.conv2(x, context), context)


def moments(network, x):
    """Means and unbiased variances that the two normalisations see in a batch, in float64."""
    found = []
    for conv, bn in ((network.conv1, network.bn1), (network.conv2, network.bn2)):
        x = x @ np.float64(conv.kernel[...][0, 0]) + np.float64(conv.bias[...])
        found.append((x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)))
        x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + bn.epsilon)
    return found


def test_statistics_are_plain_averages_in_which_each_example_counts_the_same():
    network = TwoLayers()
    before = jax.tree.map(np.asarray, nnx.state(network))
    batches = [jax.random.normal(jax.random.key(n), (n, 4, 4, 3)) * n + n for n in (2, 6, 2)]
    statistics = average_statistics(network, iter(batches))
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(nnx.state(network))))

    nnx.update(network, statistics)
    each = [moments(network, np.float64(x)) for x in batches]
    for place, bn in enumerate((network.bn1, network.bn2)):
        mean = sum(n * m[place][0] for n, m in zip((2, 6, 2), each, strict=True)) / 10
        # That within the batches and that between them.
        squares = sum(n * (m[place][1] + m[place][0] ** 2) for n, m in zip((2, 6, 2), each, strict=True)) / 10
        variance = squares - mean**2
        np.testing.assert_allclose(bn.mean[...], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(bn.variance[...], variance, rtol=1e-4, atol=1e-5)
        assert bn.momentum == 0.9
    assert network(batches[0], Context()).shape == (2, 4, 4, 5)


def test_needs_a_batch():
    with pytest.raises(ValueError, match="batches: expected at least one"):
        average_statistics(TwoLayers(), [])
