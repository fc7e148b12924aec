"""The audit of a step: each strategy exchanges the least it can, and only what its name says."""

import functools

import jax
import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet import models
from alexnet_resnet.analysis import audit, audit_figure
from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.collectives import Collective, Part
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training import state as state_lib

GATHERS = {(name, "forward"): ["all-gather"] for name in ("conv3", "fc6", "fc7")}
COLUMNS = {
    **GATHERS,
    **{(name, "backward"): ["reduce-scatter"] for name, _ in GATHERS},
    ("fc8", "forward"): ["all-reduce"],
}
LARGE = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
EXPECTED = {
    "data": {},
    "columns": COLUMNS,
    "hybrid": {key: kinds for key, kinds in COLUMNS.items() if key[0] != "conv3"},
    "fsdp": {
        **{(name, "forward"): ["all-gather"] for name in LARGE},
        **{(name, "backward"): ["reduce-scatter"] for name in LARGE},
    },
}
MESHES = [("data", 2, 1), ("columns", 1, 2), ("columns", 2, 2), ("hybrid", 1, 2), ("hybrid", 2, 2), ("fsdp", 2, 1)]
# Variants in which other layers meet, or statistics.
OTHER = [
    ("columns", 1, 2, dict(lrn_across="all", conv6=True)),
    ("columns", 2, 2, dict(norm="batch", ghost_batch=2)),
]


def make_config(**model):
    config = config_lib.default("alexnet")
    config.model.update(width=1 / 16, **model)
    config.data.update(canvas_size=67, image_size=67, mean="none")
    config.train.batch_size = 8
    return config


def spread(name, data=2, model=2, network=models.AlexNet):
    mesh = mesh_lib.create(data, model, jax.devices()[: data * model])
    return Strategy(name, mesh, network)


@functools.cache
def audited(name, data=2, model=2):
    return audit.audit(make_config(), spread(name, data, model))


def kinds(found):
    """The kinds of the collectives by layer and direction, one entry for each."""
    listed = {}
    for one in found.exchanges:
        listed.setdefault((one.layer, one.direction), []).append(one.kind)
    return listed


def assert_least(found):
    """Every layer receives the least to the byte, and nothing but single numbers is exchanged besides."""
    moved = {(name, way): found.received(name, way) for name in found.exchanging() for way in audit.DIRECTIONS}
    numbers = moved.pop((audit.MEASUREMENTS, "forward"))
    assert {key: size for key, size in moved.items() if size} == found.least
    assert 0 < numbers < 300


@pytest.mark.parametrize("how", MESHES)
def test_a_step_exchanges_the_least_it_can_and_nothing_else(how):
    name, data, model = how
    found = audited(*how)
    listed = kinds(found)
    assert set(listed.pop((audit.MEASUREMENTS, "forward"))) == {"all-reduce"}
    gradients = listed.pop((audit.GRADIENTS, "backward"), [])
    # Each device of 1x2 columns has the gradients of what it owns; else they are summed over those that share it.
    assert set(gradients) == (set() if how == ("columns", 1, 2) else {"all-reduce"})
    assert listed == EXPECTED[name]
    assert_least(found)
    along = {one.axes for one in found.exchanges if (one.layer, one.direction) in EXPECTED[name]}
    assert along <= {("data",) if name == "fsdp" else ("model",)}
    if name == "columns":
        summed = {one.axes for one in found.exchanges if one.layer == audit.GRADIENTS}
        assert summed == ({("data",)} if data > 1 else set())


@pytest.mark.parametrize("how", OTHER)
def test_variants_exchange_the_least_too(how):
    *where, fields = how
    assert_least(audit.audit(make_config(**fields), spread(*where)))


def test_batch_statistics_of_groups_on_one_device_cost_their_running_moments_alone():
    config = config_lib.default("resnet_cifar")
    config.model.update(depth=8, ghost_batch=4)
    config.data.mean, config.train.batch_size = "none", 8
    found = audit.audit(config, spread("data", 2, 1, models.NETWORKS["resnet_cifar"]))
    # Under plain jit a scope says jvp(stage1)/0/bn1; the layer is named in full all the same.
    assert found.received("stage1/0/bn1", "forward") == found.received("bn1", "forward") == 2 * 16 * 4
    assert found.received("stage3/0/bn2", "forward") == 2 * 64 * 4
    assert_least(found)


