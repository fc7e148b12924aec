"""What AlexNet says of test images, and which training images it finds alike (figure 4).

    python -m experiments.alexnet_figure4 --data_dir=TFDS --workdir=runs/alexnet
    python -m experiments.alexnet_figure4 --data_dir=TFDS --weights=resnet50.h5 --weights_format=keras --model=resnet:50
    python -m experiments.alexnet_figure4 --dataset=folder --data_dir=FOLDER --split=val --workdir=runs/alexnet

Krizhevsky et al. 2012, section 6.1 and figure 4. Left: eight test images with the five labels most probable to the
network. Right: five test images and beside each the six training images whose 4,096-dimensional feature vectors in the
last hidden layer (fc7) are nearest by Euclidean distance. The paper shows pictures and gives no number. Ours are how
often the true class is among the five, and how many of the six nearest are of the test image's class, against the share
that training images chosen at random would have.

Without a network named, AlexNet as run is trained for the --budget. A network without fc7 is asked for another layer,
a ResNet for `pool` (2,048 values in ResNet-50), which the title and the rows then name. The pictures are the run's own,
or imagenet2012's for published weights, unless --dataset names others of the same classes, such as a folder of images
in --data_dir: --images of --split for the numbers, some of which are drawn as --seed has it, and --training_images of
--train_split, spread evenly; 0 takes all. All 1.28 million of ImageNet would take 21 GB of fc7's values on disk, and a
forward pass each.
"""

import dataclasses
import tempfile
from collections.abc import Collection, Iterator

import numpy as np

from alexnet_resnet.errors import UserError, check_at_least
from experiments.study import Conclusion, Outcome, Row, Settings, Study, command, networks
from experiments.study.networks import Named
from experiments.study.report import Option

SHOWN, QUERIES, NEAREST, TOP = 8, 5, 6, 5
LAYERS = ("fc7", "pool")
# Images that are read and looked at together, queries that are compared together, and a drawn picture's side.
CHUNK, COMPARED, SIDE = 64, 64, 96
LEFT, RIGHT = "figure4_labels.png", "figure4_nearest.png"
IN_TOP, OF_CLASS, OF_KIND = (
    "true class among the top 5 (%)",
    "of the test image's class (%)",
    "animal or not, alike (%)",
)
# ILSVRC-2012's classes in the order of their WordNet numbers begin with all of its animals, from tench to puffer.
IMAGENET_CLASSES, ANIMALS = 1000, 398


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """Images of a split that could be read, and what the network made of them.

    Attributes:
      rows: their places in the split.
      labels: their classes.
      features: a vector each.
      top: their most probable classes as indices [N, 5], and the probabilities; empty where they were not asked for.
    """

    rows: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    top: tuple[np.ndarray, np.ndarray]


def check(options) -> None:
    networks.check(options)
    for name in ("images", "training_images"):
        check_at_least(f"--{name}", options[name], 0)
    if options["dataset"] and not networks.is_given(options):
        raise UserError(
            f"--dataset={options['dataset']!r}: expected --workdir or --weights with it; --set=data.dataset is for the "
            "network that is trained here."
        )


def check_settings(settings: Settings) -> None:
    """Refuses a layer that the network does not have."""
    config = networks.config_of(settings)
    known = networks.layers(config)
    layer = layer_of(settings.options["layer"], known)
    networks.check_layer("layer", layer, known, networks.name_of(config.model))


def check_files(settings: Settings) -> None:
    """Refuses splits that there are not."""
    load(settings)


def layer_of(layer: str, known: Collection[str]) -> str:
    """The layer whose values are compared."""
    return layer or next((name for name in LAYERS if name in known), "")


def splits_of(settings: Settings) -> dict[str, str]:
    """Where test and training images are from, by the option that says so."""
    data, options = networks.data_of(settings, settings.options["dataset"]), settings.options
    test = options["split"] or data.test_split or data.validation_split
    return {"split": test, "train_split": options["train_split"] or data.train_split}


def load(settings: Settings):
    """The test images and the training images.

    Raises:
      UserError: as `sources.load`.
    """
    from alexnet_resnet.data import sources

    data = networks.data_of(settings, settings.options["dataset"])
    return [sources.load(data, split, f"--{name}") for name, split in splits_of(settings).items()]


def spread(total: int, count: int) -> np.ndarray:
    """`count` places spread evenly over `total`; all for 0.

    >>> spread(10, 4).tolist(), spread(3, 0).tolist(), spread(3, 7).tolist()
    ([0, 2, 5, 7], [0, 1, 2], [0, 1, 2])
    """
    count = min(count or total, total)
    return np.arange(count) * total // count


def read(examples, rows, channels: int) -> Iterator[tuple[int, np.ndarray, int]]:
    """Place, picture and class of each example that can be read."""
    from alexnet_resnet.data import photos
    from alexnet_resnet.data.examples import Unreadable

    for row in map(int, rows):
        if not examples.encoded:
            yield row, examples.images[row], int(examples.labels[row])
            continue
        try:
            image, label = examples.read(row)
            # As it lies, as training reads it.
            yield row, photos.read(image, channels, upright=False), label
        except (Unreadable, photos.BrokenImage):
            continue


