"""What the network costs on this machine, in every mode and by every engine, and how far the results are apart.

    python benchmarks/devices.py [--models mffenet-lite0 mffenet-resnet101] [--seconds 5]

Windows a second (of the median pass), as a ratio to float32 by PyTorch on the CPU, one window at a time: what
`--precision auto` chooses here is marked, and is never slower than that. The difference is the largest one of the
network's probabilities on a window of random texture, to float32 by PyTorch on the CPU (networks that are not shipped
have random weights). A mode that the hardware has no instructions for is timed too: it shows what the choice saves.
`ONEDNN_MAX_CPU_ISA=AVX2` shows what a CPU without AVX-512 would do.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from typing import Final

import numpy as np
import torch
from rows import markdown
from torch import Tensor, nn

from models.cards import find_weights, load_card, load_network
from models.engines import build_engine
from models.numerics import ISA_LIMITS, Engine, Mode, Numerics, best_mode, choose_numerics, processor
from models.registry import create_model
from models.training import normalise_images

WINDOW_PX: Final = 256
BATCHES: Final = {"cpu": (1, 4), "cuda": (1, 8, 16)}
SHIPPED: Final = "mffenet-lite0"
REFERENCE: Final = ("cpu", Numerics("fp32"), 1)


def texture(batch: int) -> Tensor:
    """Normalised windows (B, 3, H, W) of random ground: blocks of colour with noise."""
    rng, side = np.random.default_rng(0), WINDOW_PX // 32
    blocks = rng.integers(20, 160, (3, side, side)).repeat(32, axis=1).repeat(32, axis=2)
    window = torch.from_numpy((blocks + rng.integers(0, 40, blocks.shape)).astype(np.float32))
    return normalise_images(window.expand(batch, -1, -1, -1))


def network_of(model: str) -> nn.Module:
    """The shipped network with its weights, another one as it begins."""
    if model != SHIPPED:
        torch.manual_seed(0)
        return create_model(model).eval()
    weights = find_weights(model)
    return load_network(weights, load_card(weights))


def possible(device: str) -> list[Numerics]:
    """Every mode and engine that can be tried on a device."""
    modes: tuple[Mode, ...] = ("fp32", "bf16") if device == "cpu" else ("fp32", "fp16", "bf16")
    engines: tuple[Engine, ...] = ("torch", "openvino") if importlib.util.find_spec("openvino") else ("torch",)
    tried = [Numerics(mode, engine) for engine in (engines if device == "cpu" else ("torch",)) for mode in modes]
    return [n for n in tried if n.engine == "torch" or n.mode in ("fp32", best_mode(device))]


def measure(model: str, device: str, numerics: Numerics, batch: int, *, seconds: float) -> tuple[float, np.ndarray]:
    """Windows a second, and the probabilities of the first window."""
    forward, images = build_engine(network_of(model), numerics, device=device), texture(batch)
    logits = forward(images)
    times = [time.perf_counter()]
    while times[-1] - times[0] < seconds:
        forward(images)
        times.append(time.perf_counter())
    margin = logits[0, -1] - logits[0, 0]
    return batch / float(np.median(np.diff(times))), torch.sigmoid(margin).numpy()


def table(model: str, *, seconds: float) -> list[list[str]]:
    """Rows of one network."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    cases = [(d, n, b) for d in devices for n in possible(d) for b in BATCHES[d]]
    found = {case: measure(model, *case, seconds=seconds) for case in cases}
    speed, exact = found[REFERENCE]
    return [
        [model, device, str(numerics), "chosen" if numerics == choose_numerics("auto", device) else "", str(batch),
         f"{fast:.2f}", f"{fast / speed:.2f}", f"{np.abs(probability - exact).max():.1e}"]
        for (device, numerics, batch), (fast, probability) in found.items()
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[SHIPPED, "mffenet-resnet101"])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each is timed")
    options = parser.parse_args()
    limits = [f"{name}={os.environ[name]}" for name in ISA_LIMITS if name in os.environ]
    kind = f"{processor('cpu')}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    print("CPU:", kind, *limits)
    if torch.cuda.is_available():
        print(f"GPU: {processor('cuda')}")
    rows = [row for model in options.models for row in table(model, seconds=options.seconds)]
    print(markdown(["network", "device", "computed in", "", "batch", "windows / s", "ratio", "difference"], rows))


if __name__ == "__main__":
    main()
