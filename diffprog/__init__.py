"""diffprog: pure functions to a scalar cost, any variable of which can be made the free one and descended on."""

import importlib
from typing import TYPE_CHECKING, Any

from diffprog import nodes
from diffprog.nodes import tap
from diffprog.program import Program, program

__all__ = [
    "Program",
    "adversarial",
    "backprop",
    "checks",
    "contrastive",
    "data",
    "descent",
    "distributed",
    "fast_gradients",
    "gradients",
    "graph",
    "losses",
    "models",
    "nodes",
    "norms",
    "plotting",
    "pretrained",
    "program",
    "tap",
    "training",
    "visualization",
]


# Imported when first asked for, so that `import diffprog` costs little more than `import jax`; plotting alone needs matplotlib.
_LATER = (
    "adversarial",
    "backprop",
    "checks",
    "contrastive",
    "data",
    "descent",
    "distributed",
    "fast_gradients",
    "gradients",
    "graph",
    "losses",
    "models",
    "norms",
    "plotting",
    "pretrained",
    "training",
    "visualization",
)

if TYPE_CHECKING:
    from diffprog import (
        adversarial,
        backprop,
        checks,
        contrastive,
        data,
        descent,
        distributed,
        fast_gradients,
        gradients,
        graph,
        losses,
        models,
        norms,
        plotting,
        pretrained,
        training,
        visualization,
    )


def __getattr__(name: str) -> Any:
    """Import a part of the toolkit when it is first asked for."""
    if name in _LATER:
        return importlib.import_module(f"diffprog.{name}")
    raise AttributeError(f"module 'diffprog' has no attribute {name!r}")
