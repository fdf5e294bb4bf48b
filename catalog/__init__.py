"""What exists and what it looks like: configuration, contract, sensors, scenes, store, products.

What a notebook needs is here by name (docs/python.md) and is imported when it is first used.
"""

from importlib import import_module

_HOMES = {
    "InputError": "catalog.schema",
    "LandslideError": "catalog.schema",
    "check_inputs": "catalog.checks",
    "latest_version": "catalog.versions",
    "parse_config": "catalog.config",
}
__all__ = tuple(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'catalog' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