def look(named: Named, examples, rows: np.ndarray, layer: str, labelled: bool = False) -> Seen:
    """Sends images through the network, a chunk at a time; the features lie on disk, as they may be many."""
    from alexnet_resnet.evaluation.progress import Progress

    classifier, shape = named.classifier, named.classifier.activation_shapes[layer]
    with tempfile.TemporaryFile() as file:  # it is gone when the array is
        features = np.memmap(file, np.float32, "w+", shape=(len(rows), *shape))
    places, labels, tops, progress = [], [], [], Progress(f"{named.title}: {examples.name}", len(rows))
    for start in range(0, len(rows), CHUNK):
        asked = rows[start : start + CHUNK]
        part = list(read(examples, asked, classifier.channels))
        pictures = [picture for _, picture, _ in part]
        features[len(places) : len(places) + len(part)] = classifier.activations(pictures, [layer])[layer]
        if labelled:
            tops.append(classifier.probabilities(pictures))
        places += [row for row, _, _ in part]
        labels += [label for _, _, label in part]
        progress(len(asked))
    progress.close()
    if not places:
        raise UserError(f"{examples.name}: expected images that can be read, found none.")
    probabilities = np.concatenate(tops) if tops else np.empty((0, 1))
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    top = best, np.take_along_axis(probabilities, best, 1)
    return Seen(np.array(places), np.array(labels), features[: len(places)], top)


def find(test: Seen, training: Seen):
    """The nearest training images of every test image."""
    from alexnet_resnet.analysis import neighbours
    from alexnet_resnet.evaluation.progress import Progress

    k, progress, found = min(NEAREST, len(training.rows)), Progress("comparing", len(test.rows)), []
    for start in range(0, len(test.rows), COMPARED):
        queries = np.asarray(test.features[start : start + COMPARED])
        found.append(neighbours.nearest(queries, training.features, k))
        progress(len(queries))
    progress.close()
    return neighbours.Neighbours(
        *(np.concatenate([getattr(one, name) for one in found]) for name in ("rows", "distances"))
    )


