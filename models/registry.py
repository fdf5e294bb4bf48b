"""Every network the project can build, by name: a new one is one file and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from torch import nn

from models.mffenet import mffenet_lite0, mffenet_resnet101


@dataclass(frozen=True)
class ModelEntry:
    """A registered architecture."""

    name: str
    build: Callable[[], nn.Module]
    bands: tuple[str, ...]
    summary: str
    parameters: int


MODELS: Final[Mapping[str, ModelEntry]] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            ModelEntry(
                "mffenet-lite0",
                mffenet_lite0,
                ("red", "green", "blue"),
                "MFFENet on EfficientNet-Lite0, width 64: runs on a laptop; weights shipped",
                4_395_256,
            ),
            ModelEntry(
                "mffenet-resnet101",
                mffenet_resnet101,
                ("red", "green", "blue"),
                "MFFENet as published on ResNet-101, width 256: bring your own weights, or train it",
                71_356_490,
            ),
        )
    }
)


def create_model(name: str) -> nn.Module:
    """A freshly initialised network.

    Raises: ValueError listing the registered names when there is none of this one.
    """
    if name not in MODELS:
        raise ValueError(f"model: got {name!r}; expected one of {', '.join(MODELS)}")
    return MODELS[name].build()
