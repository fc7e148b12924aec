"""VGG on ImageNet, which ResNet is compared with (table 3); the argument is the depth, 16 or 19.

  python -m alexnet_resnet.train --config=configs/vgg.py:16 --workdir=runs/vgg16

Expected: He et al. 2016, table 3, validation, ten views (`evaluate --views=ten_crop`): VGG-16 28.07 / 9.33. The recipe
is Simonyan and Zisserman's (arXiv 1409.1556, section 3.1): batch 256, 0.01 divided by ten on plateau three times, decay
5e-4, 74 epochs; their initial weights come from shallower nets, ours are He's. `16+modern` is a recipe of today, with
batch normalisation, which has no published number here. Meant for eight GPUs or more; on fewer,
--config.train.accumulate=8 takes a batch in eight parts. A short run, with all that happens in the long one:
--config.train.duration='5 epochs'. The dataset is TFDS's imagenet2012.
"""

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import check_choice


def get_config(variant: str = "16"):
    depth, *options = variant.split("+")
    check_choice("depth", depth, ("16", "19"))
    for option in options:
        check_choice("variant", option, ("modern",))
    config = config_lib.default("vgg")
    config.model.depth = int(depth)
    config.data.dataset = "imagenet2012"
    config.data.num_classes = 1000
    config.data.validation_split = "validation"
    config.data.test_split = ""
    config.data.canvas_size = 256
    config.data.image_size = 224
    config.data.random_crop = True
    config.data.random_flip = True
    config.data.mean = "per_channel"
    config.data.mean_examples = 10_000  # a minute or so of decoding; 0 takes all 1.28 million
    config.train.batch_size = 256
    config.train.duration = "74 epochs"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    # "Decreased by a factor of 10 when the validation set accuracy stopped improving", three times. The patience, and
    # the latest moments for it, are ours.
    config.optimizer.plateau.times = 3
    config.optimizer.plateau.patience = 5
    config.optimizer.plateau.least = 0.001
    config.optimizer.boundaries = (0.5, 0.75, 0.9)
    config.checkpoint.every = "1000 steps"
    if "modern" in options:
        _modern(config)
    return config


def _modern(config):
    """Today's way: nothing here is from the paper."""
    config.model.batch_norm = True
    config.model.dtype = "bfloat16"
    config.data.view = "area"
    config.data.antialias = True
    config.data.mean_position = "centre"
    config.train.batch_size = 1024
    config.train.duration = "90 epochs"
    config.train.label_smoothing = 0.1
    config.optimizer.plateau.times = 0
    config.optimizer.reference_batch = 256
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5%"
    config.optimizer.warmup_shape = "linear"
    config.optimizer.warmup_learning_rate = 0.0
    config.optimizer.ema = 0.9999
