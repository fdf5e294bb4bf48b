"""Weights and their model cards: safetensors beside a JSON card that states data, split, metrics and limits."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.calibration import Calibration
from models.card_values import wrong_values
from models.registry import MODELS, create_model

WEIGHTS_DIR: Final = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ModelCard:
    """What a user must know before trusting a network, and what inference needs to feed it as it was trained."""

    name: str
    architecture: str
    weights_sha256: str
    bands: tuple[str, ...]
    gsd_range_m: tuple[float, float]
    """Imagery pixel sizes at which the network is known to work; others are warned about."""
    lattice_gsd_m: tuple[float, float]
    """Finest and coarsest pixel size at which the network itself may be run."""
    oversampling: float
    """Imagery is shown with pixels this many times smaller than its own, within `lattice_gsd_m`: as in training."""
    window_px: int
    threshold: float
    """Landslide probability from which a pixel counts, chosen on validation tiles."""
    median_rgb: tuple[float, float, float]
    """Median red, green and blue of the training tiles, 0..255: scenes are levelled to it."""
    calibration: Calibration
    licence: str
    data: str
    split: str
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """Scores on validation tiles, with the seed."""
    reliability: dict[str, Any] = field(default_factory=dict)
    """Bins of probability, frequency and pixels, `before` and `after` calibration, of tiles it was not fitted on."""
    mlm: dict[str, Any] = field(default_factory=dict)
    """The network in the fields of STAC's machine-learning-model extension (`models.mlm`)."""
    limits: tuple[str, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)
    """What an event's own network was made of: weights it started from, digests of scene, labels and source tiles."""

    def lattice_gsd(self, imagery_gsd_m: float) -> float:
        """The pixel size at which windows of this imagery are predicted."""
        return lattice_gsd(imagery_gsd_m, oversampling=self.oversampling, limits_m=self.lattice_gsd_m)


