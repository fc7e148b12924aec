"""The commands that look: evaluate and summarize."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import runs
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.training import loop
from alexnet_resnet.training import workdir as workdir_lib


@pytest.fixture(scope="module")
def run(short_runs, shapes_npz, tmp_path_factory):
    """A short run on the tiny dataset, made by the library's own call."""
    config = config_lib.default("resnet_cifar")
    config.model.update(depth=8, width=0.25)
    config.data.update(
        dataset="npz",
        data_dir=str(shapes_npz),
        num_classes=4,
        canvas_size=8,
        image_size=8,
        validation_split="validation",
    )
    config.train.update(batch_size=16, duration="24 steps")
    config.evaluation.update(every="12 steps", batch_size=16)
    config.log.every = "6 steps"
    config.checkpoint.every = "12 steps"
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return workdir, loop.train(config, str(workdir))


def test_evaluating_gives_the_errors_that_training_measured(run):
    workdir, final = run
    step, result, _ = runs.evaluate_run(str(workdir))
    assert (step, result.examples) == (24, 27)
    assert result.top1_error == pytest.approx(final["test/error"], abs=1e-9)
    _, validation, _ = runs.evaluate_run(str(workdir), split="validation")
    assert validation.top1_error == pytest.approx(final["validation/error"], abs=1e-9)


def test_the_best_checkpoint_and_a_step_can_be_chosen(run):
    workdir, _ = run
    assert runs.evaluate_run(str(workdir), checkpoint="12")[0] == 12
    errors = {
        row["step"]: row["validation/error"]
        for row in workdir_lib.read_metrics(str(workdir))
        if "validation/error" in row
    }
    assert runs.evaluate_run(str(workdir), checkpoint="best")[0] == min(errors, key=lambda step: (errors[step], step))
    with pytest.raises(UserError, match="checkpoint='13': expected one of 'last', 'best', '12', '24'"):
        runs.evaluate_run(str(workdir), checkpoint="13")


def test_precise_statistics_are_those_of_the_training_batches(run, shapes_npz):
    """With all 96 examples in six batches and no augmentation: conv1's moments are numpy's over the batches."""
    import jax.numpy as jnp
    from flax import nnx

    from alexnet_resnet import models
    from alexnet_resnet.training import state as state_lib

    workdir, final = run
    mesh = mesh_lib.create(-1, 1)
    config, state = runs.restore(str(workdir), "last", mesh_lib.replicated(mesh))
    network = state_lib.from_config(config)
    precise = runs.with_precise_statistics(config, network, state, 6)
    images = np.load(shapes_npz)["train_images"].astype(np.float32) - np.asarray(state.mean)
    module = nnx.merge(network.graphdef, state.params, state.batch_stats, copy=True)
    _, named = models.activations(module, jnp.asarray(images))
    conv1 = np.asarray(named["conv1"], np.float64)
    np.testing.assert_allclose(precise.batch_stats["bn1"]["mean"], conv1.mean((0, 1, 2)), rtol=1e-3, atol=1e-3)
    assert not np.allclose(precise.batch_stats["bn1"]["mean"], state.batch_stats["bn1"]["mean"], rtol=1e-6)
    _, result, _ = runs.evaluate_run(str(workdir), precise_bn=6)
    assert result.top1_error <= final["test/error"] + 0.1


def test_precise_statistics_are_of_the_run_s_own_data_whatever_is_judged(run, tmp_path, monkeypatch):
    workdir, _ = run
    for name in "0123":
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "val" / name / "a.png")
    seen = []
    monkeypatch.setattr(runs, "with_precise_statistics", lambda config, *arguments: seen.append(config.data))
    given = {"split": "validation", "dataset": "folder", "data_dir": str(tmp_path), "precise_bn": 2}
    member = runs.member(str(workdir), **given)
    member.prepare(None)
    own = workdir_lib.read_config(str(workdir)).data
    assert member.config.data.dataset == "folder" and len(member.examples) == 4
    assert (seen[0].dataset, seen[0].data_dir) == (own.dataset, own.data_dir) == ("npz", own.data_dir)


def test_classes_in_another_order_than_the_run_s_are_refused(run, tmp_path):
    workdir, _ = run
    shutil.copytree(workdir, tmp_path / "run")
    dataset = json.loads((workdir / "dataset.json").read_text())
    names = dataset["label_names"]
    turned = dataset | {"label_names": [names[1], names[0], *names[2:]]}
    (tmp_path / "run" / "dataset.json").write_text(json.dumps(turned))
    with pytest.raises(UserError, match=f"order of the run in .* class 0 is {names[0]!r} here and {names[1]!r} there"):
        runs.evaluate_run(str(tmp_path / "run"))


