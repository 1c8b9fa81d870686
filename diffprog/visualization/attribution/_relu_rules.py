"""Other gradients for the relus of a program: y = max(x, 0) as it is, and dx by a rule of x and dy instead of dx = dy [x > 0].

    guided              dx = dy [x > 0] [dy > 0]    Springenberg et al. 2015, "Striving for simplicity: the all convolutional net"
    deconvolution       dx = dy [dy > 0]            Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks"
    straight_through    dx = dy                     a unit that is switched off still says in which direction it would come on

A relu is told by what it computes: max(x, 0), or x where x > 0 (x >= 0) and 0 elsewhere, alone or as all there is in a function such as
`jax.nn.relu` or a hand-written layer. Two uses of max(x, 0) are none, as nothing is switched on or off by them: one bound of a range, as in
`jnp.clip(x, 0, 1)` or `jax.nn.relu6`, and the guard of a root, as in sqrt(max(x, 0) + 1e-6) for the variance of a normalization.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from diffprog import _validation
from diffprog._jaxpr import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Path,
    evaluate_equation,
    interpret,
    sub_jaxprs,
)
from diffprog.nodes import trace_program
from diffprog.program import Program, program

Values = Float[Array, "..."]
Rule: TypeAlias = Callable[[Values, Values], Values]
"""(x, dy) -> dx, all of one shape."""

_RULED = frozenset(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"))
_CALLS = frozenset(("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"))
_CHANGEABLE = _CALLS | {"scan", "cond"}


def guided(x: Values, dy: Values) -> Values:
    """dx = dy [x > 0] [dy > 0]: only what excites, through what is switched on.

    >>> guided(jax.numpy.array([1.0, 1.0, -1.0]), jax.numpy.array([3.0, -3.0, 3.0]))
    Array([3., 0., 0.], dtype=float32)
    """
    return dy * (x > 0) * (dy > 0)


def deconvolution(x: Values, dy: Values) -> Values:
    """dx = dy [dy > 0]: only what excites, whatever was switched on.

    >>> deconvolution(jax.numpy.array([1.0, 1.0, -1.0]), jax.numpy.array([3.0, -3.0, 3.0]))
    Array([3., 0., 3.], dtype=float32)
    """
    return dy * (dy > 0)


def straight_through(x: Values, dy: Values) -> Values:
    """dx = dy: as if the relu were the identity.

    >>> straight_through(jax.numpy.array([1.0, 1.0, -1.0]), jax.numpy.array([3.0, -3.0, 3.0]))
    Array([ 3., -3.,  3.], dtype=float32)
    """
    return dy


def with_rectifier(f: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """The program f with the gradient of every relu by `rule`; its values are those of f.

    The relus of scans, branches, `jax.checkpoint` and jitted functions are meant too. What comes out has no forward mode (`jax.jvp`).

    Args:
        f: any callable of pytrees.
        rule: (x, dy) -> dx, such as `guided`, `deconvolution`, `straight_through`.

    Raises:
        TypeError: f or the rule is not callable.
        ValueError: on the call: f has no relu, or one that cannot be changed, inside a function with a derivative rule of its own or a loop
            of unknown length; the rule does not return an array like x.

    >>> f = with_rectifier(lambda x: -jax.nn.relu(x), straight_through)
    >>> f(-2.0), jax.grad(f)(-2.0)
    (Array(-0., dtype=float32, weak_type=True), Array(-1., dtype=float32, weak_type=True))
    """
    _validation.function("f", f)
    _validation.function("rule", rule)
    return lambda *args: _run(program(f), args, program(rule))


@jax.jit
def _run(f: Program, args: tuple[Any, ...], rule: Program) -> Any:
    traced, structure = trace_program(f, args)
    relus = list(_relus(traced, [object() for _ in traced.in_avals])[0])
    _require_relus(relus)
    actions = {relu.path: functools.partial(_replaced, rule, relu.operand) for relu in relus}
    outputs, _ = interpret(traced, actions, jax.tree.leaves((f, args)))
    return jax.tree.unflatten(structure, outputs)


def _replaced(
    rule: Program, operand: int, equation: JaxprEqn, inputs: Sequence[Any], given: None
) -> tuple[list[Any], None]:
    x, y = inputs[operand], jax.lax.stop_gradient(evaluate_equation(equation, inputs)[0])
    came = jax.eval_shape(rule, x, y)
    if (getattr(came, "shape", None), getattr(came, "dtype", None)) != (y.shape, y.dtype):
        raise ValueError(f"rule must return an array like x, {y.dtype}{list(y.shape)}, got {came}")
    return [_with_gradient(rule, x, y)], None


@jax.custom_vjp
def _with_gradient(rule: Program, x: Values, y: Values) -> Values:
    """The value y, with the gradient dx = rule(x, dy)."""
    return y


_with_gradient.defvjp(
    lambda rule, x, y: (y, (rule, x)), lambda kept, dy: (None, kept[0](kept[1], dy), None)
)


class _Relu(NamedTuple):
    """An equation that computes a relu.

    Attributes:
        path: its place.
        operand: which of its inputs is x.
        inside: the primitive around it that keeps it from being changed.
    """

    path: Path
    operand: int
    inside: str | None = None


def _require_relus(relus: Sequence[_Relu]) -> None:
    closed = [relu.inside for relu in relus if relu.inside]
    if closed:
        raise ValueError(
            f"f has {len(closed)} relus whose gradient cannot be changed, inside {', '.join(map(repr, sorted(set(closed))))}"
        )
    if not relus:
        raise ValueError(
            "f has no relu: no max(x, 0), jax.nn.relu, or x where x > 0 and 0 elsewhere"
        )


@dataclasses.dataclass(frozen=True)
class _Zero:
    """0 everywhere."""


@dataclasses.dataclass(frozen=True)
class _Sign:
    """Whether x > 0, or x < 0, up to what it is at 0."""

    of: Any
    positive: bool


@dataclasses.dataclass(frozen=True)
class _Rectified:
    """max(x, 0)."""

    of: Any


def _relus(traced: ClosedJaxpr | Jaxpr, given: Sequence[Any]) -> tuple[list[_Relu], list[Any]]:
    """The relus of a program, and what its outputs mean, from what its inputs mean: one of the above, or any object for a value as such."""
    jaxpr = traced.jaxpr if isinstance(traced, ClosedJaxpr) else traced
    meanings = dict(zip(jaxpr.invars, given, strict=True)) | {
        variable: object() for variable in jaxpr.constvars
    }

    def meaning(atom: Any) -> Any:
        return (
            (_Zero() if np.all(atom.val == 0) else object())
            if isinstance(atom, Literal)
            else meanings[atom]
        )

    found = []
    for index, equation in enumerate(jaxpr.eqns):
        inputs = list(map(meaning, equation.invars))
        inner, outputs = _inside(equation, inputs)
        meanings |= dict(zip(equation.outvars, outputs, strict=True))
        of = outputs[0].of if len(outputs) == 1 and isinstance(outputs[0], _Rectified) else None
        if of not in inputs:
            found += [relu._replace(path=(index, *relu.path)) for relu in inner]
        elif equation.primitive.name in _RULED or not _bounds(equation.outvars[0], jaxpr):
            found.append(_Relu((index,), inputs.index(of)))
    return found, list(map(meaning, jaxpr.outvars))


def _inside(equation: JaxprEqn, inputs: list[Any]) -> tuple[list[_Relu], list[Any]]:
    """The relus of an equation's sub-programs, and what its outputs mean."""
    kind, outputs = equation.primitive.name, [object() for _ in equation.outvars]
    if len(outputs) == 1:
        outputs = [_computed(kind, inputs)]
    found = []
    for number, body in enumerate(sub_jaxprs(equation)):
        arguments = body.in_avals if isinstance(body, ClosedJaxpr) else body.invars
        called = kind in _CALLS or kind in _RULED
        relus, ends = _relus(body, inputs if called else [object() for _ in arguments])
        outputs = ends if called else outputs
        found += [
            relu._replace(
                path=(number, *relu.path),
                inside=relu.inside or (None if kind in _CHANGEABLE else kind),
            )
            for relu in relus
        ]
    # jax.nn writes softplus and others with max(x, 0), under rules of forward mode; what is inside is not a relu of the program.
    return ([] if kind == "custom_jvp_call" else found), outputs


def _computed(kind: str, inputs: list[Any]) -> Any:
    """What the first output of an operation means."""
    match kind, inputs:
        case "max", [x, _Zero()] | [_Zero(), x]:
            return _Rectified(x)
        case ("gt" | "ge", [x, _Zero()]) | ("lt" | "le", [_Zero(), x]):
            return _Sign(x, positive=True)
        case ("lt" | "le", [x, _Zero()]) | ("gt" | "ge", [_Zero(), x]):
            return _Sign(x, positive=False)
        case "select_n", [_Sign(of=x, positive=True), _Zero(), y] | [
            _Sign(of=x, positive=False),
            y,
            _Zero(),
        ] if x is y:
            return _Rectified(x)
        case "broadcast_in_dim" | "convert_element_type" | "reshape", [_Zero(), *_]:
            return _Zero()
    return object()


def _bounds(variable: Any, jaxpr: Jaxpr) -> bool:
    """Whether max(x, 0) is one bound of a range, or the guard of a root."""
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
                if _bounds(equation.outvars[0], jaxpr):
                    return True
    return False
