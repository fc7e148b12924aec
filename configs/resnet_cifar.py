"""Residual networks on CIFAR-10 (He et al. 2016, section 4.2 and table 6); the argument is the depth.

  python -m alexnet_resnet.train --config=configs/resnet_cifar.py:20 --workdir=runs/resnet20

Paper, test error: 20 layers 8.75%, 32: 7.51%, 44: 7.17%, 56: 6.97%, 110: 6.43% (6.61 +- 0.16 over five runs),
1202: 7.93%. Meant for one GPU or TPU. A shorter run has the same schedule on a smaller scale:
--config.train.duration='8 epochs'. --config.model.residual=False trains the plain network.
"""

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError


def get_config(depth: str = "20"):
    if not depth.isdecimal():
        raise UserError(f"depth={depth!r}: expected a number of layers, such as 20 in configs/resnet_cifar.py:20.")
    config = config_lib.default("resnet_cifar")
    config.model.depth = int(depth)
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
        # "In this case, we find that the initial learning rate of 0.1 is slightly too large": 0.01 for 400 iterations.
        config.optimizer.warmup = "400 steps"
        config.optimizer.warmup_learning_rate = 0.01
    return config
