"""Gradient under test: a function y = f(v) and an alleged vector-Jacobian product dy df/dv.

A layer's backward pass, a gradient function and a whole network all reduce to this form. The
variables v are the float arrays among the arguments, keyed by the path that reports print, such as
"params['weight']". Integers, PRNG keys and everything that is not an array are held fixed.
"""

import dataclasses
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WithConstants:
    """A function closed over constant arrays, as a pytree: f(...) = program(constants, ...)."""

    program: Program
    constants: dict[str, Any]

    def __call__(self, *args: Any) -> Any:
        """Evaluate the program at its constants and `args`."""
        return self.program(self.constants, *args)

    def output_shapes(self, *args: Any) -> Any:
        """Trace shapes and dtypes of the output, without evaluating it."""
        # `self` is an argument, so that without x64 JAX converts constants of 64 bits to 32.
        return jax.eval_shape(WithConstants.__call__, self, *args)


class GradientUnderTest(NamedTuple):
    """A function, the gradient that is checked against it, and its variables.

    Attributes:
        function: `function(variables) -> y`, where y is any pytree of float arrays.
        gradient: `gradient(variables, dy) -> {path: gradient under test}`.
        function_with_rule: `function`, but differentiated by `jax.grad` with the hand-written rule;
            None if that rule cannot be differentiated again.
        variables: float arrays by path, in the dtypes that the user passed.
    """

    function: WithConstants
    gradient: WithConstants
    function_with_rule: WithConstants | None
    variables: Variables


def layer_under_test(layer: Layer, params: Any, x: Any) -> GradientUnderTest:
    """Build a `GradientUnderTest` from a layer's backward pass."""
    variables, constants, merge = split_arrays({"params": params, "x": x})

    def function(constants: dict[str, Any], variables: Variables) -> Any:
        return layer.forward(*merge(variables | constants))[0]

    def gradient(constants: dict[str, Any], variables: Variables, dy: Any) -> Variables:
        params, x = merge(variables | constants)
        dparams, dx = layer.backward(params, layer.forward(params, x)[1], dy)
        # Inputs without a derivative have dx None, and None has no leaf.
        return leaves_by_path({"params": dparams, "x": dx})

    def function_with_rule(constants: dict[str, Any], variables: Variables) -> Any:
        return differentiable(layer)(*merge(variables | constants))

    bind = lambda f: WithConstants(program(f), constants)
    return GradientUnderTest(bind(function), bind(gradient), bind(function_with_rule), variables)


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
    floats, constants, merge = split_arrays(arguments)
    constants |= {path: leaf for path, leaf in floats.items() if path not in variables}

    def function(constants: dict[str, Any], variables: Variables) -> Any:
        return f(*merge(variables | constants))

    def gradient(constants: dict[str, Any], variables: Variables, dy: Any) -> Variables:
        gradients = grad_f(*merge(variables | constants))
        gradients = (gradients,) if isinstance(argnums, int) else gradients
        by_path = leaves_by_path(dict(zip(names, gradients, strict=True)))
        return jax.tree.map(lambda leaf: leaf * dy, by_path)

    bind = lambda f: WithConstants(program(f), constants)
    return GradientUnderTest(bind(function), bind(gradient), None, variables)


def split_arrays(
    trees: dict[str, Any],
) -> tuple[Variables, dict[str, Any], Callable[[dict[str, Any]], tuple[Any, ...]]]:
    """Split named pytrees into float arrays and other arrays, by path.

    Also returns a function that rebuilds the pytrees from a dict of all these arrays.
    """
    leaves = leaves_by_path(trees)
    arrays: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, float) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            is_key = jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key)
            arrays[path] = leaf if is_key else np.asarray(leaf)
    variables = {
        path: leaf for path, leaf in arrays.items() if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    constants = {path: leaf for path, leaf in arrays.items() if path not in variables}
    others = {path: leaf for path, leaf in leaves.items() if path not in arrays}
    paths, treedef = tuple(leaves), jax.tree.structure(tuple(trees.values()))

    def merge(arrays: dict[str, Any]) -> tuple[Any, ...]:
        merged = arrays | others
        return jax.tree.unflatten(treedef, [merged[path] for path in paths])

    return variables, constants, merge


def leaves_by_path(trees: dict[str, Any]) -> dict[str, Any]:
    """Flatten named pytrees to a dict of leaves by path; None has no leaf."""
    return {
        name + jax.tree_util.keystr(path): leaf
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def cast(variables: Variables, dtype: Any) -> Variables:
    """Cast every variable to one dtype."""
    return {path: np.asarray(leaf).astype(dtype) for path, leaf in variables.items()}


def cast_constants(test: GradientUnderTest, dtype: Any) -> GradientUnderTest:
    """Cast every float array that is not a variable: other arguments and arrays in closures."""

    def cast_leaf(leaf: Any) -> Any:
        return np.asarray(leaf).astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    constants_only = test._replace(variables={})
    return jax.tree.map(cast_leaf, constants_only)._replace(variables=test.variables)


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
