"""Every tensor of a file is accounted for, in both directions; what does not fit is named."""

import functools
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from alexnet_resnet import models, pretrained
from alexnet_resnet.errors import UserError
from alexnet_resnet.pretrained import files, tables
from alexnet_resnet.pretrained.formats import namings_of

EVERY_MODEL = [(format, model) for format in pretrained.FORMATS for model in pretrained.models_of(format)]
RESNETS = [("keras", "resnet:50"), ("torchvision", "resnet:18"), ("timm", "resnet:34"), ("huggingface", "resnet:18")]


def paths_and_shapes(network):
    """The shape of every parameter and batch statistic by its path."""
    return dict(_paths_and_shapes(tuple((k, v) for k, v in network.items() if k not in ("stride_in", "bn_epsilon"))))


@functools.cache
def _paths_and_shapes(network):
    network = dict(network)
    module = nnx.eval_shape(lambda: models.create(network, (224, 224, 3), 1000, jax.random.key(0)))
    pure = [nnx.to_pure_dict(state) for state in nnx.split(module, nnx.Param, nnx.BatchStat)[1:]]
    found = jax.tree_util.tree_flatten_with_path(pure)[0]
    return {tuple(key.key for key in path[1:]): leaf.shape for path, leaf in found}


@pytest.mark.parametrize(("format", "model"), EVERY_MODEL)
def test_names_and_shapes_are_exactly_the_librarys(format, model, shapes_of):
    expected = shapes_of(format, model)
    network = pretrained.network_of(format, model)
    shapes = paths_and_shapes(network)
    naming = namings_of(format, network)[0]
    rows = tables.entries(naming, shapes)
    named = {row.name: row.layout.shape_in_file(shapes[row.path]) for row in rows}
    assert len(named) == len(rows)
    named |= dict.fromkeys(tables.counters(naming, shapes), ())
    assert named == expected
    assert {row.path for row in rows if not row.fold} == shapes.keys()


@pytest.mark.parametrize(("format", "model"), RESNETS)
def test_a_file_read_and_written_is_the_same_file(format, model, tensors_of, tmp_path):
    suffix = ".h5" if format == "keras" else ".safetensors"
    tensors = tensors_of(format, model)
    if format == "keras":  # The convolutions' biases come back as zeros: they are in the means.
        tensors = {name: a * ("_bn/" in name or name.startswith("predictions")) for name, a in tensors.items()}
        tensors |= {name: a for name, a in tensors_of(format, model).items() if name.endswith("kernel")}
    files.write(tmp_path / f"theirs{suffix}", tensors)
    weights = pretrained.load(tmp_path / f"theirs{suffix}", format, model)
    pretrained.save(tmp_path / f"ours{suffix}", format, weights.network, weights.params, weights.batch_stats)
    written = files.read(tmp_path / f"ours{suffix}")
    assert written.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name, strict=True)


def test_timms_vgg_is_torchvisions_in_other_shapes(tensors_of):
    layouts = {row.path: row for row in tables.entries(tables.timm_vgg(16), [("fc6", "kernel"), ("fc7", "kernel")])}
    torchvision = tables.entries(tables.torchvision_vgg(16), layouts)
    rng = np.random.default_rng(0)
    for row, side in zip(torchvision, (7, 1), strict=True):
        dense = rng.random((5, 3 * side * side), np.float32)
        kernel = dense.reshape(5, 3, side, side)
        ours = row.layout.to_ours(dense)
        np.testing.assert_array_equal(layouts[row.path].layout.to_ours(kernel), ours)
        np.testing.assert_array_equal(layouts[row.path].layout.to_file(ours), kernel)
        np.testing.assert_array_equal(row.layout.to_file(ours), dense)
        # Position (h, w) of map c meets the weight that torch gives it.
        maps = rng.random((3, side, side), np.float32)
        np.testing.assert_allclose(maps.transpose(1, 2, 0).ravel() @ ours, dense @ maps.ravel(), rtol=1e-5)


