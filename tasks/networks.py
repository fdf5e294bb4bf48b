"""Which networks there are, and what their cards say."""

from __future__ import annotations

from typing import Any

from models.cards import WEIGHTS_DIR, load_card
from models.registry import MODELS


def list_models() -> list[dict[str, Any]]:
    """The registered networks with what their cards say."""
    rows = []
    for entry in MODELS.values():
        weights = WEIGHTS_DIR / f"{entry.name}.safetensors"
        card = load_card(weights) if weights.is_file() else None
        rows.append({
            "name": entry.name,
            "summary": entry.summary,
            "bands": ", ".join(entry.bands),
            "gsd_m": "{:g}-{:g}".format(*card.gsd_range_m) if card else "as trained",
            "parameters": f"{entry.parameters:,}",
            "weights": f"shipped, {weights.stat().st_size / 1e6:.1f} MB" if card else "none shipped",
            "licence": card.licence if card else "-",
            "metrics": ", ".join(f"{k} {v}" for k, v in card.metrics.items()) if card else "-",
        })  # fmt: skip
    return rows
