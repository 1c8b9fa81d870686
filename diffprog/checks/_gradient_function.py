"""A claim: a function y = f(v), and what someone says is the product of a cotangent with its Jacobian, dy df/dv.

A layer's backward, a gradient function and a whole net become one thing here. The variables v are the float arrays among the arguments,
each under the path that a report calls it by, "params['weight']"; integers, keys and everything else stay as they came.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from diffprog import _validation
from diffprog.backprop import Layer, differentiable
from diffprog.program import Program, program

Variables: TypeAlias = dict[str, Any]
"""Float arrays by path: NumPy's between the calls of compiled programs, so that nothing else is compiled."""

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` for programs that run a few times only: compiling them takes longer than running them."""


class Claim(NamedTuple):
    """What is checked, and where.

    Attributes:
        value: `value(variables, fixed) -> y`, any pytree of float arrays.
        gradient: `gradient(variables, fixed, dy) -> {path: claimed gradient}`.
        rule: `rule(variables, fixed) -> y` whose `jax.grad` is the hand-written rule; None if that cannot be differentiated again.
        variables: the float arrays by path, as the user gave them.
        fixed: the other arrays by path.
    """

    value: Program
    gradient: Program
    rule: Program | None
    variables: Variables
    fixed: dict[str, Any]


class _Slot(NamedTuple):
    """A leaf that is an array, by its path; `variable` if it is a float one."""

    path: str
    variable: bool


def layer_claim(layer: Layer, params: Any, x: Any) -> Claim:
    """The claim of a layer's backward pass."""
    variables, fixed, join = split({"params": params, "x": x})

    def value(variables: Variables, fixed: dict[str, Any]) -> Any:
        return layer.forward(*join(variables, fixed))[0]

    def gradient(variables: Variables, fixed: dict[str, Any], dy: Any) -> Variables:
        params, x = join(variables, fixed)
        return by_path(
            dict(
                zip(
                    ("params", "x"),
                    layer.backward(params, layer.forward(params, x)[1], dy),
                    strict=True,
                )
            )
        )

    def rule(variables: Variables, fixed: dict[str, Any]) -> Any:
        return differentiable(layer)(*join(variables, fixed))

    return Claim(program(value), program(gradient), program(rule), variables, fixed)


def function_claim(
    f: Callable[..., Any],
    grad_f: Callable[..., Any],
    arguments: dict[str, Any],
    argnums: int | tuple[int, ...],
) -> Claim:
    """The claim of a gradient function of a scalar, with respect to the arguments at `argnums`."""
    names = tuple(arguments)
    chosen = (argnums,) if isinstance(argnums, int) else argnums
    wanted = [names[number] for number in chosen]
    _, _, join = split(arguments)
    variables, _, _ = split({name: arguments[name] for name in wanted})
    everything, fixed, _ = split(arguments)
    fixed = fixed | {path: leaf for path, leaf in everything.items() if path not in variables}

    def value(variables: Variables, fixed: dict[str, Any]) -> Any:
        return f(*join(variables, fixed))

    def gradient(variables: Variables, fixed: dict[str, Any], dy: Any) -> Variables:
        claimed = grad_f(*join(variables, fixed))
        named = (
            {wanted[0]: claimed}
            if isinstance(argnums, int)
            else dict(zip(wanted, claimed, strict=True))
        )
        return jax.tree.map(lambda leaf: leaf * dy, by_path(named))

    return Claim(program(value), program(gradient), None, variables, fixed)


def split(
    trees: dict[str, Any],
) -> tuple[Variables, dict[str, Any], Callable[[Variables, dict[str, Any]], tuple[Any, ...]]]:
    """Float arrays by path, other arrays by path, and the function that puts both back into the trees."""
    leaves, treedef = jax.tree.flatten(tuple(trees.values()))
    paths = [
        name + jax.tree_util.keystr(path)
        for name, tree in trees.items()
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    variables: Variables = {}
    fixed: dict[str, Any] = {}
    slots: list[Any] = []
    for path, leaf in zip(paths, leaves, strict=True):
        isarray = isinstance(leaf, float) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
        leaf_dtype = getattr(leaf, "dtype", float)
        isvariable = isarray and jnp.issubdtype(leaf_dtype, jnp.floating)
        if isarray:
            (variables if isvariable else fixed)[path] = (
                leaf if jnp.issubdtype(leaf_dtype, jax.dtypes.prng_key) else np.asarray(leaf)
            )
        slots.append(_Slot(path, isvariable) if isarray else leaf)
    return variables, fixed, functools.partial(_join, treedef, tuple(slots))


def _join(
    treedef: Any, slots: tuple[Any, ...], variables: Variables, fixed: dict[str, Any]
) -> tuple[Any, ...]:
    both = fixed | variables
    return jax.tree.unflatten(
        treedef, [both[slot.path] if isinstance(slot, _Slot) else slot for slot in slots]
    )


def by_path(trees: dict[str, Any]) -> dict[str, Any]:
    """The leaves of named trees by path; where a gradient is None there is no leaf."""
    return {
        name + jax.tree_util.keystr(path): leaf
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def cast(variables: Variables, dtype: Any) -> Variables:
    """Every variable in one dtype."""
    return {path: np.asarray(leaf).astype(dtype) for path, leaf in variables.items()}


def in_dtype(claim: Claim, dtype: Any) -> Claim:
    """The claim with every float array that is held, among the arguments or in a closure, in one dtype."""
    held = {
        "value": claim.value,
        "gradient": claim.gradient,
        "rule": claim.rule,
        "fixed": claim.fixed,
    }
    return claim._replace(**jax.tree.map(lambda leaf: _astype(leaf, dtype), held))


def _astype(leaf: Any, dtype: Any) -> Any:
    return np.asarray(leaf).astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def require_variables(variables: Variables) -> None:
    """Some float array to differentiate, all of them finite and none empty."""
    if not variables:
        raise ValueError(
            "params and x must hold at least one float array to differentiate, got none"
        )
    for path, leaf in variables.items():
        _validation.finite(path, leaf)
        if jnp.size(leaf) == 0:
            raise ValueError(f"{path} must not be empty, got shape {list(jnp.shape(leaf))}")
