"""MFFENet: multi-feature fusion and enhancement network, with the paper's encoder or a light one.

Source: Xu et al. (2022), Landslides 19:1617-1647, doi 10.1007/s10346-022-01847-1. Re-implemented from the description;
`mffenet-resnet101` has exactly the published 71,356,490 parameters and loads checkpoints in the authors' format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from models.layers import (
    ASPP,
    AttentionGate,
    Projections,
    SelfGate,
    conv_bn_relu,
    residual_convolution,
    resize,
    triangle_fork,
)
from models.pretrained import imagenet_state, timm_network

STRIDE = 16
"""Height and width of the input must be multiples of this."""


@dataclass(frozen=True)
class EncoderChannels:
    """Channels of the taps: x4 at 1/2, x3 at 1/4, x2 at 1/8, and the top at 1/16 that feeds the ASPP."""

    x4: int
    x3: int
    x2: int
    top: int


class ResNetTaps(nn.Module):
    """A bottleneck ResNet, output stride 16, layer4 with dilations 2, 4, 8; x4 is tapped before the max-pool."""

    channels = EncoderChannels(64, 256, 512, 2048)

    def __init__(self, timm_name: Literal["resnet50", "resnet101"], *, pretrained: bool = False) -> None:
        super().__init__()
        net: Any = timm_network(timm_name, pretrained=pretrained, num_classes=0, output_stride=STRIDE)
        for block, dilation in zip(net.layer4, (2, 4, 8), strict=True):
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> x4, x3, x2, top."""
        x4 = torch.relu(self.bn1(self.conv1(x)))
        x3 = self.layer1(self.maxpool(x4))
        x2 = self.layer2(x3)
        return x4, x3, x2, self.layer4(self.layer3(x2))


