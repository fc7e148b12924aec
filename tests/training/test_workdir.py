"""The folder of a run: whose it is, what is read back from it, what of it may be damaged."""

import json
import os
import stat

import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.data.examples import Examples
from alexnet_resnet.errors import UserError
from alexnet_resnet.training import workdir as workdir_lib


def make_config(**model):
    config = config_lib.default("resnet_cifar")
    config.model.update(**model)
    return config


def dataset(labels=(0, 1, 2)):
    images = np.zeros((3, 4, 5, 3), np.uint8)
    return workdir_lib.describe(Examples(images, np.array(labels, np.int32), ("a", "b", "c"), "three"))


def claimed(path, config=None, described=None):
    config = config or make_config()
    workdir_lib.check(str(path), config)
    with workdir_lib.claim(str(path), config, described or dataset()):
        pass


def test_a_configuration_is_read_back_as_it_was(tmp_path):
    config = make_config(depth=32)
    claimed(tmp_path / "run", config)
    read = workdir_lib.read_config(str(tmp_path / "run"))
    assert read.to_dict() == config.to_dict()
    claimed(tmp_path / "run", config)


def test_a_run_from_before_a_field_existed_has_its_default(tmp_path):
    claimed(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    del fields["data"]["divisor"], fields["model"]["width"]
    path.write_text(json.dumps(fields))
    assert workdir_lib.read_config(str(tmp_path)).data.divisor == 1.0
    claimed(tmp_path)


def test_another_configuration_is_refused_with_every_difference(tmp_path):
    claimed(tmp_path)
    other = make_config(depth=56)
    other.optimizer.boundaries = (0.1,)
    with pytest.raises(UserError, match=r"model.depth: 20 -> 56; optimizer.boundaries: \[0.5, 0.75\] -> \[0.1\]"):
        workdir_lib.check(str(tmp_path), other)


CUTS = {"times": 3, "patience": 1}


def lasting(duration, boundaries=(), **optimizer):
    config = make_config()
    config.train.duration = duration
    config.optimizer.boundaries = boundaries
    config.optimizer.update(**optimizer)
    return config


def test_a_run_whose_rate_is_constant_may_be_made_longer(tmp_path):
    claimed(tmp_path, lasting("3 epochs"))
    claimed(tmp_path, lasting("4.5 epochs"))
    assert workdir_lib.read_config(str(tmp_path)).train.duration == "4.5 epochs"


@pytest.mark.parametrize(
    "old, new",
    [
        (lasting("4 epochs"), lasting("3 epochs")),
        (lasting("3 epochs"), lasting("5000 steps")),
        (lasting("3 epochs", (0.5,)), lasting("4 epochs", (0.5,))),
        (lasting("3 epochs", schedule="cosine"), lasting("4 epochs", schedule="cosine")),
        (lasting("3 epochs", warmup="5%"), lasting("4 epochs", warmup="5%")),
        (lasting("3 epochs", plateau=CUTS), lasting("4 epochs", plateau=CUTS)),
        (lasting("3 epochs"), lasting("4 epochs", learning_rate=0.05)),
    ],
)
def test_other_runs_keep_their_length(tmp_path, old, new):
    claimed(tmp_path, old)
    with pytest.raises(UserError, match="train.duration: "):
        workdir_lib.check(str(tmp_path), new)


def test_lighting_that_ends_with_the_run_keeps_its_length():
    old, new = lasting("3 epochs"), lasting("4 epochs")
    for config in (old, new):
        config.data.lighting = "as_run"
    assert config_lib.lengthens(old, new)
    for config in (old, new):
        config.data.lighting_until = 0.9
    assert not config_lib.lengthens(old, new)


def test_other_examples_are_refused(tmp_path):
    claimed(tmp_path)
    with pytest.raises(UserError, match="data: expected the examples"):
        claimed(tmp_path, described=dataset(labels=(2, 1, 0)))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"model": 3}', '{"model": {"name": "resnet_cifra"}}'])
def test_a_damaged_configuration_is_said_to_be_one(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError):
        workdir_lib.read_config(str(tmp_path))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="expected a folder, found a file"):
        workdir_lib.check(str(tmp_path / "run"), make_config())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="expected a folder that can be written"):
        claimed(tmp_path / "run")


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder that can be written"):
        claimed(tmp_path / "file" / "run")


def test_checkpoints_without_a_configuration_are_nobodys(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has checkpoints but no config.json"):
        workdir_lib.check(str(tmp_path), make_config())


def test_a_folder_has_one_trainer_at_a_time(tmp_path):
    with (
        workdir_lib.claim(str(tmp_path), make_config(), dataset()),
        pytest.raises(UserError, match="expected no other process to train there"),
        workdir_lib.claim(str(tmp_path), make_config(), dataset()),
    ):
        pass
    claimed(tmp_path)


def test_measurements_after_a_step_are_dropped_with_a_half_written_line(tmp_path):
    rows = [{"step": s, "train/loss": 1 / s} for s in (5, 10, 15)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 20, "tr')
    assert list(workdir_lib.read_metrics(str(tmp_path))) == rows
    workdir_lib.keep_metrics_until(str(tmp_path), 10)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(json.dumps(row) + "\n" for row in rows[:2])
    workdir_lib.keep_metrics_until(str(tmp_path / "nowhere"), 10)


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\x00\x00\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 of metrics.jsonl is damaged"):
        list(workdir_lib.read_metrics(str(tmp_path)))


def test_final_measurements_are_the_last_of_each_and_the_median_speed(tmp_path):
    rows = [
        {"step": s, "train/images_per_second": r, "train/error": e}
        for s, r, e in ((1, 9, 0.5), (2, 1, 0.4), (3, 5, 0.3))
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 3, "test/error": 0.2}])
    )
    final = workdir_lib.final_measurements(str(tmp_path))
    assert final == {"step": 3, "train/images_per_second": 5, "train/error": 0.3, "test/error": 0.2}


def test_an_interrupted_replacement_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        workdir_lib.write_atomically(str(path), "new")
    assert path.read_text() == "old"
