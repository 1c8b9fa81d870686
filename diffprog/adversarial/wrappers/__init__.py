"""Wrappers: attacks on random, rounding or other programs, and universal perturbations."""

from diffprog.adversarial.wrappers._bpda import bpda
from diffprog.adversarial.wrappers._expectation import expectation
from diffprog.adversarial.wrappers._transfer import transfer
from diffprog.adversarial.wrappers._universal import Universal, universal

__all__ = ["Universal", "bpda", "expectation", "transfer", "universal"]
