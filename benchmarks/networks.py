"""What the accuracy bench compares: MFFENet light, the same without one of its parts, and two peers on its encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import segmentation_models_pytorch as smp
from torch import Tensor, nn

from models.augment import Augmentation
from models.layers import conv_bn_relu
from models.mffenet import Decoder, EfficientNetLiteTaps, EncoderChannels, MFFENet, start_gently, start_head
from models.pretrained import imagenet_state

WIDTH: Final = 64
ENCODER: Final = "tu-tf_efficientnet_lite0"


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

    def silence_residuals(self) -> None:
        """There is none."""


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


def _as_published(decoder: type[Decoder] = Decoder) -> MFFENet:
    return MFFENet(EfficientNetLiteTaps(pretrained=True), width=WIDTH, decoder=decoder)


def _light(decoder: type[Decoder] = Decoder) -> nn.Module:
    network = _as_published(decoder)
    start_gently(network)
    return network


def _peer(build: Callable[..., nn.Module]) -> nn.Module:
    network = build(ENCODER, encoder_weights=None, classes=2)
    known = network.encoder.model.state_dict()
    weights = {name: value for name, value in imagenet_state().items() if name in known}
    network.encoder.model.load_state_dict(weights)
    return network


def _head_started(network: nn.Module) -> nn.Module:
    start_head(network.segmentation_head[0])
    return network


@dataclass(frozen=True)
class Contender:
    """A network of the table and what it is trained with."""

    title: str
    build: Callable[[], nn.Module]
    losses: Mapping[str, float] = field(default_factory=lambda: {"boundary": 1.0, "dice": 1.0})
    augmentation: Augmentation = Augmentation()


CONTENDERS: Final[Mapping[str, Contender]] = {
    "mffenet": Contender("MFFENet light", _light),
    "unet": Contender("U-Net", lambda: _peer(smp.Unet)),
    "deeplabv3plus": Contender("DeepLabV3+", lambda: _peer(smp.DeepLabV3Plus)),
    "published-start": Contender("MFFENet light, started as published", _as_published),
    "no-atf": Contender("MFFENet light without ATF", lambda: _light(WithoutForks)),
    "no-rcm": Contender("MFFENet light without RCM", lambda: _light(WithoutResiduals)),
    "no-dense": Contender("MFFENet light without the dense decoder", lambda: _light(WithoutDensePath)),
    "no-boundary": Contender("MFFENet light with plain cross-entropy", _light, {"cross-entropy": 1.0, "dice": 1.0}),
    "impulse": Contender("MFFENet light with salt and pepper", _light, augmentation=Augmentation(impulse=0.1)),
    "unet-head": Contender("U-Net, its head started alike", lambda: _head_started(_peer(smp.Unet))),
    "deeplabv3plus-head": Contender("DeepLabV3+, alike", lambda: _head_started(_peer(smp.DeepLabV3Plus))),
}
"""The peers are trained with the same losses as MFFENet."""
