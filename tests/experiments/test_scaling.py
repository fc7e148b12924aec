"""The benchmark of scaling: bytes against closed forms, the model of links by hand, and the command with --quick."""

import functools
import json
import math
from pathlib import Path

import jax
import pytest
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet.analysis import audit
from alexnet_resnet.parallel import strategies
from experiments.benchmarks import links
from experiments.benchmarks import scaling_model as model
from experiments.benchmarks.links import Link, Nodes, Torus
from experiments.benchmarks.scaling_model import Program, Traffic

NAME = "experiments.benchmarks.scaling"
RESULT = Path(__file__).parents[2] / "experiments" / "benchmarks" / "results" / "scaling" / "scaling.json"

# A sixteenth of AlexNet on images of 67x67, its layers counted by hand: maps of 15x15, 7x7, 3x3 and 1x1.
CONVOLUTIONS = sum(
    kernel * kernel * inputs * maps + maps
    for kernel, inputs, maps in [(11, 3, 6), (5, 3, 16), (3, 16, 24), (3, 12, 24), (3, 12, 16)]
)
CONNECTED = 16 * 256 + 256 + 256 * 256 + 256 + 256 * 10
BIAS = 10
POOL2, POOL5, FC6, LOGITS = 3 * 3 * 16, 16, 256, 10
BATCH = 8


@functools.cache
def compiled(name, count):
    """The narrow network on so many devices, at two to eight examples each."""
    config = config_lib.default("alexnet")
    config.model.width = 1 / 16
    config.data.update(canvas_size=67, image_size=67, mean="none")
    config.train.batch_size = BATCH
    config.parallel.strategy = name
    return model.program(audit.audit(config, strategies.create(config, jax.devices()[:count])))


def summed(values, count):
    """Bytes of an all-reduce of so many float32 among so many devices."""
    return 4 * values * 2 * (count - 1) / count


def closed_form(name, count):
    """What each device receives, by what it is of."""
    everything, rows = CONVOLUTIONS + CONNECTED + BIAS, count // 2
    # The examples that the devices of one row of the mesh see; each lacks half of what the two of them have.
    examples = BATCH / rows if rows else BATCH
    lacking = 4 * examples / 2
    sums = 4 * LOGITS * examples
    if name == "columns":
        activations = 2 * lacking * (POOL2 + POOL5 + FC6) + sums
        return activations, summed((CONVOLUTIONS + CONNECTED) / 2 + BIAS, rows)
    if name == "hybrid":
        activations = 2 * lacking * (POOL5 + FC6) + sums
        return activations, summed(CONVOLUTIONS, count) + summed(CONNECTED / 2 + BIAS, rows)
    return 0, summed(everything, count)


@pytest.mark.parametrize(
    ("name", "count"), [("data", 2), ("data", 4), ("columns", 2), ("columns", 8), ("hybrid", 4), ("fsdp", 4)]
)
def test_what_is_received_is_the_closed_form(name, count):
    found = compiled(name, count)
    activations, gradients = closed_form(name, count)
    assert found.devices == count and found.batch_per_device == BATCH // count
    assert found.received(model.ACTIVATIONS) == activations
    # Each array's bytes are rounded down. Of so few images XLA's partitioner may sum the gradient of conv1's kernel, as
    # `ops.conv_gradient` has it on processors, in two stages of two devices each instead of one of four.
    kernel = 11 * 11 * 3 * 6
    stages = [0] + [2 * summed(kernel, 2) - summed(kernel, 4)] * ((name, count) == ("data", 4))
    received = found.received(model.PARAMETERS, model.GRADIENTS)
    assert any(received == pytest.approx(gradients + more, abs=40) for more in stages)
    assert 0 < found.received(model.NUMBERS) < 300
    assert found.received() == found.received(model.ACTIVATIONS, model.PARAMETERS, model.GRADIENTS, model.NUMBERS)
    assert found.operations > 0


def test_fsdp_gathers_the_parameters_and_scatters_the_gradients():
    kinds = {(one.what, one.kind) for one in compiled("fsdp", 4).traffic if one.what != model.NUMBERS}
    small = (model.GRADIENTS, "all-reduce")
    assert kinds == {(model.PARAMETERS, "all-gather"), (model.GRADIENTS, "reduce-scatter"), small}


