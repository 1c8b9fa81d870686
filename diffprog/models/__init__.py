"""Models as pure functions (init, apply): `mlp`, `cnn`, `transformer`, `vit` and `sequential`.

Their intermediate values are named, so that `diffprog.nodes` can read and replace them.
"""

from diffprog.models._cnn import cnn
from diffprog.models._mlp import mlp
from diffprog.models._model import Model, sequential
from diffprog.models._transformer import transformer
from diffprog.models._vit import vit

__all__ = ["Model", "cnn", "mlp", "sequential", "transformer", "vit"]
