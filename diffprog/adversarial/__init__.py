"""Adversarial perturbations: r with f(x + r) wrong and ||r|| <= ε, or the smallest such r; and a report of what stands against them."""

from diffprog.adversarial._apgd import apgd
from diffprog.adversarial._attack import Attack, Found
from diffprog.adversarial._auto import Cascaded, auto_attack, cascade
from diffprog.adversarial._decision import hop_skip_jump
from diffprog.adversarial._deep_fool import deep_fool
from diffprog.adversarial._evaluate import evaluate
from diffprog.adversarial._fab import fab
from diffprog.adversarial._gradient import fgsm, momentum, pgd
from diffprog.adversarial._minimum import ddn, fmn
from diffprog.adversarial._over import Universal, expectation, straight_through, transfer, universal
from diffprog.adversarial._report import Curve, Flag, Outcome, Report, Share, Worst
from diffprog.adversarial._square import square
from diffprog.adversarial._tradeoff import box_lbfgs, carlini_wagner, elastic_net
from diffprog.adversarial._training import adversarial_training

__all__ = [
    "Attack",
    "Cascaded",
    "Curve",
    "Flag",
    "Found",
    "Outcome",
    "Report",
    "Share",
    "Universal",
    "Worst",
    "adversarial_training",
    "apgd",
    "auto_attack",
    "box_lbfgs",
    "carlini_wagner",
    "cascade",
    "ddn",
    "deep_fool",
    "elastic_net",
    "evaluate",
    "expectation",
    "fab",
    "fgsm",
    "fmn",
    "hop_skip_jump",
    "momentum",
    "pgd",
    "square",
    "straight_through",
    "transfer",
    "universal",
]
