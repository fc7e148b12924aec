"""AlexNet against networks put together from numpy in float64, and split over two devices against whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from jax.sharding import AxisType, PartitionSpec

from alexnet_resnet.models import AlexNet, Context, activations, alexnet_variants
from alexnet_resnet.ops.columns import Columns, Layout

SIDE, CLASSES = 72, 7
SMALL = dict(maps="12-16-24-24-16", units=32)


def build(variant="as_written", **fields):
    """A small network of a variant, with weights that keep activations large enough for every step to matter."""
    fields = {**alexnet_variants.fields(variant), **SMALL, **fields}
    graphdef, state = nnx.split(nnx.eval_shape(lambda: AlexNet((SIDE, SIDE, 3), CLASSES, **fields, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(1)
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    for path, leaf in flat.items():
        if path[-1] == "kernel":
            value = random.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        elif path[-1] in ("scale", "variance"):
            value = random.uniform(0.5, 1.5, leaf.shape)
        else:
            value = random.normal(0, 1, leaf.shape)
        flat[path] = value.astype(np.float32)
    return graphdef, traverse_util.unflatten_dict(flat)


def images(n=2):
    return np.random.default_rng(2).normal(0, 60, (n, SIDE, SIDE, 3)).astype(np.float32)


def forward(net, x, train=False, layout=None, key=0):
    """Logits, named activations and batch statistics afterwards, of a (graphdef, arrays)."""
    graphdef, tree = net
    x = jnp.asarray(x)
    context = Context(train=train, key=jax.random.key(key), examples=jnp.arange(len(x)), layout=layout)
    whole = nnx.merge(graphdef, jax.tree.map(jnp.asarray, tree), copy=True)
    logits, named = activations(whole, x, context)
    return logits, named, nnx.to_pure_dict(nnx.state(whole, nnx.BatchStat))


def logits_of(net, x, **how):
    return np.asarray(forward(net, x, **how)[0])


def assert_near(ours, expected, tolerance=2e-5):
    """Within a share of the expected values' own spread."""
    assert np.max(np.abs(ours - expected)) <= tolerance * np.std(expected)


# The reference: each network as a line of steps over the list of its columns.


def windows(x, size, stride, pad, fill=0.0):
    """[N, h, w, C, size, size]"""
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def rest(size, window, stride):
    """Zeros at the end that let one more window begin where pixels are left over."""
    return (0, -(size - window) % stride)


def lrn(x, k=2.0, alpha=1e-4):
    y = np.empty_like(x)
    for i in range(x.shape[-1]):
        y[..., i] = x[..., i] / (k + alpha * np.sum(x[..., max(0, i - 2) : i + 3] ** 2, -1)) ** 0.75
    return y


def map_norm(x):
    return x / (1 + 0.001 / 25 * np.sum(windows(x, 5, 1, (2, 2)) ** 2, (4, 5))) ** 0.75


ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def reference(program, tree, x, columns=2, act="relu", pool=3, ceil=True, pads=None, at_test=0.5, **lrn_constants):
    """Runs the steps of a program on every column by itself, but 'join', which gives all maps to every column."""
    tree = jax.tree.map(lambda a: np.asarray(a, np.float64), tree)
    pads = {"conv2": 2} | (pads or {})

    def own(name, column):
        return {leaf: np.split(a, columns, -1)[column] for leaf, a in tree[name].items()}

    def on_column(step, x, column):
        if step.startswith("conv"):
            p, stride = own(step, column), 4 if step == "conv1" else 1
            pad = (pads.get(step, 1),) * 2
            if step == "conv1":
                pad = rest(x.shape[1], 11, 4) if ceil else (2, 2)
            return (
                np.tensordot(windows(x, len(p["kernel"]), stride, pad), p["kernel"], ((3, 4, 5), (2, 0, 1))) + p["bias"]
            )
        if step.startswith("bn"):
            p = own(step.replace("bn", "norm"), column)
            return (x - p["mean"]) / np.sqrt(p["variance"] + 1e-5) * p["scale"] + p["bias"]
        if step == "pool":
            return windows(x, pool, 2, rest(x.shape[1], pool, 2) if ceil else (0, 0), -np.inf).max((4, 5))
        return {"act": ACTIVATIONS[act], "lrn": functools.partial(lrn, **lrn_constants), "map": map_norm}[step](x)

    xs = [x.astype(np.float64)] * columns
    for step in program.split():
        together = np.concatenate(xs, -1)
        if step == "join":
            xs = [together] * columns
        elif step == "lrn_all":
            xs = np.split(lrn(together, **lrn_constants), columns, -1)
        else:
            xs = [on_column(step, x, column) for column, x in enumerate(xs)]
    x = np.concatenate(xs, -1).reshape(len(x), -1)
    for name in ("fc6", "fc7"):
        # As at test: every unit is there and counts for the half of the time that it was there in training.
        x = ACTIVATIONS[act](x @ tree[name]["kernel"] + tree[name]["bias"]) * at_test
    return x @ tree["fc8"]["kernel"] + tree["fc8"]["bias"]


