"""Figures and HTML pages of results, such as training curves, images, attacks and graphs.

Functions take arrays or results of the library and return a matplotlib `Figure`, return HTML or
write an HTML file. Nothing is shown on screen and no global state of matplotlib is changed.
"""

from diffprog.plotting._attributions import draw_attributions
from diffprog.plotting._history import draw_accuracy, draw_costs, draw_curves
from diffprog.plotting._html_report import Section, Table, write_page
from diffprog.plotting._images import draw_adversarial, draw_images
from diffprog.plotting._line_panels import Panel, draw_traces
from diffprog.plotting._robustness import draw_robustness
from diffprog.plotting._taylor_test import draw_slopes
from diffprog.plotting._trajectories import draw_clouds, draw_paths, draw_rates
from diffprog.plotting.graph._figure import draw_graph
from diffprog.plotting.graph._html import graph_html

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
    "graph_html",
    "write_page",
]
