"""Adversarial perturbations: r with f(x + r) wrong and ||r|| <= ε, or the smallest such r; and an honest report of what stands against them."""

from diffprog.adversarial._apgd import apgd
from diffprog.adversarial._attack import Attack, Found
from diffprog.adversarial._decision import hop_skip_jump
from diffprog.adversarial._deep_fool import deep_fool
from diffprog.adversarial._fab import fab
from diffprog.adversarial._gradient import fgsm, momentum, pgd
from diffprog.adversarial._minimum import ddn, fmn
from diffprog.adversarial._over import Universal, expectation, straight_through, transfer, universal
from diffprog.adversarial._square import square
from diffprog.adversarial._tradeoff import box_lbfgs, carlini_wagner, elastic_net

__all__ = [
    "Attack",
    "Found",
    "Universal",
    "apgd",
    "box_lbfgs",
    "carlini_wagner",
    "ddn",
    "deep_fool",
    "elastic_net",
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
