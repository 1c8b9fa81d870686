"""Replace the gradients of the relus in a model by another rule, as in guided backpropagation.

The output y = max(x, 0) stays. The gradient with respect to x, dx = dy [x > 0], is replaced by a
rule, a function of x and of the gradient dy with respect to y ([condition] is 1 if true, else 0):

    guided              dx = dy [x > 0] [dy > 0]    guided backpropagation, Springenberg et al. 2015
    deconvolution       dx = dy [dy > 0]            deconvolutional network, Zeiler and Fergus 2014
    straight_through    dx = dy                     inactive units pass on their gradient as well

Relus are recognized by what they compute: max(x, 0), or x where x > 0 (or x >= 0) and 0 elsewhere,
also inside a function such as `jax.nn.relu` or a hand-written layer. Two uses of max(x, 0) are not
activations and keep their gradient: the lower bound of a range, as in `jnp.clip(x, 0, 1)` or
`jax.nn.relu6`, and the argument of a root, as in sqrt(max(x, 0) + 1e-6) in a normalization.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from diffprog import _jaxpr, _validation
from diffprog._jaxpr import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Path
from diffprog.nodes import trace_program
from diffprog.program import Program, program

Values = Float[Array, "..."]
ReluRule: TypeAlias = Callable[[Values, Values], Values]
"""(x, dy) -> dx, all of one shape."""

_CUSTOM_RULES = frozenset(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"))
_CALLS = frozenset(("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"))
_ENTERABLE = _CALLS | {"scan", "cond"}


def guided(x: Values, dy: Values) -> Values:
    """Guided backpropagation rule for a relu of x: dx = dy where x > 0 and dy > 0, else 0.

    dy is the gradient with respect to the output of the relu. Pass this rule to `with_rectifier`.

    >>> guided(jax.numpy.array([1.0, 1.0, -1.0]), jax.numpy.array([3.0, -3.0, 3.0]))
    Array([3., 0., 0.], dtype=float32)
    """
    return dy * (x > 0) * (dy > 0)


def deconvolution(x: Values, dy: Values) -> Values:
    """Deconvolutional network rule for a relu of x: dx = dy where dy > 0, else 0, for every x.

    dy is the gradient with respect to the output of the relu. Pass this rule to `with_rectifier`.

    >>> deconvolution(jax.numpy.array([1.0, 1.0, -1.0]), jax.numpy.array([3.0, -3.0, 3.0]))
    Array([3., 0., 3.], dtype=float32)
    """
    return dy * (dy > 0)


def straight_through(x: Values, dy: Values) -> Values:
    """Straight-through rule for a relu of x: dx = dy, as if the relu were the identity.

    dy is the gradient with respect to the output of the relu. Pass this rule to `with_rectifier`.

    >>> straight_through(jax.numpy.array([1.0, 1.0, -1.0]), jax.numpy.array([3.0, -3.0, 3.0]))
    Array([ 3., -3.,  3.], dtype=float32)
    """
    return dy


def with_rectifier(f: Callable[..., Any], rule: ReluRule) -> Callable[..., Any]:
    """Return f with another gradient rule for its relus; its values do not change.

    Relus inside scans, branches, `jax.checkpoint` and jitted functions are included. The result
    cannot be differentiated in forward mode (`jax.jvp`).

    Args:
        f: any callable of pytrees.
        rule: gradient rule (x, dy) -> dx for y = relu(x), such as `guided`, `deconvolution` or
            `straight_through`.

    Raises:
        TypeError: f or rule is not callable.
        ValueError: at the call: f has no relu; f has one that cannot be changed, inside a function
            with its own derivative rule or a `while` loop; or rule does not return an array of the
            shape and dtype of x.

    >>> f = with_rectifier(lambda x: -jax.nn.relu(x), straight_through)
    >>> f(-2.0), jax.grad(f)(-2.0)
    (Array(-0., dtype=float32, weak_type=True), Array(-1., dtype=float32, weak_type=True))
    """
    _validation.function("f", f)
    _validation.function("rule", rule)
    return lambda *args: _run_with_rule(program(f), args, program(rule))


@jax.jit
def _run_with_rule(f: Program, args: tuple[Any, ...], rule: Program) -> Any:
    traced, structure = trace_program(f, args)
    relus, _ = _find_relus(traced, [object() for _ in traced.in_avals])
    blocking = sorted({repr(relu.inside) for relu in relus if relu.inside})
    if blocking:
        raise ValueError(
            f"f has relus whose gradient cannot be changed, inside {', '.join(blocking)}"
        )
    if not relus:
        raise ValueError(
            "f has no relu: no max(x, 0), jax.nn.relu, or x where x > 0 and 0 elsewhere"
        )
    actions = {relu.path: functools.partial(_apply_rule, rule, relu.operand) for relu in relus}
    outputs, _ = _jaxpr.interpret(traced, actions, jax.tree.leaves((f, args)))
    return jax.tree.unflatten(structure, outputs)


def _apply_rule(
    rule: Program, operand: int, equation: JaxprEqn, inputs: Sequence[Any], given: None
) -> tuple[list[Any], None]:
    x, y = inputs[operand], jax.lax.stop_gradient(_jaxpr.evaluate_equation(equation, inputs)[0])
    dx = jax.eval_shape(rule, x, y)
    if (getattr(dx, "shape", None), getattr(dx, "dtype", None)) != (y.shape, y.dtype):
        raise ValueError(f"rule must return an array like x, {y.dtype}{list(y.shape)}, got {dx}")
    return [_with_gradient(rule, x, y)], None


@jax.custom_vjp
def _with_gradient(rule: Program, x: Values, y: Values) -> Values:
    """Return y = relu(x), with gradient rule(x, dy) instead of dy [x > 0] with respect to x."""
    return y


_with_gradient.defvjp(
    lambda rule, x, y: (y, (rule, x)),
    lambda residuals, dy: (None, residuals[0](residuals[1], dy), None),
)


class _Relu(NamedTuple):
    """Jaxpr equation that computes a relu of x, and whether its gradient can be replaced.

    Attributes:
        path: path of the equation in the jaxpr, as for `_jaxpr.interpret`.
        operand: index of x among the inputs of the equation.
        inside: name of the enclosing primitive that prevents the replacement of the gradient; None
            if it can be replaced.
    """

    path: Path
    operand: int
    inside: str | None = None


# Relus are found by abstract interpretation: instead of an array, each variable of the jaxpr has
# one of the following three abstract values, or a new `object()`, which stands for an unknown
# value and equals only itself.


@dataclasses.dataclass(frozen=True)
class _Zero:
    """Abstract value, in the search for relus, of a variable known to be an array of zeros."""


@dataclasses.dataclass(frozen=True)
class _Sign:
    """Abstract value, in the search for relus, of a variable known to be a sign condition on x.

    Attributes:
        of: abstract value of x.
        positive: whether the condition is x > 0 or x >= 0; otherwise x < 0 or x <= 0.
    """

    of: Any
    positive: bool


@dataclasses.dataclass(frozen=True)
class _ReluOf:
    """Abstract value, in the search for relus, of a variable known to be max(x, 0).

    Attributes:
        of: abstract value of x.
    """

    of: Any


def _find_relus(
    program: ClosedJaxpr | Jaxpr, inputs: Sequence[Any]
) -> tuple[list[_Relu], list[Any]]:
    """Find the relus of a jaxpr, by tracking which variables are 0, sign conditions or max(x, 0).

    `inputs` says what is known of each input: `_Zero`, `_Sign`, `_ReluOf`, or an `object()` if
    nothing is. Returns (relus, what is known of each output).
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {variable: object() for variable in jaxpr.constvars}

    def value_of(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return _Zero() if np.all(atom.val == 0) else object()
        return values[atom]

    found = []
    for index, equation in enumerate(jaxpr.eqns):
        operands = list(map(value_of, equation.invars))
        inner_relus, outputs = _evaluate_abstractly(equation, operands)
        values |= dict(zip(equation.outvars, outputs, strict=True))
        is_relu = len(outputs) == 1 and isinstance(outputs[0], _ReluOf)
        if not is_relu or outputs[0].of not in operands:
            found += [relu._replace(path=(index, *relu.path)) for relu in inner_relus]
        elif equation.primitive.name in _CUSTOM_RULES or not _is_bound_or_guard(
            equation.outvars[0], jaxpr
        ):
            found.append(_Relu((index,), operands.index(outputs[0].of)))
    return found, list(map(value_of, jaxpr.outvars))


def _evaluate_abstractly(equation: JaxprEqn, operands: list[Any]) -> tuple[list[_Relu], list[Any]]:
    """Find the relus in the sub-jaxprs of an equation, and what is known of its outputs.

    `operands` says what is known of each input, as `inputs` of `_find_relus`. Returns (relus, what
    is known of each output).
    """
    kind, outputs = equation.primitive.name, [object() for _ in equation.outvars]
    if len(outputs) == 1:
        outputs = [_abstract_output(kind, operands)]
    found = []
    for number, body in enumerate(_jaxpr.sub_jaxprs(equation)):
        arguments = body.in_avals if isinstance(body, ClosedJaxpr) else body.invars
        is_call = kind in _CALLS or kind in _CUSTOM_RULES
        relus, results = _find_relus(body, operands if is_call else [object() for _ in arguments])
        outputs = results if is_call else outputs
        inside = None if kind in _ENTERABLE else kind
        found += [
            relu._replace(path=(number, *relu.path), inside=relu.inside or inside) for relu in relus
        ]
    # jax.nn writes softplus and others with max(x, 0) inside a custom_jvp: these are not relus.
    return ([] if kind == "custom_jvp_call" else found), outputs


def _abstract_output(kind: str, operands: list[Any]) -> Any:
    """Return what is known of the output of a primitive, from what is known of its operands.

    `kind` is the name of the primitive. The result is a `_Zero`, `_Sign` or `_ReluOf`, or a new
    `object()` if nothing is known.
    """
    match kind, operands:
        case "max", [x, _Zero()] | [_Zero(), x]:
            return _ReluOf(x)
        case ("gt" | "ge", [x, _Zero()]) | ("lt" | "le", [_Zero(), x]):
            return _Sign(x, positive=True)
        case ("lt" | "le", [x, _Zero()]) | ("gt" | "ge", [_Zero(), x]):
            return _Sign(x, positive=False)
        case "select_n", [_Sign(of=x, positive=True), _Zero(), y] | [
            _Sign(of=x, positive=False),
            y,
            _Zero(),
        ] if x is y:
            return _ReluOf(x)
        case "broadcast_in_dim" | "convert_element_type" | "reshape", [_Zero(), *_]:
            return _Zero()
    return object()


def _is_bound_or_guard(variable: Any, jaxpr: Jaxpr) -> bool:
    """Check if a max(x, 0) is the lower bound of a range or the argument of a root, not a relu.

    `variable` is the output of that maximum in the jaxpr.
    """
    for equation in jaxpr.eqns:
        others = [atom for atom in equation.invars if atom is not variable]
        if len(others) == len(equation.invars):
            continue
        match equation.primitive.name:
            case "sqrt" | "rsqrt":
                return True
            case "min" if any(
                isinstance(atom, Literal) or not getattr(atom.aval, "ndim", 0) for atom in others
            ):
                return True
            case "add" | "broadcast_in_dim" | "convert_element_type" | "reshape" if all(
                isinstance(atom, Literal) for atom in others
            ):
                if _is_bound_or_guard(equation.outvars[0], jaxpr):
                    return True
    return False