def choose(test: Seen, training: Seen, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The test images that are drawn at the left and at the right: at random, but at the right rather of a class that
    training images have, and not those at the left where there are others."""
    order = np.random.default_rng(seed).permutation(len(test.rows))
    left, others = order[:SHOWN], np.concatenate([order[SHOWN:], order[:SHOWN]])
    alone = ~np.isin(test.labels[others], training.labels)
    return left, others[np.argsort(alone, kind="stable")][:QUERIES]


def rows_of(
    named: Named | None, layer: str, splits, shown, test: Seen | None, training: Seen | None, found
) -> list[Row]:
    """How often the five labels and the nearest images are right, and what chance would have."""
    if named is None:
        layer = layer or LAYERS[0]
        return [
            Row(f"{SHOWN} test images shown", IN_TOP),
            Row("all test images", IN_TOP),
            Row(f"{NEAREST} nearest by {layer}", OF_CLASS),
            Row("training images at random", OF_CLASS),
        ]
    from alexnet_resnet.analysis import neighbours
    from alexnet_resnet.evaluation import intervals

    right = (test.top[0] == test.labels[:, None]).any(1)
    low, high = intervals.wilson(int(right.sum()), len(right))
    budget, nearest = named.budget, f"{found.rows.shape[1]} nearest by {layer}"
    together = np.isin(test.labels, training.labels)
    note = f"{together.sum():,} of {len(together):,} test images have training images of their class"
    tests, trainings = f"{len(test.rows):,} images of {splits[0]}", f"{len(training.rows):,} of {splits[1]}"
    rows = [
        Row(f"the {len(shown)} test images shown", IN_TOP, None, 100 * right[shown].mean(), budget=budget),
        Row(tests, IN_TOP, None, 100 * right.mean(), interval=(100 * low, 100 * high), budget=budget),
    ]
    kinds = [(OF_CLASS, test.labels, training.labels, note)]
    if len(named.classifier.label_names) == IMAGENET_CLASSES:
        kinds.append(
            (OF_KIND, test.labels < ANIMALS, training.labels < ANIMALS, "ours: the first 398 classes are animals")
        )
    for measure, mine, theirs, said in kinds:
        chance = np.mean([np.mean(theirs == label) for label in mine])
        rows += [
            Row(
                nearest, measure, None, 100 * neighbours.agreement(found, mine, theirs).mean(), budget=budget, note=said
            ),
            Row(f"any of {trainings}, at random", measure, None, 100 * chance, note="what chance has"),
        ]
    return rows


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    settings, options = outcome.settings, outcome.options
    if not networks.is_given(options) and networks.OWN.label not in outcome.sound:
        return Conclusion(rows_of(None, options["layer"], *[None] * 5))
    splits, (tests, trainings) = tuple(splits_of(settings).values()), load(settings)
    named = networks.load(outcome)
    layer = layer_of(options["layer"], named.classifier.activation_shapes)
    for examples in (tests, trainings):
        _check_classes(named, examples)
    test = look(named, tests, spread(len(tests), options["images"]), layer, labelled=True)
    training = look(named, trainings, spread(len(trainings), options["training_images"]), layer)
    found = find(test, training)
    left, right = choose(test, training, settings.seed)
    photographs = options["photographs"]
    _draw_labels(named, tests, test, left, folder, photographs)
    _draw_nearest(named, layer, (tests, trainings), (test, training), found, right, folder, photographs)
    rows = rows_of(named, layer, splits, left, test, training, found)
    unread = [
        f"{left_out:,} images of {split} could not be read and were left out."
        for split, examples, seen, name in zip(
            splits, (tests, trainings), (test, training), ("images", "training_images"), strict=True
        )
        if (left_out := len(spread(len(examples), options[name])) - len(seen.rows))
    ]
    if not photographs:
        unread.append("In place of each photograph, which may not be passed on, the figures have its mean colour.")
    return Conclusion(rows, [LEFT, RIGHT], unread)


def _check_classes(named: Named, examples) -> None:
    """Refuses a dataset whose classes are not the network's: every answer would be called wrong."""
    from alexnet_resnet.data import labels

    theirs, ours = labels.readable(tuple(examples.label_names)), named.classifier.label_names
    if theirs != ours:
        place = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        differ = "" if place is None else f"; class {place} is {theirs[place]!r} there and {ours[place]!r} here"
        raise UserError(
            f"{examples.name}: expected the {len(ours)} classes of {named.title} in its order, found "
            f"{len(theirs)}{differ}."
        )


def _thumbnail(named: Named, examples, row: int, photographs: bool):
    """A small square picture of an example, or a square of its mean colour, and the name of its class."""
    from alexnet_resnet.analysis.neighbours import Shown
    from alexnet_resnet.data import photos

    ((_, picture, label),) = read(examples, [row], named.classifier.channels)
    small = photos.centre_square(picture, min(SIDE, *picture.shape[:2]))
    if not photographs:
        small = np.broadcast_to(small.mean((0, 1)).round().astype(np.uint8), small.shape)
    return Shown(small, named.classifier.label_names[label])


def _draw_labels(named: Named, examples, test: Seen, chosen, folder: str, photographs: bool) -> None:
    from alexnet_resnet.analysis import predictions
    from alexnet_resnet.evaluation.prediction import Prediction
    from experiments.study import figures

    drawn, names = [], named.classifier.label_names
    for place in chosen:
        picture, name = _thumbnail(named, examples, test.rows[place], photographs)
        best = zip(*(values[place].tolist() for values in test.top), strict=True)
        drawn.append(Prediction(name, picture, tuple((index, names[index], share) for index, share in best)))
    title = f"{named.title}: {examples.name}, the true class above each picture and red below it"
    predictions.draw(drawn, f"{folder}/{LEFT}", test.labels[chosen].tolist(), title)
    figures.slim(folder, LEFT)


def _draw_nearest(named: Named, layer: str, examples, seen, found, chosen, folder: str, photographs: bool) -> None:
    from alexnet_resnet.analysis import neighbours
    from experiments.study import figures

    (tests, trainings), (test, training) = examples, seen
    units = "x".join(map(str, named.classifier.activation_shapes[layer]))
    title = f"{named.title}: nearest by {layer} ({units} values) of {len(training.rows):,} images of {trainings.name}"
    neighbours.draw(
        [_thumbnail(named, tests, test.rows[place], photographs) for place in chosen],
        lambda place: _thumbnail(named, trainings, training.rows[place], photographs),
        neighbours.Neighbours(found.rows[chosen], found.distances[chosen]),
        f"{folder}/{RIGHT}",
        title,
    )
    figures.slim(folder, RIGHT, 1000)


STUDY = Study(
    name="alexnet_figure4",
    title="The five most probable labels of test images, and the training images nearest to them",
    source="Krizhevsky et al. 2012, figure 4 and section 6.1",
    runs=networks.runs,
    conclude=conclude,
    options=networks.options()
    | {
        "layer": Option("", "The layer whose values are compared; fc7, or pool where there is none."),
        "dataset": Option("", "Whose images they are, as in training: imagenet2012, folder; by default the network's."),
        "split": Option("", "Where test images are from; the run's test or validation split by default."),
        "images": Option(1000, "Test images that the numbers are of, spread evenly over the split; 0 for all."),
        "train_split": Option("", "Where the nearest are looked for; the run's training split by default."),
        "training_images": Option(10_000, "Training images that are looked at, spread evenly; 0 for all."),
        "photographs": Option(True, "Draw the pictures; --nophotographs draws their mean colours, to be passed on."),
    },
    check=check,
    check_settings=check_settings,
    check_files=check_files,
)

if __name__ == "__main__":
    command.main(STUDY)
