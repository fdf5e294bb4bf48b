"""In which number format, and by which engine, a network is computed: what the hardware can do, never slower than fp32.

bfloat16 on a CPU without instructions for it is emulated: 7 to 11 times slower than float32. So it is used where the
hardware has it, and a mode belongs to whatever is computed in it: other modes give other probabilities (docs/adr/0023).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch

Precision = Literal["auto", "fp32", "bf16"]
"""What a person may ask for; `auto` is what the hardware computes fastest."""
Mode = Literal["fp32", "bf16", "fp16"]
Engine = Literal["torch", "openvino"]

DTYPES: Final[dict[Mode, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16_INSTRUCTIONS: Final = frozenset({"avx512_bf16", "amx_bf16"})
ISA_LIMITS: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables by which oneDNN, which computes for torch and OpenVINO, is held to older instructions than the CPU has."""
WITHOUT_BF16: Final = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"})


@dataclass(frozen=True)
class Numerics:
    """How a network's output is computed."""

    mode: Mode
    engine: Engine = "torch"

    def __str__(self) -> str:
        """As people read it.

        >>> str(Numerics("fp32", "openvino")), str(Numerics("bf16"))
        ('fp32 by OpenVINO', 'bf16 by PyTorch')
        """
        return f"{self.mode} by {'OpenVINO' if self.engine == 'openvino' else 'PyTorch'}"


def choose_device() -> str:
    """`cuda` where there is a device, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_mode(device: str | None = None) -> Mode:
    """The fastest mode of a device (None: the one that networks run on) that its hardware has instructions for."""
    if torch.device(device or choose_device()).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    limits = {os.environ[name].upper() for name in ISA_LIMITS if name in os.environ}
    return "bf16" if _cpu_flags() & BF16_INSTRUCTIONS and not limits & WITHOUT_BF16 else "fp32"


def _cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU, as torch names them."""
    told = getattr(torch.cpu, "get_capabilities", None)
    if told is not None:
        return frozenset(name for name, value in told().items() if value is True)
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch before `get_capabilities`
    return frozenset({"avx512_bf16"} if asked is not None and asked() else ())


def choose_mode(precision: Precision = "auto", device: str | None = None) -> Mode:
    """The mode that was asked for, on a device (None: the one that networks run on).

    Raises: ValueError for a precision that is none.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision: got {precision!r}; expected one of {', '.join(get_args(Precision))}")
    return best_mode(device) if precision == "auto" else precision


def choose_numerics(precision: Precision = "auto", device: str | None = None) -> Numerics:
    """Mode and engine for predicting on a device (None: the one that networks run on).

    OpenVINO where it is installed, on a CPU, in a mode that the CPU has instructions for.

    Raises: ValueError for a precision that is none.
    """
    device = device or choose_device()
    mode = choose_mode(precision, device)
    usable = torch.device(device).type == "cpu" and mode in ("fp32", best_mode(device))
    return Numerics(mode, "openvino" if usable and importlib.util.find_spec("openvino") else "torch")


def agree(told: Iterable[Numerics]) -> Numerics:
    """What all of several machines can do: one result must not depend on which of them made it.

    >>> str(agree([Numerics("bf16", "openvino"), Numerics("fp32", "openvino")]))
    'fp32 by OpenVINO'
    """
    every = list(told)
    modes, engines = {n.mode for n in every}, {n.engine for n in every}
    return Numerics(modes.pop() if len(modes) == 1 else "fp32", engines.pop() if len(engines) == 1 else "torch")


def autocast(device: str, mode: Mode) -> AbstractContextManager[Any]:
    """The context in which torch computes in a mode."""
    if mode == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=DTYPES[mode])


def processor(device: str | None = None) -> str:
    """What networks run on: the name of the GPU, or of the CPU where torch tells it."""
    if torch.device(device or choose_device()).type == "cuda":
        return torch.cuda.get_device_name()
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return str(told.get("cpu_name") or "cpu").strip()
