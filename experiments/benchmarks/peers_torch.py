"""A peer: the same networks in PyTorch, with torchvision's names, trained as PyTorch's users train fast.

That is: channels last, automatic mixed precision for bfloat16, TF32 where a GPU has it (JAX's default too), cuDNN's
search for algorithms, `torch.compile` where it is asked for, and SGD with momentum and weight decay in one fused pass
on a GPU. AlexNet is the paper's two columns: grouped convolutions, and local response normalisation by PyTorch's own
layer on each column. This module needs torch; nothing else does.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from experiments.benchmarks.blueprints import Block, Chain, Conv, Residual
from experiments.benchmarks.training_steps import LEARNING_RATE, images_and_labels


def _conv(layer: Conv, bias: bool, padding: int | None = None) -> nn.Conv2d:
    padding = layer.window // 2 if padding is None else padding
    return nn.Conv2d(layer.inputs, layer.features, layer.window, layer.stride, padding, groups=layer.groups, bias=bias)


class TorchBlock(nn.Module):
    """A residual block."""

    def __init__(self, block: Block):
        super().__init__()
        for number, layer in enumerate(block.convs, start=1):
            setattr(self, f"conv{number}", _conv(layer, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(layer.features))
        self.downsample = None
        if block.projection:
            norm = nn.BatchNorm2d(block.features)
            self.downsample = nn.Sequential(_conv(block.projection, bias=False), norm)
        self.layers, self.stride, self.missing = len(block.convs), block.stride, block.features - block.inputs

    def forward(self, x):
        y = x
        for number in range(1, self.layers + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.layers:
                y = F.relu(y, inplace=True)
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.missing or self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
        return F.relu(x + y, inplace=True)


class TorchResNet(nn.Module):
    """A residual network."""

    def __init__(self, blueprint: Residual):
        super().__init__()
        self.conv1 = _conv(blueprint.stem, bias=False)
        self.bn1 = nn.BatchNorm2d(blueprint.stem.features)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if blueprint.pooled else nn.Identity()
        self.stages = len(blueprint.stages)
        for number, stage in enumerate(blueprint.stages, start=1):
            setattr(self, f"layer{number}", nn.Sequential(*map(TorchBlock, stage)))
        self.fc = nn.Linear(blueprint.features, blueprint.classes)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(x.mean((2, 3)))


class ColumnwiseNorm(nn.Module):
    """Local response normalisation of each column; torch's layer divides alpha by the size."""

    def __init__(self, columns: int, size: int, k: float, alpha: float, beta: float):
        super().__init__()
        self.columns = columns
        self.norm = nn.LocalResponseNorm(size, alpha * size, beta, k)

    def forward(self, x):
        return torch.cat([self.norm(column) for column in x.chunk(self.columns, 1)], 1)


class Dropout2012(nn.Module):
    """Dropout that leaves the kept units as they are in training and halves all of them in evaluation."""

    def __init__(self, share: float):
        super().__init__()
        self.share, self.drop = share, nn.Dropout(share)

    def forward(self, x):
        return (1 - self.share) * self.drop(x)


class TorchChain(nn.Module):
    """AlexNet or VGG: `features` and `classifier`, as torchvision calls them."""

    def __init__(self, blueprint: Chain, dropout: float = 0.5):
        super().__init__()
        ceil, layers = blueprint.ceil, []
        for number, conv in enumerate(blueprint.convs):
            if ceil and number == 0:
                # Zeros below and to the right, where the last window hangs over the edge.
                layers.append(CeilPadding(conv.window, conv.stride))
            layers += [_conv(conv, True, 0 if ceil and number == 0 else None), nn.ReLU(inplace=True)]
            if number in blueprint.normalised:
                layers.append(ColumnwiseNorm(blueprint.columns, **blueprint.lrn))
            if number in blueprint.pooled:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True) if ceil else nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        first, second, last = (nn.Linear(*sizes) for sizes in blueprint.dense)
        drop = Dropout2012 if ceil else nn.Dropout
        self.classifier = nn.Sequential(first, nn.ReLU(), drop(dropout), second, nn.ReLU(), drop(dropout), last)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class CeilPadding(nn.Module):
    """Zeros at the end, so that a window's output size rounds up."""

    def __init__(self, window: int, stride: int):
        super().__init__()
        self.window, self.stride = window, stride

    def forward(self, x):
        below, right = (-(size - self.window) % self.stride for size in x.shape[2:])
        return F.pad(x, (0, right, 0, below))


def network(blueprint: Residual | Chain) -> nn.Module:
    """The network of a blueprint."""
    return TorchResNet(blueprint) if isinstance(blueprint, Residual) else TorchChain(blueprint)


def create(config, blueprint: Residual | Chain, platform: str, compiled: bool) -> Callable[[int], torch.Tensor]:
    """A contender for `timing.measure`, which waits itself for what it started and returns the last loss.

    Args:
      config: of the network.
      blueprint: its network.
      platform: what JAX computes on; a GPU is compared with a GPU.
      compiled: whether the network is compiled by `torch.compile`.

    Raises:
      RuntimeError: torch has no such device.
    """
    device = _device(platform)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = network(blueprint).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4, fused=device == "cuda"
    )
    mixed = config.model.dtype == "bfloat16"
    images, labels = images_and_labels(config)
    # Channels last in memory, as numpy has them.
    images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(labels).long().to(device)

    def loss_of(images, labels):
        x = (images.float() - 127.5) / 64
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            logits = model(x)
        return F.cross_entropy(logits.float(), labels)

    # Another batch size is another program, not one for all sizes.
    forward = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def steps(calls: int) -> torch.Tensor:
        for _ in range(calls):
            optimizer.zero_grad(set_to_none=True)
            loss = forward(images, labels)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    return steps


def _device(platform: str) -> str:
    if platform == "cpu":
        return "cpu"
    if platform != "gpu":
        raise RuntimeError(f"torch is measured on processors and GPUs, and JAX computes on {platform} here")
    if not torch.cuda.is_available():
        raise RuntimeError("this torch finds no GPU")
    return "cuda"


def forget() -> None:
    """Drops compiled programs, and gives the memory that torch keeps back to the device."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
