"""The building blocks of MFFENet: ASPP, attention gate, adaptive triangle fork, residual convolution.

Source: Xu et al. (2022), Landslides 19:1617-1647. Attribute names follow the authors' checkpoint format, so that their
weights load by key. Every resize is bilinear with `align_corners=True`, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """`x` (B, C, h, w) resized to `size` (H, W), bilinear, `align_corners=True`."""
    if x.shape[-2:] == tuple(size):
        return x
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def conv_bn_relu(inputs: int, outputs: int, *, kernel: int, bias: bool = False) -> nn.Sequential:
    """Same-size convolution, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class AtrousBranch(nn.Module):
    """One branch of the ASPP: (dilated) convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, rate: int) -> None:
        super().__init__()
        kernel, padding = (1, 0) if rate == 1 else (3, rate)
        self.atrous_conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=rate, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return torch.relu(self.bn(self.atrous_conv(x)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling at rates 1, 6, 12, 18 and an image pool. Source: Chen et al. (2017)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.aspp1 = AtrousBranch(inputs, width, rate=1)
        self.aspp2 = AtrousBranch(inputs, width, rate=6)
        self.aspp3 = AtrousBranch(inputs, width, rate=12)
        self.aspp4 = AtrousBranch(inputs, width, rate=18)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.conv1 = nn.Conv2d(5 * width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, width, H, W)."""
        branches = [self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x)]
        pooled = resize(self.global_avg_pool(x), x.shape[-2:])
        fused = self.bn1(self.conv1(torch.cat([*branches, pooled], dim=1)))
        return torch.as_tensor(self.dropout(torch.relu(fused)))


class AttentionGate(nn.Module):
    """`psi * (W_x x)` with psi = sigmoid(BN(conv(ReLU(W_g g + W_x x)))): the *projected* x is gated, not x."""

    def __init__(self, gate: int, inputs: int, inner: int) -> None:
        super().__init__()
        self.W_g = nn.Sequential(nn.Conv2d(gate, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.W_x = nn.Sequential(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.psi = nn.Sequential(nn.Conv2d(inner, 1, 1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        """Gate (B, gate, h, w), x (B, inputs, H, W) -> (B, inner, H, W)."""
        projected = self.W_x(x)
        psi = self.psi(torch.relu(self.W_g(resize(g, x.shape[-2:])) + projected))
        return torch.as_tensor(psi * projected)


class SelfGate(nn.Module):
    """One attention map for each group of projections, from all of them: (B, F, H, W) -> (B, groups, H, W)."""

    def __init__(self, features: int, *, groups: int) -> None:
        super().__init__()
        self.C1 = conv_bn_relu(features, features // 2, kernel=3)
        self.C2 = nn.Sequential(nn.Conv2d(features // 2, groups, 1, bias=False), nn.BatchNorm2d(groups), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, features, H, W) -> (B, groups, H, W) in 0..1."""
        return torch.as_tensor(self.C2(self.C1(x)))


class Projections(nn.Module):
    """1x1 projections of three other scales, each at its source's own size."""

    def __init__(self, inputs: Sequence[int], inner: int) -> None:
        super().__init__()
        first, second, third = inputs
        self.conv1 = conv_bn_relu(first, inner, kernel=1, bias=True)
        self.conv2 = conv_bn_relu(second, inner, kernel=1, bias=True)
        self.conv3 = conv_bn_relu(third, inner, kernel=1, bias=True)

    def forward(self, sources: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        """Three tensors, projected, *then* resized to `size`."""
        convs = (self.conv1, self.conv2, self.conv3)
        return [resize(conv(source), size) for conv, source in zip(convs, sources, strict=True)]


def residual_convolution(channels: int) -> nn.Sequential:
    """The residual branch of the RCM (the sum is the caller's): 1x1 C -> C/3, 3x3, BN, ReLU, 1x1 C/3 -> C."""
    inner = channels // 3
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1, bias=False),
        nn.Conv2d(inner, inner, 3, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, channels, 1, bias=False),
    )


def triangle_fork(gated: Tensor, projections: Sequence[Tensor], gate: Tensor, *, split: int) -> Tensor:
    """ATF output: the gated level, then a1 * the first `split` projections, then a2 * the rest.

    `gate` has one map (all projections share it) or two.
    """
    maps = torch.split(gate, 1, dim=1)
    weighted = [p * (maps[0] if i < split else maps[-1]) for i, p in enumerate(projections)]
    return torch.cat([gated, *weighted], dim=1)