WRITTEN_1 = "conv1 act lrn pool"
WRITTEN_2 = "conv2 act lrn pool"
MIDDLE = "join conv3 act conv4 act"
END = "conv5 act pool"
RUN = "conv1 lrn pool act conv2 act lrn map pool join conv3 act conv4 act conv5 pool act"
NO_NORM = "conv1 act pool conv2 act pool join conv3 act conv4 act conv5 act pool"
PROGRAMS = {
    # variant: (steps, what else differs)
    "as_written": (f"{WRITTEN_1} {WRITTEN_2} {MIDDLE} {END}", {}),
    "as_run": (RUN, dict(alpha=2e-5)),
    "1": (f"{WRITTEN_1} {WRITTEN_2} {MIDDLE} {END}", dict(columns=1)),
    "one_gpu_2014": (RUN.replace("map ", ""), dict(alpha=2e-5, columns=1)),
    "torchvision": (NO_NORM, dict(columns=1, ceil=False, at_test=1)),
    "caffe": (
        f"{WRITTEN_1} {WRITTEN_2} {MIDDLE} {END}".replace("lrn", "lrn_all"),
        dict(alpha=2e-5, k=1.0, at_test=1),
    ),
    "cnn_star": (f"{WRITTEN_1} {WRITTEN_2} {MIDDLE} {END} join conv6 act", {}),
    "as_run+non_overlapping": (RUN, dict(alpha=2e-5, pool=2, pads={"conv2": 1, "conv5": 0})),
    "as_run+without_norm": (NO_NORM, {}),
    "without_conv3": (f"{WRITTEN_1} {WRITTEN_2} join conv4 act {END}", {}),
    "without_conv4": (f"{WRITTEN_1} {WRITTEN_2} join conv3 act {END}", {}),
    "without_conv5": (f"{WRITTEN_1} {WRITTEN_2} join conv3 act conv4 act pool", {}),
    "without_dropout": (f"{WRITTEN_1} {WRITTEN_2} {MIDDLE} {END}", dict(at_test=1)),
    "inverted_dropout": (f"{WRITTEN_1} {WRITTEN_2} {MIDDLE} {END}", dict(at_test=1)),
    "norm_before": (f"conv1 lrn act pool conv2 lrn act pool {MIDDLE} {END}", {}),
    "as_run+norm_before": (RUN.replace("act lrn map", "lrn map act"), dict(alpha=2e-5)),
    "tanh": (f"{WRITTEN_1} {WRITTEN_2} {MIDDLE} {END}", dict(act="tanh")),
    "sigmoid": (f"{WRITTEN_1} {WRITTEN_2} {MIDDLE} {END}", dict(act="sigmoid")),
    "batch_norm": (f"conv1 act bn1 pool conv2 act bn2 pool {MIDDLE} {END}", {}),
    "batch_norm+norm_before": (f"conv1 bn1 act pool conv2 bn2 act pool {MIDDLE} {END}", {}),
}


@pytest.mark.parametrize("variant", PROGRAMS)
def test_variant_is_its_columns_computed_separately_and_joined(variant):
    program, constants = PROGRAMS[variant]
    net, x = build(variant), images()
    expected = reference(program, net[1], x, **constants)
    assert_near(logits_of(net, x), expected)


