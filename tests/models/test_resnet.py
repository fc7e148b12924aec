"""Counts are those of the papers; the rest is by construction or against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet.analysis.summary import rows
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import CifarResNet, Context, activations, create
from alexnet_resnet.models.draws import Draws
from alexnet_resnet.models.layers import he_normal

TRAIN = Context(train=True)
SMALL = dict(name="resnet", depth=18, width=0.0625)
CIFAR = dict(name="resnet_cifar", depth=8, width=0.25)


def build(seed=0, **model):
    # This generator compiles faster than JAX's own, once for each shape of kernel.
    return create(model, (32, 32, 3), 10, jax.random.key(seed, impl="rbg"))


def images(n=2, size=16, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, size, size, 3))


def shake(network, seed=0):
    """Gives every batch normalisation parameters and moments that do something."""
    random = np.random.default_rng(seed)
    for path, leaf in nnx.to_flat_state(nnx.state(network)):
        if path[-1] in ("scale", "variance"):
            leaf[...] = jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        elif path[-1] in ("bias", "mean"):
            leaf[...] = jnp.asarray(random.normal(0, 0.5, leaf.shape), jnp.float32)
    return network


def named(network, x, context=Context(), names=None):
    """The named activations, all or some; XLA computes only what these need."""

    def forward(network, x):
        found = activations(network, x, context)[1]
        return {name: found[name] for name in names or found}

    return nnx.jit(forward)(network, x)


def leaves(network, kind=nnx.Param):
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(network, kind))}


@pytest.mark.parametrize(
    "model, parameters, multiply_adds",
    [
        (dict(depth=18), 11_689_512, 1_814_073_344),
        (dict(depth=18, shortcut="A"), 11_515_688, None),
        (dict(depth=18, residual=False), 11_515_688, None),
        (dict(depth=34, shortcut="A"), 21_623_848, 3_644_493_824),
        (dict(depth=34, shortcut="B"), 21_797_672, 3_663_761_408),
        (dict(depth=34, shortcut="C"), 22_716_840, None),
        (dict(depth=34, residual=False, shortcut="C"), 21_623_848, 3_644_493_824),
        (dict(depth=50), 25_557_032, 3_857_973_248),
        (dict(depth=50, conv1_bias=True), 25_557_032 + 64, 3_857_973_248),
        (dict(depth=101), 44_549_160, 7_570_194_432),
        (dict(depth=152), 60_192_808, 11_282_415_616),
    ],
)
def test_imagenet_counts(model, parameters, multiply_adds):
    table = rows(dict(name="resnet", **model), (224, 224, 3), 1000)
    assert sum(row.parameters for row in table) == parameters
    if multiply_adds is not None:
        assert sum(row.multiply_adds for row in table) == multiply_adds


@pytest.mark.parametrize(
    "depth, residual, parameters",
    [
        (20, True, 269_722),
        (20, False, 269_722),
        (32, True, 464_154),
        (44, True, 658_586),
        (56, True, 853_018),
        (56, False, 853_018),
        (110, True, 1_727_962),
        (1202, True, 19_421_274),
    ],
)
def test_cifar_counts(depth, residual, parameters):
    network = nnx.eval_shape(
        lambda: CifarResNet((32, 32, 3), 10, depth=depth, residual=residual, rngs=Draws(jax.random.key(0)))
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) == parameters


def test_draws_are_the_keys_of_nnx():
    key = jax.random.key(11)
    ours, theirs = Draws(key), nnx.Rngs(params=key)
    for _ in range(3):
        assert ours.params() == theirs.params()


def test_depth_is_the_number_of_weighted_layers():
    for model, image in [(dict(name="resnet", depth=d), 224) for d in (18, 34, 50)] + [
        (dict(name="resnet_cifar", depth=d), 32) for d in (8, 20)
    ]:
        weighted = [
            row for row in rows(model, (image, image, 3), 10) if row.multiply_adds and "shortcut" not in row.name
        ]
        assert len(weighted) == model["depth"]


def test_stages_have_the_resolutions_of_table_1():
    shapes = {row.name: row.output for row in rows(dict(name="resnet", depth=50), (224, 224, 3), 1000)}
    assert [shapes[name] for name in ("conv1", "pool1", "stage1", "stage2", "stage3", "stage4", "pool", "fc")] == [
        *((112, 112, 64), (56, 56, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)),
        *((2048,), (1000,)),
    ]


def test_initial_parameters_are_drawn_in_the_order_of_the_layers():
    network = build(seed=5, name="resnet_cifar", depth=8)
    rngs = nnx.Rngs(params=jax.random.key(5, impl="rbg"))
    found = leaves(network)
    for path, shape in [
        (("conv1",), (3, 3, 3, 16)),
        (("stage1", 0, "conv1"), (3, 3, 16, 16)),
        (("stage1", 0, "conv2"), (3, 3, 16, 16)),
        (("stage2", 0, "conv1"), (3, 3, 16, 32)),
        (("stage2", 0, "conv2"), (3, 3, 32, 32)),
        (("stage3", 0, "conv1"), (3, 3, 32, 64)),
        (("stage3", 0, "conv2"), (3, 3, 64, 64)),
        (("fc",), (64, 10)),
    ]:
        np.testing.assert_allclose(found[*path, "kernel"], he_normal(rngs.params(), shape, jnp.float32), atol=1e-6)
    # 8 kernels, the bias of fc, and a scale and a bias in each of 7 batch normalisations.
    assert len(found) == 8 + 1 + 14


def test_convolutions_start_as_he_normal():
    kernel = leaves(build(name="resnet_cifar", depth=8))["stage3", 0, "conv2", "kernel"]
    np.testing.assert_allclose(jnp.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.02)


@pytest.mark.parametrize("model", [dict(SMALL, shortcut="A"), CIFAR])
def test_plain_and_residual_start_from_the_same_parameters(model):
    residual, plain = (leaves(build(**model, residual=residual)) for residual in (True, False))
    assert residual.keys() == plain.keys()
    assert all(jnp.array_equal(residual[path], plain[path]) for path in plain)


@pytest.mark.parametrize(
    "model, block",
    [(CIFAR, ("stage2", 0)), (dict(SMALL, shortcut="A"), ("stage1", 1))],
)
def test_plain_and_residual_agree_where_the_shortcut_carries_zeros(model, block):
    stage, number = block
    residual, plain = (getattr(shake(build(**model, residual=r)), stage)[number] for r in (True, False))
    zeros = jnp.zeros((2, 8, 8, residual.conv1.kernel.shape[2]))
    out = residual(zeros, Context())
    assert jnp.array_equal(out, plain(zeros, Context()))
    assert jnp.any(out > 0)  # the branch itself is not zero: its batch normalisations have biases
    x = jax.random.normal(jax.random.key(1), zeros.shape)
    assert not jnp.allclose(residual(x, Context()), plain(x, Context()))


def convolved(x, kernel, stride):
    """A convolution with padding window // 2, position by position in float64."""
    window = kernel.shape[0]
    x = np.pad(x, ((0, 0), *[(window // 2,) * 2] * 2, (0, 0)))
    size = [(s - window) // stride + 1 for s in x.shape[1:3]]
    y = np.empty((x.shape[0], *size, kernel.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            patch = x[:, i * stride : i * stride + window, j * stride : j * stride + window]
            y[:, i, j] = np.tensordot(patch, kernel, 3)
    return y


def normalised(x, bn, train):
    mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (bn["mean"], bn["variance"])
    return (x - mean) / np.sqrt(variance + bn["epsilon"]) * bn["scale"] + bn["bias"]


def block_by_numpy(block, x, strides, shortcut, train):
    """relu(F(x) + s(x)) in float64."""

    def conv_bn(x, conv, bn, stride):
        values = {name: np.float64(getattr(bn, name)[...]) for name in ("mean", "variance", "scale", "bias")}
        y = convolved(x, np.float64(conv.kernel[...]), stride)
        return normalised(y, values | {"epsilon": bn.epsilon}, train)

    x = np.float64(x)
    y = x
    for number, stride in enumerate(strides, start=1):
        y = conv_bn(np.maximum(y, 0) if number > 1 else y, block[f"conv{number}"], block[f"bn{number}"], stride)
    stride = np.prod(strides)
    if shortcut == "padded":
        s = np.zeros_like(y)
        s[..., : x.shape[-1]] = x[:, ::stride, ::stride]
        y = y + s
    elif shortcut == "projected":
        y = y + conv_bn(x, block["shortcut_conv"], block["shortcut_bn"], stride)
    return np.maximum(y, 0)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "fields, block, strides, kind",
    [
        (dict(depth=18, shortcut="A"), (2, 0), (2, 1), "padded"),
        (dict(depth=18, shortcut="B"), (2, 0), (2, 1), "projected"),
        (dict(depth=18, shortcut="B"), (2, 1), (1, 1), "padded"),
        (dict(depth=18, shortcut="C"), (2, 1), (1, 1), "projected"),
        (dict(depth=18, residual=False), (2, 0), (2, 1), "none"),
        (dict(depth=50, shortcut="A"), (2, 0), (2, 1, 1), "padded"),
        (dict(depth=50, bn_epsilon=0.1), (1, 0), (1, 1, 1), "projected"),
        (dict(depth=50), (2, 0), (2, 1, 1), "projected"),
        (dict(depth=50, stride_in="3x3"), (2, 0), (1, 2, 1), "projected"),
    ],
)
def test_a_block_computes_what_the_paper_writes(fields, block, strides, kind, train):
    network = shake(build(**SMALL | fields))
    block = getattr(network, f"stage{block[0]}")[block[1]]
    x = np.random.default_rng(2).normal(size=(3, 6, 5, block.conv1.kernel.shape[2])).astype(np.float32)
    parts = {name: value for name, value in vars(block).items() if isinstance(value, nnx.Module)}
    expected = block_by_numpy(parts, x, strides, kind, train)
    np.testing.assert_allclose(block(jnp.asarray(x), Context(train=train)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model, projected",
    [
        (dict(SMALL, shortcut="A"), []),
        (dict(SMALL, shortcut="B"), ["stage2/0", "stage3/0", "stage4/0"]),
        (dict(SMALL, shortcut="C"), [f"stage{s}/{b}" for s in (1, 2, 3, 4) for b in (0, 1)]),
        (dict(SMALL, depth=50, shortcut="A"), []),
        (dict(SMALL, depth=50, shortcut="B"), [f"stage{s}/0" for s in (1, 2, 3, 4)]),
        (dict(SMALL, residual=False, shortcut="C"), []),
        (dict(name="resnet_cifar", depth=14), []),
        (dict(name="resnet_cifar", depth=14, shortcut="B"), ["stage2/0", "stage3/0"]),
        (dict(name="resnet_cifar", depth=8, shortcut="C"), ["stage1/0", "stage2/0", "stage3/0"]),
    ],
)
def test_which_shortcuts_are_projections(model, projected):
    names = [row.name for row in rows(model, (32, 32, 3), 10)]
    assert [name.removesuffix("/shortcut_conv") for name in names if name.endswith("/shortcut_conv")] == projected
    assert sum(name.endswith("/shortcut_bn") for name in names) == len(projected)


@pytest.mark.parametrize("model, before", [(SMALL, "pool1"), (CIFAR, "bn1")])
def test_zero_initialised_blocks_start_as_their_shortcut(model, before):
    network = build(**model, zero_init_residual=True)
    out = named(network, images(), names=["stage1/0/conv2", "stage1/0/bn2", "stage1/0", before])
    assert jnp.any(out["stage1/0/conv2"]) and not jnp.any(out["stage1/0/bn2"])
    assert jnp.array_equal(out["stage1/0"], jax.nn.relu(out[before]))
    scales = {path: leaf for path, leaf in leaves(network).items() if path[-1] == "scale"}
    assert all(jnp.all(leaf == (path[-2] != "bn2")) for path, leaf in scales.items())


@pytest.mark.parametrize("size", [32, 30])
@pytest.mark.parametrize("stem_pool", ["torchvision", "ceil"])
def test_stem_pools(size, stem_pool):
    # At 30 the pooled maps are odd: rounding up then adds no padding at all.
    out = named(build(**SMALL, stem_pool=stem_pool), images(size=size), names=["bn1", "pool1"])
    x = np.maximum(out["bn1"], 0)
    before = 1 if stem_pool == "torchvision" else 0
    outputs = -(-(x.shape[1] + 2 * before - 3 - before) // 2) + 1
    expected = np.empty((2, outputs, outputs, x.shape[-1]), np.float32)
    for i in range(outputs):
        for j in range(outputs):
            top, left = 2 * i - before, 2 * j - before
            expected[:, i, j] = x[:, max(top, 0) : top + 3, max(left, 0) : left + 3].max((1, 2))
    np.testing.assert_array_equal(out["pool1"], expected)


def test_a_ghost_batch_is_as_if_its_group_were_alone():
    x = images(8)
    apply = nnx.jit(lambda network, x: network(x, TRAIN))
    ghost = build(**CIFAR, ghost_batch=4)
    together = apply(ghost, x)
    apart, statistics = [], []
    for half in (x[:4], x[4:]):
        network = build(**CIFAR)
        apart.append(apply(network, half))
        statistics.append(leaves(network, nnx.BatchStat))
    np.testing.assert_allclose(together, jnp.concatenate(apart), rtol=1e-4, atol=1e-4)
    assert not jnp.allclose(together, apply(build(**CIFAR), x), rtol=1e-2)
    for path, leaf in leaves(ghost, nnx.BatchStat).items():
        np.testing.assert_allclose(leaf, (statistics[0][path] + statistics[1][path]) / 2, rtol=1e-4, atol=1e-5)


def test_training_remembers_moments_and_evaluation_uses_them():
    network = build(**CIFAR)
    x = images(6)
    out = named(network, x, TRAIN)
    y = np.float64(out["conv1"])
    np.testing.assert_allclose(
        out["bn1"], (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5), rtol=1e-3, atol=1e-4
    )
    stats = leaves(network, nnx.BatchStat)
    np.testing.assert_allclose(stats["bn1", "mean"], 0.1 * y.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    unbiased = y.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(stats["bn1", "variance"], 0.9 + 0.1 * unbiased, rtol=1e-4)
    evaluated = named(network, x[:1])
    y = np.float64(evaluated["conv1"])
    expected = (y - np.float64(stats["bn1", "mean"])) / np.sqrt(np.float64(stats["bn1", "variance"]) + 1e-5)
    np.testing.assert_allclose(evaluated["bn1"], expected, rtol=1e-4, atol=1e-5)
    assert all(jnp.array_equal(stats[path], leaf) for path, leaf in leaves(network, nnx.BatchStat).items())


@pytest.mark.parametrize("model", [SMALL, CIFAR])
def test_bfloat16_computes_activations_only(model):
    network = build(**model, dtype="bfloat16")
    out = named(network, images(4), TRAIN)
    assert {name for name, value in out.items() if value.dtype != jnp.bfloat16} == {"fc"}
    assert out["fc"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))} == {jnp.dtype("float32")}


def test_smallest_images_run():
    for stem_pool in ("torchvision", "ceil"):
        shapes = {row.name: row.output for row in rows(SMALL | dict(stem_pool=stem_pool), (3, 4, 3), 10)}
        assert shapes["pool1"] == shapes["stage4"][:2] + (4,) == (1, 1, 4)


@pytest.mark.parametrize(
    "model, message",
    [
        (dict(name="resnet", depth=20), "model.depth=20: expected one of 18, 34, 50, 101, 152."),
        (dict(name="resnet", shortcut="D"), "model.shortcut='D': expected one of 'A', 'B', 'C'."),
        (dict(name="resnet", stride_in="7x7"), "model.stride_in='7x7': expected one of '1x1', '3x3'."),
        (dict(name="resnet", stem_pool="caffe"), "model.stem_pool='caffe': expected one of 'torchvision', 'ceil'."),
        (dict(name="resnet", dtype="int8"), "model.dtype='int8': expected one of"),
        (dict(name="resnet", ghost_batch=-1), "model.ghost_batch=-1: expected a number of at least 0."),
        (dict(name="resnet", bn_epsilon=0.0), "model.bn_epsilon=0.0: expected a number above 0."),
        (dict(name="resnet", width=0.0), "model.width=0.0: expected a number above 0."),
        (dict(name="resnet", residual=False, zero_init_residual=True), "model.zero_init_residual=True: expected False"),
        (dict(name="resnet_cifar", depth=18), "model.depth=18: expected 6n + 2"),
        (dict(name="resnet_cifar", depth=2), "model.depth=2: expected 6n + 2"),
        (dict(name="resnet_cifar", shortcut="D"), "model.shortcut='D'"),
        (dict(name="resnet_cifar", dtype="int8"), "model.dtype='int8'"),
        (dict(name="resnet_cifar", stride_in="1x1"), "model.stride_in: resnet_cifar has no such field."),
    ],
)
def test_errors_name_the_field(model, message):
    with pytest.raises(UserError) as caught:
        create(model, (32, 32, 3), 10, jax.random.key(0))
    assert str(caught.value).startswith(message)


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match=r"image_shape=\(2, 2, 3\): expected at least 3 pixels a side."):
        create(SMALL, (2, 2, 3), 10, jax.random.key(0))
