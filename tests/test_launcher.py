"""The tests' way of starting commands is a command's own."""

import os
import subprocess
import sys

import pytest
from launcher import ROOT


def test_a_command_says_and_ends_as_it_does_when_it_is_started_by_itself(command):
    flags = ["--config=configs/lenet.py", "--config.model.connections=half"]
    for module, given in (
        ("alexnet_resnet.summarize", flags[:1]),
        ("alexnet_resnet.summarize", flags),
        ("alexnet_resnet.train", ["--help"]),
        ("experiments.alexnet_lighting", []),
    ):
        alone = subprocess.run(
            [sys.executable, "-m", module, *given],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        found = command(module.removeprefix("alexnet_resnet."), *given)
        assert (found.returncode, found.stdout, found.stderr) == (alone.returncode, alone.stdout, alone.stderr)


def test_a_command_that_takes_too_long_is_killed(command):
    with pytest.raises(subprocess.TimeoutExpired):
        command("summarize", "--config=configs/resnet.py:152", timeout=0.01)
    assert command("summarize", "--config=configs/lenet.py").returncode == 0
