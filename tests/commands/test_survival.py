"""The experiment on kills and damage, by its own functions, on a run of seconds; and that it sees what it looks for."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from alexnet_resnet.training import checkpoints as checkpoints_lib
from alexnet_resnet.training.checkpoints import Checkpoints
from experiments import survival
from experiments import survival_damage as damage
from experiments import survival_kills as killing
from experiments import survival_report as report

SMALL = (
    *("model.width=0.25", "train.batch_size=8", "train.duration=24 steps", "data.loader=resident"),
    *("checkpoint.every=4 steps", "evaluation.every=6 steps", "optimizer.plateau.patience=1"),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("survival")


@pytest.fixture(scope="module")
def flags(scratch):
    return survival.training_flags(str(scratch), None, list(SMALL), seed=0)


@pytest.fixture(scope="module")
def reference(flags, scratch):
    pace, seconds = killing.uninterrupted(flags, str(scratch / "reference"))
    assert 0 < pace.first_checkpoint < seconds and pace.save > 0 and pace.step > 0
    return str(scratch / "reference"), pace


@pytest.fixture(scope="module")
def saved(reference):
    return damage.read(reference[0])


@pytest.fixture(scope="module")
def what(reference):
    return survival.trained(reference[0])


@pytest.fixture(scope="module")
def life(flags, reference, scratch):
    """A run that is killed twice: while a checkpoint is saved, and at another moment."""
    aims = [killing.Aim(killing.SAVE, 6, 0.3), killing.Aim(killing.ANY, 13, 0.5)]
    folder = str(scratch / "life")
    return folder, killing.live(flags, folder, aims, reference[1], print)


@pytest.fixture(scope="module")
def rows(reference, scratch):
    return damage.trials(reference[0], str(scratch), ["change a digit"], print)


@pytest.fixture
def copy(reference, tmp_path):
    return shutil.copytree(reference[0], tmp_path / "copy")


def test_a_run_killed_twice_ends_like_one_that_was_not(life, reference):
    folder, found = life
    assert found["status"] == 0, found["said"]
    assert killing.differences(folder, reference[0]) == []
    kills = killing.kills(found)
    assert len(kills) == 2 and killing.lost(found) == []
    assert kills[0]["aim"] == killing.SAVE and kills[0]["saving"], "Orbax' temporary folder was left"
    assert [kill["next"] for kill in kills] == [kill["newest"] for kill in kills]


def test_the_state_that_could_be_lost_is_not_that_of_the_beginning(what, saved):
    assert what["steps"] == 24 and what["cuts_of_the_rate"] > 0
    names = " ".join(damage.named(saved.states[24]))
    for part in ("step", "params", "batch_stats", "trace", "control", "average", "key"):
        assert part in names


def test_the_kills_are_drawn_by_the_seed():
    lives = killing.plan(20, 4, range(1, 100), seed=3)
    assert lives == killing.plan(20, 4, range(1, 100), seed=3) != killing.plan(20, 4, range(1, 100), seed=4)
    aims = [aim for life in lives for aim in life]
    assert [len(life) for life in lives] == [4] * 5
    assert [sum(aim.kind == kind for aim in aims) for kind in (killing.START, killing.SAVE, killing.ANY)] == [2, 10, 8]
    for life in lives:
        steps = [aim.step or 0 for aim in life]
        assert steps == sorted(steps)


def test_no_file_of_a_checkpoint_can_be_changed_without_being_noticed_or_harmless(rows, reference):
    assert {row["outcome"] for row in rows} <= set(damage.GOOD)
    newest = [row for row in rows if row["step"] == 24]
    assert [row["file"] for row in newest] == damage.files(reference[0], 24)
    outcomes = {row["file"]: row["outcome"] for row in newest}
    assert outcomes["digests/metadata"] == outcomes["metrics/metrics"] == damage.PASSED_OVER
    # Not in all of them: beside what is read, Orbax leaves files of nodes that a later write has superseded.
    of_arrays = [row for row in newest if "/d/" in row["file"]]
    noticed = [row for row in of_arrays if row["outcome"] == damage.PASSED_OVER]
    assert noticed and all("/checkpoints/24: " in row["said"] for row in noticed)


def alter(workdir, saved, change, error=0):
    """Saves the last checkpoint of a copy anew, with another state or validation error."""
    last = max(saved.states)
    shutil.rmtree(workdir / "checkpoints" / str(last))
    checkpoints = Checkpoints(str(workdir / "checkpoints"), *saved.keep)
    checkpoints.save(last, change(saved.states[last]), saved.errors[last] + error)
    checkpoints.close()


def with_one_bit(state):
    """The state with another bit in one value of one array."""
    leaves, tree = jax.tree.flatten(state)
    changed = np.array(leaves[-1])
    changed.reshape(-1).view(np.uint8)[0] ^= 1
    return tree.unflatten([*leaves[:-1], jax.device_put(changed, leaves[-1].sharding)])


def test_one_bit_of_the_final_state_is_a_difference(copy, reference, saved):
    assert survival.control(reference[0])
    alter(copy, saved, with_one_bit)
    found = killing.differences(str(copy), reference[0])
    assert len(found) == 1 and found[0].startswith("checkpoint 24: .average"), found


def test_an_error_and_a_measurement_are_differences(copy, reference, saved):
    alter(copy, saved, lambda state: state, error=0.25)
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[3])
    lines[3] = json.dumps(row | {"train/loss": 1.0}) + "\n"
    # Timing is no difference.
    lines[4] = json.dumps(json.loads(lines[4]) | {"train/images_per_second": 1.0}) + "\n"
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]))
    found = killing.differences(str(copy), reference[0])
    assert [text.split(":")[0] for text in found] == ["checkpoint 24", "metrics.jsonl", "metrics.jsonl"]


def test_a_restart_that_does_not_go_on_from_the_newest_checkpoint_is_lost_work():
    rows = [dict(resumed=0, step=9, aim=killing.ANY, newest=8), dict(resumed=4, step=20)]
    assert killing.lost(dict(processes=rows)) == ["killed at step 9 with checkpoint 8, went on after step 4"]


def wrong_values(monkeypatch):
    restore = Checkpoints.restore
    monkeypatch.setattr(Checkpoints, "restore", lambda self, *given: with_one_bit(restore(self, *given)))


def a_traceback(monkeypatch):
    def fail(self, like):
        raise KeyError("kernel")

    monkeypatch.setattr(Checkpoints, "restore_newest", fail)


def no_word(monkeypatch):
    monkeypatch.setattr(checkpoints_lib.logging.Logger, "warning", lambda *given: None)


def a_wrong_best(monkeypatch):
    monkeypatch.setattr(Checkpoints, "best_step", lambda self: 1)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (wrong_values, damage.WRONG),
        (a_traceback, damage.CRASHED),
        (no_word, damage.UNSAID),
        (a_wrong_best, damage.WRONG),
    ],
)
def test_a_trainer_with_a_fault_is_found_out(fault, outcome, copy, saved, monkeypatch):
    assert damage.harm(str(copy / "checkpoints" / "24" / "digests" / "metadata"), "halve")
    fault(monkeypatch)
    assert damage.classify(str(copy), saved)[0] == outcome
    assert outcome not in damage.GOOD


@pytest.mark.parametrize("how", damage.HARMS)
def test_a_harm_changes_the_file(how, tmp_path):
    path = tmp_path / "file"
    path.write_text('{"error": 0.25}')
    assert damage.harm(str(path), how)
    assert not path.exists() if how == "remove" else path.read_bytes() != b'{"error": 0.25}'
    if how == "change a digit":
        assert json.loads(path.read_text()) == {"error": 0.35}
        path.write_text("none")
        assert not damage.harm(str(path), how)


def test_the_report_says_what_was_found_and_what_failed(life, rows, what, tmp_path):
    result = dict(
        machine=survival.provenance.machine(),
        training=what,
        references_differ=[],
        control=True,
        kills=2,
        lives=[life[1] | dict(differs=[], lost=[])],
        damaged_step=24,
        damage=rows,
        commands=[],
    )
    assert all(claim["holds"] for claim in survival.judge(result))
    result["claims"] = survival.judge(result)
    text = report.table(result)
    assert text.count("  equal\n") == 2 and "2 of 2 kills came before the run's end" in text
    report.chart(result, str(tmp_path / "survival.png"))
    assert os.path.getsize(tmp_path / "survival.png") > 10_000
    for broken in (
        dict(lives=[life[1] | dict(differs=["checkpoint 24: params"], lost=[])]),
        dict(lives=[life[1] | dict(differs=[], lost=["step 9"])]),
        dict(damage=[rows[0] | dict(outcome=damage.WRONG), *rows[1:]]),
        dict(references_differ=["checkpoint 24"]),
        dict(commands=[dict(right=False, differs=[])]),
        dict(kills=3),
        dict(control=False),
    ):
        assert sum(not claim["holds"] for claim in survival.judge(result | broken)) == 1, broken
