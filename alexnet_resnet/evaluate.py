"""Judges a run's checkpoint on a split.

python -m alexnet_resnet.evaluate --workdir=runs/digits
"""

from absl import flags

from alexnet_resnet import cli

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
SPLIT = flags.DEFINE_string("split", "", "A split or a slice of one, such as 'test[:100]'; by default the test split.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "Which one: 'last', 'best' (lowest validation error) or a step's number."
)
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where the dataset is, if not where the run had it.")
VIEWS = flags.DEFINE_string(
    "views", "", "What is judged of an image: centre, ten_crop or multi_scale; by default what the run judges."
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "Images at a time; by default as many as the run judges.", lower_bound=0
)
PRECISE_BN = flags.DEFINE_integer(
    "precise_bn",
    0,
    "Training batches to take batch normalisation's statistics from anew, as plain averages; 0 for none.",
    lower_bound=0,
)
CLUSTER = cli.Cluster()


def main() -> None:
    from alexnet_resnet.evaluation import runs
    from alexnet_resnet.parallel import hosts

    workdir = cli.require(WORKDIR, "runs/digits")
    with CLUSTER.joined():
        step, result, news = runs.evaluate_run(
            workdir,
            SPLIT.value,
            CHECKPOINT.value,
            DATA_DIR.value,
            PRECISE_BN.value,
            VIEWS.value,
            BATCH_SIZE.value,
        )
        if hosts.is_first():
            for line in news:
                print(line)
            print(f"step {step:,} on {result.counted}: loss {result.loss:.4f}")
            print(f"top-1 error {100 * result.top1_error:.2f}%  top-5 error {100 * result.top5_error:.2f}%")


if __name__ == "__main__":
    cli.run(main)
