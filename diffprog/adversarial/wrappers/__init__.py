"""Wrappers of attacks and models for random, non-differentiable or unknown models.

`expectation` attacks random models, `bpda` makes rounding functions differentiable, `transfer`
searches on another model, and `universal` finds one perturbation for all examples.
"""

from diffprog.adversarial.wrappers._bpda import bpda
from diffprog.adversarial.wrappers._expectation import expectation
from diffprog.adversarial.wrappers._transfer import transfer
from diffprog.adversarial.wrappers._universal import Universal, universal

__all__ = ["Universal", "bpda", "expectation", "transfer", "universal"]
