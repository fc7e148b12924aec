"""The audit of a step: each strategy exchanges the least it can, and only what its name says."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet import models
from alexnet_resnet.analysis import audit
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy

COLUMNS = {
    **dict.fromkeys([("conv3", "forward"), ("fc6", "forward"), ("fc7", "forward")], {"all-gather"}),
    **dict.fromkeys([("conv3", "backward"), ("fc6", "backward"), ("fc7", "backward")], {"reduce-scatter"}),
    ("fc8", "forward"): {"all-reduce"},
}
LARGE = ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
EXPECTED = {
    "data": {},
    "columns": COLUMNS,
    "hybrid": {key: kinds for key, kinds in COLUMNS.items() if key[0] != "conv3"},
    "fsdp": {
        **dict.fromkeys([(name, "forward") for name in ("conv1", *LARGE)], {"all-gather"}),
        **dict.fromkeys([(name, "backward") for name in ("conv1", *LARGE)], {"reduce-scatter"}),
    },
}


def make_config():
    config = config_lib.default("alexnet")
    config.model.width = 1 / 16
    config.data.update(canvas_size=67, image_size=67, mean="none")
    config.train.batch_size = 8
    return config


def spread(name):
    mesh = mesh_lib.create(SimpleNamespace(data=2, model=2), jax.devices()[:4])
    return Strategy(name, mesh, models.AlexNet)


@functools.cache
def audited(name):
    return audit.audit(make_config(), spread(name))


@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_step_exchanges_the_least_it_can_and_nothing_else(name):
    found = audited(name)
    kinds, sizes = {}, {}
    for layer, direction, collective in found.exchanges:
        kinds.setdefault((layer, direction), set()).add(collective.kind)
        sizes[layer, direction] = sizes.get((layer, direction), 0) + collective.bytes
        if layer in (audit.GRADIENTS, audit.MEASUREMENTS):
            assert collective.kind == "all-reduce"
    layers = {key: kind for key, kind in kinds.items() if key[0] not in (audit.GRADIENTS, audit.MEASUREMENTS)}
    assert layers == EXPECTED[name]
    for key, least in found.least.items():
        # The sums of gradients carry a few numbers more: the loss, and terms of the norms.
        assert least <= sizes[key] <= least + (300 if key[0] == audit.GRADIENTS else 0), key
    assert sizes[audit.MEASUREMENTS, "forward"] < 300


def test_what_a_device_holds():
    config = make_config()
    held = {name: audited(name) for name in ("data", "columns")}
    whole, part = held["data"].parameters, held["columns"].parameters
    bias = 4 * config.data.num_classes
    assert part == (whole - bias) // 2 + bias
    # Momentum for each parameter, and the step that the rate depends on.
    assert all(found.optimizer == found.parameters + 4 for found in held.values())
    assert all(found.temporaries > 0 for found in held.values())


def test_the_table_says_it_layer_by_layer():
    text = audit.table(make_config(), spread("columns")).splitlines()
    assert "alexnet on 4 cpu device(s) as 2x2, columns, batch 8" in text[0]
    rows = {line.split()[0]: line.split()[1:] for line in text if line[:1].isalpha()}
    # Of the maps of four images, conv3 lacks those of the other column: half.
    shapes = {row.name: row.output for row in audit.summary.rows(make_config().model, (67, 67, 3), 10)}
    count = f"{4 * int(np.prod(shapes['pool2'])) * 4 // 2:,}"
    assert rows["conv3"] == ["all-gather", count, count, "reduce-scatter", count, count]
    assert rows["fc8"] == ["all-reduce", "160", "160"]
    assert {"conv1", "conv2", "conv4", "conv5"}.isdisjoint(rows)
