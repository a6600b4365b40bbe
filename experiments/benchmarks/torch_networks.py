"""The networks of `cnnlab.models` in PyTorch, written from the papers: what their logits and
gradients are compared with (tests/golden/resnets.py), and what their training steps are timed
against (torch_step.py).

`network(name, num_classes, **hyperparameters)` builds a module that takes images float[B, 3, H, W]
and returns logits float[B, K]. The hyperparameters have the names and defaults of `cnnlab.models`.
A module registers its layers in the order of the forward pass, and the projection of a block last.
Initial values are PyTorch's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

SHORTCUTS = ("pad", "projection")
STEMS = ("cifar", "imagenet")


@dataclass(frozen=True)
class BlockKind:
    """How the residual blocks of a network are made.

    Attributes:
      bottleneck: 1x1, 3x3 and 1x1 convolutions, the last with four times the width; else two 3x3.
      preactivation: batch norm and ReLU in front of each convolution; else behind it.
      shortcut: where the shape changes, "pad" (option A) or "projection" (option B).
      dropout: share of units dropped in front of the last convolution of a preactivation block.
    """

    bottleneck: bool = False
    preactivation: bool = False
    shortcut: str = "projection"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be one of {SHORTCUTS}, got {self.shortcut!r}")

    def outputs(self, width: int) -> int:
        """Return the channels that a block of this width returns."""
        return 4 * width if self.bottleneck else width

    def convolutions(self, inputs: int, width: int, stride: int) -> list[nn.Module]:
        """Build the convolutions of a block."""
        if self.bottleneck:
            return [
                convolution(inputs, width, 1),
                convolution(width, width, 3, stride),
                convolution(width, 4 * width, 1),
            ]
        return [convolution(inputs, width, 3, stride), convolution(width, width, 3)]


class PadShortcut(nn.Module):
    """Shortcut without parameters: every `stride`-th pixel; new channels are zero and come last."""

    def __init__(self, num_new: int, stride: int) -> None:
        super().__init__()
        self.num_new = num_new
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, 0, self.num_new))


class PlainBlock(nn.Module):
    """ReLU(residual + shortcut), the residual being conv-BN-ReLU-...-conv-BN.

    Source: He et al., 2015, "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
    """

    def __init__(self, kind: BlockKind, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        layers = []
        for conv in kind.convolutions(inputs, width, stride):
            layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]
        self.residual = nn.Sequential(*layers[:-1])
        outputs = kind.outputs(width)
        self.shortcut = nn.Identity()
        if stride > 1 or outputs != inputs:
            self.shortcut = PadShortcut(outputs - inputs, stride)
            if kind.shortcut == "projection":
                projection = convolution(inputs, outputs, 1, stride)
                self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.residual(x) + self.shortcut(x), inplace=True)


class PreactivationBlock(nn.Module):
    """residual + shortcut, the residual being BN-ReLU-conv-...-BN-ReLU-conv.

    A projection is a convolution of what the first BN-ReLU returns; any other shortcut takes the
    input of the block.

    Source: He et al., 2016, "Identity Mappings in Deep Residual Networks", arXiv 1603.05027.
    """

    def __init__(self, kind: BlockKind, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        first, *others = kind.convolutions(inputs, width, stride)
        self.activated = nn.Sequential(*activation(inputs))
        layers = [first]
        for conv in others:
            layers += activation(conv.in_channels)
            if conv is others[-1] and kind.dropout:
                layers.append(nn.Dropout(kind.dropout))
            layers.append(conv)
        self.residual = nn.Sequential(*layers)
        outputs = kind.outputs(width)
        self.shortcut = nn.Identity()
        self.projects = False
        if stride > 1 or outputs != inputs:
            self.projects = kind.shortcut == "projection"
            self.shortcut = (
                convolution(inputs, outputs, 1, stride)
                if self.projects
                else PadShortcut(outputs - inputs, stride)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.activated(x)
        return self.residual(activated) + self.shortcut(activated if self.projects else x)


class ChannelsLastFlatten(nn.Module):
    """[B, C, H, W] -> [B, H * W * C]: the order of features in JAX, and free in NHWC memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


def convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Module:
    """Build a convolution without bias, padded by half of its side."""
    return nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)


