"""A network in the fields of STAC's machine-learning-model extension (MLM 1.4): model cards and products carry them."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from models.training import IMAGENET_MEAN, IMAGENET_STD

BRIGHTEST: Final = 255
"""Imagery is 8-bit when it is scaled."""
CLASSES: Final = (
    {"value": 0, "name": "clear", "description": "observed, no landslide"},
    {"value": 1, "name": "landslide", "description": "observed, landslide"},
)


def mlm_fields(
    network: nn.Module, *, name: str, bands: tuple[str, ...], window_px: int, pretrained_source: str | None
) -> dict[str, Any]:
    """What a STAC item says of the network: properties that start with `mlm:`.

    pretrained_source : what the weights were first trained on; None = trained from scratch.

    Source: https://github.com/stac-extensions/mlm
    """
    scaling = [
        {"type": "z-score", "mean": round(mean * BRIGHTEST, 3), "stddev": round(std * BRIGHTEST, 3)}
        for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)
    ]
    return {
        "mlm:name": name,
        "mlm:architecture": type(network).__name__,
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "PyTorch",
        "mlm:framework_version": str(torch.__version__),
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
        "mlm:accelerator_summary": "any CPU, or a CUDA device where there is one; bfloat16 where the hardware has it",
        "mlm:total_parameters": sum(weights.numel() for weights in network.parameters()),
        "mlm:pretrained": pretrained_source is not None,
        "mlm:pretrained_source": pretrained_source,
        "mlm:input": [
            {
                "name": "imagery",
                "description": "8-bit imagery, levelled band by band to the training tiles",
                "bands": list(bands),
                "input": _tensor(len(bands), window_px, axis="channel"),
                "value_scaling": scaling,
                "resize_type": None,
                "pre_processing_function": None,
            },
        ],
        "mlm:output": [
            {
                "name": "logits",
                "description": "the landslide probability is sigmoid(scale * (landslide - clear) + bias), with scale "
                "and bias of the model card's calibration",
                "tasks": ["semantic-segmentation"],
                "result": _tensor(len(CLASSES), window_px, axis="class"),
                "classification:classes": [dict(entry) for entry in CLASSES],
                "post_processing_function": None,
            },
        ],
    }  # fmt: skip


def _tensor(size: int, window_px: int, *, axis: str) -> dict[str, Any]:
    """A batch of any size (-1) of float32 windows."""
    return {
        "shape": [-1, size, window_px, window_px],
        "dim_order": ["batch", axis, "height", "width"],
        "data_type": "float32",
    }
