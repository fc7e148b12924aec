"""AlexNet's variants by name: what they count to, how names are read, and what is refused."""

import math
import pathlib
import runpy

import jax
import pytest
from flax import nnx

from alexnet_resnet import models
from alexnet_resnet.analysis import summary
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import AlexNet, alexnet_variants

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "alexnet.py"
PRESETS = ("as_written", "as_run")


def config_of(*argument):
    return runpy.run_path(str(CONFIG))["get_config"](*argument)


def rows_of(variant):
    config = config_of(variant)
    side = config.data.image_size
    return summary.rows(config.model.to_dict(), (side, side, 3), 1000)


CONV6 = 3 * 3 * 256 * 256


@pytest.mark.parametrize(
    ("variant", "parameters", "multiply_adds"),
    [
        # The paper's net, and its one column of full width.
        ("as_written", 60_965_224, 724_406_816),
        ("as_run", 60_965_224, 724_406_816),
        ("2", 60_965_224, 724_406_816),
        ("1", 62_378_344, 1_135_256_096),
        ("caffe", 60_965_224, 724_406_816),
        ("one_gpu_2014", 61_100_840, 714_188_480),
        ("torchvision", 61_100_840, 714_188_480),
        ("one_column_ablation", 59_798_312, 391_514_384),
        ("as_run+one_column_ablation", 59_798_312, 391_514_384),
        ("as_run+without_norm", 60_965_224, 724_406_816),
        # The conv6 of CNN*, on 6x6 maps; scale and bias of each of conv1's and conv2's maps.
        ("cnn_star", 60_965_224 + CONV6 + 256, 724_406_816 + 36 * CONV6),
        ("batch_norm", 60_965_224 + 2 * (96 + 256), 724_406_816),
    ],
)
def test_counts(variant, parameters, multiply_adds):
    rows = rows_of(variant)
    assert sum(row.parameters for row in rows) == parameters
    assert sum(row.multiply_adds for row in rows) == multiply_adds


def test_neurons_of_the_paper():
    outputs = {row.name: row.output for row in rows_of("as_written")}
    weighted = [name for name in outputs if name.startswith(("conv", "fc"))]
    assert sum(math.prod(outputs[name]) for name in weighted) == 659_272


@pytest.mark.parametrize("preset", PRESETS)
def test_two_by_two_pooling_has_the_sizes_of_the_authors_net_147(preset):
    rows = rows_of(f"{preset}+non_overlapping")
    sides = {row.name: row.output[0] for row in rows if row.name.startswith(("conv", "pool"))}
    assert sides == dict(conv1=55, pool1=28, conv2=26, pool2=13, conv3=13, conv4=13, conv5=11, pool5=6)
    assert sum(row.parameters for row in rows) == 60_965_224


@pytest.mark.parametrize("variant", ["as_written", "caffe", "torchvision", "one_gpu_2014"])
def test_three_borders_one_grid_of_55(variant):
    sides = {row.name: row.output[0] for row in rows_of(variant)}
    assert [sides[name] for name in ("conv1", "pool1", "pool2", "pool5")] == [55, 27, 13, 6]


@pytest.mark.parametrize("removed", ["conv3", "conv4", "conv5"])
def test_removal_of_a_layer_removes_it_alone(removed):
    names = [row.name for row in rows_of("as_written")]
    left = [row.name for row in rows_of(f"without_{removed}")]
    pooled = "pool4" if removed == "conv5" else "pool5"
    assert left == [pooled if name == "pool5" else name for name in names if name != removed]


def test_the_parameters_keep_their_names_under_every_switch():
    for variant in alexnet_variants.VARIANTS:
        owners = {row.name for row in rows_of(variant) if row.parameters}
        expected = {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}
        expected |= {"norm1", "norm2"} if variant == "batch_norm" else {"conv6"} if variant == "cnn_star" else set()
        assert owners == expected - {variant.removeprefix("without_")}, variant


def test_the_default_is_as_written():
    assert config_of().to_dict() == config_of("as_written").to_dict()
    assert dict(config_of().model) == {"name": "alexnet", **models.defaults("alexnet")}


def test_the_presets_differ_in_the_points_of_the_table():
    written, run = (dict(config_of(preset).model) for preset in PRESETS)
    changed = {field: (written[field], run[field]) for field in written if written[field] != run[field]}
    assert changed == {
        "lrn_alpha_over": ("sum", "mean"),
        "conv1_order": ("pool_last", "activation_last"),
        "conv2_second_norm": ("none", "within_map"),
        "conv5_order": ("pool_last", "activation_last"),
        "middle_init_std": (0.01, 0.03),
    }
    assert written["dropout_form"] == run["dropout_form"] == "2012"


