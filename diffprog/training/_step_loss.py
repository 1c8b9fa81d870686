"""Cost of one training step, from the user's loss.

    J(θ, k) = Σ_i w_i L(θ, x_i, y_i, ...) / Σ_i w_i            over the examples i of batch k

θ are the parameters and w_i the weights of the examples. The user's loss L is a function
(params, *batch) that returns one value per example, which are averaged with their weights, or a
scalar, which is used as it is. If it has an argument `key`, it gets a new PRNG key in each step.

    accumulate = n       computes the batch in n parts, one after another, and keeps the
                         intermediate values of only one of them
    remat                keeps no intermediate values; the backward pass computes them again
    compute_dtype        casts parameters and examples for the forward and backward pass; the
                         parameters, and means over examples, keep the parameters' dtype
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from diffprog import descent, distributed
from diffprog.training._data_source import Batch, DataSource, StepInput

Loss = Callable[..., Float[Array, ""] | Float[Array, "batch"]]


class ComputeOptions(NamedTuple):
    """Options `accumulate`, `remat`, `compute_dtype` and `mesh` of `fit`: how to compute a loss."""

    accumulate: int = 1
    remat: bool = False
    compute_dtype: Any = None
    mesh: Mesh | None = None


def takes_key(loss: Loss) -> bool:
    """Return whether a loss function has an argument `key`."""
    try:
        return "key" in inspect.signature(loss).parameters
    except ValueError:  # some builtins have no signature
        return False


def step_cost(
    loss: Loss, source: DataSource, weighted: bool, options: ComputeOptions, key: jax.Array
) -> Callable[[Any, StepInput], Float[Array, ""]]:
    """Build the cost function of a training step, (params, step_input) -> scalar cost.

    The cost is the mean of `loss` over the batch of the step, which `source` returns. `weighted`
    tells whether examples have weights; `loss` must then return one value per example. A loss with
    an argument `key` gets a key derived from `key` and the number of the step.
    """
    parts, get_batch = options.accumulate, source.get_batch

    def part_cost(
        params: Any, batch: Batch, weights: Array | None, key: jax.Array
    ) -> Float[Array, ""]:
        if options.mesh is not None:
            batch = jax.lax.with_sharding_constraint(
                batch, distributed.batch_sharding(options.mesh)
            )
        keyword = {"key": key} if takes_key(loss) else {}
        low_params, low_batch = _cast((params, batch), options.compute_dtype)
        values = jnp.asarray(loss(low_params, *low_batch, **keyword))
        _validate_loss_output(values, len(jax.tree.leaves(batch)[0]), weighted)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        values = values.astype(dtype)
        if values.ndim == 0:
            return values
        return values.mean() if weights is None else (values * weights).sum().astype(dtype)

    # Parts save memory only if each drops its intermediate values.
    part_cost = jax.checkpoint(part_cost) if options.remat or parts > 1 else part_cost

    def cost(params: Any, step_input: StepInput) -> Float[Array, ""]:
        batch, weights = get_batch(step_input)
        step_key = jax.random.fold_in(key, step_input.step)
        if weights is not None:
            # The weights of a batch sum to 1, so that the costs of its parts sum to its cost.
            weights = weights / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)
        if parts == 1:
            return part_cost(params, batch, weights, step_key)
        if (count := len(jax.tree.leaves(batch)[0])) % parts:
            raise ValueError(
                f"accumulate must divide every batch, got {parts} for a batch of {count} examples"
            )
        split = jax.tree.map(
            lambda leaf: leaf.reshape(parts, len(leaf) // parts, *leaf.shape[1:]), (batch, weights)
        )

        def add(total: Array, part: Any) -> tuple[Array, None]:
            (batch, weights), key = part
            value = part_cost(params, batch, weights, key)
            return total + value * (1 / parts if weights is None else 1), None

        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
        return jax.lax.scan(add, zero, (split, jax.random.split(step_key, parts)))[0]

    return cost


def pass_batch_as_x(
    optimizer: optax.GradientTransformation, source: DataSource
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer such as `gauss_newton`: its argument `x` becomes the batch of examples.

    Without this it would be the `StepInput` of the step, from which `source` gets the batch.
    """
    update = optax.with_extra_args_support(optimizer).update
    names, get_batch = descent.extra_arguments(update), source.get_batch

    def update_with_batch(
        gradient: Any,
        state: Any,
        params: Any = None,
        *,
        x: StepInput,
        value_fn: Callable[..., Any],
        **extra: Any,
    ) -> Any:
        # optax's line searches pass `x` on to a `value_fn` that has an argument of that name.
        value_of_params = lambda params, x=None, grad_fn=None: value_fn(params)
        extra |= {"x": get_batch(x)[0], "value_fn": value_of_params}
        return update(gradient, state, params, **{name: extra[name] for name in names})

    return optax.GradientTransformationExtraArgs(optimizer.init, update_with_batch)


def _validate_loss_output(output: Array, count: int, weighted: bool) -> None:
    is_float = jnp.issubdtype(output.dtype, jnp.floating)
    if not is_float or output.shape not in ((), (count,)):
        raise ValueError(
            f"loss must return a float scalar or one float for each of {count} examples, "
            f"got {output.dtype}{list(output.shape)}"
        )
    if weighted and output.ndim == 0:
        raise ValueError("loss must return one float per example with weights, got a scalar")


def _cast(tree: Any, dtype: Any) -> Any:
    if dtype is None:
        return tree
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )
