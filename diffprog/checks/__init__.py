"""Check gradients against autodiff and finite differences, by layer and element."""

from diffprog.checks._check_layer import check_grad, check_layer
from diffprog.checks._check_network import check_net
from diffprog.checks._report import VERDICTS, Finding, Precision, Report
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
