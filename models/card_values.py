"""What the values of a model card may be: whatever decides a map is checked before anything is computed with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from models.mffenet import STRIDE
from models.registry import MODELS

LEAST_WINDOW_PX, MOST_WINDOW_PX = 64, 4096
FINEST_M, COARSEST_M = 0.01, 1000.0
MOST_OVERSAMPLING: Final = 16.0

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value fits, and what was expected."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _between(low: float, high: float) -> Rule:
    return (lambda v: _is_number(v) and low < v < high), f"a number over {low:g} and under {high:g}"


def _is_range(value: object) -> bool:
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))):
        return False
    return bool(FINEST_M <= value[0] <= value[1] <= COARSEST_M)


def _is_tone(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_number(v) and 0 < v <= 255 for v in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_RANGE: Final = (_is_range, f"two pixel sizes in metres, the finer first, {FINEST_M:g} to {COARSEST_M:g}")
_TEXT: Final = (_is_text, "a text")
_TABLE: Final = ((lambda v: isinstance(v, dict)), "an object of keys and values")

RULES: Final[Mapping[str, Rule]] = {
    "name": (
        lambda v: isinstance(v, str) and re.fullmatch(r"[\w][\w. -]{0,127}", v) is not None,
        "letters, digits, . _ -, 128 at most",
    ),
    "architecture": ((lambda v: isinstance(v, str) and v in MODELS), f"one of {', '.join(MODELS)}"),
    "weights_sha256": (
        lambda v: isinstance(v, str) and re.fullmatch(r"[0-9a-f]{64}", v) is not None,
        "64 hexadecimal digits",
    ),
    "gsd_range_m": _RANGE,
    "lattice_gsd_m": _RANGE,
    "oversampling": (
        lambda v: _is_number(v) and 0 < v <= MOST_OVERSAMPLING,
        f"a number over 0 and up to {MOST_OVERSAMPLING:g}",
    ),
    "window_px": (
        lambda v: type(v) is int and LEAST_WINDOW_PX <= v <= MOST_WINDOW_PX and v % STRIDE == 0,
        f"a multiple of {STRIDE} from {LEAST_WINDOW_PX} to {MOST_WINDOW_PX}",
    ),
    "threshold": _between(0, 1),
    "median_rgb": (_is_tone, "three numbers over 0 and up to 255"),
    **dict.fromkeys(("calibration.scale", "calibration.bias"), (_is_number, "a number")),
    "calibration.prevalence": _between(0, 1),
    **dict.fromkeys(("licence", "data", "split"), _TEXT),
    **dict.fromkeys(("training", "metrics", "reliability", "mlm", "origin"), _TABLE),
    "limits": ((lambda v: isinstance(v, list | tuple) and all(map(_is_text, v))), "a list of sentences"),
}


def wrong_values(card: Mapping[str, Any]) -> list[str]:
    """What does not fit in a card as JSON has it, a sentence each: the field, what was got and what was expected.

    A field that is missing is not told of here.

    >>> wrong_values({"threshold": 7, "window_px": 256})
    ['`threshold`: got 7; expected a number over 0 and under 1']
    """
    told = []
    for name, (fits, expected) in RULES.items():
        group, _, key = name.rpartition(".")
        inner = card.get(group) if group else card
        place = inner if isinstance(inner, Mapping) else {}
        if key in place and not fits(place[key]):
            told.append(f"`{name}`: got {place[key]!r:.80}; expected {expected}")
    bands = card.get("bands")
    known = MODELS[card["architecture"]].bands if card.get("architecture") in MODELS else None
    if known and "bands" in card and (not isinstance(bands, list | tuple) or tuple(bands) != known):
        told.append(f"`bands`: got {bands!r:.80}; expected {list(known)}, in this order: what its architecture takes")
    return told
