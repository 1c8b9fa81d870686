"""Training: descent on parameters over minibatches, at every order of what is known of the cost."""

from diffprog.training._fit import Fit, fit
from diffprog.training._second_order import gauss_newton, newton_cg, random_search
from diffprog.training._zeroth_order import antithetic, spsa

__all__ = ["Fit", "antithetic", "fit", "gauss_newton", "newton_cg", "random_search", "spsa"]
