"""Train parameters on minibatches: `fit`, second-order optimizers, zeroth-order gradients."""

from diffprog.training._fit import Fit, fit
from diffprog.training._second_order import gauss_newton, newton_cg, random_search
from diffprog.training._zeroth_order import antithetic, spsa

__all__ = ["Fit", "antithetic", "fit", "gauss_newton", "newton_cg", "random_search", "spsa"]
