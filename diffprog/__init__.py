"""diffprog: pure functions to a scalar cost, any variable of which can be made the free one and descended on."""

import importlib
from typing import Any

from diffprog import backprop, checks, data, descent, gradients, graph, losses, models, nodes, norms
from diffprog.nodes import tap
from diffprog.program import Program, program

__all__ = [
    "Program",
    "backprop",
    "checks",
    "data",
    "descent",
    "gradients",
    "graph",
    "losses",
    "models",
    "nodes",
    "norms",
    "plotting",
    "program",
    "tap",
]


def __getattr__(name: str) -> Any:
    """Import `plotting` when it is first asked for: it is the one part that needs matplotlib."""
    if name == "plotting":
        return importlib.import_module("diffprog.plotting")
    raise AttributeError(f"module 'diffprog' has no attribute {name!r}")
