"""Scanned and rematerialised networks are the written-out ones: arrays, results, gradients, moments, activations."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet import config as config_lib
from alexnet_resnet import models, pretrained
from alexnet_resnet.analysis import audit, gradients, summary
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import Context, stages
from alexnet_resnet.models.draws import Draws
from alexnet_resnet.parallel import strategies
from alexnet_resnet.training.state import Network

CIFAR = dict(name="resnet_cifar", depth=20, width=0.25)
BOTTLENECKS = dict(name="resnet", depth=50, width=0.0625)
SCAN, REMAT = dict(scan=True), dict(remat="block")
PLAIN = CIFAR | dict(residual=False)


def of(model, size=8):
    return Network(model, (size, size, 3), 10)


@functools.cache
def begun(items, scan=False):
    """The initial parameters and moments of a network, the latter moved away from 0 and 1."""
    params, stats = jax.jit(of(dict(items) | dict(scan=scan)).init)(jax.random.key(0))
    return params, jax.tree.map(lambda leaf: leaf + 0.25, stats)


def images(size=8):
    return jax.random.normal(jax.random.key(1), (4, size, size, 3))


def loss(network, params, stats, x):
    """A loss that depends on every logit, and what else a step takes from the network."""
    logits, new = network.apply(params, stats, x, Context(train=True))
    return jnp.sum(logits * jnp.cos(jnp.arange(10.0))), (logits, new)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, tolerance):
    """Of the largest value in each array."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * float(1e-6 + np.max(np.abs(y))))


@pytest.mark.parametrize("model", [CIFAR, CIFAR | dict(depth=14, shortcut="C"), CIFAR | dict(depth=8)], ids=str)
def test_the_scanned_network_starts_as_the_other_does(model):
    for scanned, other in zip(begun(tuple(model.items()), True), begun(tuple(model.items())), strict=True):
        same(scanned, stages.stack(other))
        same(stages.unstack(scanned), other)


def test_bottlenecks_have_the_arrays_of_the_others():
    for scanned, other in zip(of(BOTTLENECKS | SCAN).shapes, of(BOTTLENECKS).shapes, strict=True):
        assert jax.eval_shape(stages.stack, other) == scanned
        assert jax.eval_shape(stages.unstack, scanned) == other


@functools.cache
def expected(items):
    network = of(dict(items))
    params, stats = begun(items)
    return jax.jit(jax.value_and_grad(functools.partial(loss, network), has_aux=True))(params, stats, images())


@pytest.mark.parametrize(
    "model, form", [(CIFAR, SCAN), (CIFAR, REMAT), (CIFAR, SCAN | REMAT), (PLAIN, SCAN | REMAT)], ids=str
)
def test_a_step_takes_the_same_from_every_form(model, form):
    (_, (logits, new)), gradients = expected(tuple(model.items()))
    params, stats = begun(tuple(model.items()), form.get("scan", False))
    network = of(model | form)
    found = jax.jit(jax.value_and_grad(functools.partial(loss, network), has_aux=True))(params, stats, images())
    (_, (found_logits, found_new)), found_gradients = found
    if form.get("scan"):
        found_new, found_gradients = stages.unstack(found_new), stages.unstack(found_gradients)
    close(found_logits, logits, 1e-5)
    close(found_new, new, 1e-5)
    close(found_gradients, gradients, 1e-4)


def test_a_step_over_devices_takes_the_same():
    model = CIFAR | dict(scan=True, remat="block", ghost_batch=2)
    config = config_lib.default("resnet_cifar")
    config.model.update(model)
    config.parallel.strategy, config.train.batch_size = "fsdp", 4
    strategy = strategies.create(config, jax.devices()[:2])
    params, stats = begun(tuple(CIFAR.items()), True)
    wanted, found = (
        jax.jit(jax.value_and_grad(functools.partial(loss, network), has_aux=True))(params, stats, images())
        for network in (of(model), of(model).over(strategy))
    )
    close(found, wanted, 1e-4)


def test_activations_have_the_same_names_and_values():
    def named(model, scan):
        params, stats = begun(tuple(CIFAR.items()), scan)

        @jax.jit
        def collect(params, stats, x):
            network = nnx.merge(of(model).graphdef, params, stats, copy=True)
            return models.activations(network, x)[1]

        return collect(params, stats, images())

    plain, scanned = named(CIFAR, False), named(CIFAR | dict(scan=True, remat="block"), True)
    assert list(scanned) == list(plain)
    close(scanned, plain, 1e-5)


@pytest.mark.parametrize("form", [{}, SCAN, REMAT], ids=str)
def test_a_network_from_outside_a_traced_function_evaluates_in_it(form):
    network = models.create(CIFAR | form, (8, 8, 3), 10, jax.random.key(0))
    np.testing.assert_allclose(jax.jit(lambda x: network(x))(images()), network(images()), rtol=1e-5, atol=1e-6)