def activation(channels: int) -> list[nn.Module]:
    """Build batch norm and ReLU."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def residual_network(
    kind: BlockKind, stem: Sequence[nn.Module], stages: Sequence[tuple[int, int]], num_classes: int
) -> nn.Module:
    """Build a residual network.

    Args:
      kind: of its blocks.
      stem: its layers in front of them. The first is a convolution; batch norm and ReLU behind it
        are left out before preactivation blocks.
      stages: width and number of blocks of each. From the second on a stage halves the side.
      num_classes: K.
    """
    block = PreactivationBlock if kind.preactivation else PlainBlock
    channels = stem[0].out_channels
    layers = [
        layer
        for layer in stem
        if not (kind.preactivation and isinstance(layer, nn.BatchNorm2d | nn.ReLU))
    ]
    for number, (width, num_blocks) in enumerate(stages):
        for position in range(num_blocks):
            stride = 2 if number > 0 and position == 0 else 1
            layers.append(block(kind, channels, width, stride))
            channels = kind.outputs(width)
    if kind.preactivation:
        layers += activation(channels)
    pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pooling, nn.Linear(channels, num_classes))


def thin_resnet(
    num_blocks: int, num_classes: int, shortcut: str = "pad", preactivation: bool = False
) -> nn.Module:
    """Build a ResNet for CIFAR with widths 16, 32 and 64.

    Args:
      num_blocks: of each of the three stages.
      num_classes: K.
      shortcut: "pad" or "projection".
      preactivation: of the blocks.

    Source: He et al., 2015, arXiv 1512.03385, section 4.2.
    """
    kind = BlockKind(preactivation=preactivation, shortcut=shortcut)
    stages = [(width, num_blocks) for width in (16, 32, 64)]
    return residual_network(kind, [convolution(3, 16, 3), *activation(16)], stages, num_classes)


def resnet(
    blocks: Sequence[int],
    bottleneck: bool,
    num_classes: int,
    stem: str = "cifar",
    shortcut: str = "projection",
    preactivation: bool = False,
) -> nn.Module:
    """Build a ResNet with widths 64, 128, 256 and 512.

    Args:
      blocks: number of blocks of each stage.
      bottleneck: whether they are bottlenecks, with the stride on their 3x3 convolution.
      num_classes: K.
      stem: "cifar", a 3x3 convolution, or "imagenet", a 7x7 one of stride 2 and max pooling.
      shortcut: "pad" or "projection".
      preactivation: of the blocks.

    Source: He et al., 2015, arXiv 1512.03385, table 1.
    """
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {STEMS}, got {stem!r}")
    layers = [convolution(3, 64, 3), *activation(64)]
    if stem == "imagenet":
        layers = [convolution(3, 64, 7, stride=2), *activation(64), nn.MaxPool2d(3, 2, padding=1)]
    kind = BlockKind(bottleneck, preactivation, shortcut)
    stages = list(zip((64, 128, 256, 512), blocks, strict=True))
    return residual_network(kind, layers, stages, num_classes)


def wide_resnet(
    num_classes: int, depth: int = 28, width: int = 10, dropout: float = 0.0
) -> nn.Module:
    """Build a wide ResNet of preactivation blocks with widths 16 k, 32 k and 64 k.

    Args:
      num_classes: K.
      depth: 6 n + 4, for n blocks in each of the three stages.
      width: k.
      dropout: in front of the second convolution of a block.

    Source: Zagoruyko & Komodakis, 2016, "Wide Residual Networks", arXiv 1605.07146.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4 with n >= 1, got {depth}")
    kind = BlockKind(preactivation=True, dropout=dropout)
    stages = [(width * channels, (depth - 4) // 6) for channels in (16, 32, 64)]
    return residual_network(kind, [convolution(3, 16, 3)], stages, num_classes)


def cnn8(num_classes: int) -> nn.Module:
    """Build the eight-layer network of the papers on noisy labels, for images of 32 x 32 pixels.

    In front of batch norm the originals have biases, which have no effect and are left out: with 10
    classes 1,638,762 parameters in place of 1,639,794.

    Source: Wang et al., 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels",
    arXiv 1908.06112; Ma et al., 2020, "Normalized Loss Functions for Deep Learning with Noisy
    Labels", arXiv 2006.13554.
    """
    layers = []
    inputs = 3
    for width in (64, 128, 196):
        layers += [convolution(inputs, width, 3), *activation(width)]
        layers += [convolution(width, width, 3), *activation(width), nn.MaxPool2d(2)]
        inputs = width
    hidden = nn.Linear(4 * 4 * inputs, 256, bias=False)
    norm = nn.BatchNorm1d(256)
    head = nn.Linear(256, num_classes)
    return nn.Sequential(*layers, ChannelsLastFlatten(), hidden, norm, nn.ReLU(inplace=True), head)


def cnn(num_classes: int) -> nn.Module:
    """Build the seed network, for images of 32 x 32 pixels."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, num_classes)),
    )


def airnet(num_classes: int, widths: Sequence[int] = (64, 256, 256)) -> nn.Module:
    """Build the airbench network. The kernel of its first layer is fixed, the bias is trained.

    Source: Jordan, 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498.
    """

    def norm(channels: int) -> nn.Module:
        layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
        layer.weight.requires_grad_(False)
        return layer

    inputs = 24
    whitening = nn.Conv2d(3, inputs, 2)
    whitening.weight.requires_grad_(False)
    layers = [whitening, nn.GELU()]
    for width in widths:
        layers += [convolution(inputs, width, 3), nn.MaxPool2d(2), norm(width), nn.GELU()]
        layers += [convolution(width, width, 3), norm(width), nn.GELU()]
        inputs = width
    head = nn.Linear(inputs, num_classes, bias=False)
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "cnn8": cnn8,
    "airnet": airnet,
    "resnet18": partial(resnet, (2, 2, 2, 2), False),
    "resnet34": partial(resnet, (3, 4, 6, 3), False),
    "resnet50": partial(resnet, (3, 4, 6, 3), True),
    "wide_resnet": wide_resnet,
} | {f"resnet{6 * n + 2}": partial(thin_resnet, n) for n in (3, 5, 7, 9, 18)}


def network(name: str, num_classes: int = 10, **hyper: object) -> nn.Module:
    """Build a network by its name in `cnnlab.models.MODELS`.

    Raises:
      ValueError: an unknown name, or a hyperparameter that does not fit.
      TypeError: an unknown hyperparameter.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no '{name}' in PyTorch, only {', '.join(NETWORKS)}")
    return NETWORKS[name](num_classes=num_classes, **hyper)
