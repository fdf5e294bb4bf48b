"""The networks: a registry, their weights with model cards, training, and the predictor. torch and numpy only."""

from models.cards import ModelCard, load_published_checkpoint
from models.predictor import Predictor, load_predictor
from models.registry import MODELS, create_model

__all__ = ["MODELS", "ModelCard", "Predictor", "create_model", "load_predictor", "load_published_checkpoint"]
