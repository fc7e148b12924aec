"""AlexNet on ImageNet (Krizhevsky et al. 2012); the argument names a variant, or several joined by '+'.

  python -m alexnet_resnet.train --config=configs/alexnet.py --workdir=runs/alexnet

`as_written` (the default) is the paper's text. `as_run` is net 145 of the author's source, which the paper's numbers
come from, with the schedule that its log has for ILSVRC-2010 (`as_run+schedule_2012`: for 2012, where the log differs):
docs/alexnet_as_written_and_as_run.md. `modern` is the same network with batch normalisation and a recipe of today.
`1` has one column of full width.

Expected, ILSVRC-2012 validation, ten views (`evaluate --views=ten_crop`; a run's own last evaluation judges the
centre), top-1 / top-5: the paper 40.7 / 18.2; the author's log 40.66 / 18.21. The ablations go with either preset, such
as `as_run+non_overlapping`; alexnet_resnet/models/alexnet_variants.py lists them all. The author's log has

  as_run+one_column_ablation   39.17 / 18.23 on ILSVRC-2010's test set, where as_run has 37.47 / 17.00
  as_run+non_overlapping       41.06 / 18.51 on ILSVRC-2012's validation set, where as_run has 40.66 / 18.21
  as_run+without_norm          42.03 / 19.36 on the same

and the paper about +2 top-1 for each of `without_conv3`, `without_conv4`, `without_conv5`. `modern` has no published
number. Meant for one GPU or more; `modern` for eight. A short run, with all that happens in the long one:
--config.train.duration='5 epochs'. The dataset is TFDS's imagenet2012; it may be a folder of images
(--config.data.dataset=folder) or the prepared form, which is decoded several times faster:

  python -m alexnet_resnet.prepare --dataset=imagenet2012 --size=256 --square --out=DIR
  ... --config.data.dataset=prepared --config.data.data_dir=DIR
"""

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError
from alexnet_resnet.models import alexnet_variants

# The epochs at which the log of net 145 lowers the rate, slows conv1 down and ends the colour noise, freezes conv1, and
# ends; and the rate of all biases throughout (layers/layer-params-145-2010.cfg and layers/layer-params-145.cfg).
LOGGED = {
    "as_run": dict(falls=(23, 51, 78), slowed=68, frozen=72, end=93, bias_rate=0.002),
    "schedule_2012": dict(falls=(25, 51, 79), slowed=67, frozen=72, end=91, bias_rate=0.02),
}
RECIPES = ("schedule_2012", "modern")


def get_config(variant: str = "as_written"):
    names = variant.split("+")
    if "schedule_2012" in names and "as_run" not in names:
        raise UserError(f"variant={variant!r}: expected 'schedule_2012' with 'as_run', as in 'as_run+schedule_2012'.")
    networks = [name for name in names if name not in RECIPES]
    config = config_lib.default("alexnet")
    config.model.update(alexnet_variants.fields("+".join(networks) or "as_written"))
    config.data.dataset = "imagenet2012"
    config.data.num_classes = 1000
    config.data.train_split = "train"
    config.data.validation_split = "validation"
    config.data.test_split = ""
    # Section 2: the shorter side to 256, the central 256x256; section 4.1: random 224x224 crops and flips.
    config.data.canvas_size = 256
    config.data.image_size = 227 if "caffe" in names else 224
    config.data.random_crop = True
    config.data.random_flip = True
    config.data.mean = "per_pixel"
    config.data.mean_examples = 10_000  # a minute or so of decoding; 0 takes all 1.28 million, as a prepared set does
    # Section 4.1, as the author's code has it: the text's letter would shift colours by 1,483 grey levels.
    config.data.lighting = "as_run"
    # Section 5.
    config.train.batch_size = 128
    config.train.duration = "90 epochs"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0005
    # The text's rule holds for all parameters.
    config.optimizer.decay_all = True
    # "Divide the learning rate by 10 when the validation error rate stopped improving", "three times". How long it has
    # to stand still is not said: here five epochs. The boundaries are the latest moments, ours too.
    config.optimizer.factor = 0.1
    config.optimizer.plateau.times = 3
    config.optimizer.plateau.patience = 5
    config.optimizer.plateau.least = 0.001
    config.optimizer.boundaries = (0.5, 0.75, 0.9)
    config.evaluation.every = "1 epoch"
    config.checkpoint.every = "1000 steps"
    if "as_run" in names:
        _as_run(config, **LOGGED["schedule_2012" if "schedule_2012" in names else "as_run"])
    if "modern" in names:
        _modern(config, names)
    return config


def _as_run(config, falls, slowed, frozen, end, bias_rate):
    """What net 145 was trained with. Boundaries are shares of the duration, so that a shorter run has them all."""
    # The text subtracts "the mean activity over the training set from each pixel", the author's code one centre crop.
    config.data.mean_position = "centre"
    config.data.lighting_until = slowed / end
    config.train.duration = f"{end} epochs"
    config.optimizer.plateau.times = 0
    config.optimizer.boundaries = tuple(epoch / end for epoch in falls)
    config.optimizer.decay_all = False
    # The log lowers "epsw", the weights' rate, alone: the files' rates of the biases are what they were to the end,
    # but for conv1's, which are frozen with its weights.
    own = dict(rate=bias_rate / config.optimizer.learning_rate, scheduled=False, weight_decay=0.0)
    config.optimizer.groups = {
        # From 1e-4 to 1e-5, a tenth of what the others have then.
        "conv1": dict(match="conv1/kernel", boundaries=(slowed / end, frozen / end), rate_after=(0.1, 0.0)),
        "conv1_bias": dict(match="conv1/bias", boundaries=(frozen / end,), rate_after=(0.0,), **own),
        "biases": dict(match="conv[2-6]/bias, fc[678]/bias", **own),
    }


def _modern(config, names):
    """Today's way: nothing here is from the paper."""
    if not {"without_norm", "torchvision"} & set(names):
        config.model.update(alexnet_variants.fields("batch_norm"))
    config.model.dtype = "bfloat16"
    config.model.dropout_form = "inverted"
    config.model.middle_init_std = 0.03
    config.data.lighting_until = 1.0
    config.train.duration = "90 epochs"
    config.train.batch_size = 1024
    config.train.label_smoothing = 0.1
    config.optimizer.groups = {}
    config.optimizer.decay_all = False
    config.optimizer.plateau.times = 0
    config.optimizer.reference_batch = 128
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5%"
    config.optimizer.warmup_shape = "linear"
    config.optimizer.warmup_learning_rate = 0.0
    config.optimizer.ema = 0.9999
