"""Figures and pages from results: arrays in, a matplotlib `Figure` or one HTML file out. Nothing is shown, no global state is touched."""

from diffprog.plotting._attributions import draw_attributions
from diffprog.plotting._curves import draw_accuracy, draw_costs, draw_curves
from diffprog.plotting._descents import draw_clouds, draw_paths, draw_rates
from diffprog.plotting._graph import draw_graph
from diffprog.plotting._images import draw_adversarial, draw_images
from diffprog.plotting._page import Section, Table, write_page
from diffprog.plotting._robustness import draw_robustness
from diffprog.plotting._slopes import draw_slopes
from diffprog.plotting._traces import Panel, draw_traces

__all__ = [
    "Panel",
    "Section",
    "Table",
    "draw_accuracy",
    "draw_adversarial",
    "draw_attributions",
    "draw_clouds",
    "draw_costs",
    "draw_curves",
    "draw_graph",
    "draw_images",
    "draw_paths",
    "draw_rates",
    "draw_robustness",
    "draw_slopes",
    "draw_traces",
    "write_page",
]