def lattice_gsd(imagery_gsd_m: float, *, oversampling: float, limits_m: tuple[float, float]) -> float:
    """The imagery's pixel size over `oversampling`, within the limits, finest and coarsest.

    >>> [lattice_gsd(gsd_m, oversampling=2.0, limits_m=(5.0, 12.5)) for gsd_m in (3.0, 16.0, 30.0)]
    [5.0, 8.0, 12.5]
    """
    finest, coarsest = limits_m
    return min(max(imagery_gsd_m / oversampling, finest), coarsest)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _digest_of(weights: Path) -> str:
    """Hex digest of a weights file, which is read once a process while it stays as it is."""
    stat = weights.stat()
    return _digest_while(weights.resolve(), (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@lru_cache(maxsize=64)
def _digest_while(path: Path, _state: tuple[int, ...]) -> str:
    return sha256_of(path)


def save_model(network: nn.Module, folder: Path, *, card: dict[str, Any]) -> ModelCard:
    """The card written beside the weights (float16 safetensors) as `<name>.safetensors` and `<name>.json`.

    The weights take their name last: where they are, all is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{card['name']}.safetensors"
    partial = path.with_suffix(".partial")
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    partial.write_bytes(save({k: v.contiguous() for k, v in state.items()}))
    complete = ModelCard(**card, weights_sha256=sha256_of(partial))
    path.with_suffix(".json").write_text(json.dumps(asdict(complete), indent=2) + "\n")
    partial.replace(path)
    return complete


def find_weights(source: str) -> Path:
    """The weights file of a registered name, a folder or a file.

    Raises: ValueError when there are none: the registered networks are listed with where weights come from.
    """
    path = Path(source)
    if source in MODELS:
        path = WEIGHTS_DIR / f"{source}.safetensors"
    elif path.is_dir():
        path = next(iter(sorted(path.glob("*.safetensors"))), path / "<name>.safetensors")
    if not path.is_file() or path.suffix != ".safetensors":
        raise ValueError(
            f"model: no weights for {source!r} (looked for {path.name}); expected a registered name with shipped "
            f"weights, or a .safetensors file with its .json card. Registered: {', '.join(MODELS)}. "
            "Train weights with `landslidenet train`"
        )
    return path


def load_card(weights: Path) -> ModelCard:
    """The card beside a weights file.

    Raises: ValueError when it is missing, holds a value that no network can have, or does not fit the weights.
    """
    path = weights.with_suffix(".json")
    if not path.is_file():
        raise ValueError(
            f"model card: {path.name} is missing beside {weights.name}; weights without a card are refused"
        )
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = wrong_values(values)
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        card = ModelCard(**fields | {"calibration": Calibration(**fields["calibration"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"model card {path.name}: cannot be read ({error}); expected the card that `landslidenet train` wrote "
            "beside the weights; copy both files again"
        ) from error
    if wrong:
        raise ValueError(
            f"model card {path.name}: {'; '.join(wrong)}; correct the card, or copy what `landslidenet train` wrote"
        )
    if card.weights_sha256 != (got := _digest_of(weights)):
        raise ValueError(
            f"model card {path.name}: weights hash is {got[:12]}, the card says {card.weights_sha256[:12]}"
        )
    return card


def load_network(weights: Path, card: ModelCard) -> nn.Module:
    """The network with its weights, float32, in eval mode."""
    network = create_model(card.architecture)
    state = load_file(weights)
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return network.eval()


PUBLISHED: Final = "resnet101"
"""The variant that the authors' training code writes."""
AUXILIARY_KEYS: Final = "decoder.domain_conv."
CLASSES_KEY: Final = "decoder.last_conv.8.weight"
NUMPY_SCALARS: Final[Sequence[Any]] = (
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType),
)
"""What a score beside the weights, e.g. the best one so far, is pickled with: it runs no code of the file."""


def load_published_checkpoint(path: str | Path) -> nn.Module:
    """The paper's network with the weights of a checkpoint in the authors' format, float32, in eval mode.

    The file is `torch.save` of a dict with `state_dict`, whose keys may carry the prefix `module.`. With the auxiliary
    output `decoder.domain_conv` it is ADANet, without it MFFENet.

    Raises: OSError when there is no such file; ValueError naming the keys that are missing, left over, or of another
    shape, or what the file is instead.
    """
    stored = _read_checkpoint(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("state_dict"), dict):
        raise ValueError(f"checkpoint {path}: expected a dict with `state_dict`, got {type(stored).__name__}")
    state = {str(k).removeprefix("module."): v for k, v in stored["state_dict"].items()}
    kind = "adanet" if any(k.startswith(AUXILIARY_KEYS) for k in state) else "mffenet"
    shape = _shape(state.get(CLASSES_KEY))
    network = create_model(f"{kind}-{PUBLISHED}", classes=shape[0] if shape else 2)
    _check_keys(network.state_dict(), state, path)
    network.load_state_dict(state, strict=False)  # `num_batches_tracked` may be missing in old files
    return network.float().eval()


def _read_checkpoint(path: str | Path) -> object:
    try:
        with torch.serialization.safe_globals(list(NUMPY_SCALARS)):
            stored: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError(f"checkpoint {path}: got no file of `torch.save`; download it again") from None
        raise ValueError(f"checkpoint {path}: it holds more than weights ({found[1]}) and is not loaded") from None
    except (EOFError, KeyError, IndexError, RuntimeError) as error:  # torch's, by what the first bytes look like
        raise ValueError(f"checkpoint {path}: got no file of `torch.save`; download it again") from error
    return stored


def _shape(value: object) -> tuple[int, ...]:
    """Of a tensor; empty for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _check_keys(own: dict[str, Tensor], state: dict[str, Any], path: str | Path) -> None:
    problems = {
        "missing": sorted(k for k in own.keys() - state.keys() if not k.endswith("num_batches_tracked")),
        "left over": sorted(state.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & state.keys() if _shape(own[k]) != _shape(state[k])),
    }
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:6])}" for what, keys in problems.items() if keys)
        raise ValueError(f"checkpoint {path} does not fit the network: {told}")
