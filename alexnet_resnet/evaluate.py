"""Judges one or several networks on a split: runs' checkpoints, published weights, or all of them as an ensemble.

  python -m alexnet_resnet.evaluate --workdir=runs/digits
  python -m alexnet_resnet.evaluate --workdir=runs/a,runs/b --views=ten_crop --figures=figures
  python -m alexnet_resnet.evaluate --weights=resnet50.h5 --weights_format=keras --model=resnet:50 \\
      --dataset=imagenet2012 --split=validation --views=multi_scale

Several networks are judged by the mean of their softmax outputs. Exit status: 0, or 2 when the command was wrong.
"""

from absl import flags

from alexnet_resnet import cli

WORKDIR = flags.DEFINE_multi_string("workdir", [], "A run's folder; repeated or with commas for several.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "Which one of a run: 'last', 'best' (lowest validation error) or a step's number."
)
WEIGHTS = flags.DEFINE_multi_string("weights", [], "A file of published weights; repeated or with commas for several.")
FORMAT = flags.DEFINE_list("weights_format", [], "With --weights: keras, torchvision, timm or huggingface.")
MODEL = flags.DEFINE_list("model", [], "With --weights: the network, such as resnet:50, vgg:16 or alexnet.")
CONFIG = cli.define_config()
flags.declare_key_flag("config")  # --help lists it as this command's own
DATASET = flags.DEFINE_string(
    "dataset", "", "What is judged, as --config.data.dataset of training; by default what the run was trained on."
)
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where the dataset is, if not where the run had it.")
SPLIT = flags.DEFINE_string("split", "", "A split or a slice of one, such as 'test[:100]'; by default the test split.")
VIEWS = flags.DEFINE_string(
    "views",
    "",
    "What is judged of an image: centre, ten_crop (AlexNet's corners and centre, also mirrored), nine_crop (a 3x3 grid "
    "of crops, as the 11pct net was tested) or multi_scale; by default what the run judges.",
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "Images at a time; by default as many as the run judges.", lower_bound=0
)
PRECISE_BN = flags.DEFINE_integer(
    "precise_bn",
    0,
    "Training batches of the run to take batch normalisation's statistics from anew, as plain averages over all their "
    "images, as those of the ResNet paper's released models are; 0 keeps the running moments. It costs reading so many "
    "batches and a forward pass each, and leaves the checkpoint as it is.",
)
RESULTS = flags.DEFINE_string(
    "results", "", "The file that the result is appended to; by default results.jsonl in the (first) run's folder."
)
PREDICTIONS = flags.DEFINE_string(
    "predictions", "", "A .npz file for the softmax outputs of every image, with rows, labels and the classes' names."
)
TOP5_ONLY = flags.DEFINE_bool("top5_only", False, "Keep only the five most probable classes in --predictions.")
FIGURES = flags.DEFINE_string("figures", "", "A folder for each class's errors, also as a table, and the confusions.")
CACHE = cli.define_cache()
CLUSTER = cli.Cluster()


def main() -> None:
    from alexnet_resnet.evaluation import judging
    from alexnet_resnet.parallel import hosts
    from alexnet_resnet.parallel.host import keep_compiled

    named = CONFIG.value.data if CONFIG.value else None
    request = judging.Request(
        workdirs=_listed(WORKDIR.value),
        weights=_listed(WEIGHTS.value),
        formats=tuple(FORMAT.value),
        models=tuple(MODEL.value),
        checkpoint=CHECKPOINT.value,
        dataset=DATASET.value or (named.dataset if named else ""),
        data_dir=DATA_DIR.value or (named.data_dir if named else ""),
        split=SPLIT.value or (named.test_split or named.validation_split if named else ""),
        views={"center": "centre"}.get(VIEWS.value, VIEWS.value),
        batch_size=BATCH_SIZE.value,
        precise_bn=PRECISE_BN.value,
        results=RESULTS.value,
        predictions=PREDICTIONS.value,
        top5_only=TOP5_ONLY.value,
        figures=FIGURES.value,
    )
    with CLUSTER.joined():
        keep_compiled(CACHE.value)
        lines = judging.judge(request, shown=True)
        if hosts.is_first():
            print("\n".join(lines))


def _listed(values: list[str]) -> tuple[str, ...]:
    return tuple(part for value in values for part in value.split(",") if part)


if __name__ == "__main__":
    cli.run(main)
