"""What the experiments share: budgets, trainings that are done once, tables, records, and the command line."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.training import loop
from alexnet_resnet.training.preemption import Stopped
from alexnet_resnet.training.reporting import Diverged
from experiments.study import Budget, Conclusion, Row, Run, Settings, Study, command, estimate, figures, plan, report
from experiments.study import training as training_lib

SMALL = {
    "data.num_classes": 4,
    "data.image_size": 8,
    "data.canvas_size": 10,
    "data.validation_split": "",
    "data.train_split": "train",
    "model.width": 0.25,
    "train.batch_size": 8,
    "evaluation.batch_size": 16,
    "log.every": "1 steps",
    "log.tensorboard": False,
}
RUNS = (
    Run("plain", "resnet_cifar.py:8+plain", {"data.dataset": "npz", "data.loader": "resident"}),
    Run("residual", "resnet_cifar.py:8", {"data.dataset": "npz", "data.loader": "resident"}),
)


def conclude(outcome, folder):
    rows = [Row(run.label, "test error (%)", 8.75, outcome.error(run.label), budget=outcome.budget(run.label))
            for run in outcome.runs]  # fmt: skip
    figure, ((axes,),) = figures.new(4, 3)
    figures.draw_errors(axes, list(outcome.trained.values()))
    return Conclusion(rows, [figures.save(figure, folder, "curves.png")], ["A note."])


STUDY = Study("a_study", "A title", "A source", lambda options: RUNS, conclude)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, shapes_npz):
    out = tmp_path_factory.mktemp("studies")
    return Settings(str(out), budget=Budget("2 steps"), data_dir=str(shapes_npz), changes=SMALL)


@pytest.fixture(scope="module")
def performed(settings):
    said = []
    return command.perform(STUDY, settings, say=said.append), "\n".join(said)


@pytest.mark.parametrize("text", ["0", "1.5", "-0.1", "nan", "seven", "", "3 days", "0.5 of it", "0 epochs"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--budget"):
        Budget(text)


def test_a_budget_scales_lengths_and_names_a_folder():
    assert Budget().of("64000 steps") == "64000 steps" and Budget().folder == "full"
    assert Budget("0.25").of("64000 steps") == "16000 steps" and Budget("0.25").folder == "0.25"
    assert Budget("0.001").of("90 epochs") == "0.09 epochs"
    assert Budget("1e-9").of("64000 steps") == "1 steps", "never none at all"
    for text in ("3 epochs", "3epochs", " 3  epoch "):
        assert Budget(text).of("64000 steps") == "3 epochs" and Budget(text).folder == "3_epochs"


def test_a_run_is_its_configuration_with_fields_budget_seed_and_changes(settings):
    run = Run("net", "resnet_cifar.py:20+plain", {"data.dataset": "npz"}, seed=2, moments=4)
    config = plan.resolve(run, Settings("out", budget=Budget("0.01"), seed=3, data_dir="d", changes=SMALL))
    assert (config.model.depth, config.model.residual, config.model.width) == (20, False, 0.25)
    assert (config.seed, config.train.duration, config.data.data_dir) == (5, "640 steps", "d")
    assert (config.checkpoint.every, config.checkpoint.keep_last) == ("160 steps", 4)
    assert config.evaluation.every == "160 steps", "a checkpoint is saved at every evaluation"
    assert Settings("out", seed=3).workdir(run) == "out/trainings/full/resnet_cifar-20+plain-seed5"


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (Run("x", "resnet_cifer.py:20"), "Did you mean 'resnet_cifar.py'"),
        (Run("x", "resnet_cifar.py:20", {"model.dept": 8}), "Did you mean 'model.depth'"),
        (Run("x", "resnet_cifar.py:20", {"model.depth": "deep"}), "model.depth='deep'"),
        (Run("x", "resnet_cifar.py:20", {"data.loader": "tensor"}), "data.loader='tensor'"),
        (Run("x", "resnet_cifar.py:layers"), "depth='layers'"),
    ],
)
def test_a_run_that_cannot_be_is_refused(run, words):
    with pytest.raises(UserError, match=words):
        plan.resolve(run, Settings("out"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model.width", "FIELD=VALUE"),
        ("train.duration=3 epochs", "--budget"),
        ("seed=3", "--seed"),
        ("data.data_dir=x", "--data_dir"),
        ("model.widht=0.25", "Did you mean 'model.width'"),
        ("model.width=wide", "model.width='wide'"),
        ("model.residual=True", "in this one the runs of this study differ"),
    ],
)
def test_a_change_that_cannot_be_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        plan.parse_changes([text], RUNS)
    with pytest.raises(UserError, match="expected no --set, as nothing is trained here"):
        plan.parse_changes([text], [])


def test_a_change_holds_for_the_runs_that_have_the_field():
    both = [*RUNS, Run("other", "cuda_convnet.py:18pct")]
    changes = plan.parse_changes(["model.width=0.5", "data.scale_range=(32, 40)"], both)
    assert changes == {"model.width": 0.5, "data.scale_range": (32, 40)}
    assert plan.resolve(both[0], Settings("out", changes=changes)).model.width == 0.5
    assert "width" not in plan.resolve(both[2], Settings("out", changes=changes)).model


def test_a_study_leaves_a_table_a_figure_and_a_record(settings, performed):
    record, said = performed
    folder = os.path.join(settings.out, "a_study")
    assert sorted(os.listdir(folder)) == ["curves.png", "result.json", "table.md"]
    with open(os.path.join(folder, "result.json")) as file:
        assert json.load(file) == json.loads(json.dumps(record))
    assert [run["label"] for run in record["runs"]] == ["plain", "residual"] and record["not_run"] == []
    for run, row in zip(record["runs"], record["rows"], strict=True):
        assert run["step"] == 2 and run["parameters"] > 1000 and run["commit"] and "cpu" in run["devices"]
        assert row["ours"] == run["error"] and 0 <= row["ours"] <= 100
        assert row["budget"] == "2 steps of 64,000 steps"
    assert record["budget"] == "2 steps" and record["changes"]["model.width"] == 0.25
    text = Path(folder, "table.md").read_text()
    assert "| plain | test error (%) | 8.75 | **" in text and "![curves.png](curves.png)" in text and "A note." in text
    assert "[1/2] plain" in said and "what" in said and "8.75" in said


def test_what_is_finished_is_not_trained_again(settings, performed, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *given: pytest.fail("trained again"))
    again = command.perform(STUDY, settings, say=lambda text: None)
    assert again["rows"] == performed[0]["rows"] and again["runs"] == performed[0]["runs"]


def test_a_longer_budget_goes_on_from_a_shorter_one_where_length_decides_nothing(settings, tmp_path):
    changes = SMALL | {"optimizer.boundaries": ()}
    run, said = RUNS[1], []

    def trained(out, budget):
        own = Settings(str(tmp_path / out), budget=Budget(budget), data_dir=settings.data_dir, changes=changes)
        found = training_lib.train_all([run], own, False, said.append).trained["residual"]
        return found, [(row["step"], row["train/loss"]) for row in found.rows() if "train/loss" in row]

    shorter, first = trained("in_two", "2 steps")
    longer, losses = trained("in_two", "4 steps")
    assert f"residual goes on from {shorter.workdir}" in said
    whole, expected = trained("at_once", "4 steps")
    assert sum("goes on" in text for text in said) == 1
    assert losses == expected and losses[:2] == first and len(losses) == 4
    assert longer.final["test/loss"] == whole.final["test/loss"]
    assert longer.config.train.duration == "4 steps" and longer.workdir != shorter.workdir
    # What was copied is still whole.
    again, _ = trained("in_two", "2 steps")
    assert again.final == shorter.final and len([text for text in said if text.startswith("[1/1]")]) == 3


def test_where_the_rate_falls_by_length_a_budget_begins_anew(settings, performed, monkeypatch):
    monkeypatch.setattr(training_lib, "train", lambda run, settings: None)
    other = Settings(settings.out, budget=Budget("4 steps"), data_dir=settings.data_dir, changes=SMALL)
    training_lib.train_all(RUNS, other, False, lambda text: None)
    assert not any(os.path.exists(other.workdir(run)) for run in RUNS)


def test_other_images_are_not_gone_on_with(settings, tmp_path):
    changes = SMALL | {"optimizer.boundaries": ()}
    own = Settings(str(tmp_path), budget=Budget("2 steps"), data_dir=settings.data_dir, changes=changes)
    other = dataclasses.replace(own, budget=Budget("4 steps"), data_dir=str(tmp_path / "other.npz"))
    longer = dataclasses.replace(own, budget=Budget("4 steps"))
    config = plan.resolve(RUNS[1], own)
    place = Path(own.workdir(RUNS[1]))
    place.mkdir(parents=True)
    (place / "config.json").write_text(config.to_json())
    (place / training_lib.FINISHED).write_text("{}")
    training_lib.take_over(RUNS[1], other, lambda text: None)
    assert not os.path.exists(other.workdir(RUNS[1]))
    training_lib.take_over(RUNS[1], longer, lambda text: None)
    assert os.listdir(longer.workdir(RUNS[1])) == ["config.json"]


def test_a_run_that_is_being_made_longer_is_not_finished(settings, tmp_path, monkeypatch):
    own = Settings(str(tmp_path), budget=Budget("2 steps"), data_dir=settings.data_dir, changes=SMALL)
    place = Path(own.workdir(RUNS[0]))
    place.mkdir(parents=True)
    (place / training_lib.FINISHED).write_text("{}")
    monkeypatch.setattr(loop, "train", lambda config, workdir: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training_lib.train(RUNS[0], own)
    assert os.listdir(place) == []


def test_another_configuration_in_the_same_folder_is_refused(settings, performed):
    other = Settings(settings.out, budget=settings.budget, data_dir=settings.data_dir, changes=dict(SMALL))
    other.changes["optimizer.learning_rate"] = 0.05
    with pytest.raises(UserError, match="optimizer.learning_rate"):
        command.perform(STUDY, other, say=lambda text: None)


def test_to_collect_trains_nothing_and_what_is_missing_says_so(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "train", lambda *given: pytest.fail("trained"))
    fresh = Settings(str(tmp_path), budget=settings.budget, data_dir=settings.data_dir, changes=SMALL)
    said = []
    record = command.perform(STUDY, fresh, collect=True, say=said.append)
    assert record["not_run"] == ["plain", "residual"] and record["runs"] == []
    assert "\n".join(said).count(report.NOT_RUN) == 2
    assert "**" not in (tmp_path / "a_study" / "table.md").read_text()


def test_only_some_runs_are_trained(settings, monkeypatch, tmp_path):
    trained = []

    def stop(config, workdir):
        trained.append(os.path.basename(workdir))
        raise Stopped(1, "SIGTERM")

    monkeypatch.setattr(loop, "train", stop)
    some = Settings(str(tmp_path), data_dir=settings.data_dir, changes=SMALL, only=("residual",))
    with pytest.raises(Stopped):
        command.perform(STUDY, some, say=lambda text: None)
    assert trained == ["resnet_cifar-8-seed0"]
    assert not os.path.exists(tmp_path / "trainings" / "full" / trained[0] / training_lib.FINISHED)


def test_a_run_that_diverges_is_a_result(settings, monkeypatch, tmp_path):
    workdir = settings.workdir(RUNS[0])
    monkeypatch.setattr(training_lib.workdir_lib, "final_measurements", lambda _: {"train/error": 0.9})

    def diverge(config, folder):
        os.makedirs(folder)
        with open(os.path.join(folder, "config.json"), "w") as file:
            file.write(config.to_json())
        raise Diverged(7, "loss nan")

    monkeypatch.setattr(loop, "train", diverge)
    other = Settings(str(tmp_path), budget=settings.budget, changes=SMALL)
    assert not os.path.exists(other.workdir(RUNS[0])) and workdir != other.workdir(RUNS[0])
    one = training_lib.train(RUNS[0], other)
    assert one.diverged == "step 7: loss nan" and one.error is None
    again = training_lib.finished(RUNS[0], other)
    assert again.diverged == one.diverged and again.final == one.final


def test_labels_and_tasks_choose_runs():
    assert command.chosen(RUNS, []) == () and command.chosen(RUNS, ["plain"]) == ("plain",)
    assert command.chosen(RUNS, [], 1) == ("residual",)
    with pytest.raises(UserError, match="Did you mean 'plain'"):
        command.chosen(RUNS, ["plian"])
    for only, task in (([], 2), ([], -1), (["plain"], 0)):
        with pytest.raises(UserError, match="--task"):
            command.chosen(RUNS, only, task)


def test_a_dry_run_lists_everything_and_trains_nothing(settings, performed, tmp_path):
    lines = command.announce(STUDY, settings)
    assert sum("finished" in line for line in lines) == 2 and "about 0 s in all" in lines[-1]
    fresh = Settings(str(tmp_path), budget=Budget("0.5"), data_dir=settings.data_dir, changes=SMALL)
    lines = command.announce(STUDY, fresh)
    assert "32,000 steps" in lines[1] and "not begun" in lines[1] and not os.listdir(tmp_path)
    assert "--config=configs/resnet_cifar.py:8+plain" in lines[2] and "--config.model.width=0.25" in lines[2]
    assert lines[-1].startswith("about ") and "unknown" not in lines[-1]
    lines = command.announce(STUDY, Settings(str(tmp_path), budget=Budget("1 epochs"), data_dir="nowhere"))
    assert "unknown" in lines[1] and "and what is unknown" in lines[-1]


def test_the_pace_of_a_run_that_has_begun_is_its_own(settings, tmp_path):
    fresh = Settings(str(tmp_path), budget=Budget("100 steps"), data_dir=settings.data_dir, changes=SMALL)
    workdir = fresh.workdir(RUNS[0])
    os.makedirs(workdir)
    with open(os.path.join(workdir, "metrics.jsonl"), "w") as file:
        file.write('{"step": 40, "train/images_per_second": 2.0}\n')
    guess = estimate.of(RUNS[0], fresh)
    assert (guess.done, guess.steps, guess.measured) == (40, 100, True)
    assert guess.seconds == 60 * 8 / 2


@pytest.mark.parametrize(
    ("dataset", "split", "expected"),
    [
        ("cifar10", "train", 50_000),
        ("cifar10", "train[:45000]", 45_000),
        ("cifar10", "train[45000:]", 5000),
        ("imagenet2012", "train[:50%]", 640_583),
        ("cifar10", "train[10000:20000]", 10_000),
    ],
)
def test_the_size_of_a_known_dataset_needs_no_data(dataset, split, expected):
    config = plan.full_config(Run("x", "resnet_cifar.py:20"))
    config.data.update(dataset=dataset, train_split=split)
    assert estimate.examples(config) == expected


def test_multiply_adds_of_deep_nets_are_exact_without_tracing_them():
    config = plan.full_config(Run("x", "resnet_cifar.py:32"))
    layers = estimate.summary.rows(config.model, (32, 32, 3), 10)
    assert estimate.multiply_adds(config) == sum(row.multiply_adds for row in layers)


def test_a_row_says_what_it_has():
    row = Row("net", "error (%)", 6.43, 6.5, 0.2, 0.16, (6.0, 7.0), "full length", "a | b")
    assert row.cells() == ("net", "error (%)", "6.43 +- 0.16", "6.50 +- 0.20 (6.00 to 7.00)", "full length", "a | b")
    assert Row("net", "error (%)", None).cells()[2:4] == ("", report.NOT_RUN)
    table = report.markdown_table([row, Row("other", "error (%)", 8.0)])
    assert (
        "a \\| b" in table
        and "**6.50 +- 0.20 (6.00 to 7.00)**" in table
        and "| other | error (%) | 8.00 | not run |" in table
    )
    assert report.text_table([Row("net", "x", 1.0, 2.0)]).splitlines()[0].split() == [
        "what",
        "measure",
        "paper",
        "ours",
    ]


def test_a_report_folder_that_cannot_be_is_refused_before_training(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "train", lambda *given: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    broken = Settings(str(tmp_path), str(tmp_path / "file" / "x"), data_dir=settings.data_dir, changes=SMALL)
    with pytest.raises(UserError, match="--report"):
        command.perform(STUDY, broken, say=lambda text: None)
