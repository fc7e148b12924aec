"""Overlays the curves of runs: training dashed, validation or test bold, over the iterations.

python -m alexnet_resnet.analysis.curves runs/plain56 runs/resnet56 --out=curves.png
python -m alexnet_resnet.analysis.curves runs/resnet56 --metric=loss,gradient_norm --smooth=10 --out=loss.png
"""

from absl import flags

from alexnet_resnet import cli

OUT = flags.DEFINE_string("out", None, "The figure's file, such as curves.png.")
METRIC = flags.DEFINE_list(
    "metric",
    ["error"],
    "What is drawn, each in a panel: error, loss, learning_rate, gradient_norm, images_per_second, input_wait_share, "
    "device_memory_gib or what else a run has measured; or all.",
)
SMOOTH = flags.DEFINE_integer("smooth", 1, "Average what was measured in training over so many reports.")


def main(workdirs: list[str]) -> None:
    out = cli.require(OUT, "curves.png")

    from alexnet_resnet.analysis import curves, predictions

    predictions.check(out, "--out")
    everything = METRIC.value == ["all"]
    curves.check(workdirs, () if everything else METRIC.value, SMOOTH.value)
    metrics = curves.OVERVIEW if everything else METRIC.value
    curves.draw(workdirs, out, metrics[0] if len(metrics) == 1 else metrics, SMOOTH.value)
    print(f"written to {out}")


if __name__ == "__main__":
    cli.run(main, positional=True)
