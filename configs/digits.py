"""A small residual network on scikit-learn's handwritten digits: nothing to download.

  python -m alexnet_resnet.train --config=configs/digits.py --workdir=runs/digits

Expected: about 3% test error (9 of 360 digits on one processor, 11 on another, which round otherwise) in about two
minutes on two cores; meant for any CPU.
"""

from alexnet_resnet import config as config_lib


def get_config():
    config = config_lib.default("resnet_cifar")
    config.model.depth = 8
    config.data.dataset = "digits"
    config.data.train_split = "train[:1257]"
    config.data.validation_split = "train[1257:]"
    config.data.canvas_size = 34
    config.data.random_crop = True
    config.train.batch_size = 32
    config.train.duration = "20 epochs"
    config.optimizer.boundaries = (0.6, 0.9)
    config.evaluation.every = "1 epoch"
    config.optimizer.weight_decay = 5e-4
    config.log.every = "40 steps"
    return config
