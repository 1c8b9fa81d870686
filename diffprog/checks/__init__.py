"""Gradients held against autodiff and against how the function moves, with a report that names the layer, the leaf and the element."""

from diffprog.checks._check_layer import check_grad, check_layer
from diffprog.checks._check_network import check_net
from diffprog.checks._report import VERDICTS, Finding, Report
from diffprog.checks._rounding_error import Precision
from diffprog.checks._taylor_test import SlopeReport, slope_test

__all__ = [
    "VERDICTS",
    "Finding",
    "Precision",
    "Report",
    "SlopeReport",
    "check_grad",
    "check_layer",
    "check_net",
    "slope_test",
]