def test_the_evaluate_command_prints_step_examples_and_errors(run, command):
    workdir, final = run
    result = command("evaluate", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert "step 24 on 27 examples" in result.stdout
    assert f"top-1 error {100 * final['test/error']:.2f}%" in result.stdout


def test_a_damaged_checkpoint_is_not_evaluated(run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run[0], copy)
    for path in (copy / "checkpoints" / "24" / "state").rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint .*24.*--checkpoint chooses another of the steps \[12, 24\]"):
        runs.evaluate_run(str(copy))
    assert runs.evaluate_run(str(copy), checkpoint="12")[0] == 12
    assert (copy / "checkpoints" / "24").is_dir(), "looking changes nothing"


def test_a_folder_without_a_run_is_refused(tmp_path, run):
    with pytest.raises(UserError, match="expected the folder of a run, with a config.json"):
        runs.evaluate_run(str(tmp_path))
    (tmp_path / "config.json").write_bytes((run[0] / "config.json").read_bytes())
    with pytest.raises(UserError, match="expected checkpoints in"):
        runs.restore(str(tmp_path), "last", mesh_lib.replicated(mesh_lib.create(-1, 1)))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="found none yet"):
        runs.restore(str(tmp_path), "last", mesh_lib.replicated(mesh_lib.create(-1, 1)))


def test_the_mean_of_the_training_split_is_in_the_checkpoint(run, shapes_npz):
    mesh = mesh_lib.create(-1, 1)
    _, state = runs.restore(str(run[0]), "last", mesh_lib.replicated(mesh))
    expected = np.load(shapes_npz)["train_images"].astype(np.float64).mean(0)
    np.testing.assert_allclose(state.mean, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("flag", "totals"),
    [
        ("alexnet.py", "60,965,224    724,406,816"),
        ("alexnet.py:1", "62,378,344  1,135,256,096"),
        ("resnet_cifar.py:20", "269,722     40,551,040"),
        ("resnet_cifar.py:110", r"1,727,962    \S+"),
    ],
)
def test_summarize_prints_the_papers_totals(flag, totals, command):
    result = command("summarize", f"--config=configs/{flag}")
    assert result.returncode == 0, result.stderr
    assert re.search(rf"^total +{totals}$".replace("    ", " +").replace("     ", " +"), result.stdout, re.M)


@pytest.mark.parametrize("name", ["train", "evaluate", "summarize"])
def test_help_explains_the_flags(name, command):
    result = command(name, "--help")
    said = result.stdout + result.stderr
    assert f"python -m alexnet_resnet.{name}" in said
    for flag in {
        "train": ["config", "workdir"],
        "evaluate": ["workdir", "split", "checkpoint", "data_dir", "precise_bn"],
    }.get(name, ["config"]):
        assert re.search(rf"--(\[no\])?{flag}: \w+", said), flag


@pytest.mark.parametrize("name", ["train", "evaluate", "summarize"])
def test_a_missing_flag_is_named_with_an_example(name, command):
    result = command(name)
    assert result.returncode == 2
    example = r"expected one such as --\S+( or --weights=FILE\.)?"
    assert re.fullmatch(rf"error: --(config|workdir) is missing: {example}\n", result.stderr)


SMALL = (
    *("--config=configs/alexnet.py", "--config.model.width=0.0625", "--config.train.batch_size=4"),
    *("--config.data.canvas_size=67", "--config.data.image_size=67"),
)


def test_the_audit_simulates_the_devices_that_a_strategy_needs(command):
    """Here two, though the command is told of one."""
    result = command("summarize", *SMALL, "--config.parallel.strategy=columns", "--audit")
    assert result.returncode == 0, result.stderr
    assert "alexnet on 2 cpu device(s) as 1x2, columns, batch 4" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines() if "all-gather" in line] == ["conv3", "fc6", "fc7"]
    assert result.stderr == "compiling alexnet for 2 cpu device(s) as 1x2, columns ...\n"


def test_the_audit_draws_and_compares_all_strategies(command, tmp_path):
    figure = tmp_path / "audit.png"
    result = command("summarize", "--config=configs/lenet.py", "--audit", f"--figure={figure}")
    assert result.returncode == 0, result.stderr
    assert "lenet on 2 cpu device(s) as 2x1, data" in result.stdout
    compared = re.findall(r"^(\w+) +(\dx\d) ", result.stdout, re.M)
    assert compared == [("data", "2x1"), ("fsdp", "2x1")]
    assert re.findall(r"^compiling lenet for .*, (\w+) \.\.\.$", result.stderr, re.M) == ["data", "fsdp"]
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/resnet.py", "--config.parallel.strategy=columns", "--audit"], "one of 'data', 'fsdp'"),
        ([*SMALL, "--figure=a.png"], "--figure='a.png': expected --audit with it."),
        ([*SMALL, "--audit", "--figure=a.xyz"], "figure='a.xyz': expected a name that ends in one of"),
        ([*SMALL, "--audit", "--figure=no/a.png"], "figure='no/a.png': expected a file in a folder that exists."),
    ],
)
def test_an_audit_that_cannot_be_is_refused_before_anything_is_compiled(flags, message, command):
    result = command("summarize", *flags)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", result.stderr)
