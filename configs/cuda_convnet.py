"""The CIFAR-10 networks of AlexNet's author (cuda-convnet): 18pct, 11pct, 13pct, fig1_relu or fig1_tanh.

  python -m alexnet_resnet.train --config=configs/cuda_convnet.py:18pct --workdir=runs/18pct

Published test errors: 18pct 18%, 13pct 13% and 11pct 11%; fig1_relu and fig1_tanh are the four-layer network of
AlexNet's figure 1, of which the first reaches 25% training error six times sooner. Those errors were reached with rates
and weight costs of each layer's own, 11pct's also with nine views; here one rate and one decay hold for all layers and
one view is judged, so they are not to be expected. Meant for one GPU; the dataset is TFDS's cifar10.
"""

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import check_choice

VARIANTS = {
    "18pct": {"variant": "18pct"},
    "11pct": {"variant": "11pct"},
    "13pct": {"variant": "13pct"},
    "fig1_relu": {"variant": "fig1", "activation": "relu"},
    "fig1_tanh": {"variant": "fig1", "activation": "tanh"},
}


def get_config(variant: str = "18pct"):
    check_choice("variant", variant, tuple(VARIANTS))
    config = config_lib.default("cuda_convnet")
    config.model.update(VARIANTS[variant])
    config.data.dataset = "cifar10"
    config.data.train_split = "train[:45000]"
    config.data.validation_split = "train[45000:]"
    if variant in ("11pct", "13pct"):
        # Random 24x24 crops and flips.
        config.data.image_size = 24
        config.data.random_crop = True
        config.data.random_flip = True
    # The last 20 epochs are 10 at a tenth of the rate and 10 at a hundredth.
    epochs = 520 if variant in ("11pct", "13pct") else 140
    config.train.duration = f"{epochs} epochs"
    config.optimizer.boundaries = ((epochs - 20) / epochs, (epochs - 10) / epochs)
    config.optimizer.learning_rate = 0.001
    config.optimizer.weight_decay = 0.0 if variant.startswith("fig1") else 0.004
    return config
