"""What the measured networks consist of, in numbers and without a framework: the peers build them anew from these."""

import dataclasses

from alexnet_resnet.models.resnet import IMAGENET_STAGES
from alexnet_resnet.models.vgg import STAGES
from alexnet_resnet.ops.pooling import ceil_padding


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with zeros of half its window on all sides, as far as nothing else is said.

    Attributes:
      inputs: channels that come in, of all groups together.
      features: channels that go out, likewise.
      window: side of the square kernel.
      stride: pixels between outputs.
      groups: parts of the channels that do not see each other.
    """

    inputs: int
    features: int
    window: int
    stride: int = 1
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class Block:
    """relu(F(x) + s(x)): the convolutions of F, each normalised, and the shortcut's, or None for an identity.

    An identity that has fewer channels than F takes every `stride`-th pixel and gets zeros for the rest.
    """

    convs: tuple[Conv, ...]
    projection: Conv | None

    @property
    def inputs(self) -> int:
        return self.convs[0].inputs

    @property
    def features(self) -> int:
        return self.convs[-1].features

    @property
    def stride(self) -> int:
        return max(conv.stride for conv in self.convs)


@dataclasses.dataclass(frozen=True)
class Residual:
    """A residual network: a normalised convolution, perhaps a 3x3 max-pool of stride 2, stages of blocks, and fc."""

    stem: Conv
    pooled: bool
    stages: tuple[tuple[Block, ...], ...]
    classes: int

    @property
    def features(self) -> int:
        return self.stages[-1][-1].features


@dataclasses.dataclass(frozen=True)
class Chain:
    """Convolutions with biases and three fully connected layers, without shortcuts: AlexNet and VGG.

    Attributes:
      convs: in turn, a ReLU after each.
      normalised: places of the convolutions that local response normalisation follows.
      pooled: places of those that a max-pool follows.
      ceil: AlexNet's borders: conv1 and the pools have no zeros but what makes their sizes round up, and the pools are
        3x3, 2 apart. Else pools are 2x2.
      side: of the maps that fc6 sees.
      units: of fc6 and of fc7.
      classes: of fc8.
      columns: that are normalised each for itself.
      lrn: `size`, `k`, `alpha` (on the plain sum) and `beta`.
    """

    convs: tuple[Conv, ...]
    normalised: tuple[int, ...]
    pooled: tuple[int, ...]
    ceil: bool
    side: int
    units: int
    classes: int
    columns: int = 1
    lrn: dict = dataclasses.field(default_factory=dict)

    @property
    def dense(self) -> tuple[tuple[int, int], ...]:
        """Inputs and features of fc6, fc7 and fc8."""
        inputs = self.side**2 * self.convs[-1].features
        return (inputs, self.units), (self.units, self.units), (self.units, self.classes)


def create(config) -> Residual | Chain:
    """The blueprint of a configuration's network, where it is one of those that are measured."""
    model, data = config.model, config.data
    if model.name == "alexnet":
        return _alexnet(model, data)
    if model.name == "vgg":
        return _vgg(model, data)
    return _residual(model, data)


def _residual(model, data) -> Residual:
    if model.name == "resnet":
        blocks, bottleneck = IMAGENET_STAGES[model.depth]
        stem = Conv(data.channels, _scaled(64, model), 7, 2)
        sizes = (64, 128, 256, 512)
    else:
        blocks, bottleneck = ((model.depth - 2) // 6,) * 3, False
        stem = Conv(data.channels, _scaled(16, model), 3)
        sizes = (16, 32, 64)
    inputs, stages = stem.features, []
    for number, (size, count) in enumerate(zip(sizes, blocks, strict=True)):
        stage, features = [], _scaled(size, model)
        for place in range(count):
            stride = 2 if number and not place else 1
            if bottleneck:
                first, middle = (stride, 1) if model.stride_in == "1x1" else (1, stride)
                ends = Conv(inputs, features, 1, first), Conv(features, 4 * features, 1)
                convs = ends[0], Conv(features, features, 3, middle), ends[1]
            else:
                convs = Conv(inputs, features, 3, stride), Conv(features, features, 3)
            output = convs[-1].features
            changes = stride > 1 or inputs != output
            projects = model.shortcut == "C" or (model.shortcut == "B" and changes)
            stage.append(Block(convs, Conv(inputs, output, 1, stride) if projects else None))
            inputs = output
        stages.append(tuple(stage))
    return Residual(stem, model.name == "resnet", tuple(stages), data.num_classes)


def _alexnet(model, data) -> Chain:
    columns = model.columns
    maps = [round(int(size) * model.width) for size in model.maps.split("-")]
    windows, strides, groups = (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (1, columns, 1, columns, columns)
    inputs = (data.channels, *maps[:-1])
    convs = tuple(Conv(*numbers) for numbers in zip(inputs, maps, windows, strides, groups, strict=True))
    side = _ceil(data.image_size, 11, 4)
    for _ in range(3):
        side = _ceil(side, 3, 2)
    lrn = dict(size=model.lrn_size, k=model.lrn_k, alpha=model.lrn_alpha, beta=model.lrn_beta)
    units = round(model.units * model.width)
    return Chain(convs, (0, 1), (0, 1, 4), True, side, units, data.num_classes, columns, lrn)


def _vgg(model, data) -> Chain:
    inputs, convs, pooled = data.channels, [], []
    for features, layers in zip((64, 128, 256, 512, 512), STAGES[model.depth], strict=True):
        for _ in range(layers):
            convs.append(Conv(inputs, _scaled(features, model), 3))
            inputs = convs[-1].features
        pooled.append(len(convs) - 1)
    units = _scaled(4096, model)
    return Chain(tuple(convs), (), tuple(pooled), False, data.image_size // 32, units, data.num_classes)


def _scaled(features: int, model) -> int:
    return max(1, round(features * model.width))


def _ceil(size: int, window: int, stride: int) -> int:
    return (size + sum(ceil_padding(size, window, stride)) - window) // stride + 1
