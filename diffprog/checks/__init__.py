"""Check hand-written gradients against autodiff and finite differences.

`check_layer` checks a layer's backward pass, `check_grad` a gradient function, and `check_net`
every layer of a network. Each returns a `Report` that says for each array of the arguments whether
its gradient is correct, and if not, which element is wrong and why. `slope_test` is a Taylor test.
"""

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
