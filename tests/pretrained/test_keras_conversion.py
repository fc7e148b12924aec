"""The TensorFlow.js form of Keras' ResNet-50 becomes Keras' own .h5 (experiments/pretrained_keras.py)."""

import json

import jax
import numpy as np
import pytest

from alexnet_resnet import pretrained
from experiments import pretrained_keras


def write_tfjs(folder, tensors, shards=3):
    """Two groups of weights, each one run of bytes cut into shards wherever it falls."""
    folder.mkdir()
    names, groups = list(tensors), []
    for number, group in enumerate((names[:7], names[7:])):
        data = b"".join(tensors[name].tobytes() for name in group)
        cuts = [len(data) * shard // shards for shard in range(shards + 1)]
        paths = [f"group{number}-shard{shard}.bin" for shard in range(shards)]
        for path, start, stop in zip(paths, cuts[:-1], cuts[1:], strict=True):
            (folder / path).write_bytes(data[start:stop])
        weights = [{"name": name, "shape": list(tensors[name].shape), "dtype": "float32"} for name in group]
        groups.append({"paths": paths, "weights": weights})
    (folder / "model.json").write_text(json.dumps({"weightsManifest": groups}))


def test_shards_are_one_run_of_bytes(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"w{n}": rng.random((n + 1, 3), np.float32) for n in range(10)} | {"scalar": np.float32(3).reshape(())}
    write_tfjs(tmp_path / "model", tensors)
    read = pretrained_keras.read_tfjs(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, read, tensors)
    with (tmp_path / "model" / "group1-shard2.bin").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="4 bytes that no weight claims"):
        pretrained_keras.read_tfjs(tmp_path / "model")


def test_both_names_hold_every_tensor_in_its_place(tensors_of, tmp_path):
    expected = tensors_of("keras", "resnet:50")
    _, today = pretrained_keras.keras_names()
    write_tfjs(tmp_path / "model", {was: expected[name] for was, name in today.items()})
    of_2017 = pretrained_keras.convert(tmp_path / "model", tmp_path / "w.h5")
    one, other = (pretrained.load(path, "keras", "resnet:50") for path in (tmp_path / "w.h5", of_2017))
    reference = pretrained.from_tensors(expected, "keras", "resnet:50")
    for weights in (one, other):
        jax.tree.map(
            np.testing.assert_array_equal,
            (weights.params, weights.batch_stats),
            (reference.params, reference.batch_stats),
        )


def test_another_model_is_refused(tmp_path):
    write_tfjs(tmp_path / "model", {"dense/kernel": np.zeros((2, 3), np.float32)})
    with pytest.raises(ValueError, match="not the tensors of ResNet-50"):
        pretrained_keras.convert(tmp_path / "model", tmp_path / "w.h5")


def test_errors_count_the_first_and_the_first_five():
    logits = np.tile(np.arange(10.0), (4, 1))  # Class 9 first, 5 fifth.
    assert pretrained_keras.errors(logits, np.array([9, 5, 4, 0])) == "75.00 / 50.00"