class EfficientNetLiteTaps(nn.Module):
    """timm's `tf_efficientnet_lite0`, output stride 16."""

    channels = EncoderChannels(16, 24, 40, 320)

    def __init__(self, *, pretrained: bool = False) -> None:
        super().__init__()
        net: Any = timm_network("tf_efficientnet_lite0", pretrained=False, output_stride=STRIDE)
        if pretrained:
            net.load_state_dict(imagenet_state())
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> x4, x3, x2, top."""
        x4 = self.blocks[0](self.bn1(self.conv_stem(x)))
        x3 = self.blocks[1](x4)
        x2 = self.blocks[2](x3)
        return x4, x3, x2, self.blocks[3:](x2)


class Decoder(nn.Module):
    """Adaptive triangle forks at three levels, a dense top-down path, and the head at half resolution."""

    def __init__(self, channels: EncoderChannels, *, width: int, classes: int) -> None:
        super().__init__()
        c4, c3, c2, c1 = channels.x4, channels.x3, channels.x2, width
        inner3, inner2, inner1 = 3 * width // 4, 3 * width // 8, 3 * width // 16
        self.Att3, self.Att2, self.Att1 = (
            AttentionGate(c1, c2, inner3),
            AttentionGate(c2, c3, inner2),
            AttentionGate(c3, c4, inner1),
        )
        self.CA3 = Projections((c1, c3, c4), inner3)
        self.CA2 = Projections((c1, c2, c4), inner2)
        self.CA1 = Projections((c1, c2, c3), inner1)
        self.Con3 = SelfGate(3 * inner3, groups=2)
        self.Con2 = SelfGate(3 * inner2, groups=2)
        self.Con1 = SelfGate(3 * inner1, groups=1)
        self.conv_3, self.conv_2, self.conv_1 = (residual_convolution(4 * n) for n in (inner3, inner2, inner1))
        self.four_conv = conv_bn_relu(width + 4 * inner3, width, kernel=3)
        self.third_conv = conv_bn_relu(4 * inner2 + 2 * width, width, kernel=3)
        self.second_conv = conv_bn_relu(4 * inner1 + 3 * width, width, kernel=3)
        self.last_conv = nn.Sequential(
            *conv_bn_relu(4 * width, width, kernel=3),
            nn.Dropout(0.5),
            *conv_bn_relu(width, width, kernel=3),
            nn.Dropout(0.1),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> Tensor:
        """The four scales -> logits (B, classes, H/2, W/2)."""
        return self.top_down(x1, *self.refine(*self.fork(x1, x2, x3, x4)))

    def fork(self, x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Adaptive triangle forks at 1/8, 1/4 and 1/2."""
        level3, level2, level1 = x2.shape[-2:], x3.shape[-2:], x4.shape[-2:]
        a3 = self._fork(self.Att3(x1, x2), self.CA3((x1, x3, x4), level3), self.Con3, split=1)
        a2 = self._fork(self.Att2(x2, x3), self.CA2((x1, x2, x4), level2), self.Con2, split=2)
        a1 = self._fork(self.Att1(x3, x4), self.CA1((x1, x2, x3), level1), self.Con1, split=3)
        return a3, a2, a1

    def refine(self, a3: Tensor, a2: Tensor, a1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residual convolution of each level."""
        return a3 + self.conv_3(a3), a2 + self.conv_2(a2), a1 + self.conv_1(a1)

    def silence_residuals(self) -> None:
        """Let the residual convolutions add nothing at first, in place."""
        for branch in (self.conv_3, self.conv_2, self.conv_1):
            nn.init.zeros_(torch.as_tensor(branch[-1].weight))

    def top_down(self, x1: Tensor, a3: Tensor, a2: Tensor, a1: Tensor) -> Tensor:
        """The dense path: every level sees all deeper ones -> logits at 1/2."""
        level3, level2, level1 = a3.shape[-2:], a2.shape[-2:], a1.shape[-2:]
        d3 = self.four_conv(self.stack((x1, a3), level3))
        d2 = self.third_conv(self.stack((a2, x1, d3), level2))
        d1 = self.second_conv(self.stack((a1, d2, d3, x1), level1))
        return torch.as_tensor(self.last_conv(self.stack((d1, d2, d3, x1), level1)))

    @staticmethod
    def stack(parts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The parts at one size (H, W), one behind the other."""
        return torch.cat([resize(part, size) for part in parts], dim=1)

    @staticmethod
    def _fork(gated: Tensor, projections: list[Tensor], gate: nn.Module, *, split: int) -> Tensor:
        return triangle_fork(gated, projections, gate(torch.cat(projections, dim=1)), split=split)


def initialise(part: nn.Module) -> None:
    """Kaiming normal weights (fan-in) and no bias for every convolution of a part, in place."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


LITTLE_DROPOUT = 0.1
"""Instead of the published 0.5 in the ASPP and in the head: a light network has few channels to lose."""
LANDSLIDE_SHARE = 0.03
"""Share of landslide pixels in training tiles, about."""
HEAD_STD = 0.01


def start_gently(network: MFFENet) -> None:
    """Let a light network learn fast, in place: little dropout, and a decoder that adds no noise of its own at first.

    The residual branches start at nothing and the head at the share of landslide, instead of both at random.

    Source: residual branches: Goyal et al. (2017), arXiv 1706.02677; head: Lin et al. (2017), arXiv 1708.02002.
    """
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.p = min(part.p, LITTLE_DROPOUT)
    network.decoder.silence_residuals()
    start_head(cast(nn.Conv2d, network.decoder.last_conv[-1]))


def start_head(head: nn.Conv2d) -> None:
    """Let a classifying convolution start at the share of landslide, in place, instead of at random."""
    nn.init.normal_(head.weight, std=HEAD_STD)
    shares = torch.full((head.out_channels,), (1 - LANDSLIDE_SHARE) / (head.out_channels - 1))
    shares[-1] = LANDSLIDE_SHARE
    if head.bias is not None:
        head.bias.data.copy_(shares.log())


class MFFENet(nn.Module):
    """MFFENet over an encoder with four taps.

    Args:
        encoder: gives x4, x3, x2 and the top, and has `channels`.
        width: channels of the ASPP and of the decoder; 256 in the paper, a multiple of 16.
        classes: number of output classes; landslide is the last.
        decoder: what makes logits of the four scales.

    """

    def __init__(
        self,
        encoder: ResNetTaps | EfficientNetLiteTaps,
        *,
        width: int,
        classes: int = 2,
        decoder: type[Decoder] = Decoder,
    ) -> None:
        super().__init__()
        self.backbone = encoder
        self.aspp = ASPP(encoder.channels.top, width)
        self.decoder = decoder(encoder.channels, width=width, classes=classes)
        initialise(self.aspp)
        initialise(self.decoder)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W), H and W multiples of 16 -> logits (B, classes, H, W).

        Raises: ValueError for sizes that are no multiple of 16, naming the next size that is.
        """
        x1, x2, x3, x4 = self.scales(images)
        return resize(self.decoder(x1, x2, x3, x4), images.shape[-2:])

    def scales(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x1 (the ASPP at 1/16), x2, x3 and x4 of normalised images."""
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:
            fitting = tuple(-(-n // STRIDE) * STRIDE for n in (height, width))
            raise ValueError(f"images: got {height} x {width} px; expected multiples of {STRIDE}, pad to {fitting}")
        x4, x3, x2, top = self.backbone(images)
        return self.aspp(top), x2, x3, x4
