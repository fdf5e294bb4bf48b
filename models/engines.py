"""What computes a network's logits when it predicts: eager torch, or OpenVINO where that is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from models.numerics import Mode, Numerics, autocast

Forward = Callable[[Tensor], Tensor]
"""Normalised images (B, 3, H, W) float32 -> logits (B, classes, H, W) float32, both on the CPU."""
TRACED_PX: Final = 64
"""Side of the images that a network is traced with: tracing runs it, and its graph is for images of any size."""
HINTS: Final[dict[Mode, str]] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's names of the modes."""


def build_engine(network: nn.Module, numerics: Numerics, *, device: str) -> Forward:
    """The engine of a network in eval mode, with the threads that torch has now.

    Raises: ValueError for OpenVINO on another device than the CPU.
    """
    if numerics.engine == "torch":
        return Eager(network, numerics, device=device)
    if torch.device(device).type != "cpu":
        raise ValueError(f"engine openvino: got device {device!r}; expected cpu")
    return OpenVino(network, numerics, threads=torch.get_num_threads())


class Eager:
    """Torch as it is."""

    def __init__(self, network: nn.Module, numerics: Numerics, *, device: str) -> None:
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._mode, self._device = numerics.mode, device

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images."""
        with torch.inference_mode(), autocast(self._device, self._mode):
            inputs = images.to(self._device).contiguous(memory_format=torch.channels_last)
            return torch.as_tensor(self._network(inputs)).float().cpu()


class OpenVino:
    """The network compiled for each shape of images that it meets: no file is written and nothing downloaded."""

    def __init__(self, network: nn.Module, numerics: Numerics, *, threads: int) -> None:
        self._network = network
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": HINTS[numerics.mode],
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # workers of one machine would all be held to its first cores
        }
        self._model: Any = None
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images."""
        shape = tuple(images.shape)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(shape).create_infer_request()
        request = self._compiled[shape]
        return torch.from_numpy(request.infer({0: images.contiguous().numpy()})[0].copy())

    def _compile(self, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - openvino's
        import openvino

        if self._model is None:
            self._model = _convert(self._network, channels=shape[1])
        self._model.reshape(list(shape))
        return openvino.Core().compile_model(self._model, "CPU", self._settings)


def _convert(network: nn.Module, *, channels: int) -> Any:  # noqa: ANN401 - openvino's
    """The network as OpenVINO's, by its frontend alone: its converter reports that it is used."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    images = torch.zeros((1, channels, TRACED_PX, TRACED_PX))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of shapes that it fixes: those of the network's parts
        traced = torch.jit.freeze(torch.jit.trace(network.cpu().eval(), images, check_trace=False))  # type: ignore[no-untyped-call]
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=images)  # the frontend keeps no reference to it
        return frontend.convert(frontend.load(decoder))
