"""Says what is in pictures: the five most probable classes of each.

  python -m alexnet_resnet.predict photo.jpg holidays/ --workdir=runs/digits
  python -m alexnet_resnet.predict '*.jpg' --weights=resnet50.h5 --weights_format=keras --model=resnet:50

Pictures are files, folders or patterns. Exit status: 0 when all could be read, 1 when some could not, 2 when the
command itself was wrong.
"""

import json
import sys

from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run whose network is asked.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "With --workdir: 'last', 'best' or a step's number.")
WEIGHTS = flags.DEFINE_string("weights", None, "A file of published weights, instead of --workdir.")
FORMAT = flags.DEFINE_string("weights_format", None, "With --weights: keras, torchvision, timm or huggingface.")
MODEL = flags.DEFINE_string("model", None, "With --weights: the network, such as resnet:50, vgg:16 or alexnet.")
LABELS = flags.DEFINE_string("labels", None, "A file with the classes' names, one a line.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object a line instead of bars.")
FIGURE = flags.DEFINE_string(
    "figure", None, "A file for the pictures with their labels drawn below, such as out.png; of the first 16."
)

BAR = 24


def main(paths: list[str]) -> None:
    from alexnet_resnet.analysis import predictions
    from alexnet_resnet.data import photos
    from alexnet_resnet.evaluation import prediction

    if not paths:
        raise UserError("no pictures: expected files, folders or patterns, such as photo.jpg.")
    if bool(WORKDIR.value) == bool(WEIGHTS.value):
        raise UserError("expected either --workdir=DIR or --weights=FILE with --weights_format and --model.")
    if FIGURE.value:
        predictions.check(FIGURE.value)
    files = photos.find(paths)
    if WORKDIR.value:
        classifier = prediction.from_workdir(WORKDIR.value, CHECKPOINT.value)
    else:
        weights_format, model = cli.require(FORMAT, "keras"), cli.require(MODEL, "resnet:50")
        classifier = prediction.from_weights(WEIGHTS.value, weights_format, model)
    if LABELS.value:
        classifier = prediction.with_labels(classifier, LABELS.value)

    broken, made = [], []

    def skip(message: str) -> None:
        broken.append(message)
        print(f"skipped {message}", file=sys.stderr)

    for found in prediction.predict(classifier, files, skip):
        print(as_json(found) if JSON.value else as_bars(found), flush=True)
        if FIGURE.value and len(made) < predictions.MOST:
            made.append(found)
    if made:
        predictions.draw(made, FIGURE.value)
    if broken:
        print(f"{len(broken)} of {len(files)} files could not be read", file=sys.stderr)
        sys.exit(cli.FAILURE)


def as_json(found) -> str:
    """A prediction as one JSON object."""
    top = [dict(class_index=index, label=name, probability=probability) for index, name, probability in found.top]
    return json.dumps({"file": found.file, "top5": top})


def as_bars(found) -> str:
    """A prediction as text, a bar for each class."""
    width = max(len(name) for _, name, _ in found.top)
    lines = [
        f"  {name:<{width}}  {'#' * round(BAR * probability):<{BAR}}  {100 * probability:5.1f}%"
        for _, name, probability in found.top
    ]
    return "\n".join([found.file, *lines, ""])


if __name__ == "__main__":
    cli.run(main, positional=True)
