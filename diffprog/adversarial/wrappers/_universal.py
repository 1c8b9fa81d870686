"""Universal perturbations: one perturbation for many examples.

    argmax_r  mean_i min(L(clip(x_i + r)), β)   over  ||r|| <= ε

by projected stochastic gradient ascent on minibatches, with x_i the examples and r the
perturbation. The loss L is cut off at β, so that examples whose loss is already large do not
dominate the gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from diffprog import _validation, descent, distributed, norms
from diffprog.adversarial import _base
from diffprog.adversarial._base import AttackResult, Bounds, Flat
from diffprog.adversarial._losses import Labels, Loss
from diffprog.adversarial.gradient._pgd import resolve_loss
from diffprog.program import program


class Universal(NamedTuple):
    """Result of `universal`: one perturbation, and its success on each example.

    Attributes:
        perturbation: the perturbation r, of the shape of one example.
        found: `AttackResult` of the perturbed examples, r added to each and clipped to the bounds;
            its `step` is the number of steps taken, for every example.
    """

    perturbation: Any
    found: AttackResult


def universal(
    *,
    norm: str = "linf",
    epsilon: float = 0.1,
    steps: int = 200,
    batch_size: int = 128,
    loss: str | Loss = "cross_entropy",
    ceiling: float = 9.0,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Callable[..., Universal]:
    """Universal adversarial perturbation by stochastic gradient ascent (Shafahi et al., 2020).

    It looks for one perturbation that maximizes the mean loss of all examples. The step size falls
    linearly from twice the radius to 0.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius, a number.
        steps: number of minibatches, at least 1.
        batch_size: examples per minibatch, at least 1; all, if there are fewer.
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) to
            maximize.
        ceiling: the cut-off β of the loss.
        bounds: (low, high) of every value of x.
        targeted: whether y holds target classes.

    Returns:
        A function (f, x, y, key=key, mesh=None) -> Universal that attacks the model f. A mesh
        splits the minibatches if their size is a multiple of the number of devices.

    Raises:
        TypeError, ValueError: an invalid argument.

    Sources: S. Moosavi-Dezfooli et al., "Universal adversarial perturbations", 2017; A. Shafahi
    et al., "Universal adversarial training", 2020, for the method and β.

    >>> attack = universal(epsilon=0.25, steps=10)
    >>> x, y = jnp.array([[0.6, 0.5], [0.7, 0.3]]), jnp.array([0, 0])
    >>> print(attack(lambda x: x, x, y, key=jax.random.key(0)).perturbation)
    [-0.25  0.25]
    """
    measure, value = norms.named(norm), resolve_loss(loss)
    epsilon = _validation.number("epsilon", epsilon, low=0)
    ceiling = _validation.number("ceiling", ceiling)
    length = _validation.integer("steps", steps, low=1)
    size = _validation.integer("batch_size", batch_size, low=1)
    low, high = _validation.bounds("bounds", bounds)
    direction = norms.linf if measure is norms.linf else norms.l2

    def attack(
        f: Callable[..., Any], x: Any, y: Labels, *, key: jax.Array, mesh: Mesh | None = None
    ) -> Universal:
        _validation.key("key", key)
        f = program(f)
        x, y = _base.validate_examples(f, x, y, (low, high))
        rows, unflatten = _base.flatten_examples(x)
        batches = _minibatches(key, len(y), min(size, len(y)), length)
        if mesh is not None:
            mesh = distributed.validate_mesh(mesh)
            divisible = batches.shape[1] % distributed.batch_axis_size(mesh) == 0
            axis = mesh.axis_names[0] if divisible else None
            batches = distributed.put(batches, NamedSharding(mesh, PartitionSpec(None, axis)))
            f, x, y, rows = distributed.replicate(mesh, (f, x, y, rows))
        # Arrays rather than numbers: other values then need no new compilation.
        radius = jnp.asarray(epsilon, rows.dtype)
        beta = jnp.asarray(ceiling, rows.dtype)
        count = jnp.int32(length)

        def cost(r: Flat, batch: Array) -> Array:
            r = _drop_nonfinite_gradients(jnp.broadcast_to(r, (len(batch), r.shape[1])))
            logits = f(unflatten(jnp.clip(rows[batch] + r, low, high)))
            capped = jnp.minimum(value(logits, y[batch], targeted), beta)
            return -jnp.where(jnp.isfinite(capped), capped, 0).mean()

        update = optax.stateless(lambda gradient, _: radius * direction.ascent(-gradient))
        schedule = optax.scale_by_schedule(lambda k: 2 * (1 - k / count))
        engine = descent.descent(
            cost, optax.chain(update, schedule), lambda r: measure.project(r, radius)
        )
        end = descent.run(engine, jnp.zeros_like(rows[:1]), batches, progress=False)
        r = norms.linf.project_in_box(
            jnp.broadcast_to(end.variable, rows.shape), rows, radius, (low, high)
        )
        adversarial = _base.add_rounded_toward_x(rows, r)
        perturbation = adversarial - rows
        zeros = jnp.zeros(len(y), int)
        result = AttackResult(
            adversarial=unflatten(adversarial),
            perturbation=unflatten(perturbation),
            success=zeros > 0,
            distance=measure.length(perturbation),
            loss=jnp.zeros(len(y), rows.dtype),
            initially_misclassified=zeros > 0,
            step=zeros + end.steps,
            restart=zeros,
            gradients=jnp.bincount(batches[: end.steps].ravel(), length=len(y)),
            queries=zeros,
        )
        return Universal(
            jax.tree.map(lambda leaf: leaf[0], unflatten(end.variable)),
            _base.reevaluate(f, result, x, y, targeted),
        )

    return attack


@jax.custom_vjp
def _drop_nonfinite_gradients(r: Flat) -> Flat:
    """Return r unchanged; in the backward pass, set non-finite rows of its gradient to zero."""
    return r


_drop_nonfinite_gradients.defvjp(
    lambda r: (r, None),
    lambda _, gradient: (jnp.where(jnp.isfinite(gradient).all(1, keepdims=True), gradient, 0),),
)


def _minibatches(key: jax.Array, examples: int, size: int, steps: int) -> Array:
    """Return the example indices (steps, size) of all minibatches, shuffled anew in each epoch.

    `examples` is the number of examples.
    """
    per_epoch = examples // size
    keys = jax.random.split(key, -(-steps // per_epoch))
    orders = jax.vmap(lambda key: jax.random.permutation(key, examples)[: per_epoch * size])(keys)
    return orders.reshape(-1, size)[:steps]
