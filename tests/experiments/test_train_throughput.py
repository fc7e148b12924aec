"""The benchmark of training steps: the peers are our networks, failures are rows, ratios are of what was measured."""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen_flags import chosen
from flax import nnx
from PIL import Image

from alexnet_resnet.analysis import summary
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import Context
from alexnet_resnet.training import state as state_lib
from experiments.benchmarks import (
    blueprints,
    linen_resnet,
    nnx_resnet,
    throughput_team,
    timing,
    train_throughput,
    training_steps,
)
from experiments.benchmarks import command as command_lib
from experiments.benchmarks.throughput_team import LOST, OURS

NAME = "experiments.benchmarks.train_throughput"


@pytest.fixture(autouse=True)
def parsed_flags():
    with chosen(command_lib.FLAGS, quick=True):
        yield


def convolutions(blueprint, data):
    """Each convolution of a residual blueprint, or of a chain, with the side of its output."""
    half = lambda side: -(-side // 2)  # noqa: E731
    if isinstance(blueprint, blueprints.Residual):
        side = data.image_size // blueprint.stem.stride
        yield blueprint.stem, side
        side = half(side) if blueprint.pooled else side
        for stage in blueprint.stages:
            for block in stage:
                before = side
                for conv in block.convs:
                    side = -(-side // conv.stride)
                    yield conv, side
                if block.projection:
                    yield block.projection, -(-before // block.projection.stride)
        return
    side = data.image_size
    for place, conv in enumerate(blueprint.convs):
        # 224 / 4 = 56, but the last window would hang over the edge by more than a stride.
        side = side // conv.stride - 1 if conv.stride == 4 else side
        yield conv, side
        if place in blueprint.pooled:
            side = side // 2
    assert side == blueprint.side


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "resnet50", "vgg16", "resnet20"])
def test_a_blueprint_has_the_parameters_and_the_multiply_adds_of_our_network(name):
    config = training_steps.config(name, "float32", 32)
    blueprint, data = blueprints.create(config), config.data
    residual = isinstance(blueprint, blueprints.Residual)
    dense = [(blueprint.features, blueprint.classes)] if residual else blueprint.dense
    parameters = sum(inputs * features + features for inputs, features in dense)
    multiply_adds = sum(inputs * features for inputs, features in dense)
    for conv, side in convolutions(blueprint, data):
        weights = conv.window**2 * conv.inputs * conv.features // conv.groups
        parameters += weights + (2 if residual else 1) * conv.features
        multiply_adds += weights * side**2
    rows = summary.rows(config.model, (data.image_size, data.image_size, 3), data.num_classes)
    assert parameters == sum(row.parameters for row in rows)
    assert multiply_adds == sum(row.multiply_adds for row in rows) == training_steps.multiply_adds(config)
    assert training_steps.training_flops(config) == 6 * multiply_adds


def ours(config):
    """Our network, with parameters of some size everywhere, as a function of images."""
    config.model.ghost_batch = 0
    network = state_lib.from_config(config)
    params, stats = network.shapes
    random = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: random.normal(0.1, 0.2, leaf.shape).astype(np.float32), params)
    stats = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), stats)
    return network, params, stats


def images_of(config, count=4):
    side = config.data.image_size
    return np.random.default_rng(3).normal(size=(count, side, side, 3)).astype(np.float32)


def by_name(tree):
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_linens_resnet_50_has_our_parameters_and_multiply_adds():
    config = training_steps.config("resnet50", "float32", 32)
    network = linen_resnet.LinenResNet(blueprints.create(config))
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 25_557_032
    program = jax.make_jaxpr(lambda v, x: network.apply(v, x, train=False))(shapes, image)
    counted = sum(count for _, count in summary._multiply_adds(program.jaxpr, ""))
    assert counted == training_steps.multiply_adds(config)


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
@pytest.mark.parametrize("peer", ["linen", "nnx"])
def test_plain_flax_computes_our_logits_from_our_parameters(name, peer):
    config = training_steps.config(name, "float32", 4, quick=True)
    # Both kinds of shortcut: the recipes have A.
    config.model.shortcut = "B" if name == "resnet18" else "A"
    network, params, stats = ours(config)
    blueprint, images = blueprints.create(config), images_of(config)
    expected, moments = jax.jit(lambda *a: network.apply(*a, Context(train=True)))(params, stats, images)
    if peer == "linen":
        named = {re.sub(r"(stage\d)/(\d+)", r"\1_\2", name): leaf for name, leaf in by_name(params).items()}
        theirs = linen_resnet.LinenResNet(blueprint)
        shapes = jax.eval_shape(theirs.init, jax.random.key(0), images)
        assert by_name(shapes["params"]).keys() == named.keys()
        mine = {"params": refilled(shapes["params"], named), "batch_stats": jax.tree.map(ones, shapes["batch_stats"])}
        logits, new = jax.jit(lambda v, x: theirs.apply(v, x, mutable=["batch_stats"]))(mine, images)
        mean = new["batch_stats"]["bn1"]["mean"]
    else:
        theirs = nnx.eval_shape(lambda: nnx_resnet.NnxResNet(blueprint, "float32", nnx.Rngs(0)))
        graphdef, shapes, moments_ = nnx.split(theirs, nnx.Param, nnx.BatchStat)
        filled = refilled(nnx.to_pure_dict(shapes), by_name(params))
        whole = jax.tree.map(ones, nnx.to_pure_dict(moments_))

        @jax.jit
        def apply(params, stats, images):
            built = nnx.merge(graphdef, params, stats, copy=True)
            return built(images), built.bn1.mean[...]

        logits, mean = apply(filled, whole, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(mean, moments["bn1"]["mean"], rtol=1e-4, atol=1e-4)


def ones(leaf):
    return jnp.ones(leaf.shape, leaf.dtype)


def refilled(shapes, named):
    """The tree of `shapes` with the arrays of these names."""
    found = by_name(shapes)
    assert found.keys() == named.keys()
    assert {name: leaf.shape for name, leaf in found.items()} == {name: leaf.shape for name, leaf in named.items()}
    flat = [named[name] for name in found]
    return jax.tree.unflatten(jax.tree.structure(shapes), flat)


def losses(contender, steps=6):
    return [float(np.asarray(contender(1)["loss"])) for _ in range(steps)]


@pytest.mark.parametrize("peer", ["ours", "linen", "nnx"])
def test_a_step_trains(peer, monkeypatch):
    monkeypatch.setattr(training_steps, "LEARNING_RATE", 0.05)
    monkeypatch.setattr(linen_resnet, "LEARNING_RATE", 0.05)
    config = training_steps.config("resnet20", "float32", 4, quick=True)
    if peer == "ours":
        program, seconds, contender = training_steps.create(config, jax.devices()[:1])
    else:
        module = linen_resnet if peer == "linen" else nnx_resnet
        program, seconds, contender = module.create(config, blueprints.create(config))
    assert seconds > 0 and program.memory_analysis().temp_size_in_bytes > 0
    found = losses(contender)
    assert np.all(np.isfinite(found)) and found[-1] < 0.9 * found[0]


# torch.


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "resnet50", "vgg16", "resnet20"])
def test_torch_computes_our_logits_from_our_parameters(name):
    torch = pytest.importorskip("torch", reason="the peer in PyTorch needs torch")
    from alexnet_resnet.pretrained import tables
    from experiments.benchmarks import peers_torch

    config = training_steps.config(name, "float32", 4, quick=True)
    if name == "resnet50":
        config.model.depth = 50
    if name == "alexnet":
        # So that it matters which maps are in the window.
        config.model.lrn_alpha = 0.5
    network, params, stats = ours(config)
    blueprint, images = blueprints.create(config), images_of(config)
    theirs = peers_torch.network(blueprint)
    counted = sum(parameter.numel() for parameter in theirs.parameters())
    assert counted == network.parameter_count
    naming = tables.TORCHVISION_RESNET
    if config.model.name in ("alexnet", "vgg"):
        places = [place for place, layer in enumerate(theirs.features) if isinstance(layer, torch.nn.Conv2d)]
        names = [name for name in params if name.startswith("conv")]
        head = {"fc6": lambda: "classifier.0", "fc7": lambda: "classifier.3", "fc8": lambda: "classifier.6"}
        convs = {name: lambda place=place: f"features.{place}" for name, place in zip(names, places, strict=True)}
        kernels = {"fc6": tables.flattened_maps(blueprint.side)}
        naming = tables.Naming(convs | head, tables.TORCHVISION_ALEXNET.leaves, kernels=kernels)
    arrays = {}
    for tree in (params, stats):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[tuple(key.key for key in path)] = leaf
    entries = tables.entries(naming, arrays)
    state = theirs.state_dict() | {
        entry.name: torch.from_numpy(np.ascontiguousarray(entry.layout.to_file(arrays[entry.path])))
        for entry in entries
    }
    theirs.load_state_dict(state)
    # Dropout draws differ: networks that drop are compared in evaluation, the others with the batch's statistics.
    train = config.model.name.startswith("resnet")
    theirs.train(train)
    with torch.no_grad():
        given = torch.from_numpy(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
        logits = theirs(given).numpy()
    expected, _ = jax.jit(lambda *a: network.apply(*a, Context(train=train)))(params, stats, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.std(expected) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_of_torch_trains(dtype, monkeypatch):
    pytest.importorskip("torch", reason="the peer in PyTorch needs torch")
    from experiments.benchmarks import peers_torch

    monkeypatch.setattr(peers_torch, "LEARNING_RATE", 0.05)
    config = training_steps.config("resnet20", dtype, 4, quick=True)
    contender = peers_torch.create(config, blueprints.create(config), "cpu", compiled=False)
    found = [float(contender(1)) for _ in range(6)]
    assert np.all(np.isfinite(found)) and found[-1] < 0.9 * found[0]
    with pytest.raises(RuntimeError, match="JAX computes on tpu"):
        peers_torch.create(config, blueprints.create(config), "tpu", compiled=False)


# Who is measured, and what happens to those that fail.


def test_several_devices_are_measured_by_all_strategies_that_a_network_has():
    config = training_steps.config("alexnet", "float32", 8, quick=True)
    found = throughput_team.contenders("alexnet", config, ["torch", "linen", "nnx"])
    counts = {name: devices for name, (devices, _) in found.items()}
    strategies = dict.fromkeys((f"{OURS}, {name}" for name in ("data", "columns", "hybrid", "fsdp")), 8)
    assert counts == {OURS: 1, **strategies, "torch": 1}
    config = training_steps.config("resnet50", "float32", 32, quick=True)
    found = throughput_team.contenders("resnet50", config, ["linen", "nnx"])
    assert {name: devices for name, (devices, _) in found.items()} == {OURS: 1, f"{OURS}, data": 8, "linen": 1}


def test_sizes_are_those_asked_for_or_the_devices(monkeypatch):
    assert throughput_team.batch_sizes(224, [3, 5]) == [3, 5]
    with chosen(command_lib.FLAGS, quick=False):
        assert max(throughput_team.batch_sizes(224, [0])) < max(throughput_team.batch_sizes(32, [0]))
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert throughput_team.batch_sizes(224, [0]) == throughput_team.batch_sizes(32, [0]) == [64, 128, 256]


@pytest.mark.parametrize(("batch_size", "group"), [(64, 32), (8, 0)])
def test_statistics_are_over_groups_that_the_batch_falls_into(batch_size, group):
    config = training_steps.config("resnet50", "bfloat16", batch_size)
    assert (config.model.ghost_batch, config.model.dtype, config.train.batch_size) == (group, "bfloat16", batch_size)


def raising(error, after=0):
    """Builds a contender that raises when it has been called so often."""
    calls = [0]

    def contender(count):
        calls[0] += 1
        if calls[0] > after:
            raise error
        return jnp.zeros(())

    return lambda: (contender, 0.5)


def no_build(error):
    def build():
        raise error

    return build


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (raising(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")), "out of memory"),
        (raising(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), after=2), "out of memory"),
        (no_build(MemoryError()), "out of memory"),
        (no_build(throughput_team.DoesNotFit("needs 9 GiB")), "out of memory: needs 9 GiB"),
        (no_build(ModuleNotFoundError("No module named 'torch'", name="torch")), "torch is not installed"),
        (no_build(UserError("train.batch_size=3: expected a multiple")), "train.batch_size=3: expected a multiple"),
        (raising(ValueError("of some\nother kind"), after=1), "ValueError: of some other kind"),
    ],
)  # fmt: skip
def test_one_that_fails_says_why_and_the_others_go_on(build, says):
    failing, sound = (throughput_team.Contender(b) for b in (build, lambda: (lambda calls: jnp.ones(()), 0.5)))
    with chosen(command_lib.FLAGS, quick=False, rounds=2, seconds=1e-4):
        spreads = timing.measure({"failing": failing, "sound": sound})
    assert failing.failure == says and not sound.failure
    assert spreads["sound"].rounds == 2 and sound.compile_seconds(0.1) == 0.5


def test_compiling_at_the_first_call_is_what_that_takes_beyond_another():
    one = throughput_team.Contender(lambda: (lambda calls: None, None))
    one(1)
    assert one.compile_seconds(step=1e-9) > 0 and one.compile_seconds(step=1e9) == 0


def test_what_the_memory_does_not_hold_is_not_run(monkeypatch):
    monkeypatch.setattr(throughput_team, "available_memory", lambda: 1e9)
    needs = lambda size: SimpleNamespace(memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=size))  # noqa: E731
    throughput_team._check_memory(needs(1e9))
    with pytest.raises(throughput_team.DoesNotFit, match="needs 1.9 GiB, 0.9 GiB are free"):
        throughput_team._check_memory(needs(2e9))


