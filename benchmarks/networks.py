"""What the accuracy bench compares: MFFENet light, the same without one of its parts, and two peers on its encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from models.augment import Augmentation
from models.layers import conv_bn_relu
from models.mffenet import Decoder, EfficientNetLiteTaps, EncoderChannels, MFFENet
from models.pretrained import imagenet_state

WIDTH: Final = 64
ENCODER: Final = "tu-tf_efficientnet_lite0"
LITTLE_DROPOUT: Final = 0.1
"""Instead of the published 0.5 in the ASPP and in the head."""

PRIOR: Final = 0.03
"""Share of landslide at which a gentle start begins."""


class WithoutForks(Decoder):
    """Each level is a plain 1x1 projection of its own scale instead of an adaptive triangle fork."""

    def __init__(self, channels: EncoderChannels, *, width: int, classes: int) -> None:
        super().__init__(channels, width=width, classes=classes)
        for part in ("Att", "CA", "Con"):
            for level in "321":
                delattr(self, part + level)
        self.skip3 = conv_bn_relu(channels.x2, 3 * width, kernel=1)
        self.skip2 = conv_bn_relu(channels.x3, 3 * width // 2, kernel=1)
        self.skip1 = conv_bn_relu(channels.x4, 3 * width // 4, kernel=1)

    def fork(self, x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scales themselves, at the forks' widths."""
        return self.skip3(x2), self.skip2(x3), self.skip1(x4)


class WithoutResiduals(Decoder):
    """The levels enter the decoder without the residual convolution module."""

    def __init__(self, channels: EncoderChannels, *, width: int, classes: int) -> None:
        super().__init__(channels, width=width, classes=classes)
        del self.conv_3, self.conv_2, self.conv_1

    def refine(self, a3: Tensor, a2: Tensor, a1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The levels as they are."""
        return a3, a2, a1


class WithoutDensePath(Decoder):
    """Each level sees the next deeper one only, and the head the last one only."""

    def __init__(self, channels: EncoderChannels, *, width: int, classes: int) -> None:
        super().__init__(channels, width=width, classes=classes)
        self.third_conv = conv_bn_relu(3 * width // 2 + width, width, kernel=3)
        self.second_conv = conv_bn_relu(3 * width // 4 + width, width, kernel=3)
        self.last_conv[0] = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def top_down(self, x1: Tensor, a3: Tensor, a2: Tensor, a1: Tensor) -> Tensor:
        """Logits of the last level alone."""
        d3 = self.four_conv(self.stack((x1, a3), a3.shape[-2:]))
        d2 = self.third_conv(self.stack((a2, d3), a2.shape[-2:]))
        return self.last_conv(self.second_conv(self.stack((a1, d2), a1.shape[-2:])))


def _mffenet(decoder: type[Decoder] = Decoder) -> nn.Module:
    return MFFENet(EfficientNetLiteTaps(pretrained=True), width=WIDTH, decoder=decoder)


def _less_dropout() -> nn.Module:
    network = _mffenet()
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.p = min(part.p, LITTLE_DROPOUT)
    return network


def _gentle_start() -> nn.Module:
    """Little dropout, residual branches that start at nothing, and a head that starts at the share of landslide."""
    network = _less_dropout()
    decoder: Any = network.decoder
    for branch in (decoder.conv_3, decoder.conv_2, decoder.conv_1):
        nn.init.zeros_(branch[-1].weight)
    head = decoder.last_conv[-1]
    nn.init.normal_(head.weight, std=0.01)
    with torch.no_grad():
        head.bias.copy_(torch.log(torch.tensor([1 - PRIOR, PRIOR])))
    return network


def _peer(build: Callable[..., nn.Module]) -> nn.Module:
    network = build(ENCODER, encoder_weights=None, classes=2)
    known = network.encoder.model.state_dict()
    weights = {name: value for name, value in imagenet_state().items() if name in known}
    network.encoder.model.load_state_dict(weights)
    return network


@dataclass(frozen=True)
class Contender:
    """A network of the table and what it is trained with."""

    title: str
    build: Callable[[], nn.Module]
    losses: Mapping[str, float] = field(default_factory=lambda: {"boundary": 1.0, "dice": 1.0})
    augmentation: Augmentation = Augmentation()


CONTENDERS: Final[Mapping[str, Contender]] = {
    "mffenet": Contender("MFFENet light", _mffenet),
    "unet": Contender("U-Net", lambda: _peer(smp.Unet)),
    "deeplabv3plus": Contender("DeepLabV3+", lambda: _peer(smp.DeepLabV3Plus)),
    "no-atf": Contender("MFFENet light without ATF", lambda: _mffenet(WithoutForks)),
    "no-rcm": Contender("MFFENet light without RCM", lambda: _mffenet(WithoutResiduals)),
    "no-dense": Contender("MFFENet light without the dense decoder", lambda: _mffenet(WithoutDensePath)),
    "no-boundary": Contender("MFFENet light with plain cross-entropy", _mffenet, {"cross-entropy": 1.0, "dice": 1.0}),
    "less-dropout": Contender("MFFENet light with dropout 0.1", _less_dropout),
    "gentle-start": Contender("MFFENet light, gentle start", _gentle_start),
    "impulse": Contender("MFFENet light, salt and pepper", _mffenet, augmentation=Augmentation(impulse=0.1)),
}
"""The peers are trained with the same losses as MFFENet."""