def test_names_join_and_the_later_wins():
    joined = alexnet_variants.fields("as_run+one_column_ablation+2")
    assert joined == alexnet_variants.AS_RUN | dict(columns=2, maps="48-128-192-192-256")
    assert config_of("as_run+caffe").data.image_size == 227
    assert config_of("as_run").data.image_size == 224


def test_an_unknown_name_is_answered_with_the_names():
    with pytest.raises(UserError, match=r"'as_ran': expected one of as_written, as_run, .*Did you mean 'as_run'"):
        config_of("as_ran")
    with pytest.raises(UserError, match="variant '': expected one of"):
        config_of("as_run+")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(columns=0), "model.columns=0"),
        (
            dict(columns=3, units=4096),
            "model.width=1.0: 256 maps or units become 256; expected a multiple of model.columns=3",
        ),
        (dict(width=0.01), "model.width=0.01: 96 maps or units become 1"),
        (dict(maps="96-256-384"), "model.maps='96-256-384': expected the maps of five layers"),
        (dict(maps="96-256-384-384-0"), "model.maps"),
        (dict(maps="96-256-384-384-x"), "model.maps"),
        (dict(units=0), "model.units=0"),
        (dict(without="conv2"), "model.without='conv2': expected one of 'none', 'conv3', 'conv4', 'conv5'"),
        (dict(activation="gelu"), "model.activation='gelu': expected one of 'relu', 'tanh', 'sigmoid'"),
        (dict(norm="layer"), "model.norm='layer': expected one of 'lrn', 'batch', 'none'"),
        (dict(norm_place="before"), "model.norm_place='before'"),
        (dict(norm_layers="1,7"), "model.norm_layers='1,7': expected numbers out of 1,2,3,4,5"),
        (dict(norm_layers="3", without="conv3"), "model.norm_layers='3': expected numbers out of 1,2,4,5"),
        (dict(norm_layers=""), "model.norm_layers=''"),
        (dict(conv1_order="as_run"), "model.conv1_order='as_run'"),
        (dict(conv2_second_norm="lrn"), "model.conv2_second_norm='lrn'"),
        (dict(conv5_order="as_run"), "model.conv5_order='as_run'"),
        (dict(lrn_size=0), "model.lrn_size=0"),
        (dict(lrn_alpha=float("nan")), "model.lrn_alpha=nan"),
        (dict(lrn_alpha_over="n"), "model.lrn_alpha_over='n'"),
        (dict(lrn_across="both"), "model.lrn_across='both'"),
        (dict(ghost_batch=-1), "model.ghost_batch=-1"),
        (dict(pooling="3x3"), "model.pooling='3x3': expected one of 'overlapping', '2x2'"),
        (dict(borders="same"), "model.borders='same'"),
        (dict(conv2_padding=-1), "model.conv2_padding=-1"),
        (dict(dropout=1.0), "model.dropout=1.0"),
        (dict(dropout_form="off"), "model.dropout_form='off'"),
        (dict(dropout_at="fc6"), "model.dropout_at='fc6'"),
        (dict(init_std=-0.01), "model.init_std=-0.01"),
        (dict(dtype="int8"), "model.dtype='int8'"),
    ],
)
def test_refusals_name_the_field(fields, message):
    with pytest.raises(UserError) as error:
        nnx.eval_shape(lambda: AlexNet(**fields, rngs=nnx.Rngs(0)))
    assert message in str(error.value)


@pytest.mark.parametrize("variant", ["as_written", "torchvision", "non_overlapping", "cnn_star"])
def test_the_smallest_image_that_the_refusal_names_is_the_smallest_that_runs(variant):
    fields = alexnet_variants.fields(variant)

    def output(side):
        net = nnx.eval_shape(lambda: AlexNet((side, 300, 3), 5, **fields, width=0.25, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(net)
        image = jax.ShapeDtypeStruct((2, side, 300, 3), "float32")
        return jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, image).shape

    with pytest.raises(UserError, match=r"image_shape=\(8, 300, 3\): expected at least \d+ pixels") as error:
        output(8)
    least = int(str(error.value).split("at least ")[1].split()[0])
    assert output(least) == (2, 5)
    with pytest.raises(UserError, match=f"at least {least} pixels"):
        output(least - 1)