def row(contender, rate=None, failure="", devices=1, network="resnet20", dtype="float32", size=8):
    found = dict(network=network, dtype=dtype, flops_per_image=100, batch_size=size, contender=contender)
    found |= dict(devices=devices, failure=failure)
    if rate:
        spread = dict(median=rate, lowest=0.9 * rate, highest=1.1 * rate)
        found |= dict(images_per_second=spread, compile_seconds=1.25)
    return found


def test_a_process_that_is_ended_leaves_what_it_measured():
    printed = [row(OURS, failure=LOST), row("torch", failure=LOST), row(OURS, 10.0)]
    lines = "\n".join(map(json.dumps, printed))
    kept, lost = train_throughput.finished(lines + "\nsome other line\n", -9)
    assert kept == printed[2]
    assert lost == row("torch", failure="out of memory: the system ended the process")
    assert train_throughput.finished(lines, 1)[1]["failure"] == f"{LOST} (status 1)"
    with pytest.raises(UserError, match="status 1 before it began"):
        train_throughput.finished("", 1)


def test_shares_and_ratios_are_of_what_was_measured():
    rows = [row(OURS, 30.0), row(f"{OURS}, data", 50.0, devices=2), row("torch", 20.0), row("nnx", failure="no")]
    rows += [row(OURS, failure="out of memory", size=16), row("torch", 40.0, size=16)]
    train_throughput.judge(rows, {"float32": 1e4})
    assert [found.get("share_of_peak") for found in rows] == pytest.approx([0.3, 0.25, 0.2, None, None, 0.4])
    assert [found.get("ours_to_peer") for found in rows] == [None, None, 1.5, None, None, None]


