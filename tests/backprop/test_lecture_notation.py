"""The lectures' notations are the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp

NET = bp.chain([bp.affine(2, 3), bp.tanh(), bp.affine(3, 1)])
PARAMS = jax.tree.map(
    lambda leaf: np.linspace(-1, 1, leaf.size, dtype=np.float32).reshape(leaf.shape),
    jax.eval_shape(NET.init, jax.random.key(0)),
)
FOUND = bp.value_and_grads(
    NET,
    bp.sum_over_examples(bp.half_squared_error()),
    PARAMS,
    jnp.array([[1.0, -2.0]]),
    jnp.array([[0.5]]),
)


def test_deltas_have_the_opposite_sign():
    deltas = bp.deltas(FOUND)
    assert list(deltas) == ["x", "affine1", "tanh1", "affine2"]
    np.testing.assert_allclose(deltas["affine2"], 0.5 - FOUND.values["affine2"])
    np.testing.assert_allclose(
        FOUND.dparams[2]["weight"], -deltas["affine2"].T @ FOUND.values["tanh1"], rtol=1e-6
    )


def test_overdots_are_the_adjoints_under_dotted_names():
    overdots = bp.overdots(FOUND)
    assert list(overdots) == ["ẋ", "ȧffine1", "ṫanh1", "ȧffine2"]
    np.testing.assert_array_equal(overdots["ȧffine1"], FOUND.adjoints["affine1"])


def test_numerator_layout_is_the_input_times_the_row_of_the_adjoint():
    gradients = bp.numerator_layout(FOUND.dparams)
    np.testing.assert_allclose(
        gradients[0]["weight"], FOUND.values["x"].T @ FOUND.adjoints["affine1"], rtol=1e-6
    )
    np.testing.assert_allclose(gradients[0]["bias"], FOUND.adjoints["affine1"], rtol=1e-6)


def test_no_layout_beyond_matrices():
    with pytest.raises(
        ValueError,
        match=r"gradients\['kernel'\] must have rank 0, 1 or 2 for a layout to exist, got \[1, 1, 1\]",
    ):
        bp.numerator_layout({"kernel": jnp.ones((1, 1, 1))})


def test_views_of_a_copied_value_and_of_an_integer_input():
    adjoints = {"ids": None, "pair": (jnp.ones(1), jnp.ones(1))}
    found = bp.Gradients(jnp.ones(()), (), None, {}, adjoints)
    assert bp.deltas(found) == {"ids": None, "pair": (-1, -1)}
