"""ADANet: MFFENet with an auxiliary output, and the discriminators that tell source from target at both outputs.

Source: Xu et al. (2022), Landslides 19:1617-1647; multi-level output-space adaptation after Tsai et al. (2018).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import resize
from models.mffenet import Decoder, EfficientNetLiteTaps, EncoderChannels, MFFENet, ResNetTaps


class DecoderWithAuxiliary(Decoder):
    """The decoder with a 1x1 classification of the ASPP: the output of the second level."""

    def __init__(self, channels: EncoderChannels, *, width: int, classes: int) -> None:
        super().__init__(channels, width=width, classes=classes)
        self.domain_conv = nn.Conv2d(width, classes, 1)

    def auxiliary(self, x1: Tensor) -> Tensor:
        """The ASPP's output (B, width, H/16, W/16) -> logits (B, classes, H/16, W/16)."""
        return torch.as_tensor(self.domain_conv(x1))


class ADANet(MFFENet):
    """MFFENet whose ASPP has an output of its own while it trains; in eval mode it is MFFENet."""

    decoder: DecoderWithAuxiliary

    def __init__(self, encoder: ResNetTaps | EfficientNetLiteTaps, *, width: int, classes: int = 2) -> None:
        super().__init__(encoder, width=width, classes=classes, decoder=DecoderWithAuxiliary)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Normalised images (B, 3, H, W) -> logits (B, classes, H, W); in training (auxiliary, main) logits.

        Raises: ValueError for sizes that are no multiple of 16, naming the next size that is.
        """
        x1, x2, x3, x4 = self.scales(images)
        main = resize(self.decoder(x1, x2, x3, x4), images.shape[-2:])
        if not self.training:
            return main
        return resize(self.decoder.auxiliary(x1), images.shape[-2:]), main


class Discriminator(nn.Sequential):
    """Which domain a softmax map (B, classes, H, W) is from: a logit for each 32 px cell, high = target."""

    def __init__(self, classes: int = 2) -> None:
        widths = (classes, 64, 128, 256, 512)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, stride=2, padding=1))


SOURCE = 0.0
"""What the network wants a discriminator to say of the target."""
SOURCE_LABELS, TARGET_LABELS = (0.0, 0.3), (0.7, 1.0)
"""Ranges from which a discriminator's labels are drawn, cell by cell: it is never shown certainty."""


def domain_labels(logits: Tensor, bounds: tuple[float, float], *, generator: torch.Generator) -> Tensor:
    """Labels for a discriminator's logits, drawn evenly between the bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand(logits.shape, generator=generator).to(logits.device)
