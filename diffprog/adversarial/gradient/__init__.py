"""Gradient attacks in an epsilon-ball: FGSM, PGD, MI-FGSM and Auto-PGD."""

from diffprog.adversarial.gradient._apgd import apgd
from diffprog.adversarial.gradient._pgd import fgsm, mi_fgsm, pgd

__all__ = ["apgd", "fgsm", "mi_fgsm", "pgd"]
