"""Attacks that search for the smallest adversarial perturbation."""

from diffprog.adversarial.minimum_norm._box_lbfgs import box_lbfgs
from diffprog.adversarial.minimum_norm._carlini_wagner import carlini_wagner
from diffprog.adversarial.minimum_norm._ddn_fmn import ddn, fmn
from diffprog.adversarial.minimum_norm._deepfool import deep_fool
from diffprog.adversarial.minimum_norm._elastic_net import elastic_net
from diffprog.adversarial.minimum_norm._fab import fab

__all__ = ["box_lbfgs", "carlini_wagner", "ddn", "deep_fool", "elastic_net", "fab", "fmn"]
