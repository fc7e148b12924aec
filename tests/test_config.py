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
        ("data.view", "centre", "data.view='centre': expected one of 'canvas', 'scale', 'area'"),
        ("data.loader", "torch", "data.loader='torch': expected one of 'tf', 'resident'"),
        ("data.mean_position", "left", "data.mean_position='left': expected one of 'own', 'centre'"),
        ("data.lighting", "alexnet", "data.lighting='alexnet': expected one of 'none', 'as_run', 'unit_range'"),
        ("data.lighting_statistics", "imagenet", "data.lighting_statistics='imagenet': expected one of 'author'"),
        ("data.lighting_strength", -0.1, "data.lighting_strength=-0.1: expected a number of at least 0"),
        ("data.max_unreadable", -1.0, "data.max_unreadable=-1.0"),
        ("data.max_unreadable", 5.0, "data.max_unreadable=5: expected a share of the images, from 0 to 1"),
        ("data.cache_gib", -1.0, "data.cache_gib=-1.0"),
        ("train.steps_per_call", 0, "train.steps_per_call=0: expected a number of at least 1"),
        ("train.steps_per_call", 4, "train.steps_per_call=4: expected 1 with data.loader='tf'"),
        (
            "evaluation.views",
            "twelve",
            "evaluation.views='twelve': expected one of 'centre', 'ten_crop', 'nine_crop', 'multi_scale'",
        ),
        ("train.rubbish", -1.0, "train.rubbish=-1.0: expected a number of at least 0"),
        ("evaluation.scales", (), r"evaluation.scales=\(\): expected at least one"),
        ("evaluation.scales", (16,), "evaluation.scales=16: expected a number of at least 32"),
        ("log.every", "0 steps", "log.every='0 steps': expected a length above zero"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    config = config_lib.default("resnet_cifar")
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(UserError, match=message):
        config_lib.check(config)


@pytest.mark.parametrize("loss", ["binary", "binary_probabilities"])
def test_rubbish_is_of_softmax_alone(loss):
    config = config_lib.default("lenet")
    config.train.update(loss=loss, rubbish=10.0)
    with pytest.raises(UserError) as caught:
        config_lib.check(config)
    assert str(caught.value) == f"train.rubbish=10: expected 0 with train.loss={loss!r}."
    config.train.loss = "softmax"
    config_lib.check(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(view="scale", scale_range=(20, 60)), r"data.scale_range=\(20, 60\): .* at least data.image_size=32"),
        (dict(view="scale", scale_range=(60, 40)), "data.scale_range="),
        (dict(view="scale", scale_range=(40.5, 60.0)), "data.scale_range=.*whole pixels"),
        (dict(view="area", area_range=(0.0, 1.0)), r"data.area_range=\(0.0, 1.0\): .* above 0, at most 1"),
        (dict(view="area", area_range=(0.5, 1.5)), "data.area_range="),
        (dict(view="area", aspect_range=(2.0, 1.0)), "data.aspect_range="),
        (dict(view="scale", random_crop=False), "data.random_crop=False: expected True with data.view='scale'"),
        (dict(view="area", loader="resident"), "data.view='area': expected 'canvas' with data.loader='resident'"),
        (dict(view="scale", mean_position="own"), "data.mean_position='own': expected 'centre' with data.view='scale'"),
        (dict(channels=1, lighting="as_run"), "data.lighting_statistics='author': expected 'dataset' for images of 1"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    config = config_lib.default("resnet_cifar")
    config.data.update({"scale_range": (32, 48), "mean_position": "centre", "random_crop": True} | fields)
    with pytest.raises(UserError, match=message):
        config_lib.check(config)


def test_ranges_of_views_that_are_not_taken_do_not_matter():
    config = config_lib.default("resnet_cifar")
    config.data.update(canvas_size=512, image_size=500, area_range=(2.0, 1.0))
    config_lib.check(config)