def kept(**form):
    """The bytes that the forward pass leaves to the backward pass, parameters among them."""
    network = of(CIFAR | form, 32)
    x = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    backward = jax.eval_shape(lambda *given: jax.vjp(functools.partial(loss, network), *given)[1], *network.shapes, x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


def test_rematerialised_blocks_keep_their_inputs_alone():
    whole, mine = kept(), kept(**REMAT)
    # What the nine blocks see: four of them 4 maps of 32 x 32, three 8 of 16 x 16 and two 16 of 8 x 8.
    inputs = 64 * 4 * (4 * 4 * 32**2 + 3 * 8 * 16**2 + 2 * 16 * 8**2)
    assert mine < 0.3 * whole
    assert mine > inputs
    assert kept(**SCAN, **REMAT) < 0.3 * kept(**SCAN)


def test_the_scanned_rematerialised_step_takes_less_memory():
    def temporary(**form):
        network = of(CIFAR | form, 32)
        gradient = jax.jit(jax.grad(functools.partial(loss, network), has_aux=True))
        x = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
        return gradient.lower(*network.shapes, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(**SCAN, **REMAT) < 0.7 * temporary(**SCAN)


def program(**fields):
    network = of(CIFAR | fields)
    return jax.make_jaxpr(network.apply)(*network.shapes, images()).jaxpr


def test_the_scanned_program_does_not_grow_with_depth():
    lengths = {depth: len(str(program(depth=depth, scan=True)).splitlines()) for depth in (20, 56)}
    assert lengths[56] == lengths[20]


@pytest.mark.parametrize("remat", ["none", "block"])
def test_blocks_of_a_kind_are_traced_once(remat):
    def calls_and_kinds(depth):
        called = [e.params["jaxpr"] for e in program(depth=depth, remat=remat).eqns if e.params.get("name") == "block"]
        return len(called), len({id(jaxpr) for jaxpr in called})

    # Each stage's first block changes the shape, but for the first stage's.
    assert calls_and_kinds(20) == (9, 5)
    assert calls_and_kinds(56) == (27, 5)


@pytest.mark.parametrize("remat", stages.REMAT)
def test_step_by_step_a_second_call_compiles_nothing(remat):
    network = models.create(CIFAR | dict(remat=remat), (8, 8, 3), 10, jax.random.key(0))
    compiled = []
    with mock.patch.object(jax, "jit", lambda call: compiled.append(call) or call):
        network(images())
        assert not compiled
        jax.make_jaxpr(network)(images())
    assert len(compiled) == 5


def test_the_keys_of_one_source_do_not_depend_on_how_they_are_counted():
    one_by_one, ahead = Draws(jax.random.key(3)), Draws(jax.random.key(3)).starting(2)
    keys = [one_by_one.params() for _ in range(4)]
    same([jax.random.key_data(ahead.params()) for _ in range(2)], [jax.random.key_data(key) for key in keys[2:]])


def test_another_source_of_keys_will_do():
    @jax.jit
    def kernels():
        network = models.CifarResNet((8, 8, 3), 10, depth=20, width=0.25, scan=True, rngs=nnx.Rngs(0))
        return network.stage1.rest.conv1.kernel[...]

    found = np.asarray(kernels())
    assert found.shape == (2, 3, 3, 4, 4)
    assert not np.any(found[0] == found[1])


def test_the_table_of_a_network_is_of_its_layers():
    shape = (32, 32, 3), 10
    assert summary.rows(CIFAR | dict(scan=True, remat="block"), *shape) == summary.rows(CIFAR, *shape)


def test_published_weights_in_both_forms():
    network = dict(pretrained.network_of("torchvision", "resnet:18"))
    random = np.random.default_rng(0)
    params, stats = jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape, np.float32), Network(network, (224, 224, 3), 1000).shapes
    )
    tensors = pretrained.to_tensors(
        "torchvision", network | SCAN | REMAT, jax.device_get(stages.stack(params)), stages.stack(stats)
    )
    weights = pretrained.from_tensors(tensors, "torchvision", "resnet:18")
    scanned = weights.module(scan=True)
    for kind, wanted in ((nnx.Param, params), (nnx.BatchStat, stats)):
        for path, leaf in nnx.to_flat_state(nnx.state(scanned, kind)):
            expected = stages.stack(wanted)
            for key in path:
                expected = expected[key]
            np.testing.assert_array_equal(leaf[...], expected)


def test_refused():
    with pytest.raises(UserError, match=r"^model.remat='layer': expected one of 'none', 'block'"):
        of(CIFAR | dict(remat="layer"))
    with pytest.raises(UserError, match=r"^model.scan='yes': expected bool"):
        of(CIFAR | dict(scan="yes"))
    for form in (SCAN, REMAT):
        network = nnx.eval_shape(lambda form=form: models.create(CIFAR | form, (8, 8, 3), 10, jax.random.key(0)))
        with pytest.raises(UserError, match=r"^network: expected model.scan=False and model.remat='none'"):
            gradients.norms(network, [])
    config = config_lib.default("resnet_cifar")
    config.model.scan = True
    with pytest.raises(UserError, match=r"^model.scan=True: expected False, to tell the layers apart"):
        audit.strategy_of(config)
