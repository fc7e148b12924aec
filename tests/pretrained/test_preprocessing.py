"""What weights expect of their input."""

import json

import jax
import numpy as np
import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.pretrained import FORMATS, Preprocessing
from alexnet_resnet.pretrained.preprocessing import described_beside


def test_keras_takes_blue_first_and_the_caffe_mean_off():
    image = np.array([[[[10, 20, 30], [255, 0, 128]]]], np.uint8)
    expected = [[30 - 103.939, 20 - 116.779, 10 - 123.68], [128 - 103.939, 0 - 116.779, 255 - 123.68]]
    np.testing.assert_allclose(FORMATS["keras"].preprocessing(image)[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("format", ["torchvision", "timm", "huggingface"])
def test_torch_formats_normalise_red_first_in_0_to_1(format):
    image = np.array([[[[10, 20, 30]]]])
    expected = [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225]
    for typed in (image.astype(np.uint8), image.astype(np.float32)):
        np.testing.assert_allclose(jax.jit(FORMATS[format].preprocessing.__call__)(typed)[0, 0, 0], expected, rtol=1e-5)


def test_interpolation_is_the_formats():
    assert {name: format.preprocessing.interpolation for name, format in FORMATS.items()} == {
        "keras": "bilinear",
        "torchvision": "bilinear",
        "timm": "bilinear",
        "huggingface": "bicubic",
    }
    assert {(f.preprocessing.resize, f.preprocessing.crop) for f in FORMATS.values()} == {(256, 224)}


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 300), (301, 256)])
def test_an_image_of_the_right_size_is_only_cropped(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    np.testing.assert_array_equal(Preprocessing().view(image), image[top : top + 224, left : left + 224])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 900), (333, 257), (2000, 31)])
def test_views_have_one_size_and_keep_the_middle(height, width):
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 1] = 200
    view = Preprocessing().view(image)
    assert view.shape == (224, 224, 3)
    np.testing.assert_array_equal(view[0, 0], [0, 200, 0])


def test_timms_description_beside_the_weights_wins(tmp_path):
    described = dict(input_size=[3, 288, 288], crop_pct=0.9, interpolation="bicubic", mean=[0.5] * 3, std=[0.25] * 3)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50", "pretrained_cfg": described}))
    default = FORMATS["timm"].preprocessing
    found = described_beside(tmp_path / "w.safetensors", "config.json", default)
    assert found == Preprocessing(320, 288, "bicubic", "rgb", 255.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert described_beside(tmp_path / "elsewhere" / "w.safetensors", "config.json", default) == default
    # Keras and torchvision have no such file; one that lies there belongs to other weights.
    assert described_beside(tmp_path / "w.safetensors", FORMATS["keras"].description, default) == default
    assert described_beside(tmp_path / "w.safetensors", FORMATS["torchvision"].description, default) == default
    assert described_beside(tmp_path / "w.safetensors", FORMATS["huggingface"].description, default) == default


@pytest.mark.parametrize("size", [224, {"shortest_edge": 224}])
def test_hugging_faces_description_beside_the_weights_wins(size, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    described = dict(size=size, crop_pct=0.875, resample=2, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    huggingface = FORMATS["huggingface"]
    found = described_beside(tmp_path / "w.safetensors", huggingface.description, huggingface.preprocessing)
    assert found == Preprocessing(256, 224, "bilinear", "rgb", 255.0, (0.1, 0.1, 0.1), (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        '{"pretrained_cfg": {"mean": [0]}}',
        '{"pretrained_cfg": {"input_size": 3}}',
        '{"pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0}}',
        "[]",
    ],
)
def test_a_description_that_cannot_be_read_is_an_error(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="preprocessing=.*config.json"):
        described_beside(tmp_path / "w.safetensors", "config.json", Preprocessing())


def test_fields_out_of_range():
    with pytest.raises(UserError, match="preprocessing.interpolation='nearest'"):
        Preprocessing(interpolation="nearest")
    with pytest.raises(UserError, match="preprocessing.channels='grb'"):
        Preprocessing(channels="grb")
    with pytest.raises(UserError, match="preprocessing.resize=200: expected at least the crop's 224"):
        Preprocessing(resize=200)
