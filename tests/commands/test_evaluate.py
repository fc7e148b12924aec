"""The evaluate command: runs alone and together, what it leaves behind, and what it refuses before it computes."""

import csv
import json
import re
import shutil

import flax.nnx as nnx
import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet import models, pretrained
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import ensemble, judging, records
from alexnet_resnet.evaluation.judging import Request
from alexnet_resnet.training import loop


@pytest.fixture(scope="module")
def runs(short_runs, shapes_npz, tmp_path_factory):
    """Two short runs that see images of different sizes; the second without batch normalisation."""
    folder = tmp_path_factory.mktemp("runs")
    for name, network, size in (("a", "resnet_cifar", 8), ("b", "lenet", 32)):
        config = config_lib.default(network)
        if network == "resnet_cifar":
            config.model.update(depth=8, width=0.25)
        config.data.update(dataset="npz", data_dir=str(shapes_npz), num_classes=4, channels=3, loader="resident")
        config.data.update(canvas_size=size, image_size=size, validation_split="validation", divisor=64.0)
        config.train.update(batch_size=16, duration="12 steps")
        config.optimizer.learning_rate = 0.05
        config.evaluation.update(every="12 steps", batch_size=16)
        config.log.update(every="6 steps", tensorboard=False)
        loop.train(config, str(folder / name))
    return folder


@pytest.fixture
def own(runs, tmp_path):
    """Copies of the runs, to write in."""
    return shutil.copytree(runs, tmp_path / "runs")


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_run_is_judged_and_recorded(own, command):
    first = command("evaluate", f"--workdir={own / 'a'}")
    again = command("evaluate", f"--workdir={own / 'a'}", "--split=validation[:10]", "--views=center")
    assert first.returncode == 0 and again.returncode == 0, first.stderr + again.stderr
    assert "27 of 27 images" in first.stderr, "progress is said"
    row, other = rows_of(own / "a" / "results.jsonl")
    assert (row["split"], row["views"], row["examples"], row["top5_errors"]) == ("test", "centre", 27, 0)
    assert (other["split"], other["views"], other["examples"]) == ("validation[:10]", "centre", 10)
    (member,) = row["members"]
    assert member["step"] == 12 and member["config_hash"] == records.config_hash(str(own / "a"))
    assert row["device"] == "1 x cpu" and row["processes"] == 1 and row["unreadable"] == 0 and row["precise_bn"] == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", row["time"])
    errors, (low, high) = row["top1_errors"], row["top1_interval"]
    assert low <= errors / 27 == row["top1_error"] <= high
    said = f"top-1 error {100 * errors / 27:.2f}% ({errors} wrong; 95% interval {100 * low:.2f} to {100 * high:.2f}%)"
    assert said in first.stdout and f"appended to {own / 'a' / 'results.jsonl'}" in first.stdout


def test_an_ensemble_is_the_mean_of_its_members_outputs(own, tmp_path, command):
    folders = [f"--workdir={own / name}" for name in ("a", "b")]
    alone = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for flag, path in zip(folders, alone, strict=True):
        assert command("evaluate", flag, f"--predictions={path}").returncode == 0
    figures, both, results = tmp_path / "new" / "figures", tmp_path / "both.npz", tmp_path / "results.jsonl"
    result = command(
        "evaluate", f"{folders[0]},{own / 'b'}", f"--predictions={both}", f"--figures={figures}", f"--results={results}"
    )
    assert result.returncode == 0, result.stderr
    first, second, together = (np.load(path) for path in (*alone, both))
    mean = (first["softmax"] + second["softmax"]) / np.float32(2)
    np.testing.assert_allclose(together["softmax"], mean, rtol=1e-6)
    np.testing.assert_array_equal(together["row"], np.arange(27))
    labels = together["label"]
    np.testing.assert_array_equal(labels, np.arange(27) % 4)
    assert together["class_names"].tolist() == ["0", "1", "2", "3"]
    (row,) = rows_of(results)
    assert row == json.loads(str(together["description"]))
    right = mean[np.arange(27), labels]
    assert row["top1_errors"] == ((mean >= right[:, None]).sum(1) > 1).sum()
    assert row["loss"] == pytest.approx(-np.log(right.astype(np.float64)).mean(), rel=1e-5)
    assert [member["workdir"] for member in row["members"]] == [str(own / "a"), str(own / "b")]
    assert len({member["config_hash"] for member in row["members"]}) == 2
    assert "all 2, their mean softmax, on 27 examples" in result.stdout
    with open(figures / "classes.csv") as file:
        assert sum(int(entry["top1_errors"]) for entry in csv.DictReader(file)) == row["top1_errors"]
    assert all(Image.open(figures / name).size[0] > 300 for name in ("classes.png", "confusion.png"))


def test_published_weights_are_judged_beside_runs(own, tmp_path, shapes_npz, command):
    network = pretrained.network_of("torchvision", "resnet:18")
    module = nnx.jit(lambda: models.create(network, (224, 224, 3), 4, jax.random.key(0)))()
    _, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    path, out = tmp_path / "weights.safetensors", tmp_path / "p.npz"
    pretrained.save(path, "torchvision", network, nnx.to_pure_dict(params), nnx.to_pure_dict(stats))
    weights = (f"--weights={path}", "--weights_format=torchvision", "--model=resnet:18")
    result = command(
        "evaluate", f"--workdir={own / 'a'}", *weights, "--split=test[:5]", f"--predictions={out}", "--top5_only"
    )
    assert result.returncode == 0, result.stderr
    assert "all 2, their mean softmax, on 5 examples" in result.stdout
    (row,) = rows_of(own / "a" / "results.jsonl")
    assert row["members"][1]["sha256"] == records.file_hash(str(path)) and row["members"][1]["step"] == 0
    assert np.load(out)["top5_class"].shape == (5, 4)
    alone = command("evaluate", *weights, "--dataset=npz", f"--data_dir={shapes_npz}", "--split=test[:5]")
    assert alone.returncode == 0, alone.stderr
    assert f"weights='{path}' on 5 examples" in alone.stdout and "appended" not in alone.stdout


