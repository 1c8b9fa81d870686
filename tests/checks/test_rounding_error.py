"""Bounds of rounding errors: the number of terms that an operation sums for one output."""

import jax
import jax.numpy as jnp
import pytest

from diffprog._jaxpr import find_equations
from diffprog.checks._rounding_error import _summed_terms

CONVOLUTION = lambda x, kernel: jax.lax.conv(x, kernel, (1, 1), "SAME")


@pytest.mark.parametrize(
    ("f", "shapes", "terms"),
    [
        (lambda a, b: a @ b, [(3, 5), (5, 2)], 5),
        (lambda a, b: a @ b, [(7, 3, 5), (7, 5, 2)], 5),
        (lambda a, b: jnp.einsum("bij,bij->b", a, b), [(7, 3, 5), (7, 3, 5)], 15),
        (CONVOLUTION, [(2, 4, 8, 8), (6, 4, 3, 3)], 4 * 3 * 3),
        (lambda a: a.sum((0, 2)), [(2, 3, 4)], 8),
        (jnp.sin, [(9,)], 1),
    ],
    ids=["matrix product", "batched", "two axes", "convolution", "sum", "no sum"],
)
def test_the_terms_of_a_sum_are_those_of_its_summed_axes(f, shapes, terms):
    program = jax.make_jaxpr(f)(*map(jnp.ones, shapes))
    sums = ("dot_general", "conv_general_dilated", "reduce_sum", "sin")
    (site,) = find_equations(program, lambda equation: equation.primitive.name in sums)
    assert _summed_terms(site.equation) == terms
