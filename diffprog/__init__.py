"""diffprog: pure functions to a scalar cost, any variable of which can be made the free one and descended on."""

from diffprog import backprop, descent, gradients, losses, models, nodes, norms
from diffprog.nodes import tap
from diffprog.program import Program, program

__all__ = ["Program", "backprop", "descent", "gradients", "losses", "models", "nodes", "norms", "program", "tap"]
