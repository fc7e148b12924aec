"""The studies of AlexNet's figures 3 and 4, of feature maps and of AlexNet beside ResNet, at a tiny budget."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.data.examples import Examples
from alexnet_resnet.errors import UserError
from experiments import alexnet_feature_maps, alexnet_figure3, alexnet_figure4, alexnet_or_resnet
from experiments.study import command, networks, plan
from experiments.study.plan import Budget, Settings

SIDE, CLASSES = 67, 4
SMALL = (
    *("model.width=0.0625", "data.dataset=npz", "data.loader=resident", "data.num_classes=4", "data.mean_examples=0"),
    *(f"data.canvas_size={SIDE + 1}", f"data.image_size={SIDE}", "train.batch_size=8", "evaluation.batch_size=8"),
    *("data.lighting=none", "log.every=1 steps", "log.tensorboard=False"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures of four colours under noise, of which the last class has no training images."""
    random, arrays = np.random.default_rng(0), {}
    colours = random.integers(40, 200, (CLASSES, 1, 1, 3))
    for split, count, classes in (("train", 24, CLASSES - 1), ("validation", 16, CLASSES)):
        labels = np.arange(count) % classes
        noise = random.integers(-40, 41, (count, SIDE, SIDE, 3))
        arrays |= {f"{split}_images": (colours[labels] + noise).astype(np.uint8), f"{split}_labels": labels}
    path = tmp_path_factory.mktemp("images") / "colours.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return str(tmp_path_factory.mktemp("studies"))


def perform(study, out, data_dir="", changes=(), collect=False, only=(), **options):
    """A study's record, what it said, and the folder of its report."""
    given = study.default_options() | options
    said, settings = [], Settings(out, "", Budget("2 steps"), 0, data_dir, only=only, options=given)
    if changes:
        settings = dataclasses.replace(settings, changes=plan.parse_changes(changes, study.runs(given)))
    record = command.perform(study, settings, collect, said.append)
    folder = os.path.join(out, study.name)
    check_report(record, folder)
    return record, "\n".join(said), folder


def check_report(record, folder):
    with open(os.path.join(folder, "result.json")) as file:
        assert json.load(file) == json.loads(json.dumps(record))
    with open(os.path.join(folder, "table.md")) as file:
        text = file.read()
    for row in record["rows"]:
        assert f"| {row['what']} | {row['measure']} |" in text
    for name in record["figures"]:
        assert f"]({name})" in text and Image.open(os.path.join(folder, name)).width > 500


def ours(record, measure):
    return {row["what"]: row["ours"] for row in record["rows"] if row["measure"] == measure}


@pytest.fixture(scope="module")
def figure3(images, out):
    """The study that trains the network which the others look into."""
    return perform(alexnet_figure3.STUDY, out, images, SMALL)


@pytest.fixture(scope="module")
def workdir(figure3, out):
    return os.path.join(out, "trainings", "2_steps", "alexnet-as_run+schedule_2012-seed0")


def test_figure_3_compares_the_columns_of_what_it_trained(figure3, workdir):
    from alexnet_resnet.analysis import kernels
    from alexnet_resnet.evaluation import prediction

    record, said, _ = figure3
    assert [run["budget"] for run in record["runs"]] == ["2 steps of 91 epochs"]
    classifier = prediction.from_workdir(workdir)
    first, second = np.split(kernels.chromatic_share(kernels.of(classifier)), 2)
    medians = ours(record, "median colour share")
    assert list(medians.values()) == [np.median(first), np.median(second)]
    (probability,) = ours(record, "probability of more colour").values()
    assert probability == np.mean(second[:, None] > first)
    (difference,) = ours(record, "difference of medians").values()
    assert difference == np.median(second) - np.median(first)
    (p_value,) = ours(record, "p-value (permutation)").values()
    assert 0 < p_value <= 1 and "the paper: colour-agnostic" in said


