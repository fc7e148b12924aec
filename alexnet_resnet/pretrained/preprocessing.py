"""What published weights expect of their input: sizes, channel order, mean and standard deviation."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8

from alexnet_resnet.errors import UserError, check_choice

INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The way from RGB images to a network's input; calling it is a pure function that runs under `jax.jit`.

    Attributes:
      resize: the shorter side that an image is brought to before the crop.
      crop: the side of the square at its centre.
      interpolation: 'bilinear' or 'bicubic', both antialiased.
      channels: 'rgb' or 'bgr', the order in which the network takes them.
      divisor: what pixels of 0 to 255 are divided by first.
      mean: subtracted, one for each channel in the network's order.
      std: divided by, likewise.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    channels: str = "rgb"
    divisor: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        check_choice("preprocessing.interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("preprocessing.channels", self.channels, ("rgb", "bgr"))
        if self.resize < self.crop:
            raise UserError(f"preprocessing.resize={self.resize}: expected at least the crop's {self.crop}.")

    def __call__(self, images: Num[Array | np.ndarray, "N H W 3"]) -> Float[Array, "N H W 3"]:
        """Network input from RGB images of 0 to 255, of any size and type; float32."""
        x = jnp.asarray(images).astype(jnp.float32)
        if self.channels == "bgr":
            x = x[..., ::-1]
        return (x / self.divisor - jnp.float32(self.mean)) / jnp.float32(self.std)

    def view(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "crop crop 3"]:
        """The centre crop of one RGB image after its shorter side is brought to `resize`; runs on the host."""
        from PIL import Image

        height, width = image.shape[:2]
        shorter = min(height, width)
        # The longer side is truncated and the crop's corner rounded, as torchvision does.
        size = (int(self.resize * width / shorter), int(self.resize * height / shorter))
        resized = Image.fromarray(image).resize(size, getattr(Image.Resampling, self.interpolation.upper()))
        left, top = (round((side - self.crop) / 2) for side in size)
        return np.asarray(resized)[top : top + self.crop, left : left + self.crop]


# The mean of ImageNet's training images, blue first, which the Caffe models subtract; Keras keeps them.
CAFFE = Preprocessing(channels="bgr", mean=(103.939, 116.779, 123.68))

# Mean and standard deviation of ImageNet's pixels in [0, 1], as torchvision documents them for all its weights.
TORCHVISION = Preprocessing(divisor=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

# Hugging Face's microsoft/resnet-* come with the image processor of ConvNeXt: crop share 224/256, bicubic.
HUGGINGFACE = dataclasses.replace(TORCHVISION, interpolation="bicubic")


def described_beside(weights: pathlib.Path, description: str, default: Preprocessing) -> Preprocessing:
    """The preprocessing that a file beside the weights describes, or `default` where none is.

    Args:
      weights: the weights' file.
      description: the name of the file that the weights' format has beside them, a key of `DESCRIPTIONS`; '' for none.
      default: what the format's weights expect.

    timm's repositories have a config.json with `pretrained_cfg`, Hugging Face's a preprocessor_config.json. timm's
    weights differ in crop and interpolation from recipe to recipe, so theirs is worth keeping beside the weights.

    Raises:
      UserError: such a file that cannot be read.
    """
    file = weights.parent / description
    if not description or not file.is_file():
        return default
    try:
        described = DESCRIPTIONS[description](json.loads(file.read_text()), default)
    except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"preprocessing={str(file)!r}: expected what {description} describes, got {error!r}."
        ) from error
    return default if described is None else described


def _timm(config: Mapping, default: Preprocessing) -> Preprocessing | None:
    described = config.get("pretrained_cfg")
    if described is None:
        return None
    crop = described["input_size"][-1]
    return dataclasses.replace(
        default,
        resize=int(crop / described["crop_pct"]),
        crop=crop,
        interpolation=described["interpolation"],
        mean=tuple(map(float, described["mean"])),
        std=tuple(map(float, described["std"])),
    )


def _huggingface(config: Mapping, default: Preprocessing) -> Preprocessing | None:
    size = config["size"]
    crop = size if isinstance(size, int) else size["shortest_edge"]
    # Numbers of PIL's filters.
    interpolation = {2: "bilinear", 3: "bicubic"}[config["resample"]]
    return dataclasses.replace(
        default,
        resize=int(crop / config["crop_pct"]) if config.get("crop_pct") else crop,
        crop=crop,
        interpolation=interpolation,
        mean=tuple(map(float, config["image_mean"])),
        std=tuple(map(float, config["image_std"])),
    )


DESCRIPTIONS = {"config.json": _timm, "preprocessor_config.json": _huggingface}
