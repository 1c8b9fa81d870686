"""Models as pure functions with named nodes."""

from diffprog.models._cnn import cnn
from diffprog.models._mlp import mlp
from diffprog.models._model import Model, sequential

__all__ = ["Model", "cnn", "mlp", "sequential"]
