"""Records what other libraries compute with random weights: the references of test_references.py.

Run in an environment with torch, torchvision, timm and transformers, and again in one with Keras; each writes its own
files into tests/pretrained/references:

    python tests/pretrained/make_references.py torch
    python tests/pretrained/make_references.py keras

Those recorded are by torch 2.13.0, torchvision 0.28.0, timm 1.0.31 and transformers 5.23.0; keras 3.15.1 on
tensorflow-cpu 2.21.0.

FORMAT.json.gz has the name and shape of every tensor of every network of a format; FORMAT.npz the logits of some of
them. The weights are those of random_weights.py. The forward passes of torch run in float64.
"""

import gzip
import json
import pathlib
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "references"


def record(format: str, networks: dict, state, forward, sizes: dict[str, int]) -> None:
    """Writes one format's names and logits.

    Args:
      format: the files' name.
      networks: from 'resnet:50' to a function that builds the library's network.
      state: from a network to its tensors' shapes by name.
      forward: from a network, weights by name and an image to logits.
      sizes: the networks to run, with the side of their image.
    """
    from random_weights import image, weight

    names, logits = {}, {}
    for model, build in networks.items():
        network = build()
        names[model] = state(network)
        if model in sizes:
            weights = {name: weight(name, tuple(shape)) for name, shape in names[model].items()}
            logits[model] = np.asarray(forward(network, weights, image(sizes[model])), np.float32)[0]
            print(format, model, len(weights), "tensors, logits", logits[model].std(), np.abs(logits[model]).max())
        del network
    FOLDER.mkdir(exist_ok=True)
    packed = gzip.compress(json.dumps(names).encode(), mtime=0)
    (FOLDER / f"{format}.json.gz").write_bytes(packed)
    if logits:
        np.savez(FOLDER / f"{format}.npz", **logits)


def record_preprocessing() -> None:
    """What torchvision's presets make of one image, every 16th pixel."""
    from PIL import Image
    from random_weights import photograph
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    picture = Image.fromarray(photograph())
    made = {}
    for name in ("bilinear", "bicubic"):
        transform = ImageClassification(crop_size=224, interpolation=InterpolationMode(name))
        made[name] = transform(picture).numpy().transpose(1, 2, 0)[::16, ::16]
    np.savez(FOLDER / "preprocessing.npz", **made)


def record_torch() -> None:
    import timm
    import torch
    import torchvision
    import transformers

    def state(network):
        return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}

    def forward(network, weights, x):
        network = network.to_empty(device="cpu")
        network.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()}, strict=True)
        with torch.no_grad():
            out = network.double().eval()(torch.from_numpy(x.transpose(0, 3, 1, 2)).double())
        return getattr(out, "logits", out).numpy()

    def on_meta(build, **kwargs):
        def built():
            with torch.device("meta"):
                return build(**kwargs)

        return built

    def huggingface(depth):
        depths = {18: [2, 2, 2, 2], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}.get(depth, [3, 4, 6, 3])
        kind = "basic" if depth < 50 else "bottleneck"
        sizes = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
        config = transformers.ResNetConfig(depths=depths, hidden_sizes=sizes, layer_type=kind, num_labels=1000)
        return on_meta(transformers.ResNetForImageClassification, config=config)

    depths = (18, 34, 50, 101, 152)
    zoo = torchvision.models
    networks = {f"resnet:{depth}": on_meta(getattr(zoo, f"resnet{depth}")) for depth in depths}
    networks |= {"vgg:16": on_meta(zoo.vgg16), "vgg:19": on_meta(zoo.vgg19), "alexnet": on_meta(zoo.alexnet)}
    sizes = {"resnet:18": 224, "resnet:50": 224, "vgg:16": 224, "alexnet": 224}
    record("torchvision", networks, state, forward, sizes)

    names = [*(f"resnet:{depth}" for depth in depths), "vgg:16", "vgg:19"]
    networks = {name: on_meta(timm.create_model, model_name=name.replace(":", "")) for name in names}
    record("timm", networks, state, forward, {})

    networks = {f"resnet:{depth}": huggingface(depth) for depth in depths}
    record_preprocessing()
    record("huggingface", networks, state, forward, {"resnet:50": 96})


def record_keras() -> None:
    import keras

    def state(network):
        return {w.path: list(w.shape) for w in network.weights}

    def forward(network, weights, x):
        for variable in network.weights:
            variable.assign(weights[variable.path])
        return network(x, training=False)

    zoo = {"resnet:50": "ResNet50", "resnet:101": "ResNet101", "resnet:152": "ResNet152"}

    def builder(name):
        return lambda: getattr(keras.applications, name)(weights=None, classifier_activation=None)

    record("keras", {model: builder(name) for model, name in zoo.items()}, state, forward, {"resnet:50": 224})


if __name__ == "__main__":
    {"torch": record_torch, "keras": record_keras}[sys.argv[1]]()
