"""The fields of a run's configuration, with their defaults: the one list that every file in `configs/` starts from.

A file in `configs/` calls `default(network)`, sets what its experiment is about, and returns the result. The
commands lock it, so that a field which is not listed here is an error. `check` refuses values before anything
expensive starts; `differences` tells two configurations apart.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from alexnet_resnet import config_training, models
from alexnet_resnet.errors import UserError, check_at_least, check_choice
from alexnet_resnet.ops import lighting, photometry
from alexnet_resnet.parallel import strategies

LOADERS = ("tf", "resident")
VIEWS = ("canvas", "scale", "area")
MEANS = ("per_pixel", "per_channel", "none")
EVALUATION_VIEWS = ("centre", "ten_crop", "nine_crop", "multi_scale")
LIGHTINGS = ("none", *lighting.CONVENTIONS)
LIGHTING_STATISTICS = (*lighting.STATISTICS, "dataset")

# What may differ when a run is resumed: nothing here changes what is computed, but `parallel` and `model.remat` the
# order of sums.
FREE_ON_RESUME = (
    *(
        "data.data_dir",
        "data.prefetch",
        "data.cache_gib",
        "data.max_unreadable",
        "train.steps_per_call",
        "train.max_skips",
        "model.remat",
    ),
    *("log.", "checkpoint.", "parallel."),
)


def default(network: str) -> ConfigDict:
    """All fields of a run that trains `network`, a name in `models.NETWORKS`."""
    return ConfigDict(
        {
            # Decides the initial parameters, the order of the examples, the crops and the dropout.
            "seed": 0,
            # The network and its own fields: see the class that models.NETWORKS names.
            "model": {"name": network, **models.defaults(network)},
            "data": {
                # 'digits' (embedded), 'npz', 'folder' (SPLIT/CLASS/*.JPEG), 'prepared' (by the command of that name)
                # or the name of a dataset that TFDS has prepared.
                "dataset": "digits",
                # The .npz file, the folder, or where TFDS prepares; empty for the variable TFDS_DATA_DIR.
                "data_dir": "",
                # Splits, sliced like TFDS's: 'train[:45000]', 'train[90%:]'. An empty validation split is allowed.
                "train_split": "train",
                "validation_split": "",
                "test_split": "test",
                # What the dataset has; a dataset with other numbers is refused.
                "num_classes": 10,
                "channels": 3,
                # 'tf': tf.data decodes and crops on the host. 'resident': arrays live on the device, where the jitted
                # step shuffles and crops them, without TensorFlow. Both draw the same batches.
                "loader": "tf",
                # Every image is first brought to a square canvas of this side: encoded ones are resized (shorter
                # side) and cut to their centre, arrays are framed with zeros. Evaluation sees the canvas's centre.
                "canvas_size": 32,
                # The side of the square that the network sees.
                "image_size": 32,
                # What training sees: 'canvas', a crop of the canvas, anywhere if random_crop, else its centre;
                # 'scale', a crop of the whole image with its shorter side drawn from scale_range (ResNet);
                # 'area', a share of the image's area of random aspect, resized (Inception).
                "view": "canvas",
                "random_crop": False,
                "scale_range": (256, 480),
                "area_range": (0.08, 1.0),
                "aspect_range": (3 / 4, 4 / 3),
                "random_flip": False,
                # Resize with a filter as wide as the scale asks; else bilinear after the decoder's own halvings.
                "antialias": False,
                # The mean over the training split that is subtracted: of each canvas pixel, of each channel, or none.
                "mean": "per_pixel",
                # Which part of the mean a crop loses: its 'own' place on the canvas, or the 'centre' whatever it is.
                "mean_position": "own",
                # Examples that the mean is taken over, spread evenly over the split; 0 takes all. A prepared split
                # brings the mean of all.
                "mean_examples": 0,
                # AlexNet's colour noise: 'none', or a convention of ops/lighting.py: 'as_run' (the author's code, 12
                # grey levels), 'unit_range' (re-implementations, 5.5) or 'as_written' (the paper's letter, 1483).
                "lighting": "none",
                "lighting_strength": 0.1,
                # The share of the duration after which there is none: net 145 ended without colour noise.
                "lighting_until": 1.0,
                # The principal colours: the 'author''s or fb.resnet.torch's ('torch') of ImageNet, or of the 'dataset'.
                "lighting_statistics": "author",
                # Pixels are divided by this after all that; the papers' networks take grey levels.
                "divisor": 1.0,
                # Batches that wait on the device.
                "prefetch": 2,
                # Encoded images that are kept in the host's memory once they are read, in GiB a split.
                "cache_gib": 4.0,
                # The share of a split's images that may be unreadable. They are counted and take no part in the loss;
                # in a batch's statistics a grey image stands for each.
                "max_unreadable": 0.01,
            },
            "train": {
                "batch_size": 128,
                # '64000 steps' or '8 epochs', here and in every field that is a length of training.
                "duration": "10 epochs",
                # The folder of another run of this network, whose last parameters and velocity this one begins with,
                # at step 0 of its own schedule; empty for initial parameters drawn by the seed.
                "init_from": "",
                # 'softmax' cross entropy, or one-vs-all 'binary' cross entropy of the logits, or the same by way of
                # probabilities, 'binary_probabilities'. Evaluations report softmax cross entropy whatever this says.
                "loss": "softmax",
                # The share of each target that is spread evenly over all classes.
                "label_smoothing": 0.0,
                # The constant j of LeNet-5's criterion: a class of this distance of which no example is, besides those
                # of 'softmax'; for outputs that are distances. 0 for none.
                "rubbish": 0.0,
                # Parts that a batch is taken in, one after the other, for batches that do not fit: the same step to
                # rounding, but that model.ghost_batch=0 then means the statistics of each part.
                "accumulate": 1,
                # How often a run whose loss, gradient or parameters are no longer finite goes back to its newest
                # checkpoint and on after the step where that was, so that the batches in between are skipped. 0: it
                # stops.
                "max_skips": 0,
                # With the resident loader: steps that one call of the compiled program takes. More cost less dispatch.
                "steps_per_call": 1,
            },
            "optimizer": {
                "learning_rate": 0.1,
                # The batch size that the rate is meant for: it is multiplied by train.batch_size / reference_batch
                # (linear scaling). 0 takes the rate as it is.
                "reference_batch": 0,
                "momentum": 0.9,
                # 'rate_inside': v = m v - rate g (both papers' own code); 'rate_outside': v = m v + g, w -= rate v.
                "momentum_order": "rate_inside",
                "weight_decay": 1e-4,
                # Also decay biases and batch normalisation's scales and offsets.
                "decay_all": False,
                # Parameters with rates or a decay of their own, by a name of your choice:
                #   {"biases": {"match": "conv*/bias, fc*/bias", "rate": 2.0, "weight_decay": 0.0}}
                # config_training.GROUP has all fields. No parameter may be in two groups.
                "groups": {},
                # 'steps': the rate is multiplied by `factor` when each of these shares of the duration has passed;
                # 'cosine': half a cosine from the end of the warm-up down to zero.
                "schedule": "steps",
                "boundaries": (0.5, 0.75),
                "factor": 0.1,
                # With `times` above 0, the rate is multiplied by `factor` up to so many times when the validation
                # error (a share of 1) has not come down by more than `least` for `patience` evaluations. `boundaries`
                # are then the latest moments for it, so that a short run has them all; () for none.
                "plateau": {"times": 0, "patience": 5, "least": 0.0},
                # Before this length ('500 steps', '5 epochs', '5%' of the duration) has passed: the constant warm-up
                # rate, or a line from it to the full rate.
                "warmup": "0 steps",
                "warmup_shape": "constant",
                "warmup_learning_rate": 0.01,
                # Instead of a length: warm up until the training error, a share, is below this. 0 does not.
                "warmup_until_error": 0.0,
                # What the moving average of parameters and statistics, which evaluations judge, keeps of itself each
                # step, such as 0.9999; 0 for no average.
                "ema": 0.0,
            },
            "evaluation": {
                "batch_size": 256,
                "every": "1 epoch",
                # What is judged of an image: its 'centre', or the mean softmax of 'ten_crop' (AlexNet: corners and
                # centre, also mirrored), 'nine_crop' (its author's 11pct net: a 3x3 grid of crops, not mirrored) or
                # 'multi_scale' (ResNet: the whole image at each of the `scales`).
                "views": "centre",
                "scales": (224, 256, 384, 480, 640),
            },
            "checkpoint": {
                # Besides these, a checkpoint is saved at every evaluation.
                "every": "1 epoch",
                "keep_last": 2,
                "keep_best": 1,
            },
            "log": {
                "every": "50 steps",
                "tensorboard": True,
            },
            "parallel": {
                # How the network is spread over the devices: 'data' (the parameters everywhere, the batch split),
                # 'fsdp' (parameters and optimizer split along `data` as well), and for networks in columns 'columns'
                # (one to a device: AlexNet's two GPUs) and 'hybrid' (columns in the fully connected layers only).
                "strategy": "data",
                # Devices along the mesh's axes. data=-1 takes all that are left; model=-1 one for each column under
                # 'columns' and 'hybrid', else 1.
                "data": -1,
                "model": -1,
            },
        },
        type_safe=True,
        convert_dict=True,
    )


def flatten(config: Mapping | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a configuration with their dotted names; tuples and lists become lists, as JSON has them."""
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def differences(old: Mapping | ConfigDict, new: Mapping | ConfigDict) -> list[str]:
    """One line for each field that differs in a way that changes the results: 'name: old -> new'."""
    old, new = dict(flatten(old)), dict(flatten(new))
    return [
        f"{name}: {old.get(name, '(absent)')!r} -> {new.get(name, '(absent)')!r}"
        for name in sorted(old.keys() | new.keys())
        if not name.startswith(FREE_ON_RESUME) and old.get(name) != new.get(name)
    ]


