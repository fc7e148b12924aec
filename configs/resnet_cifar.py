"""Residual networks on CIFAR-10 (He et al. 2016, section 4.2 and table 6); the argument is the depth.

  python -m alexnet_resnet.train --config=configs/resnet_cifar.py:20 --workdir=runs/resnet20

Expected, test error: 20 layers 8.75%, 32: 7.51%, 44: 7.17%, 56: 6.97%, 110: 6.43% (6.61 +- 0.16 over five runs),
1202: 7.93%. `20+plain` trains the plain network (figure 6: the deeper the worse, 110 layers above 60%), `20+modern` a
recipe of today, which has no published number. Meant for one GPU or TPU. A shorter run has the same schedule on a
smaller scale: --config.train.duration='8 epochs'.
"""

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError, check_choice

OPTIONS = ("plain", "modern")


def get_config(variant: str = "20"):
    depth, *options = variant.split("+")
    if not depth.isdecimal():
        raise UserError(f"depth={depth!r}: expected a number of layers, such as 20 in configs/resnet_cifar.py:20.")
    for option in options:
        check_choice("variant", option, OPTIONS)
    config = config_lib.default("resnet_cifar")
    config.model.depth = int(depth)
    config.model.residual = "plain" not in options
    config.data.dataset = "cifar10"
    # 45k to train and 5k to validate; the paper's table is of nets trained on all 50k:
    # --config.data.train_split=train --config.data.validation_split=
    config.data.train_split = "train[:45000]"
    config.data.validation_split = "train[45000:]"
    # 4 pixels of zeros on each side, a random 32x32 crop, a flip; the per-pixel mean subtracted.
    config.data.canvas_size = 40
    config.data.random_crop = True
    config.data.random_flip = True
    config.data.mean = "per_pixel"
    config.train.batch_size = 128
    config.train.duration = "64000 steps"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.boundaries = (0.5, 0.75)  # 32k and 48k of 64k
    if config.model.depth >= 110:
        # "We use 0.01 to warm up the training until the training error is below 80% (about 400 iterations)".
        config.optimizer.warmup_until_error = 0.8
        config.optimizer.warmup_learning_rate = 0.01
    if "modern" in options:
        _modern(config)
    return config


def _modern(config):
    """Today's way: nothing here is from the paper."""
    config.model.dtype = "bfloat16"
    config.model.zero_init_residual = config.model.residual
    config.train.batch_size = 512
    config.train.duration = "200 epochs"
    config.train.label_smoothing = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.reference_batch = 128
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_until_error = 0.0
    config.optimizer.warmup = "5%"
    config.optimizer.warmup_shape = "linear"
    config.optimizer.warmup_learning_rate = 0.0
    config.optimizer.ema = 0.999
