"""Convert the target of an attribution to a score s(h), a function of the input or of a node.

The score is one number per example: an output y_j, an `Objective`, or any function of the output of
the model f. h is the input of f, or a node: an intermediate value of f. The score of a node's value
h is computed by running f with h in place of the node.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffprog import _validation, nodes
from diffprog._jaxpr import ClosedJaxpr, JaxprEqn, find_equations, interpret, sub_jaxprs
from diffprog.nodes import find_nodes, trace_program
from diffprog.program import Program, program
from diffprog.visualization._axes import axes_of, undo_units_last, units_last
from diffprog.visualization._evaluate_objective import read_node_values, require_readable
from diffprog.visualization._objectives import Objective, Units, custom, logit
from diffprog.visualization._read_units import select_units

Target = Units | Objective | Callable[[Array], Array]
Examples = Float[Array, "batch ..."]


def score_program(
    f: Callable[..., Any], x: Any, target: Target, at: str | None = None
) -> tuple[Program, Array]:
    """Return the score function of an attribution, h -> (batch,), and h for the input x.

    h is the input x, or the value of the node `at`; its axes are (batch, ...).

    Args:
        f, x, target, at: model, input, score and node, as for `saliency`.

    Raises:
        TypeError, ValueError: an argument is invalid, or the target does not depend on `at`.
    """
    f = program(f)
    _validation.floating("x", x)
    _validation.batch(x=x)
    _validation.finite("x", x)
    x = jnp.asarray(x)
    objective = _objective(target, len(x))
    require_readable(f, objective, jax.ShapeDtypeStruct(x.shape, x.dtype))
    # Only arrays and the score function are captured: the objective would be compiled in.
    units = tuple(request.units for request in objective.requests)
    names = tuple(request.node for request in objective.requests)
    score, data = objective.score, objective.data

    def scores(values: list[Array]) -> Array:
        selected = [
            value if unit is None else select_units(value, unit)
            for value, unit in zip(values, units, strict=True)
        ]
        return score(selected, data)

    if at is None:
        return program(lambda h: scores(read_node_values(f, names, h))), x
    (h,) = read_node_values(f, [at], x)
    if not _depends_on_arguments(
        jax.make_jaxpr(lambda h: _read_after_replacing(f, x, h, at, names))(h)
    ):
        targets = " and ".join("the output" if name is None else repr(name) for name in names)
        raise ValueError(f"at must lie before the target, but {targets} does not depend on {at!r}")
    return program(lambda h: scores(_read_after_replacing(f, x, h, at, names))), h


def _objective(target: Target, batch: int) -> Objective:
    """Convert an attribution target to an `Objective` with one score for each example."""
    if isinstance(target, Objective):
        objective = target
    else:
        objective = custom(target) if callable(target) else logit(target)
    if len(objective) not in (1, batch):
        raise ValueError(
            f"target must be one for all examples or one for each of {batch}, got {len(objective)}"
        )
    return objective if len(objective) == batch else objective.take([0] * batch)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _read_after_replacing(
    f: Program, x: Array, h: Array, at: str, names: tuple[str | None, ...]
) -> list[Any]:
    """Run f(x) with h in place of the node `at`, and return the values of the nodes `names`.

    They are a list, each (batch, ..., units); the name None gives the output of f.
    """
    read = [name for name in names if name is not None]
    axes = axes_of(f, x, find_nodes([at, *read], trace_program(f, (x,))[0]))
    output, values = nodes.intervene(f, {at: undo_units_last(h, axes[at])}, read)(x)
    return [output if name is None else units_last(values[name], axes[name]) for name in names]


def _depends_on_arguments(program: ClosedJaxpr) -> bool:
    """Check if any output of a jaxpr depends on any of its arguments."""
    mark = object()  # propagated in place of the values
    calls = {"jit", "pjit", "closed_call", "core_call"}

    # Calls are entered, unless they are empty; a loop or branch counts as one equation.
    def is_leaf(equation: JaxprEqn) -> bool:
        inner = sub_jaxprs(equation)
        return equation.primitive.name not in calls or not any(body.eqns for body in inner)

    def propagate(equation: JaxprEqn, inputs: Sequence[Any], _: Any) -> tuple[list[Any], None]:
        is_marked = any(value is mark for value in inputs)
        return [mark if is_marked else None] * len(equation.outvars), None

    sites = [site for site in find_equations(program, is_leaf) if calls >= {*site.enclosing}]
    handlers = {site.path: propagate for site in sites}
    outputs, _ = interpret(program, handlers, [mark] * len(program.in_avals))
    return any(output is mark for output in outputs)
