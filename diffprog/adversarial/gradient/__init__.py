"""Attacks inside a ball that follow the gradient of a loss."""

from diffprog.adversarial.gradient._apgd import apgd
from diffprog.adversarial.gradient._pgd import fgsm, mi_fgsm, pgd

__all__ = [
    "apgd",
    "fgsm",
    "mi_fgsm",
    "pgd",
]
