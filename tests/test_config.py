"""The list of fields, lengths of training, and what tells two configurations apart."""

import importlib.util
from pathlib import Path

import ml_collections
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet import models
from alexnet_resnet.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path, *argument):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*argument)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_of_configs_is_sound_and_says_how_to_launch_it(path):
    config = load(path)
    config_lib.check(config)
    assert f"--config=configs/{path.name}" in path.read_text().split('"""')[1]
    assert set(config.model.keys()) == {"name", *models.defaults(config.model.name)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7 steps", 7),
        ("1 step", 1),
        ("2 epochs", 80),
        ("0.5 epochs", 20),
        ("1epoch", 40),
        (" 3  steps ", 3),
        ("0 steps", 0),
    ],
)
def test_lengths_are_read_in_steps_or_epochs(text, expected):
    assert config_lib.steps("f", text, 40) == expected


@pytest.mark.parametrize("text", ["", "7", "steps", "-1 steps", "2 hours", "1e3 steps", "nan epochs"])
def test_lengths_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="f='.*': expected a length such as '500 steps'"):
        config_lib.steps("f", text, 40)


def test_differences_name_what_changes_the_results_and_nothing_else():
    old, new = config_lib.default("resnet_cifar"), config_lib.default("resnet_cifar")
    assert config_lib.differences(old, new) == []
    new.data.data_dir, new.log.every, new.parallel.model, new.checkpoint.keep_last = "/x", "1 step", 2, 5
    assert config_lib.differences(old, new) == []
    new.model.depth, new.seed = 32, 1
    assert config_lib.differences(old, new) == ["model.depth: 20 -> 32", "seed: 0 -> 1"]


def test_a_configuration_read_back_from_json_is_the_same():
    import json

    config = load(CONFIGS[0])
    assert config_lib.differences(json.loads(config.to_json()), config) == []
    assert config_lib.differences(ml_collections.ConfigDict(json.loads(config.to_json())), config) == []


def test_a_field_that_only_one_side_has_is_a_difference():
    config = config_lib.default("resnet_cifar")
    other = dict(config.to_dict(), extra=1)
    assert config_lib.differences(config, other) == ["extra: '(absent)' -> 1"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.mean", "pixel", "data.mean='pixel': expected one of 'per_pixel', 'per_channel', 'none'"),
        ("data.mean_examples", -1, "data.mean_examples=-1: expected a number of at least 0"),
        ("data.divisor", 0.0, "data.divisor=0.0: expected a number above zero"),
        ("data.prefetch", 0, "data.prefetch=0"),
        ("data.channels", 0, "data.channels=0"),
        ("data.num_classes", 1, "data.num_classes=1: expected a number of at least 2"),
        ("evaluation.batch_size", 0, "evaluation.batch_size=0"),
        ("checkpoint.keep_last", 0, "checkpoint.keep_last=0"),
        ("checkpoint.keep_best", -1, "checkpoint.keep_best=-1"),
        ("optimizer.momentum_order", "inside", "momentum_order='inside': expected one of 'rate_inside'"),
        ("optimizer.warmup_shape", "cosine", "optimizer.warmup_shape='cosine'"),
        ("optimizer.momentum", float("nan"), "optimizer.momentum=nan"),
        ("optimizer.warmup", "long", "optimizer.warmup='long'"),
        ("optimizer.boundaries", (0.0, 0.5), r"optimizer.boundaries=\(0.0, 0.5\)"),
        ("log.every", "0 steps", "log.every='0 steps': expected a length above zero"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    config = config_lib.default("resnet_cifar")
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(UserError, match=message):
        config_lib.check(config)
