"""Gradient under test: a function y = f(v) and a candidate for its product dy df/dv.

A layer's backward pass, a gradient function and a whole network all reduce to this form. The
variables v are the float arrays among the arguments, keyed by the path that reports print, such as
"params['weight']". Integers, PRNG keys and everything that is not an array are held fixed.
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
"""Float arrays by path. NumPy arrays outside of jit, so that no eager operation is compiled."""

jit_unoptimized = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` for programs that run a few times only: compiling them takes longer than running."""


class GradientUnderTest(NamedTuple):
    """A function, the candidate for its gradient, and the arguments at which they are checked.

    Attributes:
        function: `function(variables, fixed) -> y`, any pytree of float arrays.
        gradient: `gradient(variables, fixed, dy) -> {path: gradient under test}`.
        function_with_rule: `function`, but differentiated by `jax.grad` with the hand-written rule;
            None if that rule cannot be differentiated again.
        variables: float arrays by path, in the dtypes that the user passed.
        fixed: all other arrays by path.
    """

    function: Program
    gradient: Program
    function_with_rule: Program | None
    variables: Variables
    fixed: dict[str, Any]


class _Slot(NamedTuple):
    """Placeholder for the array of this path in a list of leaves."""

    path: str


def layer_under_test(layer: Layer, params: Any, x: Any) -> GradientUnderTest:
    """Build a `GradientUnderTest` from a layer's backward pass."""
    variables, fixed, merge = split_arrays({"params": params, "x": x})

    def function(variables: Variables, fixed: dict[str, Any]) -> Any:
        return layer.forward(*merge(variables, fixed))[0]

    def gradient(variables: Variables, fixed: dict[str, Any], dy: Any) -> Variables:
        params, x = merge(variables, fixed)
        dparams, dx = layer.backward(params, layer.forward(params, x)[1], dy)
        # Inputs without a derivative have dx None, and None has no leaf.
        return leaves_by_path({"params": dparams, "x": dx})

    def function_with_rule(variables: Variables, fixed: dict[str, Any]) -> Any:
        return differentiable(layer)(*merge(variables, fixed))

    return GradientUnderTest(
        program(function), program(gradient), program(function_with_rule), variables, fixed
    )


def function_under_test(
    f: Callable[..., Any],
    grad_f: Callable[..., Any],
    arguments: dict[str, Any],
    argnums: int | tuple[int, ...],
) -> GradientUnderTest:
    """Build a `GradientUnderTest` from a function and its gradient function."""
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    names = [tuple(arguments)[number] for number in numbers]
    variables, _, _ = split_arrays({name: arguments[name] for name in names})
    floats, fixed, merge = split_arrays(arguments)
    fixed = fixed | {path: leaf for path, leaf in floats.items() if path not in variables}

    def function(variables: Variables, fixed: dict[str, Any]) -> Any:
        return f(*merge(variables, fixed))

    def gradient(variables: Variables, fixed: dict[str, Any], dy: Any) -> Variables:
        gradients = grad_f(*merge(variables, fixed))
        gradients = (gradients,) if isinstance(argnums, int) else gradients
        by_path = leaves_by_path(dict(zip(names, gradients, strict=True)))
        return jax.tree.map(lambda leaf: leaf * dy, by_path)

    return GradientUnderTest(program(function), program(gradient), None, variables, fixed)


def split_arrays(
    trees: dict[str, Any],
) -> tuple[Variables, dict[str, Any], Callable[[Variables, dict[str, Any]], tuple[Any, ...]]]:
    """Split named pytrees into float arrays, other arrays and a function that merges them."""
    variables: Variables = {}
    fixed: dict[str, Any] = {}
    slots: list[Any] = []
    for path, leaf in leaves_by_path(trees).items():
        if not (isinstance(leaf, float) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))):
            slots.append(leaf)
            continue
        dtype = getattr(leaf, "dtype", float)
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        target = variables if jnp.issubdtype(dtype, jnp.floating) else fixed
        target[path] = leaf if is_key else np.asarray(leaf)
        slots.append(_Slot(path))
    treedef = jax.tree.structure(tuple(trees.values()))
    return variables, fixed, functools.partial(_merge, treedef, tuple(slots))


def _merge(
    treedef: Any, slots: tuple[Any, ...], variables: Variables, fixed: dict[str, Any]
) -> tuple[Any, ...]:
    arrays = fixed | variables
    return jax.tree.unflatten(
        treedef, [arrays[slot.path] if isinstance(slot, _Slot) else slot for slot in slots]
    )


def leaves_by_path(trees: dict[str, Any]) -> dict[str, Any]:
    """Flatten named pytrees to leaves by path; None has no leaf."""
    return {
        name + jax.tree_util.keystr(path): leaf
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def cast(variables: Variables, dtype: Any) -> Variables:
    """Cast every variable to one dtype."""
    return {path: np.asarray(leaf).astype(dtype) for path, leaf in variables.items()}


def cast_constants(test: GradientUnderTest, dtype: Any) -> GradientUnderTest:
    """Cast every float array that is not a variable: fixed arguments and arrays in closures."""

    def cast_leaf(leaf: Any) -> Any:
        return np.asarray(leaf).astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    constants = {name: getattr(test, name) for name in test._fields if name != "variables"}
    return test._replace(**jax.tree.map(cast_leaf, constants))


def require_variables(variables: Variables) -> None:
    """Raise ValueError unless there is a float array, and all of them are finite and not empty."""
    if not variables:
        raise ValueError(
            "params and x must hold at least one float array to differentiate, got none"
        )
    for path, leaf in variables.items():
        _validation.finite(path, leaf)
        if jnp.size(leaf) == 0:
            raise ValueError(f"{path} must not be empty, got shape {list(jnp.shape(leaf))}")