def test_the_table_and_the_chart_have_a_place_for_every_row(tmp_path):
    rows = [row(OURS, 3000.0), row(f"{OURS}, data", 5000.0, devices=2), row("torch", 2000.0), row("nnx", failure="why")]
    rows += [row(OURS, failure="out of memory", network="vgg16", dtype="bfloat16"), row("torch", 4.25, network="vgg16")]
    train_throughput.judge(rows, {"float32": 1e6, "bfloat16": 1e6})
    peaks = {dtype: dict(flops=1e6, source="made up") for dtype in ("float32", "bfloat16")}
    where = dict(devices="1 x cpu", processor="some", date="2000-01-01", commit="abc")
    result = dict(machine=where, rows=rows, peaks=peaks)
    lines = train_throughput.table(result).splitlines()
    assert re.match(r"ResNet-20 +float32 +8  ours +3,000 +2,700 +3,300 +30\.0% +1\.[23]$", lines[1])
    assert re.match(r" +ours, data x2 +5,000 .* 25\.0% +1\.[23]$", lines[2])
    assert re.match(r" +torch +2,000 .* 20\.0% +1\.50x +1\.[23]$", lines[3])
    assert re.match(r" +nnx +why$", lines[4])
    assert re.match(r"VGG-16 +bfloat16 +8  ours +out of memory$", lines[5])
    assert re.match(r"VGG-16 +float32 +8  torch +4\.25 +3\.8[23] +4\.6[78] ", lines[6])
    assert lines[-2:] == [f"peak, {dtype}: 1e-06 Tflop/s a device, made up" for dtype in peaks]
    train_throughput.draw(result, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").width > 1000
    assert [found["contender"] for found in train_throughput._shown(rows[:4])] == [OURS, f"{OURS}, data", "torch"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(networks=["resnet19"]), r"networks='resnet19': expected one of 'alexnet', .*Did you mean"),
        (dict(networks=[]), "networks='': expected at least one of"),
        (dict(dtypes=["float16"]), "dtypes='float16': expected one of 'float32', 'bfloat16'"),
        (dict(peers=["keras"]), "peers='keras': expected one of 'torch', 'linen', 'nnx'"),
        (dict(batch_sizes=["64", "0"]), "batch_sizes='0': expected numbers of at least 1, or 0 alone"),
        (dict(batch_sizes=["many"]), "batch_sizes='many': expected numbers"),
        (dict(batch_sizes=[]), "batch_sizes='': expected numbers"),
    ],
)
def test_what_is_wrong_is_said_first(given, message):
    (name,) = given
    own = train_throughput.FLAGS if name in train_throughput.FLAGS else throughput_team.FLAGS
    with chosen(own, **given), pytest.raises(UserError, match=message):
        train_throughput.measure()


