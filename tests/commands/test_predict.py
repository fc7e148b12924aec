"""The predict command: right classes from a run's network and from other people's weights, and what it refuses."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet import models, pretrained
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import prediction
from alexnet_resnet.training import loop


@pytest.fixture(scope="module")
def run(short_runs, shapes_npz, tmp_path_factory):
    """A network that has learnt the four bright corners."""
    config = config_lib.default("resnet_cifar")
    config.model.update(depth=8, width=0.5)
    config.data.update(dataset="npz", data_dir=str(shapes_npz), num_classes=4, canvas_size=10, image_size=8)
    config.data.random_crop = True
    config.train.update(batch_size=16, duration="60 steps")
    config.optimizer.learning_rate = 0.05
    config.evaluation.update(every="60 steps", batch_size=16)
    workdir = tmp_path_factory.mktemp("runs") / "run"
    final = loop.train(config, str(workdir))
    assert final["test/error"] < 0.05
    return workdir


@pytest.fixture
def pictures(tmp_path):
    """Enlarged pictures of a bright corner each, and a file that is none."""
    for label in range(4):
        image = np.full((80, 80, 3), 30, np.uint8)
        top, left = 40 * (label // 2), 40 * (label % 2)
        image[top : top + 40, left : left + 40] += 150
        Image.fromarray(image).save(tmp_path / f"corner{label}.png")
    return tmp_path


def test_a_run_s_network_tells_the_corners_apart(run, pictures, command):
    result = command("predict", str(pictures), f"--workdir={run}", "--json")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["file"] for row in rows] == [str(pictures / f"corner{label}.png") for label in range(4)]
    assert [row["top5"][0]["class_index"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        probabilities = [entry["probability"] for entry in row["top5"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert set(row["top5"][0]) == {"class_index", "label", "probability"}


def test_a_broken_picture_is_named_and_skipped_and_the_figure_drawn(run, pictures, command):
    (pictures / "broken.jpg").write_bytes(b"no picture")
    names = pictures / "names.txt"
    names.write_text("north west\nnorth east\nsouth west\nsouth east\n")
    figure = pictures / "out.png"
    result = command("predict", str(pictures / "*.*g"), f"--workdir={run}", f"--labels={names}", f"--figure={figure}")
    assert result.returncode == 1
    assert "skipped" in result.stderr and "broken.jpg" in result.stderr and "1 of 5 files" in result.stderr
    assert "corner3.png\n  south east" in result.stdout
    assert Image.open(figure).size[0] > 300


def test_the_view_of_a_picture_is_the_pipeline_s(run, shapes_npz):
    """The test images, saved as files of their own size, get the logits that the evaluation gives them."""
    arrays = np.load(shapes_npz)
    classifier = prediction.from_workdir(str(run))
    probabilities = classifier.probabilities(list(arrays["test_images"]))
    assert (probabilities.argmax(1) == arrays["test_labels"]).mean() > 0.95
    for picture in arrays["test_images"][:3]:
        np.testing.assert_array_equal(classifier.view(picture), picture)


def test_probabilities_do_not_depend_on_how_pictures_are_batched(run, shapes_npz):
    pictures = list(np.load(shapes_npz)["test_images"])
    classifier = prediction.from_workdir(str(run))
    together = classifier.probabilities(pictures)
    assert together.shape == (27, 4)
    np.testing.assert_allclose(together[20], classifier.probabilities(pictures[20:21])[0], rtol=1e-4, atol=1e-6)


def test_a_run_s_network_gives_its_activations_too(run, shapes_npz):
    pictures = list(np.load(shapes_npz)["test_images"])
    classifier = prediction.from_workdir(str(run))
    assert classifier.network["depth"] == 8 and classifier.network["shortcut"] == "A" and classifier.columns == 1
    named = classifier.activations(pictures, ["fc", "pool"])
    assert named["pool"].shape == (27, *classifier.activation_shapes["pool"]) and named["pool"].dtype == np.float32
    weights = {name: np.asarray(array, np.float64) for name, array in classifier.params["fc"].items()}
    logits = named["pool"].astype(np.float64) @ weights["kernel"] + weights["bias"]
    np.testing.assert_allclose(named["fc"], logits, rtol=1e-4, atol=1e-4)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(pictures), expected, rtol=1e-3, atol=1e-6)


def test_other_people_s_weights_see_what_they_were_trained_to_see(tmp_path):
    network = pretrained.network_of("torchvision", "resnet:18")
    import flax.nnx as nnx

    module = nnx.jit(lambda: models.create(network, (224, 224, 3), 1000, jax.random.key(0)))()
    _, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    path = tmp_path / "weights.safetensors"
    pretrained.save(path, "torchvision", network, nnx.to_pure_dict(params), nnx.to_pure_dict(stats))
    classifier = prediction.from_weights(str(path), "torchvision", "resnet:18")
    picture = np.random.default_rng(0).integers(0, 256, (256, 300, 3)).astype(np.uint8)
    (row,) = classifier.probabilities([picture])
    crop = picture[16:240, 38:262]  # the shorter side is 256 already
    x = (crop / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    logits = np.asarray(nnx.jit(lambda m, x: m(x))(module, x[None].astype(np.float32)), np.float64)[0]
    expected = np.exp(logits - logits.max())
    np.testing.assert_allclose(row, expected / expected.sum(), rtol=2e-3, atol=1e-7)
    assert classifier.label_names[207] == "golden retriever"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no pictures: expected files"),
        (["x.jpg"], "expected either --workdir=DIR or --weights=FILE"),
        (["x.jpg", "--workdir=a", "--weights=b"], "expected either --workdir=DIR or --weights=FILE"),
        (["missing.jpg", "--workdir=a"], "image 'missing.jpg': expected a file"),
        (["README.md", "--workdir=nowhere"], "workdir='nowhere': expected the folder of a run"),
        (["README.md", "--weights=a.h5"], "--weights_format is missing"),
        (["README.md", "--weights=a.h5", "--weights_format=keras"], "--model is missing"),
        (["README.md", "--weights=a.h5", "--weights_format=keras", "--model=resnet:51"], "resnet:51"),
        (["README.md", "--weights=a.h5", "--weights_format=keras", "--model=resnet:50"], "a.h5"),
    ],
)
def test_what_is_missing_is_said_in_one_line(flags, message, command):
    result = command("predict", *flags)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_labels_of_another_number_are_refused(run, tmp_path):
    (tmp_path / "names.txt").write_text("one\n")
    with pytest.raises(UserError, match="expected 4 names"):
        prediction.with_labels(prediction.from_workdir(str(run)), str(tmp_path / "names.txt"))