def test_groups_are_those_of_the_mesh():
    """Of 4x2 devices columns are neighbours; the devices with one column are every other."""
    groups = {(one.what, one.kind): (one.group, one.stride, one.calls) for one in compiled("columns", 8).traffic}
    assert groups[model.ACTIVATIONS, "all-gather"] == groups[model.ACTIVATIONS, "reduce-scatter"] == (2, 1, 3)
    assert groups[model.ACTIVATIONS, "all-reduce"] == (2, 1, 1)
    assert groups[model.GRADIENTS, "all-reduce"] == (4, 2, 1)
    whole = {one.group: one.stride for one in compiled("hybrid", 4).traffic if one.what == model.GRADIENTS}
    assert whole == {4: 1, 2: 2}


def test_another_batch_scales_activations_and_operations_alone():
    found = compiled("columns", 2)
    scaled = found.at(4 * found.batch_per_device)
    assert scaled.received(model.ACTIVATIONS) == 4 * closed_form("columns", 2)[0]
    assert compiled("hybrid", 4).at(40).received(model.GRADIENTS) == compiled("hybrid", 4).received(model.GRADIENTS)
    assert scaled.operations == 4 * found.operations and scaled.batch_per_device == 4 * found.batch_per_device


# The links.

NODES = Nodes("", "", "", 4, Link(100.0, 0.5), Link(10.0, 2.0))
GRID = Torus("", "", "", 2, 4, Link(10.0, 1.0))


def test_rings_within_and_across_nodes_by_hand():
    # Four devices of a node, 1,200 bytes in all: each receives 900 in three steps, twice that for an all-reduce.
    assert links.seconds(NODES, "all-gather", 900, 1, 4, 1) == 900 / 100 + 3 * 0.5
    assert links.seconds(NODES, "all-reduce", 1800, 1, 4, 1) == 1800 / 100 + 6 * 0.5
    # Of eight devices of two nodes with 800 bytes in all each receives 600 in its node, and 100 of its 200 across.
    assert links.seconds(NODES, "reduce-scatter", 700, 1, 8, 1) == 600 / 100 + 3 * 0.5 + 100 / 10 + 1 * 2
    assert links.seconds(NODES, "all-reduce", 1400, 1, 8, 1) == pytest.approx(2 * (6 + 1.5 + 10 + 2))
    # Every other device: two in a node, four nodes. 800 bytes: 400 within, then 300 of 400 across.
    assert links.seconds(NODES, "all-gather", 700, 1, 8, 2) == pytest.approx(400 / 100 + 0.5 + 300 / 10 + 3 * 2)
    # Pairs that are in different nodes.
    assert links.seconds(NODES, "all-gather", 50, 1, 2, 4) == 50 / 10 + 2
    # Several exchanges wait several times.
    assert links.seconds(NODES, "all-gather", 900, 5, 4, 1) == 900 / 100 + 15 * 0.5
    # What is not of a ring goes over the slowest link.
    assert links.seconds(NODES, "collective-permute", 50, 3, 8, 1) == 50 / 10 + 3 * 2


def test_a_torus_by_hand():
    assert [GRID.extents(n) for n in (1, 2, 8, 16, 32)] == [[1, 1], [2, 1], [4, 2], [4, 4], [8, 4]]
    assert Torus("", "", "", 3, 4, Link(1, 1)).extents(256) == [8, 8, 4]
    # Neighbours have one link; four by four chips four each, and three steps along each dimension.
    assert links.seconds(GRID, "all-gather", 50, 1, 2, 1) == 50 / 10 + 1
    assert links.seconds(GRID, "all-gather", 1500, 1, 16, 1) == 1500 / 40 + 6
    assert links.seconds(GRID, "all-reduce", 3000, 1, 16, 1) == 3000 / 40 + 12
    # Two by two do not close: one link each way.
    assert links.seconds(GRID, "all-gather", 300, 1, 4, 1) == 300 / 20 + 2
    # Every other chip of four by four shares the two links of the first dimension with the chip between.
    assert links.seconds(GRID, "all-gather", 700, 1, 8, 2) == pytest.approx(700 / 30 + 2 + 3)


