"""Training: gradient descent on parameters over minibatches, with zeroth to second-order rules."""

from diffprog.training._fit import Fit, fit
from diffprog.training._second_order import gauss_newton, newton_cg, random_search
from diffprog.training._zeroth_order import antithetic, spsa

__all__ = ["Fit", "antithetic", "fit", "gauss_newton", "newton_cg", "random_search", "spsa"]
