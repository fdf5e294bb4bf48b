"""Every network the project can build, by name: a new size is one entry of `VARIANTS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from torch import nn

from models.adanet import ADANet
from models.mffenet import EfficientNetLiteTaps, MFFENet, ResNetTaps, start_gently

Encoder = Callable[..., ResNetTaps | EfficientNetLiteTaps]
"""Builds an encoder; takes `pretrained`."""


@dataclass(frozen=True)
class Variant:
    """A size of MFFENet: its encoder and the channels of ASPP and decoder."""

    suffix: str
    encoder: Encoder
    width: int
    parameters: int
    summary: str
    gentle: bool = False
    """It starts to learn gently, not as published."""


VARIANTS: Final = (
    Variant("lite0-w32", EfficientNetLiteTaps, 32, 3_469_291, "EfficientNet-Lite0, width 32: the fastest", gentle=True),
    Variant(
        "lite0", EfficientNetLiteTaps, 64, 4_395_256, "EfficientNet-Lite0, width 64: runs on a laptop", gentle=True
    ),
    Variant("resnet50", partial(ResNetTaps, "resnet50"), 128, 34_611_886, "ResNet-50, width 128: for one GPU"),
    Variant("resnet101", partial(ResNetTaps, "resnet101"), 256, 71_356_490, "as published, ResNet-101, width 256"),
)
"""From the fastest to the most careful. ImageNet weights: of Lite0 from an installed package, of ResNets by timm's
download."""


@dataclass(frozen=True)
class ModelEntry:
    """A registered architecture."""

    name: str
    network: type[MFFENet]
    variant: Variant
    bands: tuple[str, ...] = ("red", "green", "blue")

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return f"{self.network.__name__} on {self.variant.summary}"

    @property
    def parameters(self) -> int:
        """Number of weights with two classes: ADANet has one more 1x1 convolution."""
        return self.variant.parameters + (2 * self.variant.width + 2 if self.network is ADANet else 0)

    def build(self, *, classes: int = 2, pretrained: bool = False) -> nn.Module:
        """A freshly initialised network, its encoder with ImageNet weights if `pretrained`."""
        network = self.network(self.variant.encoder(pretrained=pretrained), width=self.variant.width, classes=classes)
        if self.variant.gentle:
            start_gently(network)
        return network


MODELS: Final[Mapping[str, ModelEntry]] = MappingProxyType(
    {
        (name := f"{network.__name__.lower()}-{variant.suffix}"): ModelEntry(name, network, variant)
        for network in (MFFENet, ADANet)
        for variant in VARIANTS
    }
)


def extend_to_adanet(network: nn.Module, architecture: str) -> ADANet:
    """ADANet of a network's size with its weights; where the network is an MFFENet the auxiliary output starts afresh.

    architecture : the network's registered name.
    """
    adanet = create_model(architecture.replace("mffenet", "adanet"))
    if not isinstance(adanet, ADANet):
        raise ValueError(f"architecture: got {architecture!r}; expected an MFFENet or ADANet")
    adanet.load_state_dict(network.state_dict(), strict=False)
    return adanet


def create_model(name: str, *, classes: int = 2, pretrained: bool = False) -> nn.Module:
    """A freshly initialised network; landslide is the last class.

    pretrained : the encoder starts from ImageNet weights.

    Raises: ValueError listing the registered names when there is none of this one; ImportError when the package of the
    light encoder's weights (extra `train`) is not installed.
    """
    if name not in MODELS:
        raise ValueError(f"model: got {name!r}; expected one of {', '.join(MODELS)}")
    return MODELS[name].build(classes=classes, pretrained=pretrained)