def test_of_groups_on_several_devices_the_sums_on_the_way_back_are_their_layers():
    config = config_lib.default("resnet_cifar")
    config.model.update(depth=8, ghost_batch=0)
    config.data.mean, config.train.batch_size = "none", 8
    found = audit.audit(config, spread("data", 2, 1, models.NETWORKS["resnet_cifar"]))
    assert found.least["stage3/0/bn2", "backward"] == 2 * 64 * 4 <= found.received("stage3/0/bn2", "backward")
    norms = sum(size for (name, way), size in found.least.items() if "bn" in name and way == "backward")
    assert found.least[audit.GRADIENTS, "backward"] == found.parameter_bytes - norms
    assert found.received(audit.GRADIENTS, "backward") == found.least[audit.GRADIENTS, "backward"]
    assert audit.OTHERS not in found.exchanging()


def full_size(name, data, model):
    """The least of the paper's network at batch 128: nothing is compiled."""
    config = config_lib.default("alexnet")
    config.data.update(canvas_size=256, image_size=224, num_classes=1000)
    config.train.batch_size = 128
    strategy = spread(name, data, model)
    network = state_lib.from_config(config)
    params = strategy.place(network.shapes[0])
    rows = audit.summary.rows(config.model, network.image_shape, network.num_classes)
    return {key: size for key, size in audit.least(config, strategy, rows, params, {}, {}).items() if size}


