"""What every layer of AlexNet makes of one picture.

    python -m experiments.alexnet_feature_maps --workdir=runs/alexnet
    python -m experiments.alexnet_feature_maps --weights=resnet50.h5 --weights_format=keras --model=resnet:50
    python -m experiments.alexnet_feature_maps --workdir=runs/alexnet --image=photo.jpg --layers=conv1,norm1,pool1

The paper (Krizhevsky et al. 2012) shows the kernels of the first layer and says of the last hidden one which images it
takes for alike (section 6.1); of the layers between it gives neither pictures nor numbers. Here they are seen: of each
layer the 16 maps with the largest mean magnitude, AlexNet's two columns apart, and the units of the fully connected
ones as a curve. The numbers are the share of a layer's values above zero: what ReLU (section 3.1) leaves.

The picture is scikit-learn's china.jpg unless --image names another. Without a network named, AlexNet as run is trained
for the --budget. Of a network in blocks the ends of its stages are shown; --layers names any others.
"""

from collections.abc import Iterable

import numpy as np

from alexnet_resnet.errors import UserError, check_at_least
from experiments.study import Conclusion, Outcome, Row, Settings, Study, command, networks
from experiments.study.report import Option

FIGURE, POSITIVE = "feature_maps.png", "values above zero (%)"
SAMPLE = "scikit-learn's china.jpg"
# AlexNet's as run, for the table where it was not.
LAYERS = (
    *("conv1", "norm1", "pool1", "conv2", "norm2", "within_map2", "pool2"),
    *("conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8"),
)


def check(options) -> None:
    networks.check(options)
    check_at_least("--maps", options["maps"], 1)
    if options["image"]:
        picture(options["image"], 3)


def check_settings(settings: Settings) -> None:
    """Refuses a layer that the network does not have."""
    config = networks.config_of(settings)
    known = networks.layers(config)
    for layer in layers_of(known, settings.options["layers"]):
        networks.check_layer("layers", layer, known, networks.name_of(config.model))


def picture(image: str, channels: int) -> np.ndarray:
    """The picture of a file, or scikit-learn's, as a network of so many channels takes it."""
    from alexnet_resnet.data import photos

    if image:
        try:
            return photos.read(image, channels)
        except photos.BrokenImage as error:
            raise UserError(f"--image={error}") from error
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image("china.jpg")
    return pixels if channels == 3 else np.round(pixels.mean(-1, keepdims=True)).astype(np.uint8)


def layers_of(known: Iterable[str], text: str) -> list[str]:
    """The layers that are shown: those that are named, or all that are not inside of a block."""
    return [name.strip() for name in text.split(",")] if text else [name for name in known if "/" not in name]


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    options, named = outcome.options, networks.load(outcome)
    if named is None:
        return Conclusion([Row(name, POSITIVE) for name in layers_of(LAYERS, options["layers"])])
    from alexnet_resnet.analysis import feature_maps
    from experiments.study import figures

    classifier, title = named.classifier, options["image"] or SAMPLE
    pixels = picture(options["image"], classifier.channels)
    names = layers_of(classifier.activation_shapes, options["layers"])
    shown = feature_maps.layers(classifier, pixels, names)
    (probabilities,) = classifier.probabilities([pixels])
    best = int(probabilities.argmax())
    said = f"most probable: {classifier.label_names[best]}, {100 * probabilities[best]:.1f}%"
    heading = f"{named.title} on {title} ({said}); of each layer the most active maps"
    feature_maps.draw(shown, f"{folder}/{FIGURE}", classifier.view(pixels), options["maps"], title=heading)
    figures.slim(folder, FIGURE)
    rows = [
        Row(layer.name, POSITIVE, None, 100 * float(np.mean(layer.values > 0)), budget=named.budget, digits=1,
            note=layer.size)
        for layer in shown
    ]  # fmt: skip
    return Conclusion(rows, [FIGURE], [f"{named.title}, {title}; {said}."])


STUDY = Study(
    name="alexnet_feature_maps",
    title="What every layer makes of one picture",
    source="ours; the networks of Krizhevsky et al. 2012 and He et al. 2016",
    runs=networks.runs,
    conclude=conclude,
    options=networks.options()
    | {
        "image": Option("", f"A picture; {SAMPLE} by default."),
        "layers": Option("", "Names with commas between them, such as conv1,fc7; by default those outside of blocks."),
        "maps": Option(16, "Maps of a layer at most."),
    },
    check=check,
    check_settings=check_settings,
)

if __name__ == "__main__":
    command.main(STUDY)
