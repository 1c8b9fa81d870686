"""Computation graph of any scalar JAX function, with values, adjoints and local derivatives."""

from diffprog.graph._graph import Gate, Graph, Path
from diffprog.graph._trace import trace
from diffprog.graph._types import Edge, Node, Summary

__all__ = ["Edge", "Gate", "Graph", "Node", "Path", "Summary", "trace"]
