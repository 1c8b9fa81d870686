"""Training: descent on parameters over minibatches, at every order of what is known of the cost."""

from diffprog.training._estimators import antithetic, spsa
from diffprog.training._fit import Fit, fit
from diffprog.training._updates import gauss_newton, newton_cg, random_search

__all__ = ["Fit", "antithetic", "fit", "gauss_newton", "newton_cg", "random_search", "spsa"]
