"""What the network costs on this machine's CPU and GPU, and how far their probabilities are apart.

    python benchmarks/devices.py [--models mffenet-lite0 mffenet-resnet101] [--seconds 5]

Windows of 512 px a second in bf16, by device and batch, as a ratio to the CPU one window at a time. The difference is
the largest one of the shipped network's probabilities on a window of random texture, to the CPU's.
"""

from __future__ import annotations

import argparse
import time
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from rows import markdown

from models.cards import find_weights, load_card, load_network
from models.predictor import Predictor
from models.registry import create_model
from models.training import device_name

WINDOW_PX: Final = 512
BATCHES: Final = {"cpu": (1, 4), "cuda": (1, 8, 16)}
SHIPPED: Final = "mffenet-lite0"


def windows_a_second(model: str, *, device: str, batch: int, seconds: float) -> float:
    """Forward passes in bf16 over `seconds`, times the batch."""
    network = create_model(model).eval().to(device).to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, WINDOW_PX, WINDOW_PX, device=device).contiguous(memory_format=torch.channels_last)
    passes = 0
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        for _ in range(2):
            network(images)
        _wait(device)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            network(images)
            _wait(device)
            passes += 1
        return passes * batch / (time.perf_counter() - started)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def texture() -> NDArray[np.uint8]:
    """A window (1, H, W, 3) of random ground: blocks of colour with noise."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(20, 160, (WINDOW_PX // 32, WINDOW_PX // 32, 3)).repeat(32, axis=0).repeat(32, axis=1)
    return (blocks + rng.integers(0, 40, blocks.shape)).astype(np.uint8)[None]


def difference(device: str) -> float:
    """Largest difference of the shipped network's probability on a device to the CPU's."""
    weights = find_weights(SHIPPED)
    card = load_card(weights)
    ours, theirs = (
        Predictor(load_network(weights, card), card, device=each).predict_windows(texture()) for each in (device, "cpu")
    )
    return float(np.abs(ours - theirs).max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[SHIPPED, "mffenet-resnet101"])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each is timed")
    options = parser.parse_args()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    lines = []
    for model in options.models:
        speeds = {
            (device, batch): windows_a_second(model, device=device, batch=batch, seconds=options.seconds)
            for device in devices
            for batch in BATCHES[device]
        }
        for (device, batch), speed in speeds.items():
            lines.append([model, device, str(batch), f"{speed:.2f}", f"{speed / speeds['cpu', 1]:.2f}"])
    print(markdown(["network", "device", "batch", "windows / s", "ratio"], lines))
    for device in devices[1:]:
        print(f"{device_name()}: probabilities at most {difference(device):.4f} from the CPU's")


if __name__ == "__main__":
    main()
