"""Softmax outputs of several networks, added up, scored and saved; the progress of an evaluation."""

import errno
import json
import os

import numpy as np
import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import outputs as outputs_lib
from alexnet_resnet.evaluation.outputs import Outputs
from alexnet_resnet.evaluation.progress import Progress


def random_outputs(examples, classes, seed):
    powers = np.exp(np.random.default_rng(seed).normal(size=(examples, classes)))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def filled(monkeypatch):
    """Two networks on eleven examples of seven classes, row 4 unreadable for the second; in chunks of four."""
    monkeypatch.setattr(outputs_lib, "CHUNK", 4)
    both = [random_outputs(11, 7, seed) for seed in (0, 1)]
    labels = (np.arange(11) % 7).astype(np.int32)
    outputs = Outputs(11, 7, networks=2)
    for probabilities, order in zip(both, (np.arange(11), np.delete(np.arange(11)[::-1], 6)), strict=True):
        for rows in np.array_split(order, 3):
            outputs.add(rows, labels[rows], np.log(probabilities[rows]))
    keep = np.delete(np.arange(11), 4)
    return outputs, keep, labels[keep], ((both[0] + both[1]) / np.float32(2))[keep]


def test_the_mean_is_scored_as_numpy_does(filled):
    outputs, _, labels, mean = filled
    right = mean[np.arange(10), labels]
    ranks = (mean >= right[:, None]).sum(1)
    totals = outputs.totals()
    assert totals["examples"] == 10
    assert (totals["top1_errors"], totals["top5_errors"]) == ((ranks > 1).sum(), (ranks > 5).sum())
    assert totals["loss"] == pytest.approx(-np.log(right.astype(np.float64)).sum(), rel=1e-5)
    answers = outputs.answers()
    np.testing.assert_array_equal(answers.top1_wrong, ranks > 1)
    np.testing.assert_array_equal(answers.top5_wrong, ranks > 5)
    np.testing.assert_array_equal(answers.classes, np.argsort(-mean, 1)[:, :5])


def test_what_is_saved_is_what_was_judged(filled, tmp_path):
    outputs, keep, labels, mean = filled
    names = tuple("abcdefg")
    outputs.save(str(tmp_path / "all.npz"), names, json.dumps({"views": "centre"}))
    with np.load(tmp_path / "all.npz") as file:
        np.testing.assert_array_equal(file["row"], keep)
        np.testing.assert_array_equal(file["label"], labels)
        np.testing.assert_allclose(file["softmax"], mean, rtol=1e-6)
        assert tuple(file["class_names"]) == names and json.loads(str(file["description"])) == {"views": "centre"}
    outputs.save(str(tmp_path / "five.npz"), names, "{}", top5_only=True)
    with np.load(tmp_path / "five.npz") as file:
        best = np.argsort(-mean, 1)[:, :5]
        np.testing.assert_array_equal(file["top5_class"], best)
        np.testing.assert_allclose(file["top5_probability"], np.take_along_axis(mean, best, 1), rtol=1e-6)
        assert "softmax" not in file.files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.npz", "five.npz"]


def test_ties_count_against_the_network():
    outputs = Outputs(2, 3)
    outputs.add(np.arange(2), np.array([0, 1], np.int32), np.log(np.full((2, 3), 1 / 3, np.float32)))
    assert outputs.answers().top1_wrong.all() and outputs.totals()["top1_errors"] == 2
    assert not outputs.answers().top5_wrong.any()


def test_a_full_disk_is_said_in_one_line(monkeypatch, tmp_path):
    outputs = Outputs(2, 3)
    outputs.add(np.arange(2), np.zeros(2, np.int32), np.log(np.full((2, 3), 1 / 3, np.float32)))

    def full(*arguments, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"predictions=.*a.npz': expected a file that can be written \(No space"):
        outputs.save(str(tmp_path / "a.npz"), ("a", "b", "c"), "{}")
    assert not list(tmp_path.iterdir()), "nothing half-written is left"
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="TMPDIR=.*expected room for 0 MiB of softmax outputs"):
        Outputs(2, 3)


def test_progress_is_a_line_now_and_then(capsys):
    progress = Progress("run", 1200, every=0)
    progress(500)
    progress(700)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, "nothing is said twice"
    assert lines[0].startswith("run: 500 of 1,200 images in ") and lines[1].startswith("run: 1,200 of 1,200 images")
    quiet = Progress("run", 1200, every=0, shown=False)
    quiet(1200)
    quiet.close()
    assert capsys.readouterr().err == ""
