"""Convert gradients from `value_and_grads` to the notations of the lectures, for printing.

The lectures write the same gradient in different notations: lecture 001 propagates deltas, of the
opposite sign; 004 writes an overdot for the derivative of the loss; 000 and 004 use numerator
layout, in which the gradient of a matrix is transposed.
"""

import unicodedata
from typing import Any

import jax
from jaxtyping import Array, Float

from diffprog.backprop._value_and_grads import Gradients


def deltas(gradients: Gradients) -> dict[str, Any]:
    """Return the deltas δ = -dJ/dvalue of every network input and layer output, by name.

    Lecture 001 uses them for the gradient, dJ/dW = -δ x.

    Args:
        gradients: result of `value_and_grads`.

    >>> import jax.numpy as jnp
    >>> deltas(Gradients(jnp.float32(1), (), (), {}, {"net1": jnp.array([[-2.0]])}))
    {'net1': Array([[2.]], dtype=float32)}
    """
    return {
        name: jax.tree.map(lambda leaf: -leaf, adjoint)
        for name, adjoint in gradients.adjoints.items()
    }


def overdots(gradients: Gradients) -> dict[str, Any]:
    """Return the adjoints of a network under dotted names: ż1 is the derivative dJ/dz1.

    This is the notation of lecture 004. The first letter of each name gets the dot.

    Args:
        gradients: result of `value_and_grads`, with the adjoint of every layer.

    >>> overdots(Gradients(1.0, (), (), {}, {"z1": 2.0, "y1": 3.0}))
    {'ż1': 2.0, 'ẏ1': 3.0}
    """
    return {
        unicodedata.normalize("NFC", f"{name[:1]}\u0307{name[1:]}"): adjoint
        for name, adjoint in gradients.adjoints.items()
    }


def numerator_layout(gradients: Any) -> Any:
    """Convert gradients to numerator layout: an (m, n) matrix to (n, m), an (n,) vector to (1, n).

    A gradient step in this layout takes the transpose, W + η (dJ/dW)ᵀ with step size η < 0, as in
    lecture 000.

    Args:
        gradients: pytree of arrays of rank at most 2, such as `dparams`; scalars are unchanged.

    Raises:
        ValueError: an array has rank above 2, for which there is no agreed layout.

    >>> import jax.numpy as jnp
    >>> gradients = {"weight": jnp.ones((2, 3)), "bias": jnp.ones(2)}
    >>> jax.tree.map(jnp.shape, numerator_layout(gradients))
    {'bias': (1, 2), 'weight': (3, 2)}
    """

    def transpose(path: Any, gradient: Float[Array, "..."]) -> Float[Array, "..."]:
        if gradient.ndim > 2:
            name = f"gradients{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{name} must have rank 0, 1 or 2 for numerator layout, got {list(gradient.shape)}"
            )
        return gradient[None] if gradient.ndim == 1 else gradient.T

    return jax.tree_util.tree_map_with_path(transpose, gradients)
