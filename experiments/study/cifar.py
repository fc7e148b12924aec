"""The trainings on CIFAR-10 that several studies share."""

from alexnet_resnet.errors import UserError
from experiments.study.plan import Run

# The set lives on the device, so that a machine without TensorFlow will do; the batches are those of tf.data.
RESIDENT = {"data.loader": "resident"}
# The paper reports nets trained on all 50,000 images; the 45,000 / 5,000 split served to choose the schedule.
ALL = {"data.train_split": "train", "data.validation_split": ""}

# Test errors in percent, by depth (He et al. 2016, table 6).
TABLE6 = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}


def depths(text: str) -> list[int]:
    """The depths of '56,20', the shallowest first.

    Raises:
      UserError: one is not of the form 6n + 2, or named twice.
    """
    try:
        found = sorted(int(part) for part in text.split(","))
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or any(depth < 8 or (depth - 2) % 6 for depth in found):
        raise UserError(f"--depths={text!r}: expected 6n + 2 layers, each once, such as 20,32,44,56,110.")
    return found


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
