"""Parameters and multiply-adds, to the digit, of every network that the papers count."""

import importlib.util
from pathlib import Path

import pytest

from alexnet_resnet.analysis import summary

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name):
    file, *argument = name.split(":")
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*argument)


def rows_of(config):
    data = config.data
    return summary.rows(config.model, (data.image_size, data.image_size, data.channels), data.num_classes)


# The counts of the two papers' networks, recomputed independently of this code; None where none was given.
COUNTS = {
    "alexnet": (60_965_224, 724_406_816),
    "alexnet:as_run": (60_965_224, 724_406_816),
    "alexnet:1": (62_378_344, 1_135_256_096),
    "alexnet:one_column_ablation": (59_798_312, 391_514_384),
    "alexnet:one_gpu_2014": (61_100_840, 714_188_480),
    "cuda_convnet:18pct": (89_578, None),
    "cuda_convnet:11pct": (2_112_970, None),
    "lenet:sparse": (60_000, None),
    "lenet:full": (61_706, None),
    "resnet:18+A": (11_515_688, None),
    "resnet:18+B": (11_689_512, 1_814_073_344),
    "resnet:34+A": (21_623_848, 3_644_493_824),
    "resnet:34+plain": (21_623_848, 3_644_493_824),
    "resnet:34+B": (21_797_672, 3_663_761_408),
    "resnet:34+C": (22_716_840, None),
    "resnet:50": (25_557_032, 3_857_973_248),
    "resnet:101": (44_549_160, 7_570_194_432),
    "resnet:152": (60_192_808, 11_282_415_616),
    "resnet_cifar:20": (269_722, None),
    "resnet_cifar:32": (464_154, None),
    "resnet_cifar:44": (658_586, None),
    "resnet_cifar:56": (853_018, None),
    "resnet_cifar:110": (1_727_962, None),
    "vgg:16": (138_357_544, 15_470_264_320),
    "vgg:19": (143_667_240, 19_632_062_464),
}


@pytest.mark.parametrize("name", COUNTS)
def test_totals_are_the_papers(name):
    rows = rows_of(load(name))
    parameters, multiply_adds = COUNTS[name]
    assert sum(row.parameters for row in rows) == parameters
    assert multiply_adds is None or sum(row.multiply_adds for row in rows) == multiply_adds


def test_alexnets_layers_are_the_papers_one_by_one():
    rows = {row.name: row for row in rows_of(load("alexnet"))}
    order = "conv1 norm1 pool1 conv2 norm2 pool2 conv3 conv4 conv5 pool5 fc6 fc7 fc8"
    assert " ".join(rows) == order
    assert rows["conv1"].output == (55, 55, 96) and rows["pool1"].output == (27, 27, 96)
    assert rows["conv2"].parameters == 5 * 5 * 48 * 256 + 256
    assert rows["conv3"].multiply_adds == 13 * 13 * 3 * 3 * 256 * 384
    assert rows["pool5"].output == (6, 6, 256) and rows["pool5"].parameters == rows["pool5"].multiply_adds == 0
    assert rows["fc8"].parameters == 4096 * 1000 + 1000 and rows["fc8"].output == (1000,)


def test_a_block_s_own_row_counts_nothing_twice():
    rows = {row.name: row for row in rows_of(load("resnet_cifar:20"))}
    assert rows["stage2/0"].parameters == 0 and rows["stage2/0/conv1"].parameters == 3 * 3 * 16 * 32
    names = list(rows)
    assert names.index("stage1/0/conv1") < names.index("stage1/0/bn1") < names.index("stage1/0/conv2")
    assert names.index("stage1/2") < names.index("stage1") < names.index("stage2/0/conv1")


def test_the_table_has_a_line_a_layer_and_the_totals_last():
    text = summary.table(load("alexnet"))
    lines = text.splitlines()
    assert len(lines) == 13 + 4
    assert lines[-1].split() == ["total", "60,965,224", "724,406,816"]
    assert lines[2].split() == ["conv1", "55x55x96", "34,944", "105,415,200"]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
