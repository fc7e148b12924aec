"""Wilson's interval against published values."""

import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.intervals import wilson


@pytest.mark.parametrize(
    ("errors", "examples", "low", "high"),
    # Newcombe 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_newcombe_s_third_method(errors, examples, low, high):
    assert wilson(errors, examples) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_the_rest_is_the_rest_of_the_interval():
    low, high = wilson(8, 64)
    assert wilson(56, 64) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert wilson(64, 64)[1] == 1 and wilson(0, 64)[0] == 0


def test_another_confidence_has_another_width():
    """The ends solve (p - x)^2 = z^2 x (1 - x) / n, with z of the confidence."""
    for confidence, z in ((0.95, 1.959964), (0.99, 2.575829)):
        for x in wilson(30, 100, confidence):
            assert (0.3 - x) ** 2 == pytest.approx(z**2 * x * (1 - x) / 100, rel=1e-5)


@pytest.mark.parametrize(("errors", "examples"), [(1, 0), (-1, 5), (6, 5), (0, 0)])
def test_counts_that_cannot_be_are_refused(errors, examples):
    with pytest.raises(UserError, match=f"errors={errors}: expected a count from 0 to examples={examples}"):
        wilson(errors, examples)
