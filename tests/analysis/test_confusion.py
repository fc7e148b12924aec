"""Errors of each class and confusions: counted as by hand, and drawn for few and for many classes."""

import csv

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.analysis import confusion
from alexnet_resnet.evaluation.outputs import Outputs


def answers(labels, taken, classes):
    """Answers in which the class `taken` is the most probable one, and the others follow from the last to the first."""
    probabilities = np.tile(np.arange(classes, dtype=np.float32), (len(labels), 1))
    probabilities[np.arange(len(labels)), taken] = classes
    outputs = Outputs(len(labels), classes)
    outputs.add(
        np.arange(len(labels)), np.asarray(labels, np.int32), probabilities / probabilities.sum(1, keepdims=True)
    )
    return outputs.answers()


def test_confusions_are_counted_as_by_hand():
    found = confusion.count(answers([0, 0, 0, 1, 1, 3, 6], [0, 2, 2, 1, 0, 3, 3], 7), 7)
    assert found.examples.tolist() == [3, 2, 0, 1, 0, 0, 1]
    assert found.top1_errors.tolist() == [2, 1, 0, 0, 0, 0, 1]
    # Before class 0 and 1 come the one that was taken and then 6, 5, 4, 3; class 6 is the second.
    assert found.top5_errors.tolist() == [2, 1, 0, 0, 0, 0, 0]
    assert found.worst().tolist() == [6, 0, 1, 3]
    assert found.pairs() == [(0, 2, 2), (1, 0, 1), (6, 3, 1)]


@pytest.mark.parametrize("classes", [2, 10, 25, 1000])
def test_the_figures_fit_however_many_classes_there_are(classes, tmp_path):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 3000)
    taken = np.where(random.random(3000) < 0.7, labels, random.integers(0, classes, 3000))
    found = answers(labels, taken, classes)
    names = [f"class {'_$x' * 9} {number}" for number in range(classes)]
    lines = confusion.draw(found, names, "random test, centre", str(tmp_path))
    assert len(lines) == 2 and str(tmp_path / "confusion.png") in lines[1]
    for name in ("classes.png", "confusion.png"):
        width, height = Image.open(tmp_path / name).size
        assert 300 < width < 2000 and 200 < height < 2000
    with open(tmp_path / "classes.csv") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["examples"]) for row in rows) == 3000
    assert sum(int(row["top1_errors"]) for row in rows) == (labels != taken).sum()
    shares = [float(row["top1_error"]) for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_a_network_without_errors_is_drawn_too(tmp_path):
    labels = np.arange(40)
    confusion.draw(answers(labels, labels, 40), [str(i) for i in range(40)], "perfect", str(tmp_path))
    assert (tmp_path / "confusion.png").exists()
