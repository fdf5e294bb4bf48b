"""The networks: a registry, their weights with model cards, training, and the predictor. torch and numpy only.

What others use is here by name and is imported when it is first used: torch takes seconds.
"""

from importlib import import_module

_HOMES = {
    "MODELS": "models.registry",
    "ModelCard": "models.cards",
    "Predictor": "models.predictor",
    "create_model": "models.registry",
    "load_predictor": "models.predictor",
    "load_published_checkpoint": "models.cards",
}
__all__ = tuple(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