def lengthens(old: ConfigDict, new: ConfigDict) -> bool:
    """Whether a run of `old` is how one of `new` begins.

    That is where a longer `train.duration`, in the same unit, is all that differs, and nothing depends on it: no falls
    of the rate, by share or by the errors of evaluations, of which one is at the end; no cosine, no warm-up in percent,
    no end of lighting.
    """
    lengths = [re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(step|epoch)s?\s*", each.train.duration) for each in (old, new)]
    if not all(lengths) or lengths[0][2] != lengths[1][2] or float(lengths[0][1]) >= float(lengths[1][1]):
        return False
    optimizer, data = new.optimizer, new.data
    shares = optimizer.schedule != "steps" or optimizer.boundaries or "%" in optimizer.warmup
    shares = shares or optimizer.plateau.times
    if shares or (data.lighting != "none" and data.lighting_until < 1):
        return False
    same = old.copy_and_resolve_references()
    same.train.duration = new.train.duration
    return not differences(same, new)


def steps(field: str, duration: str, steps_per_epoch: float, total_steps: int | None = None) -> int:
    """A duration such as '500 steps' or '1.5 epochs' in whole training steps, rounded to the nearest.

    Args:
      field: its name, for the error.
      duration: the text.
      steps_per_epoch: for lengths in epochs.
      total_steps: the run's length, where the field may also be a share of it, such as '5%'.

    Raises:
      UserError: it cannot be read as one.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)\s*", str(duration))
    if not match or (match[2] == "%" and (total_steps is None or float(match[1]) > 100)):
        share = "" if total_steps is None else ", or '5%' of the duration"
        raise UserError(f"{field}={duration!r}: expected a length such as '500 steps' or '2 epochs'{share}.")
    number, unit = float(match[1]), match[2]
    if unit == "%":
        return round(number / 100 * total_steps)
    return round(number * (steps_per_epoch if unit.startswith("epoch") else 1))


def check(config: ConfigDict) -> None:
    """Refuses what can be known to be wrong from the configuration alone.

    Raises:
      UserError: names the field, its value and what it may be.
    """
    check_choice("model.name", config.model.name, tuple(models.NETWORKS))
    strategies.check(config)
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed}: expected a number from 0 to 2**32 - 1.")
    ghost_batch = config.model.get("ghost_batch", 0)
    if ghost_batch and config.train.batch_size % ghost_batch:
        raise UserError(
            f"model.ghost_batch={ghost_batch}: expected a divisor of train.batch_size={config.train.batch_size}, or 0."
        )
    data = config.data
    check_at_least("data.num_classes", data.num_classes, 2)
    check_at_least("data.channels", data.channels, 1)
    check_choice("data.loader", data.loader, LOADERS)
    check_choice("data.mean", data.mean, MEANS)
    check_choice("data.view", data.view, VIEWS)
    check_choice("data.mean_position", data.mean_position, photometry.POSITIONS)
    check_choice("data.lighting", data.lighting, LIGHTINGS)
    check_choice("data.lighting_statistics", data.lighting_statistics, LIGHTING_STATISTICS)
    check_at_least("data.image_size", data.image_size, 1)
    check_at_least("data.canvas_size", data.canvas_size, data.image_size)
    for field in ("mean_examples", "lighting_strength", "cache_gib", "max_unreadable"):
        check_at_least(f"data.{field}", data[field], 0)
    if data.max_unreadable > 1:
        raise UserError(f"data.max_unreadable={data.max_unreadable:g}: expected a share of the images, from 0 to 1.")
    if not data.divisor > 0:
        raise UserError(f"data.divisor={data.divisor!r}: expected a number above zero.")
    if not 0 <= data.lighting_until <= 1:
        raise UserError(f"data.lighting_until={data.lighting_until!r}: expected a share of the duration, 0 to 1.")
    check_at_least("data.prefetch", data.prefetch, 1)
    _check_view(data)
    check_at_least("train.steps_per_call", config.train.steps_per_call, 1)
    if config.train.steps_per_call > 1 and data.loader != "resident":
        raise UserError(
            f"train.steps_per_call={config.train.steps_per_call}: expected 1 with data.loader={data.loader!r}; only "
            "'resident' has the next batches where the step runs."
        )
    check_at_least("train.batch_size", config.train.batch_size, 1)
    check_at_least("evaluation.batch_size", config.evaluation.batch_size, 1)
    check_choice("evaluation.views", config.evaluation.views, EVALUATION_VIEWS)
    if not config.evaluation.scales:
        raise UserError("evaluation.scales=(): expected at least one shorter side in pixels.")
    for side in config.evaluation.scales:
        check_at_least("evaluation.scales", side, 32)
    check_at_least("checkpoint.keep_last", config.checkpoint.keep_last, 1)
    check_at_least("checkpoint.keep_best", config.checkpoint.keep_best, 0)
    config_training.check(config)
    for field in ("train.duration", "evaluation.every", "checkpoint.every", "log.every"):
        section, name = field.split(".")
        if steps(field, config[section][name], 1000) < 1:
            raise UserError(f"{field}={config[section][name]!r}: expected a length above zero.")
    warmup, until = config.optimizer.warmup, config.optimizer.warmup_until_error
    if steps("optimizer.warmup", warmup, 1000, 1000) and until:
        raise UserError(
            f"optimizer.warmup={warmup!r}: expected '0 steps' with optimizer.warmup_until_error={until:g}, which says "
            "when the warm-up ends."
        )


def _check_view(data) -> None:
    """What the views ask of each other's fields."""
    if data.view == "scale":
        sides = tuple(data.scale_range)
        whole = len(sides) == 2 and all(isinstance(side, int) for side in sides)
        if not whole or not data.image_size <= sides[0] <= sides[1]:
            raise UserError(
                f"data.scale_range={sides}: expected the lowest and the highest shorter side in whole pixels, at least "
                f"data.image_size={data.image_size}."
            )
    for field, most in (("area_range", 1), ("aspect_range", math.inf)) if data.view == "area" else ():
        values = tuple(data[field])
        numbers = len(values) == 2 and all(isinstance(value, int | float) for value in values)
        if not numbers or not 0 < values[0] <= values[1] <= most:
            raise UserError(f"data.{field}={values}: expected a lowest and a highest number above 0, at most {most}.")
    if data.view != "canvas":
        if not data.random_crop:
            raise UserError(f"data.random_crop=False: expected True with data.view={data.view!r}, which is random.")
        if data.loader == "resident":
            raise UserError(f"data.view={data.view!r}: expected 'canvas' with data.loader='resident'.")
        if data.mean != "none" and data.mean_position == "own":
            raise UserError(
                f"data.mean_position='own': expected 'centre' with data.view={data.view!r}, whose crops have no place "
                "on the canvas that the mean is of."
            )
    if data.lighting != "none" and data.lighting_statistics != "dataset" and data.channels != 3:
        raise UserError(
            f"data.lighting_statistics={data.lighting_statistics!r}: expected 'dataset' for images of "
            f"{data.channels} channel(s)."
        )
