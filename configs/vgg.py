"""VGG on ImageNet, which ResNet is compared with (table 3); the argument is the depth, 16 or 19.

  python -m alexnet_resnet.train --config=configs/vgg.py:16 --workdir=runs/vgg16

He et al. 2016, table 3, validation, ten views: VGG-16 28.07 / 9.33. Meant for eight GPUs or more; the dataset is TFDS's
imagenet2012.
"""

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import check_choice


def get_config(depth: str = "16"):
    check_choice("depth", depth, ("16", "19"))
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
    config.optimizer.weight_decay = 5e-4
    config.checkpoint.every = "1000 steps"
    return config
