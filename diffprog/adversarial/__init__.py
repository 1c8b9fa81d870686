"""Adversarial perturbations: attacks under a norm constraint, and evaluation of robust accuracy."""

from diffprog.adversarial._adversarial_training import adversarial_training
from diffprog.adversarial._base import Attack, AttackResult, Problem, Search, make_attack
from diffprog.adversarial.black_box import hop_skip_jump, square
from diffprog.adversarial.evaluation import (
    Cascaded,
    Curve,
    Flag,
    Outcome,
    Report,
    Share,
    Worst,
    auto_attack,
    cascade,
    evaluate,
)
from diffprog.adversarial.gradient import apgd, fgsm, mi_fgsm, pgd
from diffprog.adversarial.minimum_norm import (
    box_lbfgs,
    carlini_wagner,
    ddn,
    deep_fool,
    elastic_net,
    fab,
    fmn,
)
from diffprog.adversarial.wrappers import Universal, bpda, expectation, transfer, universal

__all__ = [
    "Attack",
    "AttackResult",
    "Cascaded",
    "Curve",
    "Flag",
    "Outcome",
    "Problem",
    "Report",
    "Search",
    "Share",
    "Universal",
    "Worst",
    "adversarial_training",
    "apgd",
    "auto_attack",
    "box_lbfgs",
    "bpda",
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
    "make_attack",
    "mi_fgsm",
    "pgd",
    "square",
    "transfer",
    "universal",
]