def test_a_second_network_is_drawn_below(figure3, workdir, tmp_path):
    record, _, folder = perform(
        alexnet_figure3.STUDY, str(tmp_path), workdir=workdir, second_workdir=workdir, second_checkpoint="2"
    )
    assert [row["ours"] for row in record["rows"]] == 2 * [row["ours"] for row in figure3[0]["rows"]]
    one, both = (Image.open(os.path.join(f, "figure3.png")) for f in (figure3[2], folder))
    assert both.height > 1.8 * one.height and record["runs"] == []


@pytest.fixture
def one_column(monkeypatch, workdir):
    """Published weights, for which the small network stands in; it is called a ResNet of one column."""
    from alexnet_resnet.evaluation import prediction

    def load(path, weights_format, model):
        found = prediction.from_workdir(workdir)
        return dataclasses.replace(found, network=found.network | dict(name="resnet", depth=50, columns=1))

    monkeypatch.setattr(prediction, "from_weights", load)


@pytest.fixture
def weights(one_column, tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"")
    return dict(weights=str(path), weights_format="keras", model="resnet:50")


def test_one_column_has_nothing_to_compare_and_the_claim_stays_open(weights, tmp_path):
    record, said, _ = perform(alexnet_figure3.STUDY, str(tmp_path), **weights)
    medians = ours(record, "median colour share")
    assert medians.pop("all kernels of ResNet-50 (keras weights)") is not None
    assert len(medians) == 2 and set(medians.values()) == {None} and "one column of 6 kernels" in said


def test_without_a_network_the_claims_stand_in_the_table(out, tmp_path):
    for study in (alexnet_figure3.STUDY, alexnet_figure4.STUDY, alexnet_feature_maps.STUDY):
        record, _, _ = perform(study, str(tmp_path), collect=True)
        assert record["rows"] and all(row["ours"] is None for row in record["rows"])
        assert record["figures"] == [] and record["not_run"] == ["AlexNet as run"]


def test_figure_4_counts_labels_and_neighbours(workdir, images, tmp_path):
    from alexnet_resnet.evaluation import prediction

    record, said, _ = perform(alexnet_figure4.STUDY, str(tmp_path), workdir=workdir, training_images=12)
    assert record["figures"] == ["figure4_labels.png", "figure4_nearest.png"]
    # Five of four classes: always right.
    assert set(ours(record, "true class among the top 5 (%)").values()) == {100}
    classifier = prediction.from_workdir(workdir)
    with np.load(images) as arrays:
        pictures, labels = (
            [arrays[f"{split}_{what}"] for split in ("validation", "train")] for what in ("images", "labels")
        )
    training = classifier.activations(pictures[1][::2], ["fc7"])["fc7"].astype(np.float64)
    distances = np.linalg.norm(classifier.activations(pictures[0], ["fc7"])["fc7"][:, None] - training, axis=-1)
    same = labels[1][::2][np.argsort(distances, kind="stable")[:, :6]] == labels[0][:, None]
    shares = ours(record, "of the test image's class (%)")
    assert shares["6 nearest by fc7"] == pytest.approx(100 * same.mean())
    # Four training images of each of three classes, and four classes of test images.
    assert shares["any of 12 of train, at random"] == pytest.approx(25)
    assert "12 of 16 test images have training images of their class" in said


def test_figures_that_are_passed_on_have_no_photographs(workdir, tmp_path):
    record, _, _ = perform(
        alexnet_figure4.STUDY, str(tmp_path), workdir=workdir, images=4, training_images=6, photographs=False
    )
    assert any("mean colour" in note for note in record["notes"])
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    named = SimpleNamespace(classifier=SimpleNamespace(channels=3, label_names=("cat",)))
    examples = Examples(picture[None], np.zeros(1, np.int32), ("cat",), "one")
    with_, without = (alexnet_figure4._thumbnail(named, examples, 0, drawn) for drawn in (True, False))
    assert with_.name == without.name == "cat" and with_.picture.shape == without.picture.shape == (6, 6, 3)
    assert np.unique(without.picture.reshape(-1, 3), axis=0).shape == (1, 3)
    np.testing.assert_allclose(without.picture[0, 0], with_.picture.mean((0, 1)), atol=0.5)


def test_published_weights_look_at_a_folder_by_the_layer_that_is_named(weights, images, tmp_path):
    with np.load(images) as arrays:
        for split in ("train", "validation"):
            pairs = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)
            for number, (image, label) in enumerate(pairs):
                # A class without training images has a folder in 'train' all the same.
                label = 3 if split == "train" and number == 0 else label
                folder = tmp_path / "photographs" / split / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{number}.png")
    given = weights | dict(dataset="folder", layer="conv1", images=5)
    record, said, _ = perform(alexnet_figure4.STUDY, str(tmp_path), str(tmp_path / "photographs"), **given)
    assert "6 nearest by conv1" in said and "5 images of validation" in said and "any of 24 of train" in said
    assert record["options"]["dataset"] == "folder"


def test_images_of_published_weights_are_looked_for_before_the_weights_are_read(tmp_path, monkeypatch):
    from alexnet_resnet.evaluation import prediction

    monkeypatch.setattr(prediction, "from_weights", None)
    (tmp_path / "weights.h5").touch()
    weights = dict(weights=str(tmp_path / "weights.h5"), weights_format="keras", model="resnet:50")
    with pytest.raises(UserError, match="data_dir='.*nowhere'"):
        perform(alexnet_figure4.STUDY, str(tmp_path / "out"), str(tmp_path / "nowhere"), **weights, dataset="folder")
    with pytest.raises(UserError, match="data.dataset='imagenet2012'"):
        perform(alexnet_figure4.STUDY, str(tmp_path / "out"), str(tmp_path), **weights)


def test_what_a_network_is_asked_about_is_its_own_data_or_what_is_named(workdir, images):
    def data(dataset="", data_dir="", **options):
        given = alexnet_figure4.STUDY.default_options() | options
        return networks.data_of(Settings("out", data_dir=data_dir, options=given), dataset)

    own = data(workdir=workdir)
    assert (own.dataset, own.data_dir, own.num_classes) == ("npz", images, 4)
    assert data("npz", "elsewhere", workdir=workdir).data_dir == "elsewhere"
    other = data("folder", workdir=workdir)
    # Where the run's images are there is no folder of images.
    assert (other.dataset, other.data_dir, other.num_classes) == ("folder", "", 0)
    weights = data(weights="w.h5", weights_format="keras", model="resnet:50")
    assert (weights.dataset, weights.validation_split, weights.channels) == ("imagenet2012", "validation", 3)
    assert data("prepared", weights="w.h5", weights_format="keras", model="resnet:50").canvas_size == 256


def test_the_shown_are_of_classes_that_training_images_have():
    def seen(labels):
        return alexnet_figure4.Seen(np.arange(len(labels)), np.array(labels), None, ())

    left, right = alexnet_figure4.choose(seen([9] * 20 + [1] * 20), seen([1, 1]), 0)
    assert len(left) == 8 and len(right) == 5 and (right >= 20).all() and not set(left) & set(right)
    left, right = alexnet_figure4.choose(seen([1, 2]), seen([3]), 0)
    assert sorted(left) == sorted(right) == [0, 1]


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    from alexnet_resnet.data.examples import EncodedExamples, InMemory

    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    store = InMemory([(tmp_path / "a.png").read_bytes(), b"no image"], [1, 0])
    found = list(alexnet_figure4.read(EncodedExamples(store, range(2), ("a", "b"), "x"), [0, 1], 3))
    assert len(found) == 1 and found[0][0] == 0 and found[0][2] == 1 and found[0][1].shape == (6, 8, 3)


def test_other_classes_than_the_network_s_are_refused(workdir, images, tmp_path):
    with np.load(images) as arrays:
        np.savez(tmp_path / "other.npz", **arrays, label_names=list("abcd"))
    with pytest.raises(UserError, match=r"(colours|other)\.npz validation: expected the 4 classes of AlexNet"):
        perform(alexnet_figure4.STUDY, str(tmp_path), str(tmp_path / "other.npz"), workdir=workdir)


