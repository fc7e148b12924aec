"""The trainings on CIFAR-10 that several studies share."""

from experiments.study.plan import Run

# The set lives on the device, so that a machine without TensorFlow will do; the batches are those of tf.data.
RESIDENT = {"data.loader": "resident"}
# The paper reports nets trained on all 50,000 images; the 45,000 / 5,000 split served to choose the schedule.
ALL = {"data.train_split": "train", "data.validation_split": ""}


def resnet_label(depth: int, residual: bool) -> str:
    """'ResNet-20' or 'plain-20'."""
    return f"{'ResNet' if residual else 'plain'}-{depth}"


def resnet(depth: int, residual: bool = True, seed: int = 0, label: str = "") -> Run:
    """A 6n+2-layer network of section 4.2, residual or plain, on all 50,000 training images."""
    config = f"resnet_cifar.py:{depth}" + ("" if residual else "+plain")
    return Run(label or resnet_label(depth, residual), config, RESIDENT | ALL, seed)


def cuda_convnet(variant: str, label: str = "", seed: int = 0, name: str = "", **fields) -> Run:
    """A network for CIFAR-10 of AlexNet's author; `fields` of the model need a `name` for their folder."""
    changed = RESIDENT | {f"model.{field}": value for field, value in fields.items()}
    return Run(label or variant, f"cuda_convnet.py:{variant}", changed, seed, name)
