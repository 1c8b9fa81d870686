"""The cost of one training step, made of the user's loss: what it sees picked from the data, and how it is computed.

    J(θ, k) = Σ_i w_i L(θ, x_i, y_i, ...) / Σ_i w_i            over the batch that step k sees

A loss is a function (params, *arrays) of a batch: to one number, which is taken as it is, or to one for each example, which are averaged
with their weights. If it has an argument `key`, it is given one of its own at each step.

    accumulate = n       the batch is seen in n parts, one after another, and only one part's values are kept: the gradient of their mean
    remat                no intermediate values are kept at all; the backward pass computes them again
    compute_dtype        parameters and examples are rounded to it for the forward and backward pass. What is descended on, and every
                         mean over examples, stays in the parameters' own dtype
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from diffprog import descent, distributed
from diffprog.training._feed import Seen

BatchOf = Callable[[Seen], tuple[tuple[Any, ...], Array | None]]
Loss = Callable[..., Float[Array, ""] | Float[Array, "batch"]]


class Ways(NamedTuple):
    """How a loss is computed; see above. Among the devices of a mesh every part of a batch is divided."""

    accumulate: int = 1
    remat: bool = False
    compute_dtype: Any = None
    mesh: Mesh | None = None


def takes_key(loss: Loss) -> bool:
    """Whether a loss has an argument `key`."""
    try:
        return "key" in inspect.signature(loss).parameters
    except ValueError:  # some builtins have no signature
        return False


def of_batch(loss: Loss, weighted: bool, ways: Ways) -> Callable[..., Float[Array, ""]]:
    """(params, batch, weights, key) -> J, with the loss computed in the ways given."""

    def value(
        params: Any, batch: tuple[Any, ...], weights: Array | None, key: jax.Array
    ) -> Float[Array, ""]:
        if ways.mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, distributed.batch_sharding(ways.mesh))
        lower = functools.partial(_rounded, dtype=ways.compute_dtype)
        keyed = {"key": key} if takes_key(loss) else {}
        each = jnp.asarray(loss(lower(params), *lower(batch), **keyed))
        require_loss(each, len(jax.tree.leaves(batch)[0]), weighted)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        each = each.astype(dtype)
        return (
            each
            if each.ndim == 0
            else (each.mean() if weights is None else (each * weights).sum().astype(dtype))
        )

    one = jax.checkpoint(value) if ways.remat or ways.accumulate > 1 else value
    parts = ways.accumulate

    def cost(
        params: Any, batch: tuple[Any, ...], weights: Array | None, key: jax.Array
    ) -> Float[Array, ""]:
        # Weights of a batch add up to 1, so that parts of a batch add up to the whole.
        shares = (
            None
            if weights is None
            else weights / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)
        )
        if parts == 1:
            return one(params, batch, shares, key)
        if (count := len(jax.tree.leaves(batch)[0])) % parts:
            raise ValueError(
                f"accumulate must divide every batch, got {parts} for one of {count} examples"
            )
        split = jax.tree.map(
            lambda leaf: leaf.reshape(parts, len(leaf) // parts, *leaf.shape[1:]), (batch, shares)
        )

        def add(total: Array, part: Any) -> tuple[Array, None]:
            (batch, shares), key = part
            return total + one(params, batch, shares, key) * (
                1 / parts if shares is None else 1
            ), None

        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
        return jax.lax.scan(add, zero, (split, jax.random.split(key, parts)))[0]

    return cost


def looked_up(data: tuple[Any, ...], weights: Array | None) -> BatchOf:
    """The batch of examples in memory that a step sees, and their weights."""
    return lambda seen: (
        (data, weights)
        if seen.examples is None
        else jax.tree.map(lambda leaf: leaf[seen.examples], (data, weights))
    )


def given(seen: Any) -> tuple[tuple[Any, ...], None]:
    """The batch of an iterable, which a step is given as it is."""
    return seen.examples, None


def of_step(
    cost: Callable[..., Float[Array, ""]], batch_of: BatchOf, key: jax.Array
) -> Callable[[Any, Seen], Float[Array, ""]]:
    """(params, seen) -> J of the batch that a step sees."""
    return lambda params, seen: cost(params, *batch_of(seen), jax.random.fold_in(key, seen.step))


def on_batches(
    optimizer: optax.GradientTransformation, batch_of: BatchOf
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, whose `x` is the batch of a step, as `gauss_newton` wants it, and not which examples are in it."""
    update = optax.with_extra_args_support(optimizer).update
    wanted = descent.extra_arguments(update)

    def on_batch(
        gradient: Any,
        state: Any,
        params: Any = None,
        *,
        x: Seen,
        value_fn: Callable[..., Any],
        **known: Any,
    ) -> Any:
        # A line search hands x on to a `value_fn` that names it.
        value_of = lambda params, x=None, grad_fn=None: value_fn(params)
        known |= {"x": batch_of(x)[0], "value_fn": value_of}
        return update(gradient, state, params, **{name: known[name] for name in wanted})

    return optax.GradientTransformationExtraArgs(optimizer.init, on_batch)


def require_loss(each: Any, count: int, weighted: bool) -> None:
    """A float scalar, or one float for each example; with weights the latter."""
    floats = jnp.issubdtype(each.dtype, jnp.floating)
    if not floats or each.shape not in ((), (count,)):
        raise ValueError(
            f"loss must return a float scalar or one float for each of {count} examples, got {each.dtype}{list(each.shape)}"
        )
    if weighted and each.ndim == 0:
        raise ValueError(
            "loss must return one float for each example where there are weights, got a scalar"
        )


def _rounded(tree: Any, dtype: Any) -> Any:
    if dtype is None:
        return tree
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )
