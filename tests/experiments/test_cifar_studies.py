"""The studies on CIFAR-10, each to its end on a dataset that is learnt at once; they share one folder of trainings."""

import dataclasses
import importlib

import numpy as np
import pytest

from alexnet_resnet.analysis import gradients
from alexnet_resnet.errors import UserError
from experiments import alexnet_figure1, resnet_gradients, resnet_table6
from experiments.study import Budget, Settings, command, plan
from experiments.study.report import NOT_RUN, RESULT, TABLE

CHANGES = {
    "data.dataset": "npz",
    "data.num_classes": 4,
    "data.image_size": 8,
    "data.canvas_size": 10,
    "train.batch_size": 16,
    "evaluation.batch_size": 16,
    "log.every": "1 steps",
    "log.tensorboard": False,
}


@pytest.fixture(scope="module")
def perform(tmp_path_factory, shapes_npz):
    """Runs a study by name at a tiny budget: its record, its folder and what it said."""
    out = tmp_path_factory.mktemp("studies")

    def perform(name, budget="2 steps", collect=False, out=out, **options):
        study = importlib.import_module(f"experiments.{name}").STUDY
        options = study.default_options() | options
        small = CHANGES | ({"model.width": 0.25} if name.startswith("resnet") else {})
        changes = plan.parse_changes([f"{field}={value}" for field, value in small.items()], study.runs(options))
        settings = Settings(str(out), budget=Budget(budget), data_dir=str(shapes_npz), changes=changes, options=options)
        said = []
        record = command.perform(study, settings, collect=collect, say=said.append)
        return record, out / name, "\n".join(said)

    return perform


def check(record, folder, *figures):
    assert (folder / RESULT).exists() and (folder / TABLE).read_text().count("\n| ") == len(record["rows"]) + 1
    assert record["figures"] == list(figures) and all((folder / name).stat().st_size > 5000 for name in figures)
    return {(row["what"], row["measure"]): row for row in record["rows"]}


def test_figure_6(perform):
    record, folder, said = perform("resnet_figure6", depths="8,14")
    rows = check(record, folder, "figure6.png")
    labels = ["plain-8", "ResNet-8", "plain-14", "ResNet-14"]
    assert [run["label"] for run in record["runs"]] == labels
    errors = {label: rows[label, "test error (%)"]["ours"] for label in labels}
    assert all(0 <= error <= 100 for error in errors.values())
    assert rows["plain-14 less plain-8", "test error, points"]["ours"] == errors["plain-14"] - errors["plain-8"]
    assert "2 steps of 64,000 steps" in said and NOT_RUN not in said


def test_table_6_takes_what_figure_6_trained(perform, monkeypatch):
    perform("resnet_figure6", depths="8,14")
    monkeypatch.setattr("alexnet_resnet.training.loop.train", lambda *given: pytest.fail("trained again"))
    record, folder, _ = perform("resnet_table6", depths="8,14")
    rows = check(record, folder, "table6.png")
    papers = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
    assert {depth: rows[f"ResNet-{depth}", "test error (%)"]["paper"] for depth in papers} == papers
    assert rows["ResNet-110, mean over seeds", "test error (%)"]["paper"] == 6.61
    ours = {what for (what, _), row in rows.items() if row["ours"] is not None}
    assert ours == {"ResNet-8", "ResNet-14"}


def test_seeds_of_110_layers_are_a_mean_and_a_deviation(perform, monkeypatch):
    monkeypatch.setattr(resnet_table6, "MANY", 8)
    record, folder, _ = perform("resnet_table6", depths="8", seeds=3)
    rows = check(record, folder, "table6.png")
    errors = [run["error"] for run in record["runs"]]
    assert [run["seed"] for run in record["runs"]] == [0, 1, 2]
    mean = rows["ResNet-8, mean over seeds", "test error (%)"]
    np.testing.assert_allclose([mean["ours"], mean["spread"]], [np.mean(errors), np.std(errors, ddof=1)])
    assert rows["ResNet-8", "test error (%)"]["ours"] == min(errors)


def test_figure_7(perform):
    record, folder, _ = perform("resnet_figure7", depths="8,14", images=20)
    rows = check(record, folder, "figure7.png")
    measure = "mean standard deviation of a layer"
    means = {label: rows[label, measure]["ours"] for label in ("plain-8", "ResNet-8", "plain-14", "ResNet-14")}
    assert all(mean > 0 for mean in means.values())
    ratio = rows["ResNet-14 / plain-14", "residual against plain: ratio of the means"]["ours"]
    np.testing.assert_allclose(ratio, means["ResNet-14"] / means["plain-14"])


def test_gradients_by_block(perform):
    record, folder, _ = perform("resnet_gradients", "4 steps", depths="8", moments=2, batches=1)
    rows = check(record, folder, "gradients.png", "by_layer_initial.png", "by_layer_last.png")
    for name in ("resnet_cifar-8-beginning2-seed0", "resnet_cifar-8+plain-beginning2-seed0"):
        kept = (folder.parent / "trainings" / "4_steps" / name / "checkpoints").iterdir()
        assert sorted(int(path.name) for path in kept if path.name.isdecimal()) == [2, 4], "evenly"
    what = "gradient at the first block's output / at the last's"
    for label in ("plain-8", "ResNet-8"):
        assert rows[f"{label} at initialisation", what]["ours"] > 0
        assert rows[f"{label} after 4 steps", what]["ours"] > 0
    found = gradients.Gradients(kernels={}, relative={}, outputs={"a": 6.0, "b": 1.0, "c": 2.0}, loss=1.0)
    assert resnet_gradients.first_to_last(found) == 3.0


