"""Residual networks on ImageNet (He et al. 2016, table 1); the argument is the depth and what is joined to it by '+'.

  python -m alexnet_resnet.train --config=configs/resnet.py:50 --workdir=runs/resnet50

`34+A`, `34+B`, `34+C` choose the shortcuts, `34+plain` leaves them out, `50+v1.5` has a bottleneck's stride in its 3x3.
18 and 34 layers have shortcuts A as in table 2, 50 and more B. The rate falls when the validation error no longer
does, as in the paper; `50+scheduled` lets it fall at fixed shares of the 600,000 iterations instead. `50+modern` is a
recipe of today, which has no published number here.

Expected, validation, ten views (`evaluate --views=ten_crop`), top-1 / top-5 error, tables 2 and 3: plain-18 27.94,
ResNet-18 27.88; plain-34 28.54 / 10.02, ResNet-34 A 25.03 / 7.76, B 24.52 / 7.46, C 24.19 / 7.40; ResNet-50
22.85 / 6.71, 101 21.75 / 6.05, 152 21.43 / 5.71. Table 4 is of several scales (`--views=multi_scale`): ResNet-34 B
21.84 / 5.71, C 21.53 / 5.60; 50 20.74 / 5.25; 101 19.87 / 4.60; 152 19.38 / 4.49. Meant for eight GPUs or more;
on fewer, --config.train.accumulate=8 takes a batch in eight parts. A short run, with all that happens in the long one:
--config.train.duration='20000 steps'. The dataset is TFDS's imagenet2012 (or a folder of images); crops come from the
whole image, its shorter side drawn from 256 to 480.
"""

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import check_choice

OPTIONS = {
    "A": {"shortcut": "A"},
    "B": {"shortcut": "B"},
    "C": {"shortcut": "C"},
    "plain": {"residual": False},
    "v1.5": {"stride_in": "3x3"},
    # Of the recipe, not of the network.
    "scheduled": {},
    "modern": {},
}


def get_config(variant: str = "50"):
    depth, *options = variant.split("+")
    check_choice("depth", depth, ("18", "34", "50", "101", "152"))
    config = config_lib.default("resnet")
    config.model.depth = int(depth)
    config.model.shortcut = "A" if config.model.depth < 50 else "B"
    for option in options:
        check_choice("variant", option, tuple(OPTIONS))
        config.model.update(OPTIONS[option])
    # 256 images on 8 GPUs: statistics over 32 (the notes of the released models).
    config.model.ghost_batch = 32
    config.data.dataset = "imagenet2012"
    config.data.num_classes = 1000
    config.data.validation_split = "validation"
    config.data.test_split = ""
    config.data.canvas_size = 256
    config.data.image_size = 224
    config.data.random_crop = True
    config.data.random_flip = True
    config.data.mean = "per_pixel"
    config.data.mean_examples = 10_000  # a minute or so of decoding; 0 takes all 1.28 million, as a prepared set does
    # Section 3.4: a crop of the image rescaled at random. It has no place on the mean image, so every crop loses its
    # centre, and the standard colour augmentation is AlexNet's.
    config.data.view = "scale"
    config.data.scale_range = (256, 480)
    config.data.mean_position = "centre"
    config.data.lighting = "as_run"
    # Section 3.4.
    config.train.batch_size = 256
    config.train.duration = "600000 steps"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    # "Divided by 10 when the error plateaus": how often, and how long it has to stand still, is not said. Here three
    # times, after five epochs each; the boundaries are the latest moments, or with `scheduled` the only ones. Ours too.
    config.optimizer.factor = 0.1
    config.optimizer.boundaries = (0.25, 0.5, 0.75)
    if "scheduled" not in options:
        config.optimizer.plateau.times = 3
        config.optimizer.plateau.patience = 5
        config.optimizer.plateau.least = 0.001
        config.optimizer.boundaries = (0.5, 0.75, 0.9)
    config.evaluation.every = "1 epoch"
    config.checkpoint.every = "1000 steps"
    if "modern" in options:
        _modern(config)
    return config


def _modern(config):
    """Today's way: crops of random area and aspect, and the large-batch recipe of Goyal et al. 2017 with a cosine."""
    config.model.dtype = "bfloat16"
    config.model.zero_init_residual = config.model.residual
    config.data.view = "area"
    config.data.antialias = True
    config.data.lighting = "none"
    config.train.batch_size = 1024
    config.train.duration = "90 epochs"
    config.train.label_smoothing = 0.1
    config.optimizer.reference_batch = 256
    config.optimizer.plateau.times = 0
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5%"
    config.optimizer.warmup_shape = "linear"
    config.optimizer.warmup_learning_rate = 0.0
    config.optimizer.ema = 0.9999
