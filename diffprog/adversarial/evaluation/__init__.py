"""Evaluation of robust accuracy under several attacks."""

from diffprog.adversarial.evaluation._autoattack import Cascaded, auto_attack, cascade
from diffprog.adversarial.evaluation._evaluate import evaluate
from diffprog.adversarial.evaluation._report import Curve, Flag, Outcome, Report, Share, Worst

__all__ = [
    "Cascaded",
    "Curve",
    "Flag",
    "Outcome",
    "Report",
    "Share",
    "Worst",
    "auto_attack",
    "cascade",
    "evaluate",
]
