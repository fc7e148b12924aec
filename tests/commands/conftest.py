"""A run that is over in seconds, and what it left."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def flags_for(shapes_npz):
    """Flags of a training on `shapes_npz` in a folder, with other fields if given.

    On the device's own loader: TensorFlow takes longer to import than the run takes.
    """

    def flags(workdir, config="configs/digits.py", **fields):
        given = {
            "data.dataset": "npz",
            "data.data_dir": shapes_npz,
            "data.num_classes": 4,
            "data.canvas_size": 10,
            "data.image_size": 8,
            "data.random_crop": True,
            "data.loader": "resident",
            "data.train_split": "train",
            "data.validation_split": "validation",
            "train.batch_size": 16,
            "train.duration": "30 steps",
            "evaluation.every": "10 steps",
            "checkpoint.every": "5 steps",
            "log.every": "5 steps",
            "optimizer.learning_rate": 0.05,
        }
        if config == "configs/digits.py":
            given["model.width"] = 0.25
        given |= fields
        changed = [f"--config.{name}={value}" for name, value in given.items()]
        return [f"--config={config}", f"--workdir={workdir}", *changed]

    return flags


@pytest.fixture(scope="session")
def final_state():
    """Reads the state of a run's checkpoint to the host."""
    from alexnet_resnet.evaluation import runs
    from alexnet_resnet.parallel import mesh as mesh_lib

    def state(workdir, checkpoint="last"):
        mesh = mesh_lib.create(-1, 1)
        return jax.device_get(runs.restore(str(workdir), checkpoint, mesh_lib.replicated(mesh))[1])

    return state


@pytest.fixture(scope="session")
def assert_same():
    """Holds two states to each other, bit for bit."""

    def compare(a, b):
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path

    return compare