@pytest.mark.parametrize("name", links.LINKS)
@pytest.mark.parametrize(("group", "stride"), [(2, 1), (8, 1), (4, 2), (256, 1), (128, 2)])
def test_more_links_than_one_are_never_slower_than_the_slowest(name, group, stride):
    """A ring moves what a device receives, neither more nor less: at one rate, and no latency, it is bytes / rate."""
    fabric = links.LINKS[name]
    rings = fabric.rings(group, stride)
    assert math.prod(ring.members for ring in rings) == group
    rates = [ring.link.bandwidth for ring in rings]
    waits = sum(ring.steps * ring.link.latency for ring in rings)
    received = 1e9 * (group - 1) / group
    time = links.seconds(fabric, "all-gather", received, 1, group, stride) - waits
    assert received / max(rates) * (1 - 1e-9) <= time <= received / min(rates) * (1 + 1e-9)


# The step and the crossover.


def program(count, columns, exchanged, summed):
    traffic = (
        Traffic(model.ACTIVATIONS, "all-gather", 2, 1, 1, exchanged),
        Traffic(model.GRADIENTS, "all-reduce", count, 1, 1, summed),
        Traffic(model.NUMBERS, "all-reduce", count, 1, 1, 1e9),
    )
    return Program(count // columns, columns, 10, traffic, 0, 1.0, 0, 0)


def test_a_step_with_and_without_overlap():
    """Numbers are waited for by nobody; activations by their layer; gradients hide behind what is computed."""
    step = model.step(program(2, 2, 100, 200), Nodes("", "", "", 8, Link(100.0, 0.0), Link(1.0, 0.0)), 5.0)
    assert (step.compute, step.waited, step.rest) == (5, 1, 2)
    assert (step.apart, step.overlapped) == (8, 6)
    step = model.step(program(2, 2, 100, 700), Nodes("", "", "", 8, Link(100.0, 0.0), Link(1.0, 0.0)), 5.0)
    assert (step.apart, step.overlapped) == (13, 8)


def test_the_crossover_is_the_first_number_from_which_on_it_holds():
    data = {1: 10.0, 2: 10, 4: 10, 8: 10, 16: 10}
    assert model.crossover({2: 12, 4: 11, 8: 9, 16: 8}, data) == 8
    # Once is not from there on, nor is less than the margin better.
    assert model.crossover({2: 9, 4: 11, 8: 9, 16: 8}, data) == 8
    assert model.crossover({2: 9, 4: 9, 8: 9, 16: 9.95}, data) is None
    assert model.crossover({2: 9, 4: 9, 8: 9, 16: 9}, data) == 2
    assert model.crossover({}, data) is None
    assert model.beating({2: 9, 4: 11, 8: 9, 16: 9.95, 32: 1}, data) == [2, 8]


def test_the_largest_batch_is_where_exchanges_outgrow_what_is_saved():
    """Gradients cost 100 of data and 50 of the other, whose exchanges cost 2 an example: up to 25 examples."""
    assert model.largest(lambda size: 50 + 2 * size < 100, 1000) == 24
    assert model.largest(lambda size: size <= 37, 64) == 37
    assert model.largest(lambda size: True, 64) == 64
    assert model.largest(lambda size: False, 64) == 0


# The result that is kept: the network at full width, on up to 256 devices.


def test_the_kept_result_is_the_closed_form_at_full_width():
    result = json.loads(RESULT.read_text())
    assert (result["network"], result["batch_per_device"], result["parameters"]) == ("alexnet", 128, 60_965_224)
    every = {str(2**i) for i in range(9)}
    assert {name: set(programs) for name, programs in result["programs"].items()} == {
        "data": every, **dict.fromkeys(("columns", "hybrid", "fsdp"), every - {"1"})
    }  # fmt: skip
    for one in result["checked"]["strategies"].values():
        assert one["scaled"] == one["compiled"] > 0
    # Papers: at batch 128 a device receives so much before conv3, fc6 and fc7 and for fc8; a row sees 256 examples.
    conv3, connected, logits = 11_075_584, 2_359_296 + 1_048_576, 512_000
    activations = {"columns": 2 * (2 * (conv3 + connected) + logits), "hybrid": 2 * (2 * connected + logits)}
    convolutions, part = 2_334_080, 30_483_112
    # Three times the multiply-adds, but for conv1, which does not hand on a gradient: 105,415,200 once less.
    operations = 2 * 128 * (3 * 724_406_816 - 105_415_200)
    for name, programs in result["programs"].items():
        for key, found in programs.items():
            count, sums = int(key), {}
            assert found["operations"] == pytest.approx(operations, rel=0.01)
            for one in found["traffic"]:
                sums[one["what"]] = sums.get(one["what"], 0) + one["bytes"]
            assert sums.pop(model.ACTIVATIONS, 0) == activations.get(name, 0)
            assert sums.pop(model.NUMBERS, 0) < 300
            gradients = {
                "columns": summed(part, count // 2) if count > 1 else 0,
                "hybrid": summed(convolutions, count)
                + (summed(part - convolutions // 2, count // 2) if count > 1 else 0),
            }.get(name, summed(60_965_224, count))
            assert sum(sums.values()) == pytest.approx(gradients, abs=100), (name, count)


# The command.


@pytest.fixture(scope="module")
def quick(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    done = command(NAME, "--quick", f"--out={out}", "--efficiency=0.5", "--links=infiniband,ici_v4")
    assert done.returncode == 0, done.stderr
    return out, done.stdout, json.loads((out / "scaling.json").read_text())


def test_the_command_compiles_models_and_tells(quick):
    out, printed, result = quick
    assert (out / "scaling.txt").read_text() == printed
    assert Image.open(out / "scaling.png").width > 1000
    assert {name: list(found) for name, found in result["programs"].items()} == {
        "data": ["1", "2"], "columns": ["2"], "hybrid": ["2"], "fsdp": ["2"]
    }  # fmt: skip
    assert list(result["links"]) == ["infiniband", "ici_v4"]
    (checked,) = result["checked"]["strategies"].values()
    assert checked["scaled"] == pytest.approx(checked["compiled"], abs=64)
    assert "Measured on cpu, 4 examples a device" in printed
    assert [(row["strategy"], row["devices"]) for row in result["measured"]] == [("fsdp", 2)]
    assert all(row["images_per_second"]["median"] > 0 for row in result["measured"])


def test_the_steps_are_the_model_s(quick):
    """Of data on two devices over InfiniBand: operations at half the peak, and gradients both ways in a ring."""
    _, printed, result = quick
    found = result["links"]["infiniband"]
    compute = 6 * result["multiply_adds"] * 4 / (0.5 * 494.7e12)
    exchange = 4 * result["parameters"] / 50e9 + 2 * 5e-6
    step = found["times"]["weak"]["data"]["2"]
    assert step["compute"] == pytest.approx(compute) and step["waited"] == 0
    assert step["rest"] == pytest.approx(exchange)
    assert step["apart"] == pytest.approx(compute + exchange)
    assert step["overlapped"] == pytest.approx(max(compute, exchange))
    assert f"{1e3 * step['apart']:,.3f} ({1e3 * step['overlapped']:,.3f})" in printed
    strong = found["times"]["strong"]["data"]["2"]
    assert strong["compute"] == pytest.approx(compute * 512 / 4) and strong["rest"] == step["rest"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--network=alexnot", "network='alexnot': expected one of 'alexnet'"),
        ("--devices=1,3", "devices='3': expected powers of two"),
        ("--links=wire", "links='wire': expected one of 'nvlink'"),
        ("--device_kind=H1", "device_kind='H1': expected one of"),
        ("--efficiency=0", "efficiency=0.0: expected a number above 0 and at most 1"),
        ("--batch_per_device=0", "batch_per_device=0: expected a number of at least 1"),
        ("--global_batch=1000", "global_batch=1000: expected a multiple of 256, the most devices"),
    ],
)
def test_what_is_wrong_is_one_line(command, flag, message, tmp_path):
    result = command(NAME, f"--out={tmp_path}", flag)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
