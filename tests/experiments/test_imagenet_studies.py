"""The studies on ImageNet: what they would train, and each from end to end on images and networks of a toy's size."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.analysis import curves
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import judging
from alexnet_resnet.models import resnet, vgg
from experiments import (
    alexnet_ablations,
    alexnet_norms,
    alexnet_table1,
    alexnet_table2,
    resnet_table2,
    resnet_table3,
    resnet_table4,
    resnet_table5,
)
from experiments.study import Outcome, Settings, Trained, command, estimate, imagenet, judged, plan
from experiments.study.plan import Budget

# What each study trains, and numbers that its table has to have, by their first cell and measure, from the papers.
TEN1, TEN5 = "top-1 error (%), ten views", "top-5 error (%), ten views"
MORE1, MORE5 = "top-1 error, ten views, points", "top-5 error, ten views, points"
FIVE1, FIVE5 = "top-1 error (%), five scales", "top-5 error (%), five scales"
# fmt: off
STUDIES = {
    alexnet_ablations: (
        9,
        {
            ("AlexNet", TEN1): 40.66, ("2x2 pooling", TEN1): 41.06,
            ("2x2 pooling", TEN5): 18.51, ("without normalisation", TEN1): 42.03,
            ("without normalisation", TEN5): 19.36, ("LRN (section 3.3): without normalisation", MORE1): 1.4,
            ("LRN (section 3.3): without normalisation", MORE5): 1.2,
            ("overlap (section 3.4): 2x2 pooling", MORE1): 0.4, ("overlap (section 3.4): 2x2 pooling", MORE5): 0.3,
            ("columns (section 3.2): one column", MORE1): 1.7, ("columns (section 3.2): one column", MORE5): 1.2,
            ("lighting (section 4.1): without lighting", MORE1): 1.0,
            ("dropout (section 4.2): without dropout", MORE1): None, ("conv3 (section 7): without conv3", MORE1): 2.0,
            ("conv4 (section 7): without conv4", MORE1): 2.0, ("conv5 (section 7): without conv5", MORE1): 2.0,
        },
    ),
    alexnet_norms: (
        4,
        {
            ("LRN as written", TEN1): None, ("LRN as run", TEN1): 40.66,
            ("batch normalisation", TEN1): None, ("none", TEN1): 42.03,
            ("LRN as run, against none", MORE1): -1.4,
        },
    ),
    alexnet_table1: (
        1,
        {
            ("sparse coding", "top-1 error (%)"): 47.1, ("sparse coding", "top-5 error (%)"): 28.2,
            ("SIFT + FVs", "top-1 error (%)"): 45.7, ("SIFT + FVs", "top-5 error (%)"): 25.7,
            ("CNN", TEN1): 37.5, ("CNN", TEN5): 17.0,
            ("CNN", "top-1 error (%), centre view"): 39.0, ("CNN", "top-5 error (%), centre view"): 18.3,
        },
    ),
    alexnet_table2: (
        7,
        {
            ("1 CNN", TEN1): 40.7, ("1 CNN", TEN5): 18.2,
            ("5 CNNs", TEN1): 38.1, ("5 CNNs", TEN5): 16.4,
            ("1 CNN*", TEN1): 39.0, ("1 CNN*", TEN5): 16.6,
            ("7 CNNs*", TEN1): 36.7, ("7 CNNs*", TEN5): 15.4,
        },
    ),
    resnet_table2: (
        4,
        {
            ("plain-18", TEN1): 27.94, ("plain-34", TEN1): 28.54,
            ("ResNet-18", TEN1): 27.88, ("ResNet-34", TEN1): 25.03,
            ("plain-34 less plain-18", MORE1): 0.60, ("ResNet-34 less ResNet-18", MORE1): -2.85,
        },
    ),
    resnet_table3: (
        8,
        {
            ("VGG-16", TEN1): 28.07, ("VGG-16", TEN5): 9.33,
            ("plain-34", TEN5): 10.02, ("ResNet-34 A", TEN5): 7.76,
            ("ResNet-34 B", TEN5): 7.46, ("ResNet-34 C", TEN5): 7.40,
            ("ResNet-50", TEN5): 6.71, ("ResNet-101", TEN5): 6.05,
            ("ResNet-152", TEN1): 21.43, ("ResNet-152", TEN5): 5.71,
            ("ResNet-50", "top-1 error (%), centre view"): 24.7,
        },
    ),
    resnet_table4: (
        5,
        {
            ("ResNet-34 B", FIVE1): 21.84, ("ResNet-34 C", FIVE1): 21.53,
            ("ResNet-50", FIVE1): 20.74, ("ResNet-101", FIVE1): 19.87,
            ("ResNet-152", FIVE1): 19.38, ("ResNet-152", FIVE5): 4.49,
        },
    ),
    resnet_table5: (6, {("six models", FIVE5): 3.57, ("ResNet-152", FIVE5): 4.49}),
}
# fmt: on
by_study = pytest.mark.parametrize("module", STUDIES, ids=lambda module: module.__name__.split(".")[-1])

CLASSES = 6
SMALL = {
    "data.num_classes": CLASSES,
    "data.mean_examples": 0,
    "train.batch_size": 8,
    "evaluation.batch_size": 8,
    "evaluation.every": "2 steps",
    "log.every": "1 step",
    "log.tensorboard": False,
    "model.width": 1 / 64,
}
# Arrays on the device, for which TensorFlow is not needed; the views of ResNet and several scales are of files.
ALEXNET = SMALL | {
    "data.dataset": "npz",
    "data.loader": "resident",
    "data.canvas_size": 76,
    "data.image_size": 72,
}
RESNET = SMALL | {
    "data.dataset": "folder",
    "data.canvas_size": 36,
    "data.image_size": 32,
    "data.scale_range": (36, 40),
    "evaluation.scales": (40,),
    "model.ghost_batch": 0,
}


@pytest.fixture(autouse=True, scope="module")
def shallow():
    """Networks of a block or two under the names of the papers', and no figures of single trainings: both take long."""
    with pytest.MonkeyPatch.context() as patch:
        stages = {depth: ((1, 1, 0, 0), bottleneck) for depth, (_, bottleneck) in resnet.IMAGENET_STAGES.items()}
        patch.setattr(resnet, "IMAGENET_STAGES", stages)
        patch.setattr(vgg, "STAGES", {16: (1, 1, 1, 1, 1)})
        patch.setattr(curves, "draw", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where all trainings lie, and a few images of each of six kinds, as files in folders and as arrays."""
    root, random, arrays = tmp_path_factory.mktemp("studies"), np.random.default_rng(0), {}
    for split, count in (("train", 2), ("validation", 1), ("test", 2)):
        labels = np.repeat(np.arange(CLASSES), count)
        images = (40 * labels[:, None, None, None] + random.integers(0, 40, (len(labels), 76, 76, 3))).astype(np.uint8)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / "photographs" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[:44, :44]).save(folder / f"{number}.JPEG")
    np.savez(root / "images.npz", **arrays)
    return root


def settings_for(module, place, only=(), changes=None, **options):
    return Settings(
        out=str(place / "out"),
        budget=Budget("2 steps"),
        data_dir=str(place / ("images.npz" if changes is ALEXNET else "photographs")),
        changes=changes or {},
        only=tuple(only),
        options=module.STUDY.default_options() | options,
    )


def perform(module, settings, collect=False):
    """The record of a study and what it printed; its files are looked at."""
    said = []
    record = command.perform(module.STUDY, settings, collect, said.append)
    folder = settings.report or f"{settings.out}/{module.STUDY.name}"
    for name in record["figures"]:
        assert Image.open(f"{folder}/{name}").width > 600
    with open(f"{folder}/result.json") as file:
        assert json.load(file)["rows"] == json.loads(json.dumps(record["rows"]))
    with open(f"{folder}/table.md") as file:
        table = file.read()
    assert record["figures"] and all(row["what"] in table for row in record["rows"])
    have_paper_numbers(module, record)
    return record, "\n".join(said)


def have_paper_numbers(module, record):
    found = {(row["what"], row["measure"]): row["paper"] for row in record["rows"]}
    for key, paper in STUDIES[module][1].items():
        assert found[key] == (paper if paper is None else pytest.approx(paper)), key


def ours(record):
    """Our numbers by what and measure; nothing that was not run."""
    return {(row["what"], row["measure"]): row["ours"] for row in record["rows"] if row["ours"] is not None}


def are_shares_of(record, images):
    """Every error that was measured is a number of images in so many."""
    for row in record["rows"]:
        if row["ours"] is not None and "(%), ten views" in row["measure"] and row["spread"] is None:
            wrong = row["ours"] / 100 * images
            assert abs(wrong - round(wrong)) < 1e-6 and f"{images} images" in row["note"]


@by_study
def test_a_dry_run_lists_every_training_without_data_at_hand(module, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setattr(estimate, "multiply_adds_per_second", lambda: 1e9)
    study = module.STUDY
    settings = Settings(out=str(tmp_path / "out"), options=study.default_options())
    lines = command.announce(study, settings)
    runs = study.runs(settings.options)
    assert len(runs) == STUDIES[module][0]
    assert len({settings.workdir(run) for run in runs}) == len({run.label for run in runs}) == len(runs)
    for run in runs:
        assert any(line.split("  ")[1] == run.label for line in lines if line.startswith("  "))
        assert any(f"--config=configs/{run.config} " in line for line in lines)
    assert not (tmp_path / "out").exists()


@by_study
def test_nothing_trained_is_a_table_of_the_papers_numbers(module, tmp_path):
    record, said = perform(module, settings_for(module, tmp_path), collect=True)
    assert ours(record) == {} and "not run" in said and record["training_seconds"] == 0


def test_a_training_that_two_studies_share_is_one():
    """Runs in one folder are of one configuration, over all studies, and those that should be shared are."""
    settings, folders = Settings(out="out"), {}
    for module in STUDIES:
        for run in module.STUDY.runs(module.STUDY.default_options()):
            folders.setdefault(settings.workdir(run), []).append((module, plan.resolve(run, settings).to_json()))
    for found in folders.values():
        assert len({config for _, config in found}) == 1
    shared = {tuple(module.STUDY.name for module, _ in found) for found in folders.values() if len(found) > 1}
    assert shared == {
        ("alexnet_ablations", "alexnet_norms"),
        ("alexnet_ablations", "alexnet_norms", "alexnet_table2"),
        ("resnet_table2", "resnet_table3"),
        ("resnet_table3", "resnet_table4", "resnet_table5"),
    }


def test_ablations_go_with_either_preset():
    for preset in ("as_run", "as_written"):
        options = {"preset": preset}
        alexnet_ablations.STUDY.check(options)
        models = {run.label: plan.full_config(run) for run in alexnet_ablations.runs(options)}
        assert models["without lighting"].data.lighting == "none"
        assert models["without lighting"].model == models["AlexNet"].model
        assert models["without conv4"].model.without == "conv4"
        assert models["without dropout"].model.dropout == 0
        assert {config.model.middle_init_std for config in models.values()} == {0.03 if preset == "as_run" else 0.01}
    with pytest.raises(UserError, match="as_ran"):
        alexnet_ablations.STUDY.check({"preset": "as_ran"})


def test_the_nets_of_the_norms_differ_in_their_norms_alone():
    configs = {run.label: dict(plan.config_lib.flatten(plan.full_config(run))) for run in alexnet_norms.runs({})}
    run = configs.pop("LRN as run")
    norms = {"model.lrn_alpha_over", "model.conv1_order", "model.conv2_second_norm", "model.norm"}
    for config in configs.values():
        assert {name for name in run if config[name] != run[name]} <= norms
    written = dict(plan.config_lib.flatten(plan.full_config(plan.Run("", "alexnet.py:as_written"))))
    assert all(configs["LRN as written"][name] == written[name] for name in norms)


def test_ablations_and_norms_from_end_to_end_with_trainings_in_common(place):
    settings = settings_for(alexnet_ablations, place, ("AlexNet", "without normalisation"), ALEXNET)
    record, _ = perform(alexnet_ablations, settings)
    found = ours(record)
    are_shares_of(record, CLASSES)
    part = "LRN (section 3.3): without normalisation"
    for k in (1, 5):
        measure = f"top-{k} error (%), ten views"
        more = found["without normalisation", measure] - found["AlexNet", measure]
        assert found[part, f"top-{k} error, ten views, points"] == pytest.approx(more)
    assert {what for what, _ in found} == {"AlexNet", "without normalisation", part}
    assert len(record["not_run"]) == 7 and "model.width=0.015625" in record["notes"][0]

    norms, said = perform(alexnet_norms, settings_for(alexnet_norms, place, ("LRN as run", "none"), ALEXNET))
    assert "] LRN as run: " not in said and "] none: " not in said
    same = {key: found["AlexNet" if key[0] == "LRN as run" else "without normalisation", key[1]] for key in ours(norms)
            if key[0] in ("LRN as run", "none")}  # fmt: skip
    assert len(same) == 8 and same.items() <= ours(norms).items()
    assert ours(norms)["LRN as run, against none", MORE1] == pytest.approx(-found[part, MORE1])


def test_table_1_is_of_the_test_split(place):
    (run,) = alexnet_table1.runs({})
    assert plan.full_config(run).data.dataset == "folder"
    record, _ = perform(alexnet_table1, settings_for(alexnet_table1, place, changes=ALEXNET))
    assert set(ours(record)) == {key for key in STUDIES[alexnet_table1][1] if key[0] == "CNN"}
    are_shares_of(record, 2 * CLASSES)
    assert all("npz test, 12 images" in row["note"] for row in record["rows"] if row["what"] == "CNN")


def test_table_2_of_the_members_that_there_are_names_how_many(place):
    record, said = perform(alexnet_table2, settings_for(alexnet_table2, place, ("CNN 1", "CNN 2"), ALEXNET))
    assert {what for what, _ in ours(record)} == {"1 CNN", "2 CNNs"}
    are_shares_of(record, CLASSES)
    (one,) = [row for row in record["rows"] if (row["what"], row["measure"]) == ("1 CNN", TEN1)]
    assert one["spread"] is not None and "mean of 2" in one["note"] and len(record["runs"]) == 2


def made_up(module, folder, only=(), **options):
    """A conclusion from trainings that were not: each network's errors are its place, and an ensemble's their mean."""
    settings = settings_for(module, folder, **options)
    runs = module.STUDY.runs(settings.options)
    trained = {
        run.label: Trained(run, run.label, plan.resolve(run, settings), {"step": 3}, {})
        for run in runs
        if not only or run.label in only
    }
    errors = {run.label: (10 + number, 1 + number) for number, run in enumerate(runs)}

    def judge(members, views):
        each = [row_of(*errors[one.run.label]) | {"views": views} for one in members]
        mean = np.mean([errors[one.run.label] for one in members], axis=0).tolist()
        return row_of(*mean) | dict(dataset="imagenet2012", split="validation", views=views, members=each)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged, "judge", judge)
        conclusion = module.conclude(Outcome(settings, tuple(runs), trained), str(folder))
    return {(row.what, row.measure): row for row in conclusion.rows}


def row_of(top1, top5):
    intervals = {f"top{k}_interval": (error / 100 - 0.01, error / 100 + 0.01) for k, error in ((1, top1), (5, top5))}
    return {"examples": 50_000, "top1_error": top1 / 100, "top5_error": top5 / 100, **intervals}


def test_table_2_is_of_five_networks_and_of_seven(tmp_path):
    rows = made_up(alexnet_table2, tmp_path)  # top-1 10 to 14, and 15, 16
    assert {what for what, _ in rows} == set(alexnet_table2.PAPER)
    assert {what: rows[what, TEN1].ours for what in alexnet_table2.PAPER} == pytest.approx(
        {"1 CNN": 12, "5 CNNs": 12, "1 CNN*": 15.5, "7 CNNs*": 13}
    )
    assert rows["7 CNNs*", TEN5].ours == pytest.approx(4)
    assert rows["1 CNN", TEN1].spread == pytest.approx(np.std(np.arange(5), ddof=1))
    assert all("without the paper's pre-training" in row.note for (what, _), row in rows.items() if "*" in what)
    some = made_up(alexnet_table2, tmp_path, ("CNN 1", "CNN 3", "CNN* 1"))
    assert some["5 CNNs", TEN1].ours is None and some["7 CNNs*", TEN1].ours is None
    assert (some["1 CNN*", TEN1].ours, some["1 CNN*", TEN1].spread) == (pytest.approx(15), None)
    assert some["2 CNNs", TEN1].ours == pytest.approx(11) and some["2 CNNs", TEN1].paper is None
    assert some["2 CNN and 1 CNN*", TEN1].ours == pytest.approx((10 + 12 + 15) / 3)


def test_table_5_is_of_six_networks(tmp_path):
    rows = made_up(resnet_table5, tmp_path)
    assert (
        rows["six models", FIVE5].ours == pytest.approx(3.5) and "ours on validation" in rows["six models", FIVE5].note
    )
    assert rows["six models", FIVE1].paper is None
    assert rows["ResNet-50", FIVE5].ours == pytest.approx(3) and rows["ResNet-50", FIVE5].paper == 5.25
    assert rows["ResNet-152 of another seed", FIVE1].ours == pytest.approx(15)
    some = made_up(resnet_table5, tmp_path, ("ResNet-50", "ResNet-152"))
    assert some["six models", FIVE5].ours is None
    assert some["2 of the six models", FIVE5].ours == pytest.approx(4)


def test_residual_tables_from_end_to_end_with_trainings_in_common(place):
    record, _ = perform(resnet_table2, settings_for(resnet_table2, place, ("ResNet-34",), RESNET))
    found = ours(record)
    assert {what for what, _ in found} == {"ResNet-34"}
    are_shares_of(record, CLASSES)

    settings = settings_for(resnet_table3, place, ("ResNet-34 A", "ResNet-34 B"), RESNET)
    record, said = perform(resnet_table3, settings)
    assert "] ResNet-34 A: " not in said and "] ResNet-34 B: " in said
    assert {what for what, _ in ours(record)} == {"ResNet-34 A", "ResNet-34 B"}
    assert ours(record)["ResNet-34 A", TEN1] == found["ResNet-34", TEN1]

    only = ("ResNet-34 B",)
    record, said = perform(resnet_table4, settings_for(resnet_table4, place, only, RESNET))
    assert set(ours(record)) == {("ResNet-34 B", FIVE1), ("ResNet-34 B", FIVE5)}
    again, more = perform(resnet_table5, settings_for(resnet_table5, place, only, RESNET))
    assert "] ResNet-34 B: " not in said + more and ours(again) == ours(record)


@pytest.mark.parametrize("module", [resnet_table4, resnet_table5])
def test_views_that_the_images_do_not_have_are_refused_before_the_training(module, place, tmp_path):
    settings = settings_for(module, place, ("ResNet-34 B",), RESNET | {"data.dataset": "npz", "data.canvas_size": 76})
    arrays = dataclasses.replace(settings, out=str(tmp_path), data_dir=str(place / "images.npz"))
    with pytest.raises(UserError, match="evaluation.views='multi_scale': expected .* for images.npz validation"):
        command.perform(module.STUDY, arrays)
    assert not (tmp_path / "trainings").exists()


@pytest.mark.parametrize("module", [alexnet_ablations, alexnet_table2, resnet_table4, resnet_table5])
def test_what_diverged_is_said_and_not_judged(module, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "judge", None)
    settings = settings_for(module, tmp_path)
    runs = module.STUDY.runs(settings.options)
    final = {"step": 3, "train/error": 0.75}
    one = Trained(runs[0], str(tmp_path), plan.resolve(runs[0], settings), final, {}, "step 3: loss nan")
    conclusion = module.conclude(Outcome(settings, tuple(runs), {runs[0].label: one}), str(tmp_path))
    assert all(row.ours is None for row in conclusion.rows)
    said = [*conclusion.notes, *(row.note for row in conclusion.rows)]
    assert any("diverged: step 3: loss nan" in text for text in said)


def test_builders_name_a_net_by_what_it_is():
    assert imagenet.resnet(34, "A").config == imagenet.resnet(34).config == "resnet.py:34"
    assert imagenet.resnet(34, "B").label == "ResNet-34 B"
    assert imagenet.resnet(50, "B").config == "resnet.py:50"
    assert imagenet.resnet(34, residual=False).config == "resnet.py:34+plain"