def test_names_of_2017_are_the_authors():
    paths = paths_and_shapes(pretrained.network_of("keras", "resnet:101"))
    names = {row.name for row in tables.entries(tables.keras_2017_resnet(101), paths)}
    # From the prototxt of the authors' release.
    assert {
        "conv1/kernel",
        "bn_conv1/gamma",
        "res2a_branch1/kernel",
        "res2c_branch2c/kernel",
        "res3b3_branch2a/kernel",
    } <= names
    assert {"bn4b22_branch2c/moving_mean", "res5c_branch2b/kernel", "bn5a_branch1/beta", "fc1000/kernel"} <= names
    assert not {"res3b_branch2a/kernel", "res4b23_branch2a/kernel", "res3b4_branch2a/kernel"} & names


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(dtype, tensors_of, tmp_path):
    tensors = {name: a.astype(dtype) for name, a in tensors_of("torchvision", "resnet:18").items() if a.ndim}
    files.write(tmp_path / "w.safetensors", tensors)
    weights = pretrained.load(tmp_path / "w.safetensors", "torchvision", "resnet:18")
    kernel = weights.params["stage2"][0]["shortcut_conv"]["kernel"]
    expected = tensors["layer2.0.downsample.0.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    assert {a.dtype for a in jax.tree.leaves((weights.params, weights.batch_stats))} == {np.dtype(np.float32)}


def test_the_number_of_classes_is_the_files(tensors_of):
    tensors = tensors_of("torchvision", "resnet:18")
    tensors |= {name: tensors[name][:7] for name in ("fc.weight", "fc.bias")}
    weights = pretrained.from_tensors(tensors, "torchvision", "resnet:18")
    assert weights.num_classes == 7
    assert weights.params["fc"]["kernel"].shape == (512, 7)
    assert nnx.eval_shape(weights.module(), jnp.zeros((1, 32, 32, 3))).shape == (1, 7)


def test_what_is_written_computes_what_our_network_does(tensors_of):
    """A bias of conv1 and another epsilon, which torchvision has no place for, go into its batch statistics."""
    read = pretrained.from_tensors(tensors_of("torchvision", "resnet:18"), "torchvision", "resnet:18")
    ours = read.network | dict(conv1_bias=True, bn_epsilon=0.1)
    bias = np.linspace(-1, 1, 64, dtype=np.float32)
    params = read.params | {"conv1": read.params["conv1"] | {"bias": bias}}
    module = pretrained.Pretrained(ours, 1000, params, read.batch_stats, read.preprocessing).module()
    tensors = pretrained.to_tensors("torchvision", ours, params, read.batch_stats)
    again = pretrained.from_tensors(tensors, "torchvision", "resnet:18").module()
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    np.testing.assert_allclose(again(x), module(x), atol=2e-5)
    assert np.abs(read.module()(x) - module(x)).max() > 0.01


@pytest.mark.parametrize(
    ("field", "value"), [("stride_in", "1x1"), ("shortcut", "A"), ("stem_pool", "ceil"), ("residual", False)]
)
def test_a_network_the_format_does_not_have_is_not_written(field, value):
    network = pretrained.network_of("torchvision", "resnet:50") | {field: value}
    with pytest.raises(UserError, match=rf"model\.{field}={value!r}: expected"):
        pretrained.to_tensors("torchvision", network, {}, {})


def test_an_alexnet_that_is_not_torchvisions_is_not_written():
    with pytest.raises(UserError, match=r"model\.columns=2: expected 1, as torchvision has it"):
        pretrained.to_tensors("torchvision", {"name": "alexnet"}, {})
    with pytest.raises(UserError, match=r"model\.activation='tanh': expected 'relu'"):
        pretrained.to_tensors(
            "torchvision", pretrained.network_of("torchvision", "alexnet") | {"activation": "tanh"}, {}
        )
    with pytest.raises(UserError, match="model='lenet': expected one of"):
        pretrained.to_tensors("torchvision", {"name": "lenet"}, {})


def test_names_missing_and_left_over_are_listed(tensors_of):
    tensors = tensors_of("torchvision", "resnet:18")
    for number in (1, 2):
        del tensors[f"layer4.1.conv{number}.weight"]
    tensors |= {f"extra{n}.weight": np.zeros(3) for n in range(7)} | {"conv1.num_batches_tracked": np.zeros(())}
    with pytest.raises(UserError) as caught:
        pretrained.from_tensors(tensors, "torchvision", "resnet:18", "some file")
    message = str(caught.value)
    assert message.startswith("weights='some file': expected the 102 tensors of torchvision resnet:18, got 2 missing: ")
    assert "layer4.1.conv1.weight, layer4.1.conv2.weight; 8 unknown: extra0.weight" in message
    assert message.endswith("and 3 more.")
    assert "\n" not in message


def test_another_depth_is_an_error_not_a_part(tensors_of):
    with pytest.raises(UserError, match="got 198 unknown: layer1.0.conv3.weight"):
        pretrained.from_tensors(tensors_of("torchvision", "resnet:50"), "torchvision", "resnet:18")
    with pytest.raises(UserError, match=r"got 102 missing: .*; 122 unknown: "):
        pretrained.from_tensors(tensors_of("torchvision", "resnet:18"), "huggingface", "resnet:18")
    with pytest.raises(UserError, match=r"102 missing"):
        pretrained.from_tensors({}, "torchvision", "resnet:18")


def test_shapes_and_types_that_do_not_fit_are_listed(tensors_of):
    tensors = tensors_of("torchvision", "resnet:18")
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :1]
    tensors["fc.weight"] = tensors["fc.weight"].T
    tensors["bn1.bias"] = tensors["bn1.bias"].astype(np.int8)
    with pytest.raises(UserError) as caught:
        pretrained.from_tensors(tensors, "torchvision", "resnet:18")
    for part in (
        "3 of another shape",
        "conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7)",
        "fc.weight (512, 1000) for (1000, 512)",
        "bn1.bias int8 for a float",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("format", "model", "message"),
    [
        ("torchvison", "resnet:18", "weights_format='torchvison': .*Did you mean 'torchvision'"),
        ("keras", "resnet:18", "model='resnet:18': expected one of resnet:50, resnet:101, resnet:152"),
        ("timm", "alexnet", "model='alexnet': expected one of"),
        ("torchvision", "resnet", "model='resnet': expected one of"),
        ("torchvision", "vgg:17", "model='vgg:17': expected one of"),
        ("torchvision", "resnet_cifar:20", "expected one of"),
    ],
)
def test_unknown_formats_and_models(format, model, message, tmp_path):
    with pytest.raises(UserError, match=message):
        pretrained.load(tmp_path / "w.safetensors", format, model)