def test_a_result_goes_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"a": 1}\n{"half')
    records.append(str(path), {"b": 2})
    records.append(str(path), {"c": 3})
    assert path.read_text() == '{"a": 1}\n{"half\n{"b": 2}\n{"c": 3}\n'


def test_the_hash_is_of_what_decides_the_results(own):
    path = own / "a" / "config.json"
    before = records.config_hash(str(own / "a"))
    fields = json.loads(path.read_text())
    fields["data"]["data_dir"], fields["parallel"]["strategy"] = "/elsewhere", "fsdp"
    path.write_text(json.dumps(fields))
    assert records.config_hash(str(own / "a")) == before
    fields["optimizer"]["weight_decay"] = 0.5
    path.write_text(json.dumps(fields))
    assert records.config_hash(str(own / "a")) != before


def test_a_run_that_cannot_be_written_to_is_judged_all_the_same(own):
    (own / "a" / "results.jsonl").mkdir()
    lines = judging.judge(Request(workdirs=(str(own / "a"),)))
    assert any(line.startswith("top-1 error") for line in lines) and "not recorded" in lines[-1]


WEIGHTS = dict(weights=("w.h5",), formats=("keras",), models=("resnet:50",), dataset="imagenet2012", split="validation")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "--workdir is missing: expected one such as --workdir=runs/digits, or --weights=FILE"),
        ({"workdirs": ("nowhere",)}, "workdir='nowhere': expected the folder of a run"),
        (
            {"workdirs": ("a",), "views": "nine"},
            "--views='nine': expected one of 'centre', 'ten_crop', 'nine_crop', 'multi_scale'",
        ),
        (
            {"workdirs": ("a",), "views": "multi_scale"},
            "expected 'centre', 'ten_crop' or 'nine_crop' for shapes.npz test",
        ),
        ({"workdirs": ("a",), "split": "tset"}, "split='tset': expected one of"),
        ({"workdirs": ("a",), "checkpoint": "7"}, "checkpoint='7': expected one of 'last', 'best', '6', '12'"),
        ({"workdirs": ("a", "b"), "checkpoint": "7"}, "checkpoint='7'"),
        ({"workdirs": ("a",), "data_dir": "no.npz"}, "data.data_dir='no.npz'"),
        ({"workdirs": ("a",), "dataset": "digits"}, "data.num_classes=4: expected 10, as digits test has"),
        ({"workdirs": ("b",), "precise_bn": 2}, "precise_bn=2: expected 0 for lenet without batch normalisation"),
        ({"workdirs": ("a",), "results": "no/r.jsonl"}, "--results='no/r.jsonl': expected a file in a folder that exi"),
        ({"workdirs": ("a",), "results": "."}, "--results='.': expected a file that can be written"),
        ({"workdirs": ("a",), "predictions": "p.csv"}, "--predictions='p.csv': expected a name that ends in .npz"),
        ({"workdirs": ("a",), "predictions": "no/p.npz"}, "--predictions='no/p.npz': expected a file in a folder"),
        ({"workdirs": ("a",), "figures": "README.md"}, "--figures='README.md': expected a folder"),
        ({"workdirs": ("a",), "top5_only": True}, "--top5_only: expected --predictions=FILE with it"),
        ({"workdirs": ("a",), "models": ("resnet:50",)}, "--model='resnet:50': expected --weights with it"),
        (WEIGHTS, "weights='w.h5': expected a file, found none"),
        (WEIGHTS | {"formats": ()}, "--weights_format='': expected one such as keras."),
        (WEIGHTS | {"models": ("a", "b")}, "--model='a,b': expected one such as resnet:50."),
        (
            WEIGHTS | {"weights": ("v", "w"), "models": ("a",) * 3},
            "--model='a,a,a': expected one such as resnet:50, or 2",
        ),
        (WEIGHTS | {"models": ("resnet:51",)}, "model='resnet:51': expected one of"),
        (WEIGHTS | {"dataset": ""}, "--dataset='': expected the examples for --weights"),
        (WEIGHTS | {"split": ""}, "--split='': expected a split for --weights"),
        (WEIGHTS | {"precise_bn": 3}, "--precise_bn=3: expected 0 with --weights"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_judged(fields, message, runs, monkeypatch):
    monkeypatch.setattr(ensemble.Evaluator, "__call__", lambda *arguments: pytest.fail("something was judged"))
    folders = tuple(str(runs / name) if name in "ab" else name for name in fields.get("workdirs", ()))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        judging.judge(Request(**fields | {"workdirs": folders}))
    assert "\n" not in str(error.value)
    assert not (runs / "a" / "results.jsonl").exists()


def test_an_error_is_one_line_and_status_two(command, runs):
    result = command("evaluate", f"--workdir={runs / 'a'}", "--views=nine")
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"error: --views='nine': expected .*\n", result.stderr)