def test_feature_maps_show_every_layer(workdir, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(tmp_path / "own.png")
    record, said, _ = perform(
        alexnet_feature_maps.STUDY, str(tmp_path), workdir=workdir, image=str(tmp_path / "own.png"), maps=4
    )
    shares = ours(record, "values above zero (%)")
    assert tuple(shares) == alexnet_feature_maps.LAYERS and "most probable" in said
    assert all(0 <= share <= 100 for share in shares.values())
    record, said, _ = perform(alexnet_feature_maps.STUDY, str(tmp_path), workdir=workdir, layers="conv5,fc6")
    assert list(ours(record, "values above zero (%)")) == ["conv5", "fc6"] and "china.jpg" in said


TINY = ("data.dataset=npz", "data.loader=resident", "data.num_classes=4", "train.batch_size=8", "log.every=1 steps")


def test_alexnet_beside_resnet(shapes_npz, tmp_path, monkeypatch):
    changes = (*TINY, "data.canvas_size=10", "data.image_size=8", "evaluation.batch_size=16", "log.tensorboard=False")
    # What was not trained stands beside what was, with the paper's error.
    monkeypatch.setitem(alexnet_or_resnet.NETS, "cifar10", alexnet_or_resnet.NETS["cifar10"][:3])
    record, said, _ = perform(alexnet_or_resnet.STUDY, str(tmp_path), str(shapes_npz), changes, only=("18pct",))
    (run,) = record["runs"]
    assert record["not_run"] == ["11pct", "ResNet-20"]
    trained, _, other = record["rows"][:3]
    assert (trained["what"], trained["paper"], trained["budget"]) == ("18pct", 18.0, "2 steps of 140 epochs")
    assert (other["what"], other["paper"], other["ours"]) == ("ResNet-20", 8.75, None)
    low, high = trained["interval"]
    assert 0 <= low <= trained["ours"] <= high <= 100 and "nine views" in said
    assert ours(record, "parameters (million)")["18pct"] == run["parameters"] / 1e6
    assert ours(record, "training, images/s") == {
        "18pct": run["images_per_second"],
        "11pct": None,
        "ResNet-20": None,
    }


def test_costs_of_imagenet_s_nets_are_counted_without_training(tmp_path):
    record, _, _ = perform(alexnet_or_resnet.STUDY, str(tmp_path), collect=True, data="imagenet2012")
    parameters, work = ours(record, "parameters (million)"), ours(record, "multiply-adds an image (million)")
    # The counts of docs and papers, of which each was recomputed independently.
    assert parameters["AlexNet as run"] == 60.965224 and work["AlexNet as run"] == 724.406816
    assert parameters["VGG-16"] == 138.357544 and parameters["ResNet-50"] == 25.557032
    errors = list(ours(record, "top-1 error (%), ten views").values())
    assert errors == 5 * [None]


@pytest.mark.parametrize("study", [alexnet_figure3, alexnet_figure4, alexnet_feature_maps, alexnet_or_resnet])
def test_a_dry_run_needs_no_data(study, tmp_path):
    study = study.STUDY
    settings = Settings(str(tmp_path), data_dir=str(tmp_path / "none"), options=study.default_options())
    lines = command.announce(study, settings)
    assert any("steps" in line for line in lines) and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("study", "options", "message"),
    [
        (alexnet_figure3, dict(workdir="a", weights="b"), "--workdir='a' and --weights='b': expected one of them"),
        (alexnet_figure3, dict(weights="b", model="resnet:50"), "--weights='b': expected --weights_format with it"),
        (alexnet_figure3, dict(second_model="resnet:50"), "--second_model='resnet:50': expected --second_weights"),
        (alexnet_figure4, dict(weights="b", weights_format="keras"), "--weights='b': expected --model with it"),
        (alexnet_figure4, dict(weights_format="keras"), "--weights_format='keras': expected --weights with it"),
        (alexnet_figure4, dict(checkpoint="best"), "--checkpoint='best': expected --workdir with it"),
        (alexnet_figure4, dict(weights="b", weights_format="x", model="y"), "weights_format='x': expected one of"),
        (alexnet_figure4, dict(images=-1), "--images=-1: expected a number of at least 0"),
        (alexnet_figure4, dict(workdir="none"), "workdir='none'"),
        (alexnet_feature_maps, dict(weights="b", weights_format="keras", model="resnet:50"), "a file that exists"),
        (alexnet_feature_maps, dict(maps=0), "--maps=0: expected a number of at least 1"),
        (alexnet_figure4, dict(layer="fc9"), "--layer='fc9': expected a layer of AlexNet, one of conv1, .* mean 'fc8'"),
        (alexnet_figure4, dict(dataset="folder"), "--dataset='folder': expected --workdir or --weights with it"),
        (alexnet_feature_maps, dict(layers="conv1,norm9"), "--layers='norm9': expected a layer of AlexNet, one of"),
        (alexnet_feature_maps, dict(image=__file__), "--image=.*not an image that can be read"),
        (alexnet_or_resnet, dict(data="cifar100"), "--data='cifar100': expected one of 'cifar10', 'imagenet2012'"),
    ],
)
def test_contradictions_are_refused_before_anything_is_trained(study, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        perform(study.STUDY, str(tmp_path / "out"), **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("study", [alexnet_figure4, alexnet_feature_maps])
def test_a_layer_that_the_network_lacks_is_refused_before_the_network_is_opened(study, workdir, tmp_path, monkeypatch):
    from alexnet_resnet.evaluation import prediction

    monkeypatch.setattr(prediction, "from_workdir", None)
    options = {"layer": "fc9"} if study is alexnet_figure4 else {"layers": "conv1,fc9"}
    with pytest.raises(UserError, match="--layers?='fc9': expected a layer of AlexNet"):
        perform(study.STUDY, str(tmp_path), workdir=workdir, **options)
    settings = Settings(str(tmp_path), options=study.STUDY.default_options() | options)
    with pytest.raises(UserError, match="'fc9'"):
        command.announce(study.STUDY, settings)


def test_layers_inside_of_blocks_are_layers_too(tmp_path):
    (tmp_path / "w.h5").touch()
    given = dict(weights=str(tmp_path / "w.h5"), weights_format="keras", model="resnet:50")
    settings = Settings("out", options=alexnet_feature_maps.STUDY.default_options() | given)
    known = networks.layers(networks.config_of(settings))
    networks.check_layer("layer", "stage1/0/conv1", known, "ResNet-50")
    with pytest.raises(UserError, match="a layer of ResNet-50, one of conv1, .*, or one inside of a block"):
        networks.check_layer("layer", "stage9", known, "ResNet-50")


@pytest.mark.parametrize("field", ["split", "train_split"])
def test_splits_are_looked_for_before_the_training(field, images, tmp_path):
    with pytest.raises(UserError, match=f"--{field}='tset'"):
        perform(alexnet_figure4.STUDY, str(tmp_path), images, SMALL, **{field: "tset"})
    assert not (tmp_path / "trainings").exists()


def test_a_second_network_is_looked_for_before_the_first_is_trained(workdir, tmp_path):
    with pytest.raises(UserError, match="checkpoint='77': expected one of 'last', 'best', '2'"):
        perform(alexnet_figure3.STUDY, str(tmp_path / "out"), second_workdir=workdir, second_checkpoint="77")
    grey = shutil.copytree(workdir, tmp_path / "grey")
    config = json.loads((grey / "config.json").read_text())
    config["data"]["channels"] = 1
    (grey / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="--second_workdir=.*: expected a network of RGB pictures, found 1 channel"):
        perform(alexnet_figure3.STUDY, str(tmp_path / "out"), second_workdir=str(grey))
    assert not (tmp_path / "out").exists()
