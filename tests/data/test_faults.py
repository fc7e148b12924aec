"""Unreadable examples: counted once, told once, refused when they are too many, also over several processes."""

import numpy as np
import pytest

from alexnet_resnet.data.examples import Examples
from alexnet_resnet.data.faults import Faults
from alexnet_resnet.errors import UserError


def faults_of(most):
    labels = np.zeros(100, np.int32)
    return Faults(Examples(np.zeros((100, 1, 1, 3), np.uint8), labels, ("a", "b"), "some"), most)


def test_one_beyond_the_allowed_share_is_refused():
    faults = faults_of(0.02)
    for index in (5, 9, 5, 9):
        faults.add(index, f"image {index}")
    with pytest.raises(UserError, match=r"0.02: expected at most this share.*but 3 of 100 are, the last: image 7"):
        faults.add(7, "image 7")


def test_processes_know_together_what_each_has_found():
    one, two = faults_of(1.0), faults_of(1.0)
    one.add(3, "three")
    two.add(8, "eight")
    two.add(3, "three")  # both have met it
    found = [dict(one._new), dict(two._new)]
    assert one.new(lambda mine: found) == two.new(lambda mine: found) == ["three", "eight"]
    two.add(3, "three")
    one.add(8, "eight")
    assert not one.new() and not two.new(), "what another has told is no news"
    assert len(one) == len(two) == 2 and 8 in one
    assert one.summary(["eight"]) == "some: 2 of 100 images cannot be read; new: eight"


def test_together_they_may_be_too_many():
    one = faults_of(0.02)
    one.add(1, "one")
    with pytest.raises(UserError, match="but 3 of 100 are"):
        one.new(lambda mine: [mine, {2: "two"}, {3: "three"}])


def test_where_several_read_they_end_together_or_not_at_all():
    one = faults_of(0.0)
    one.patient = True
    one.add(1, "one")
    with pytest.raises(UserError, match="but 1 of 100 are"):
        one.new()


def test_many_reasons_are_shortened():
    faults = faults_of(1.0)
    for index in range(7):
        faults.add(index, str(index))
    assert faults.summary(faults.new()).endswith("new: 0; 1; 2; 3; 4; ...")
