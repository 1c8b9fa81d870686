"""The same numbers in the lectures' notations, for printing. Nothing is computed here that `value_and_grads` has not computed.

The lectures agree on the gradient and not on how to write it: 001 passes deltas backwards, with the opposite sign; 004 writes an overdot
for "derivative of the divergence with respect to"; 000 and 004 lay derivatives out as the transpose of their variable.
"""

import unicodedata
from typing import Any

import jax
from jaxtyping import Array, Float

from diffprog.backprop._value_and_grads import Gradients


def deltas(found: Gradients) -> dict[str, Any]:
    """delta = -dJ/dvalue of every input and part: the sign of lecture 001, which then has dJ/dW = -delta x.

    >>> import jax.numpy as jnp
    >>> deltas(Gradients(jnp.float32(1), (), (), {}, {"net1": jnp.array([[-2.0]])}))
    {'net1': Array([[2.]], dtype=float32)}
    """
    return {
        name: jax.tree.map(lambda leaf: -leaf, adjoint) for name, adjoint in found.adjoints.items()
    }


def overdots(found: Gradients) -> dict[str, Any]:
    """The adjoints under the names of lecture 004, with a dot over the first letter: ż1 is dDiv/dz1.

    >>> overdots(Gradients(1.0, (), (), {}, {"z1": 2.0, "y1": 3.0}))
    {'ż1': 2.0, 'ẏ1': 3.0}
    """
    return {
        unicodedata.normalize("NFC", f"{name[:1]}\u0307{name[1:]}"): adjoint
        for name, adjoint in found.adjoints.items()
    }


def numerator_layout(gradients: Any) -> Any:
    """Each gradient of a scalar with respect to a matrix (m, n) as an n x m matrix, with respect to a vector (n,) as a 1 x n row.

    An update in this layout takes the transpose, W + eta (dJ/dW)^T with eta < 0, as lecture 000 writes it.

    Args:
        gradients: `dparams`, or any pytree of arrays of rank at most 2; scalars stay.

    Raises:
        ValueError: an array of higher rank, for which there is no agreed layout.

    >>> import jax.numpy as jnp
    >>> jax.tree.map(jnp.shape, numerator_layout({"weight": jnp.ones((2, 3)), "bias": jnp.ones(2)}))
    {'bias': (1, 2), 'weight': (3, 2)}
    """
    return jax.tree_util.tree_map_with_path(_transposed, gradients)


def _transposed(path: Any, gradient: Float[Array, "..."]) -> Float[Array, "..."]:
    if gradient.ndim > 2:
        where = f"gradients{jax.tree_util.keystr(path)}"
        raise ValueError(
            f"{where} must have rank 0, 1 or 2 for a layout to exist, got {list(gradient.shape)}"
        )
    return gradient[None] if gradient.ndim == 1 else gradient.T
