"""Drawings of computation graphs."""

from diffprog.plotting.graph._figure import draw_graph

__all__ = [
    "draw_graph",
]