def test_files_that_are_not_what_they_say(tmp_path):
    def refused(name, format, model, message):
        with pytest.raises(UserError, match=message):
            pretrained.load(tmp_path / name, format, model)

    refused("w.safetensors", "torchvision", "resnet:18", "expected a file, found none")
    refused("w.safetensors", "keras", "resnet:50", r"expected a file named \*\.h5")
    refused("w.h5", "torchvision", "resnet:18", r"expected a file named \*\.safetensors")
    for name, format, model in (("bad.safetensors", "torchvision", "resnet:18"), ("bad.h5", "keras", "resnet:50")):
        (tmp_path / name).write_bytes(b"not weights at all, and too short")
        refused(name, format, model, "expected a readable")
    with pytest.raises(UserError, match="expected a file named"):
        pretrained.save(tmp_path / "w.npz", "torchvision", *small())
    with pytest.raises(UserError, match="expected a file named"):
        files.write(tmp_path / "w.npz", {})


def small():
    """A network of torchvision's and its trees, all zeros."""
    network = pretrained.network_of("torchvision", "resnet:18")
    module = nnx.eval_shape(lambda: models.create(network, (224, 224, 3), 7, jax.random.key(0)))
    _, *states = nnx.split(module, nnx.Param, nnx.BatchStat)
    return network, *(jax.tree.map(lambda leaf: np.zeros(leaf.shape), nnx.to_pure_dict(state)) for state in states)


def test_arrays_that_are_not_exactly_the_network_s_are_not_written():
    network, params, stats = small()
    with pytest.raises(UserError, match=r"params: expected the \d+ arrays of resnet, but bn1.mean is missing"):
        pretrained.to_tensors("torchvision", network, params)
    with pytest.raises(UserError, match="extra.kernel is unknown"):
        pretrained.to_tensors("torchvision", network, params | {"extra": {"kernel": np.zeros(3)}}, stats)
    params["conv1"]["kernel"] = np.zeros((3, 3, 3, 64))
    with pytest.raises(UserError, match=r"conv1.kernel is \(3, 3, 3, 64\) for \(7, 7, 3, 64\)"):
        pretrained.to_tensors("torchvision", network, params, stats)


def test_keras_weights_without_names_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file.create_dataset("layers/conv2d/vars/0", data=np.zeros(3))
    with pytest.raises(UserError, match="drops the names"):
        pretrained.load(tmp_path / "model.weights.h5", "keras", "resnet:50")


def test_keras_files_of_whole_models_and_of_either_version(tmp_path):
    h5py = pytest.importorskip("h5py")
    tensors = {"conv1_conv/kernel": np.arange(6.0), "conv1_conv/bias": np.arange(2.0), "conv1_bn/gamma": np.ones(2)}
    files.write(tmp_path / "weights.h5", tensors)
    with h5py.File(tmp_path / "model.h5", "w") as model:  # Keras 3: below model_weights, names without ':0'.
        root = model.create_group("model_weights")
        root.attrs["layer_names"] = ["conv1_conv", "conv1_bn", "pool"]
        for layer in ("conv1_conv", "conv1_bn", "pool"):
            names = [name for name in tensors if name.startswith(layer)]
            root.create_group(layer).attrs["weight_names"] = names
            for name in names:
                root[layer].create_dataset(name, data=tensors[name])
    for name in ("weights.h5", "model.h5"):
        read = files.read(tmp_path / name)
        assert read.keys() == tensors.keys()
        for key, array in tensors.items():
            np.testing.assert_array_equal(read[key], array)


def test_pickles_need_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"\.pth files need torch, which is not installed"):
        pretrained.load(tmp_path / "w.pth", "torchvision", "resnet:18")
    with pytest.raises(UserError, match="need torch"):
        pretrained.save(tmp_path / "new.pth", "torchvision", *small())


def test_pickles_where_torch_is(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    files.write(tmp_path / "w.pth", tensors)
    np.testing.assert_array_equal(files.read(tmp_path / "w.pth")["a.weight"], tensors["a.weight"])
    torch.save({"state_dict": {"a.weight": torch.ones(2, dtype=torch.bfloat16)}}, tmp_path / "nested.pth")
    np.testing.assert_array_equal(files.read(tmp_path / "nested.pth")["a.weight"].astype(np.float32), [1, 1])
    torch.save({"a.weight": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="expected a dictionary of tensors"):
        files.read(tmp_path / "other.pth")