def test_a_run_that_diverged_is_named_and_looked_into_by_nobody(perform, monkeypatch, tmp_path):
    """It has evaluations and a checkpoint from before, which are no result."""
    from alexnet_resnet.training import loop
    from alexnet_resnet.training.reporting import Diverged

    train = loop.train

    def diverge(config, workdir):
        final = train(config, workdir)
        if config.model.residual:
            raise Diverged(7, "loss nan")
        return final

    monkeypatch.setattr(loop, "train", diverge)
    record, _, said = perform("resnet_figure6", "6 steps", out=tmp_path, depths="8")
    rows = {(row["what"], row["measure"]): row for row in record["rows"]}
    assert rows["ResNet-8", "test error (%)"]["ours"] is None and rows["plain-8", "test error (%)"]["ours"] is not None
    assert rows["ResNet-8", "test error (%)"]["missing"] == "diverged"
    assert "diverged (step " in rows["ResNet-8", "test error (%)"]["budget"] and "diverged" in said
    for study, options in (("resnet_figure7", dict(images=20)), ("resnet_table6", {})):
        record, _, said = perform(study, "6 steps", collect=True, out=tmp_path, depths="8", **options)
        missing = {row["what"]: row["missing"] for row in record["rows"] if row["ours"] is None}
        assert missing["ResNet-8"] == "diverged"


def test_figure_1(perform):
    record, folder, _ = perform("alexnet_figure1", "8 steps")
    rows = check(record, folder, "figure1.png")
    assert rows["tanh / ReLU", "ratio of epochs"]["paper"] == 6.0
    assert {rows[net, "epochs to 25% training error"]["budget"] for net in ("ReLU", "tanh")} == {
        "8 steps of 20 epochs",
        "8 steps of 60 epochs",
    }


def test_the_epoch_in_which_a_target_is_reached(monkeypatch):
    """Six reports an epoch: the mean over the last six must be at the target, not a single report."""

    @dataclasses.dataclass
    class One:
        workdir = "run"
        config = plan.full_config(plan.Run("x", "cuda_convnet.py:fig1_relu"))
        errors: list

        def rows(self):
            return [{"step": 10 * n, "train/error": error} for n, error in enumerate(self.errors, start=1)]

    monkeypatch.setattr(alexnet_figure1.workdir_lib, "read_dataset", lambda workdir: {"examples": 60 * 128})
    assert alexnet_figure1.reached(One([0.5] * 5 + [0.0] + [0.5] * 6)) is None
    assert alexnet_figure1.reached(One([0.5] * 6 + [0.0] * 6)) == 9 / 6
    assert alexnet_figure1.reached(One([0.2] * 3)) is None, "not before a whole epoch has passed"


def test_lrn_on_and_off(perform):
    record, folder, _ = perform("alexnet_lrn_cifar")
    rows = check(record, folder, "lrn.png")
    views = "test error (%), nine views"
    with_, without, published = (rows[label, views] for label in ("11pct (LRN)", "11pct without LRN", "13pct (no LRN)"))
    assert (with_["paper"], without["paper"], published["paper"]) == (11.0, None, 13.0)
    assert all(low <= row["ours"] <= high for row in (with_, without, published) for low, high in [row["interval"]])
    gain = rows["LRN, against 13pct (no LRN)", "difference in points"]
    assert gain["paper"] == -2.0
    np.testing.assert_allclose(gain["ours"], with_["ours"] - published["ours"])
    parameters = {run["label"]: run["parameters"] for run in record["runs"]}
    assert parameters["11pct (LRN)"] == parameters["11pct without LRN"] > parameters["13pct (no LRN)"]


@pytest.mark.parametrize(
    "name",
    ["alexnet_figure1", "alexnet_lrn_cifar", "resnet_figure6", "resnet_table6", "resnet_figure7", "resnet_gradients"],
)
def test_nothing_trained_is_a_table_that_says_so(name, perform, tmp_path):
    record, _, said = perform(name, collect=True, out=tmp_path)
    assert all(row["ours"] is None for row in record["rows"]) and record["runs"] == []
    assert said.count(NOT_RUN) == len(record["rows"]) > 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet_figure6", dict(depths="20,21"), "--depths='20,21'"),
        ("resnet_figure7", dict(depths="deep"), "--depths='deep'"),
        ("resnet_figure7", dict(images=0), "--images=0"),
        ("resnet_figure7", dict(images=28), "--images=28: expected at most 27, the images of shapes.npz test"),
        ("resnet_table6", dict(seeds=0), "--seeds=0"),
        ("resnet_gradients", dict(moments=0), "--moments=0"),
        ("resnet_gradients", dict(batches=0), "--batches=0"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, words, perform, tmp_path):
    with pytest.raises(UserError, match=words):
        perform(name, out=tmp_path, **options)
    assert not list(tmp_path.iterdir())