def test_normalisation_of_every_layer():
    program = "conv1 act bn1 pool conv2 act bn2 pool join conv3 act bn3 conv4 act bn4 conv5 act bn5 pool"
    net, x = build("batch_norm", norm_layers="1,2,3,4,5"), images()
    assert_near(logits_of(net, x), reference(program, net[1], x))


def test_pooling_first_and_rectifying_first_give_the_same_values_at_conv5():
    x = images()
    np.testing.assert_array_equal(logits_of(build(), x), logits_of(build(conv5_order="activation_last"), x))


def test_alpha_over_mean_is_a_fifth_of_alpha():
    x = images()
    ours = logits_of(build(lrn_alpha_over="mean"), x)
    assert_near(ours, logits_of(build(lrn_alpha=2e-5), x), 1e-6)
    assert np.max(np.abs(ours - logits_of(build(), x))) > 1e-3 * np.std(ours)


def test_activations_carry_the_function_that_follows_their_step():
    written, run = (forward(build(variant), images())[1] for variant in ("as_written", "as_run"))
    convolutions = {"conv1", "norm1", "pool1", "conv2", "norm2", "pool2", "conv3", "conv4", "conv5", "pool5"}
    assert written.keys() == convolutions | {"fc6", "fc7", "fc8"}
    assert run.keys() == written.keys() | {"within_map2"}
    assert {name for name in written if written[name].min() < 0} == {"fc8"}
    assert {name for name in run if run[name].min() < 0} == {"conv1", "norm1", "conv5", "fc8"}


def scaled_next_layers(tree, share):
    tree = {name: dict(leaves) for name, leaves in tree.items()}
    for name in ("fc7", "fc8"):
        tree[name]["kernel"] = tree[name]["kernel"] * np.float32(share)
    return tree


@pytest.mark.parametrize("train", [True, False])
def test_dropout_of_2012_is_the_inverted_form_after_rescaling_the_next_layers(train):
    x = images()
    (graphdef, tree), (inverted, _) = build(), build("inverted_dropout")
    ours = logits_of((graphdef, tree), x, train=train)
    np.testing.assert_array_equal(ours, logits_of((inverted, scaled_next_layers(tree, 0.5)), x, train=train))
    # Under one initialisation they are two networks.
    assert np.max(np.abs(ours - logits_of((inverted, tree), x, train=train))) > 0.1 * np.std(ours)


def test_dropout_of_2012_leaves_the_units_that_stay_as_they_are():
    graphdef, tree = build(dropout=0.25)
    # With ones on its diagonal fc8 shows its inputs.
    tree["fc8"] = {"kernel": np.eye(32, CLASSES, dtype=np.float32), "bias": np.zeros(CLASSES, np.float32)}
    for train in (True, False):
        seen, named, _ = forward((graphdef, tree), images(4), train)
        fc7 = np.asarray(named["fc7"])[:, :CLASSES]
        share = np.asarray(seen)[fc7 > 0] / fc7[fc7 > 0]
        expected = np.round(share) if train else 0.75
        np.testing.assert_allclose(share, expected, rtol=1e-5, atol=1e-6)
        assert not train or set(np.round(share)) == {0, 1}


def test_dropout_at_inputs_drops_what_fc6_sees_and_not_what_fc8_sees():
    x = images()
    for place in ("inputs", "outputs"):
        net = build(dropout_at=place)
        logits, named, _ = forward(net, x, train=True)
        fc8 = np.asarray(named["fc7"]) @ net[1]["fc8"]["kernel"] + net[1]["fc8"]["bias"]
        assert np.allclose(fc8, logits, rtol=1e-3, atol=1e-3) == (place == "inputs")
        at_test = forward(net, x)[1]["fc6"]
        assert np.array_equal(named["fc6"], at_test) == (place == "outputs")


