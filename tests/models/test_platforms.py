"""What accelerators compute in other ways than processors is the same to rounding: whole networks, on a processor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet.models import Context
from alexnet_resnet.models.alexnet import AlexNet
from alexnet_resnet.models.resnet import ResNet

NETWORKS = {
    "alexnet": lambda: AlexNet((67, 67, 3), 5, width=0.0625, dtype="float64", middle_init_std=0.1, rngs=nnx.Rngs(0)),
    "alexnet, batch": lambda: AlexNet((67, 67, 3), 5, width=0.0625, norm="batch", dtype="float64", rngs=nnx.Rngs(0)),
    "resnet": lambda: ResNet((33, 33, 3), 5, depth=18, width=0.0625, ghost_batch=2, dtype="float64", rngs=nnx.Rngs(0)),
}


def convolutions(jaxpr) -> list[tuple]:
    """The kernel shapes of a program's convolutions."""
    found = [tuple(e.invars[1].aval.shape) for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            found += convolutions(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_do_not_depend_on_the_platform(name, monkeypatch):
    with jax.enable_x64(True):
        graph, params, rest = nnx.split(NETWORKS[name](), nnx.Param, ...)
        wide = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64), tree)  # noqa: E731
        params, rest = wide(params), wide(rest)
        side = 67 if "alexnet" in name else 33
        random = np.random.default_rng(0)
        x = jnp.asarray(random.normal(size=(4, side, side, 3), scale=20))
        weights = jnp.asarray(random.normal(size=(4, 5)))

        def loss(params):
            network = nnx.merge(graph, params, rest, copy=True)
            logits = network(x, Context(train=True))
            return jnp.sum(weights * logits), (logits, nnx.state(network, nnx.BatchStat))

        found, kernels = {}, {}
        for platform in ("cpu", "gpu", "tpu"):
            monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
            # A function of its own for each platform: what was traced before is not taken again.
            step = jax.value_and_grad(lambda params: loss(params), has_aux=True)
            kernels[platform] = convolutions(jax.make_jaxpr(lambda params: loss(params)[0])(params).jaxpr)
            found[platform] = jax.jit(step)(params)
        # Gradients that are zero but for rounding are compared with the others' size.
        least = 1e-6 * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(found["cpu"][1]))
        for platform in ("gpu", "tpu"):
            for ours, theirs in zip(*(jax.tree.leaves(found[p]) for p in (platform, "cpu")), strict=True):
                scale = max(least, float(np.abs(theirs).max()))
                np.testing.assert_allclose(np.asarray(ours) / scale, np.asarray(theirs) / scale, rtol=0, atol=1e-9)
    # Columns that see the same maps are one convolution there, and images come in blocks of pixels.
    first = {"cpu": 3, "gpu": 48 if "alexnet" in name else 12}
    assert {p: kernels[p][0][2] for p in first} == first
    if "alexnet" in name:
        assert len(kernels["cpu"]) == 10 and len(kernels["gpu"]) == 8
