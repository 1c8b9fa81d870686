"""Drawings of computation graphs: a matplotlib figure and an interactive HTML page."""

from diffprog.plotting.graph._figure import draw_graph
from diffprog.plotting.graph._html import graph_html

__all__ = ["draw_graph", "graph_html"]
