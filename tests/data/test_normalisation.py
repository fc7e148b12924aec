"""The mean of encoded images, shared out among processes."""

import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import normalisation
from alexnet_resnet.data.examples import EncodedExamples, InMemory
from alexnet_resnet.errors import UserError

CANVASES = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3)).astype(np.uint8)


def measured(readable, count):
    """What each of `count` processes measures of ten images; here they work one after another."""
    data = config_lib.default("alexnet").data
    data.update(canvas_size=16, image_size=8, lighting="as_run", lighting_statistics="dataset")
    examples = EncodedExamples(InMemory([b""] * 10, np.zeros(10, int)), range(10), ("a", "b"), "some")

    def canvases(rows):
        for row in rows:
            yield {"image": CANVASES[[row]], "valid": np.isin([row], readable)}

    def measure(number, gather):
        return normalisation.measure(data, examples, canvases, helpers=normalisation.Helpers(number, count, gather))

    class Enough(Exception):
        pass

    sums = []
    for number in range(count):

        def note(value):
            sums.append(value)
            raise Enough

        with pytest.raises(Enough):
            measure(number, note)
    return [measure(number, lambda value: sums) for number in range(count)]


@pytest.mark.parametrize("count", [2, 3, 12])
def test_any_number_of_processes_measures_the_same_bits(count):
    readable = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    ((mean, axes),) = measured(readable, 1)
    np.testing.assert_allclose(mean, CANVASES[readable].astype(float).mean(0), rtol=1e-6)
    assert np.abs(axes).max() > 1
    for other_mean, other_axes in measured(readable, count):
        np.testing.assert_array_equal(other_mean, mean)
        np.testing.assert_array_equal(other_axes, axes)


def test_that_nothing_can_be_read_is_known_to_all():
    with pytest.raises(UserError, match="expected an image that can be read for the mean, found none"):
        measured([], 2)