def test_batch_norm_keeps_moments_of_every_column():
    net, x = build("batch_norm"), images(4)
    _, named, stats = forward(net, x, train=True)
    for number in (1, 2):
        y = np.asarray(named[f"conv{number}"], np.float64)
        old, new = net[1][f"norm{number}"], stats[f"norm{number}"]
        np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * y.mean((0, 1, 2)), rtol=2e-4, atol=1e-4)
        unbiased = y.var((0, 1, 2), ddof=1)
        np.testing.assert_allclose(new["variance"], 0.9 * old["variance"] + 0.1 * unbiased, rtol=2e-4)


def column_specs(tree):
    """Each device holds the slices of its own column; fc8 its share of the inputs, and all biases."""

    def spec(path, leaf):
        if path[0].key == "fc8":
            return PartitionSpec("model", None) if path[1].key == "kernel" else PartitionSpec()
        return PartitionSpec(*[None] * (leaf.ndim - 1), "model")

    return jax.tree_util.tree_map_with_path(spec, tree)


def split_in_two(tree, call):
    """`call` with each column on a device of its own."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    specs, own = column_specs(tree), PartitionSpec("model")
    layout = Layout(Columns(2, "model"), Columns(2, "model"))
    moments = {name: {"mean": own, "variance": own} for name in specs if "norm" in name}
    return jax.jit(
        jax.shard_map(
            functools.partial(call, layout=layout),
            mesh=mesh,
            in_specs=(specs, PartitionSpec()),
            out_specs=(PartitionSpec(), moments),
        )
    )


@pytest.mark.parametrize("variant", ["as_run", "caffe+cnn_star", "batch_norm+without_conv3"])
def test_one_column_on_each_of_two_devices_is_the_whole(variant):
    (graphdef, tree), x = build(variant), images(3)

    def call(tree, x, layout=None):
        logits, _, moments = forward((graphdef, tree), x, train=True, layout=layout)
        return logits, moments

    (ours, moments), (whole, whole_moments) = split_in_two(tree, call)(tree, x), call(tree, x)
    assert_near(np.asarray(ours), np.asarray(whole))
    for ours, expected in zip(jax.tree.leaves(moments), jax.tree.leaves(whole_moments), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_split_is_the_whole_gradient():
    (graphdef, tree), x = build("caffe"), images(3)

    def call(tree, x, layout=None):
        return forward((graphdef, tree), x, layout=layout)[::2]

    split = split_in_two(tree, call)
    gradient, whole = (
        jax.jit(jax.grad(lambda tree, c=c: jnp.mean(jnp.square(c(tree, x)[0]))))(tree) for c in (split, call)
    )
    for ours, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(whole), strict=True):
        assert_near(np.asarray(ours), np.asarray(expected), 1e-3)


@pytest.mark.parametrize("variant", ["as_run", "batch_norm"])
def test_bfloat16_computes_in_it_and_keeps_parameters_and_logits_in_float32(variant):
    net, x = build(variant, dtype="bfloat16"), images()
    assert {leaf.dtype for leaf in jax.tree.leaves(net[1])} == {np.dtype("float32")}
    logits, named, _ = forward(net, x)
    assert logits.dtype == jnp.float32
    assert {a.dtype for name, a in named.items() if name != "fc8"} == {jnp.bfloat16.dtype}
    assert_near(np.asarray(logits), logits_of(build(variant), x), 0.1)


@pytest.mark.parametrize(
    ("variant", "deviations", "biases"),
    [
        ("as_written", (0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01), (0, 1, 0, 1, 1, 1, 1, 0)),
        ("as_run", (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01), (0, 1, 0, 1, 1, 1, 1, 0)),
        ("caffe", (0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01), (0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0)),
    ],
)
def test_initial_weights_and_biases(variant, deviations, biases):
    fields = dict(alexnet_variants.fields(variant), width=0.25)
    tree = nnx.to_pure_dict(nnx.state(AlexNet((SIDE, SIDE, 3), 100, **fields, rngs=nnx.Rngs(params=3)), nnx.Param))
    names = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    for name, deviation, bias in zip(names, deviations, biases, strict=True):
        kernel = np.asarray(tree[name]["kernel"])
        assert np.std(kernel) == pytest.approx(deviation, rel=0.05)
        assert abs(np.mean(kernel)) < 0.1 * deviation
        np.testing.assert_array_equal(tree[name]["bias"], np.float32(bias))
