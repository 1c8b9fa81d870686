"""The notations of the lectures hold the same numbers."""

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
GRADIENTS = bp.value_and_grads(
    NET,
    bp.sum_over_examples(bp.half_squared_error()),
    PARAMS,
    jnp.array([[1.0, -2.0]]),
    jnp.array([[0.5]]),
)


def test_deltas_have_the_opposite_sign():
    deltas = bp.deltas(GRADIENTS)
    assert list(deltas) == ["x", "affine1", "tanh1", "affine2"]
    np.testing.assert_allclose(deltas["affine2"], 0.5 - GRADIENTS.values["affine2"])
    np.testing.assert_allclose(
        GRADIENTS.dparams[2]["weight"], -deltas["affine2"].T @ GRADIENTS.values["tanh1"], rtol=1e-6
    )


def test_overdots_rename_the_adjoints():
    overdots = bp.overdots(GRADIENTS)
    assert list(overdots) == ["ẋ", "ȧffine1", "ṫanh1", "ȧffine2"]
    np.testing.assert_array_equal(overdots["ȧffine1"], GRADIENTS.adjoints["affine1"])


def test_numerator_layout_is_the_input_times_the_adjoint_row():
    transposed = bp.numerator_layout(GRADIENTS.dparams)
    np.testing.assert_allclose(
        transposed[0]["weight"], GRADIENTS.values["x"].T @ GRADIENTS.adjoints["affine1"], rtol=1e-6
    )
    np.testing.assert_allclose(transposed[0]["bias"], GRADIENTS.adjoints["affine1"], rtol=1e-6)


def test_numerator_layout_rejects_rank_3():
    with pytest.raises(
        ValueError,
        match=r"gradients\['kernel'\] must have rank 0, 1 or 2 .* layout, got \[1, 1, 1\]",
    ):
        bp.numerator_layout({"kernel": jnp.ones((1, 1, 1))})


def test_deltas_of_a_tuple_and_of_a_missing_derivative():
    adjoints = {"ids": None, "pair": (jnp.ones(1), jnp.ones(1))}
    gradients = bp.Gradients(jnp.ones(()), (), None, {}, adjoints)
    assert bp.deltas(gradients) == {"ids": None, "pair": (-1, -1)}