def test_the_command_measures_and_tells(command, tmp_path):
    chosen = ["--networks=resnet20", "--dtypes=bfloat16", "--batch_sizes=3", "--peers=torch,linen"]
    done = command(NAME, "--quick", f"--out={tmp_path}", *chosen, devices=2)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "train_throughput.json").read_text())
    rows = {found["contender"]: found for found in result["rows"]}
    assert list(rows) == [OURS, f"{OURS}, data", "torch", "linen"]
    # Three images on two devices.
    assert re.match("train.batch_size=3: expected a multiple of 2", rows[f"{OURS}, data"]["failure"])
    for name in (OURS, "linen"):
        rate = rows[name]["images_per_second"]
        assert 0 < rate["lowest"] <= rate["median"] <= rate["highest"] and rows[name]["compile_seconds"] > 0
        assert rows[name]["share_of_peak"] > 0 and rows[name]["batch_size"] == 3
    ratio = rows[OURS]["images_per_second"]["median"] / rows["linen"]["images_per_second"]["median"]
    assert rows["linen"]["ours_to_peer"] == pytest.approx(ratio)
    assert result["quick"] is True and (tmp_path / "train_throughput.txt").read_text() == done.stdout
    assert "train.batch_size=3" in done.stdout and Image.open(tmp_path / "train_throughput.png").width > 1000