def test_the_least_of_the_paper_s_network():
    back = {"conv3": 11_075_584, "fc6": 2_359_296, "fc7": 1_048_576}
    both = {(name, way): size for name, size in back.items() for way in audit.DIRECTIONS}
    columns = {**both, ("fc8", "forward"): 512_000}
    assert full_size("columns", 1, 2) == columns
    halves = {key: size // 2 for key, size in columns.items()}
    assert full_size("columns", 2, 2) == halves | {(audit.GRADIENTS, "backward"): 4 * 30_483_112}
    assert full_size("data", 2, 1) == {(audit.GRADIENTS, "backward"): 243_860_896}
    # The convolutions' 2,334,080 parameters are all that both devices hold.
    hybrid = {key: size for key, size in columns.items() if key[0] != "conv3"}
    assert full_size("hybrid", 1, 2) == hybrid | {(audit.GRADIENTS, "backward"): 4 * 2_334_080}


def test_what_nobody_expects_is_an_exchange_of_its_own():
    """An activation that the compiler gathers outside of any layer, or sums along an axis of the columns."""
    strategy, layers = spread("columns"), {"conv3", "fc7"}

    def owner(kind, scope, axes, shape=(4, 8)):
        part = Part(scope, shape, 128)
        return audit._owner(part, Collective(kind, axes, 2, scope, (part,)), strategy, layers, {})

    assert owner("all-gather", "jit(f)/reshape", ("model",)) == (audit.OTHERS, "forward")
    assert owner("all-reduce", "jit(f)/transpose(jvp(fc7))/dot", ("data",)) == (audit.GRADIENTS, "backward")
    assert owner("all-reduce", "jit(f)/transpose(jvp(fc7))/dot", ("model",)) == ("fc7", "backward")
    assert owner("all-to-all", "jit(f)/jvp()/shard_map/conv3/x", ("model",)) == ("conv3", "forward")
    assert owner("all-reduce", "jit(f)/transpose(jvp())/fc7/sum", ("model",), ()) == (audit.MEASUREMENTS, "forward")


def test_what_a_device_holds():
    config = make_config()
    held = {"data": audited("data", 2, 1), "columns": audited("columns")}
    whole, part = held["data"].parameters, held["columns"].parameters
    bias = config.data.num_classes
    assert part == (whole - bias) // 2 + bias
    assert all(found.parameter_bytes == 4 * found.parameters for found in held.values())
    # Momentum for each parameter, and the step that the rate depends on.
    assert all(found.optimizer_bytes == found.parameter_bytes + 4 for found in held.values())


def test_temporaries_hold_at_least_what_the_way_back_needs():
    """The outputs of the convolutions, which their ReLUs or pools are differentiated by, of one device's share."""
    config = make_config()
    shapes = {row.name: row.output for row in audit.summary.rows(config.model, (67, 67, 3), 10)}
    kept = sum(int(np.prod(shapes[name])) for name in ("conv1", "conv2", "conv3", "conv4", "conv5"))
    # Of four devices as 2x2 each sees a half of the examples, and one of two columns; or a quarter, and both.
    for how in (("columns", 2, 2), ("hybrid", 2, 2), ("data", 2, 1)):
        assert audited(*how).temporary_bytes > config.train.batch_size * 4 * kept / (how[1] * how[2])
    assert audited("columns").temporary_bytes < 0.6 * audited("columns", 1, 2).temporary_bytes


def test_the_table_says_it_layer_by_layer():
    found = audited("columns")
    text = audit.table(found).splitlines()
    assert "alexnet on 4 cpu device(s) as 2x2, columns, batch 8" in text[0]
    rows = {line.split()[0]: line.split()[1:] for line in text if line[:1].isalpha()}
    # Of the maps of four images, conv3 lacks those of the other column: half.
    shapes = {row.name: row.output for row in audit.summary.rows(make_config().model, (67, 67, 3), 10)}
    count = f"{4 * int(np.prod(shapes['pool2'])) * 4 // 2:,}"
    assert rows["conv3"] == ["all-gather", count, count, "reduce-scatter", count, count]
    assert rows["fc8"] == ["all-reduce", "160", "160"]
    assert {"conv1", "conv2", "conv4", "conv5"}.isdisjoint(rows)
    assert rows["parameters"][:2] == [f"{found.parameter_bytes:,}", f"{found.parameters:,}"]
    assert rows["activations"][0] == f"{found.temporary_bytes:,}"
    (total,) = (line.split()[1:] for line in text if line.startswith("total"))
    assert int(total[1].replace(",", "")) == sum(size for (_, way), size in found.least.items() if way == "forward")


def test_strategies_are_compared_line_by_line_and_drawn(tmp_path):
    found = [audited("data", 2, 1), audited("columns", 1, 2)]
    _, _, head, _, *lines = audit.comparison(found).splitlines()
    assert [line.split()[:2] for line in lines] == [["data", "2x1"], ["columns", "1x2"]]
    column = head.split().index("gradients")
    sums = [one.received(audit.GRADIENTS, "backward") / 1e6 for one in found]
    assert [float(line.split()[column]) for line in lines] == pytest.approx(sums, abs=5e-4)
    audit_figure.draw(found, str(tmp_path / "a.svg"))
    text = (tmp_path / "a.svg").read_text()
    for word in ("alexnet, batch 8, 2 CPU devices", "conv3", "gradients", "columns 1x2", "MB a device", "the least"):
        assert word in text
    # All that is drawn is of the audits: conv3's bytes stand at its bar.
    assert f"<!-- {found[1].received('conv3', 'forward') / 1e6:.3g} -->" in text


def test_all_strategies_of_a_network_are_laid_over_the_same_devices():
    config = make_config()
    config.parallel.update(strategy="columns", data=2)
    found = [(one.name, one.mesh.devices.shape) for one in audit.strategies_of(config)]
    assert found == [("data", (4, 1)), ("columns", (2, 2)), ("hybrid", (2, 2)), ("fsdp", (4, 1))]


@pytest.mark.parametrize("name", ["a.xyz", "none/a.png", "folder.png"])
def test_a_figure_that_cannot_be_saved_is_refused_in_one_line(name, tmp_path):
    (tmp_path / "folder.png").mkdir()
    path = str(tmp_path / name)
    with pytest.raises(UserError) as refused:
        audit_figure.check(path)
    assert str(refused.value).startswith(f"figure={path!r}: expected a ") and "\n" not in str(refused.value)
