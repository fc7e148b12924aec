"""What binds a step, and how near it comes: by hand."""

import pytest
from chosen_flags import chosen
from PIL import Image

from alexnet_resnet.errors import UserError
from experiments.benchmarks import command, roofline, training_steps


@pytest.mark.parametrize(
    "flops, traffic, seconds, expected",
    [
        # A device of 100 operations and 10 bytes a second: 10 operations a byte.
        (2000.0, 100.0, 40.0, dict(intensity=20.0, bound="arithmetic", share=0.5, share_of_peak=0.5)),
        (500.0, 100.0, 40.0, dict(intensity=5.0, bound="memory", share=0.25, share_of_peak=0.125)),
    ],
)
def test_the_roof_is_the_lower_of_two(flops, traffic, seconds, expected):
    assert roofline.bound(flops, traffic, seconds, peak=100.0, rate=10.0) == expected


def test_a_step_is_measured_and_drawn(tmp_path):
    with chosen(command.FLAGS, quick=True), chosen(roofline.FLAGS, networks=["resnet20"]):
        result = roofline.measure()
    (found,) = result["rows"]
    config = training_steps.config("resnet20", "float32", 2, quick=True)
    assert found["flops"] == 2 * 6 * training_steps.multiply_adds(config)
    # At least the images and the parameters pass once.
    assert found["bytes"] > 2 * 8 * 8 * 3
    assert 0 < found["share_of_peak"] < 1
    assert found["intensity"] == found["flops"] / found["bytes"]
    lines = roofline.table(result).splitlines()
    assert lines[1].startswith("ResNet-20   float32       2") and lines[1].endswith(found["bound"])
    result["machine"] = dict(devices="1 x cpu", cores=2, date="today", commit="abc")
    roofline.draw(result, tmp_path / "roofline.png")
    assert Image.open(tmp_path / "roofline.png").width > 1000


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(networks=["lenet"]), r"^networks='lenet': expected one of 'alexnet'"),
        (dict(networks=[]), r"^networks='': expected at least one of"),
        (dict(dtypes=["float16"]), r"^dtypes='float16': expected one of 'float32', 'bfloat16'"),
        (dict(batch_size=-1), r"^batch_size=-1: expected"),
    ],
)
def test_refused(given, said):
    with chosen(roofline.FLAGS, **given), pytest.raises(UserError, match=said):
        roofline.measure()
