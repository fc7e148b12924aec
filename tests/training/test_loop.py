"""What the loop does when it is told to stop just where an evaluation is due."""

import os
import signal

import jax
import numpy as np
import pytest

from alexnet_resnet import config as config_lib
from alexnet_resnet.training import loop
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.preemption import Stopped


def make_config(shapes_npz):
    config = config_lib.default("lenet")
    config.model.update(connections="full", subsampling="average", output="linear")
    config.data.update(dataset="npz", data_dir=str(shapes_npz), num_classes=4, loader="resident")
    config.data.update(validation_split="validation", test_split="", divisor=128.0)
    config.train.update(batch_size=16, duration="6 steps")
    config.optimizer.learning_rate = 0.01
    config.evaluation.update(every="2 steps", batch_size=24)
    config.checkpoint.every = "100 steps"
    config.log.update(every="1 step", tensorboard=False)
    return config


def rows(workdir):
    return [row for row in workdir_lib.read_metrics(workdir) if "validation/error" in row]


def test_a_stop_does_not_wait_for_an_evaluation_and_the_next_start_makes_up_for_it(shapes_npz, tmp_path):
    config, stopped, whole = make_config(shapes_npz), str(tmp_path / "stopped"), str(tmp_path / "whole")
    loop.train(config, whole)

    def at_step(number):
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="after step 4"):
        loop.train(config, stopped, at_step)
    assert signal.getsignal(signal.SIGTERM) == before
    assert [row["step"] for row in rows(stopped)] == [2], "the evaluation of step 4 was left out"
    loop.train(config, stopped)
    assert rows(stopped) == rows(whole) and [row["step"] for row in rows(whole)] == [2, 4, 6]
    from alexnet_resnet.evaluation import runs
    from alexnet_resnet.parallel import mesh as mesh_lib

    everywhere = mesh_lib.replicated(mesh_lib.create(-1, 1))
    states = [jax.device_get(runs.restore(workdir, "last", everywhere)[1]) for workdir in (stopped, whole)]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)
