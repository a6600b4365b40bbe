"""Residual networks: thin, deep, wide, with the activation behind or in front of a convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnnlab.errors import unknown
from cnnlab.models.cnn import CPU_IMAGES
from cnnlab.models.convolution import Convolution
from cnnlab.models.heads import HEADS
from cnnlab.models.layers import BatchNorm, Dropout, named
from cnnlab.models.pooling import max_pooling
from cnnlab.softmax import as_float

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """A residual network: a stem, stages of blocks that each add to a shortcut, the mean over all
    pixels, a head.

    Every stage but the first halves the height and width. Convolutions have no bias and start from
    He et al.'s normal distribution (fan-out). Batch norm is over the global batch.

    Source: He et al., 2015, "Deep residual learning for image recognition", arXiv 1512.03385; He
    et al., 2016, "Identity mappings in deep residual networks", arXiv 1603.05027 (preactivation);
    Goyal et al., 2017, "Accurate, large minibatch SGD", arXiv 1706.02677 (zero_scale).

    Args:
      blocks: in [1, 1000], residual blocks of each stage.
      widths: in [1, 100000], channels of the 3x3 convolutions of each stage.
      bottleneck: blocks of convolutions 1x1, 3x3 and 1x1, the last with four times as many
        channels; else of two 3x3.
      stem_width: in [1, 100000], channels of the first convolution.
      stem: cifar (convolution 3x3) or imagenet (convolution 7x7, maxima 3x3, each with stride 2).
      shortcut: projection (convolution 1x1 with batch norm) or pad (every other pixel, new
        channels zero), where a block changes the shape.
      preactivation: batch norm and relu in front of each convolution, not behind; projections then
        have no batch norm.
      dropout: in [0, 1), share of values dropped in front of the last convolution of each block.
      zero_scale: start the last batch norm of each block at scale 0, so that a block starts as its
        shortcut; not with preactivation.
      head: linear or cosine.
    """

    num_classes: int = 10
    blocks: Sequence[int] = (2, 2, 2, 2)
    widths: Sequence[int] = (64, 128, 256, 512)
    bottleneck: bool = False
    stem: str = "cifar"
    stem_width: int = 64
    shortcut: str = "projection"
    preactivation: bool = False
    dropout: float = 0.0
    zero_scale: bool = False
    dtype: DTypeLike | None = None
    head: str = "linear"
    conv: Convolution = Convolution()
    axis_name: str | None = None

    cpu_images = CPU_IMAGES

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.blocks) != len(self.widths):
            raise ValueError(
                f"blocks and widths must have the same length, got {self.blocks}, {self.widths}"
            )
        if self.shortcut not in SHORTCUTS:
            raise unknown("shortcut", self.shortcut, SHORTCUTS)
        if self.stem not in STEMS:
            raise unknown("stem", self.stem, STEMS)
        channels = [
            self.stem_width,
            *(width * (4 if self.bottleneck else 1) for width in self.widths),
        ]
        if self.shortcut == "pad" and channels != sorted(channels):
            raise ValueError(
                f"shortcut=pad takes no channels away: stem_width {self.stem_width}, widths "
                f"{self.widths} must not fall"
            )
        if self.zero_scale and self.preactivation:
            raise ValueError(
                "zero_scale needs a batch norm at the end of each block, which there "
                "is none of with preactivation"
            )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute the logits: float[B, H, W, C] -> float32[B, K]."""
        conv = partial(
            nn.Conv,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_normal,
            conv_general_dilated=self.conv,
            promote_dtype=self.conv.promote,
        )
        norm = partial(BatchNorm, axis_name=self.axis_name)
        side, stride, pool = STEMS[self.stem]
        x = conv(self.stem_width, (side, side), stride, padding=side // 2)(x)
        if not self.preactivation:
            x = nn.relu(norm()(x, train=train))
        if pool:
            x = max_pooling(x, 3, self.conv.formulation, stride=2, padding=1)
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for block in range(count):
                x = Block(
                    width,
                    2 if stage and not block else 1,
                    conv,
                    norm,
                    partial(Dropout, self.dropout, self.axis_name),
                    self.conv.kept,
                    self.bottleneck,
                    self.shortcut,
                    self.preactivation,
                    self.zero_scale,
                )(x, train=train)
        if self.preactivation:
            x = nn.relu(norm()(x, train=train))
        features = as_float(jnp.mean(x, (1, 2)))
        return named("head", self.head, HEADS)(self.num_classes)(features)


# side and stride of the convolution, and whether maxima follow
STEMS = {"cifar": (3, 1, False), "imagenet": (7, 2, True)}
SHORTCUTS = ("projection", "pad")


class Block(nn.Module):
    """A residual block: two or three convolutions, added to a shortcut.

    Attributes:
      width: channels of the 3x3 convolutions.
      stride: of the block.
      conv, norm, dropout: make the layers.
      kept: of `Convolution`.
      bottleneck, shortcut, preactivation, zero_scale: as for `ResNet`.
    """

    width: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]
    kept: Callable[[jax.Array], jax.Array]
    bottleneck: bool
    shortcut: str
    preactivation: bool
    zero_scale: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float[B, H, W, C] -> float[B, H / stride, W / stride, D]."""
        # side, channels and stride of each convolution
        layers = [(3, self.width, self.stride), (3, self.width, 1)]
        if self.bottleneck:
            layers = [(1, self.width, 1), (3, self.width, self.stride), (1, 4 * self.width, 1)]
        branch = self._preactivated if self.preactivation else self._plain
        y, shortcut = branch(x, layers, train)
        if shortcut.shape != y.shape:
            shortcut = self._shortcut(shortcut, y.shape[-1], train)
        y = y + shortcut if self.preactivation else nn.relu(y + shortcut)
        return self.kept(y)

    def _plain(
        self, x: jax.Array, layers: Sequence[tuple[int, int, int]], train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Compute the branch and what its shortcut starts from: batch norm behind convolutions."""
        y = x
        for side, channels, stride in layers[:-1]:
            y = self.conv(channels, (side, side), stride, padding=side // 2)(y)
            y = nn.relu(self.norm()(y, train=train))
        side, channels, stride = layers[-1]
        y = self.dropout()(y, train=train)
        y = self.conv(channels, (side, side), stride, padding=side // 2)(y)
        start = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        return self.norm(scale_init=start)(y, train=train), x

    def _preactivated(
        self, x: jax.Array, layers: Sequence[tuple[int, int, int]], train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Compute the branch and what its shortcut starts from: batch norm before convolutions."""
        first = y = nn.relu(self.norm()(x, train=train))
        for side, channels, stride in layers[:-1]:
            y = self.conv(channels, (side, side), stride, padding=side // 2)(y)
            y = nn.relu(self.norm()(y, train=train))
        side, channels, stride = layers[-1]
        y = self.dropout()(y, train=train)
        y = self.conv(channels, (side, side), stride, padding=side // 2)(y)
        is_projected = self.shortcut == "projection" and y.shape != x.shape
        return y, first if is_projected else x

    def _shortcut(self, x: jax.Array, channels: int, train: bool) -> jax.Array:
        """Give the input of a block the shape of its output."""
        if self.shortcut == "pad":
            x = x[:, :: self.stride, :: self.stride]
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))
        x = self.conv(channels, (1, 1), self.stride, padding=0)(x)
        return x if self.preactivation else self.norm()(x, train=train)


class WideResNet(nn.Module):
    """A wide residual network: three stages of preactivated blocks.

    Its parameters are named as those of the `ResNet` that it is.

    Source: Zagoruyko & Komodakis, 2016, "Wide residual networks", arXiv 1605.07146.

    Args:
      depth: in [10, 1000], convolutions, projections included: 6 n + 4, with n blocks per
        stage.
      width: in [1, 1000], times 16, 32 and 64 channels.
      dropout: in [0, 1), share of values dropped between the convolutions of a block.
      head: linear or cosine.

    Raises:
      ValueError: another depth.
    """

    num_classes: int = 10
    depth: int = 28
    width: int = 10
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    head: str = "linear"
    conv: Convolution = Convolution()
    axis_name: str | None = None

    cpu_images = CPU_IMAGES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4, such as 16, 28 or 40, got {self.depth}")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute the logits: float[B, H, W, C] -> float32[B, K]."""
        network = ResNet(
            self.num_classes,
            blocks=((self.depth - 4) // 6,) * 3,
            widths=(16 * self.width, 32 * self.width, 64 * self.width),
            stem_width=16,
            preactivation=True,
            dropout=self.dropout,
            dtype=self.dtype,
            head=self.head,
            conv=self.conv,
            axis_name=self.axis_name,
        )
        nn.share_scope(self, network)
        return network(x, train=train)


_thin = partial(ResNet, widths=(16, 32, 64), stem_width=16, shortcut="pad")

RESNETS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet,
    "resnet34": partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet20": partial(_thin, blocks=(3, 3, 3)),
    "resnet32": partial(_thin, blocks=(5, 5, 5)),
    "resnet44": partial(_thin, blocks=(7, 7, 7)),
    "resnet56": partial(_thin, blocks=(9, 9, 9)),
    "resnet110": partial(_thin, blocks=(18, 18, 18)),
    "wide_resnet": WideResNet,
}
