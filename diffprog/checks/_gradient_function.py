"""`GradientUnderTest`: the common form to which whatever is checked is brought.

The backward pass of a layer or network and a gradient function all become a function y = f(v) and
the vector-Jacobian product under test, which maps v and a cotangent dy to dy df/dv. The variables v
are a dict of the float arrays among the arguments, keyed by the path that reports print, such as
"params['weight']". Integers, PRNG keys and objects other than arrays are held fixed.
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
    """A function f(...) = program(constants, ...), where the constant arrays are pytree leaves.

    So `jax.jit` takes the constants as arguments, and they can be cast to another dtype.
    """

    program: Program
    constants: dict[str, Any]

    def __call__(self, *args: Any) -> Any:
        """Return program(constants, *args)."""
        return self.program(self.constants, *args)

    def output_shapes(self, *args: Any) -> Any:
        """Return shapes and dtypes of the output for these arguments, without computing it."""
        # `self` is an argument, so that without x64 JAX converts constants of 64 bits to 32.
        return jax.eval_shape(WithConstants.__call__, self, *args)


class GradientUnderTest(NamedTuple):
    """A function, the gradient that is checked against it, and its variables.

    Attributes:
        function: `function(variables) -> y`, where y is any pytree of float arrays.
        gradient: `gradient(variables, dy) -> {path: gradient under test}`, dy the cotangent of y.
        function_with_rule: `function`, but differentiated by `jax.grad` with the hand-written rule;
            None if that rule cannot be differentiated again.
        variables: float arrays by path, in the dtypes that the user passed.
    """

    function: WithConstants
    gradient: WithConstants
    function_with_rule: WithConstants | None
    variables: Variables


def layer_under_test(layer: Layer, params: Any, x: Any) -> GradientUnderTest:
    """Return the backward pass of a layer at params and x as a `GradientUnderTest`."""
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
    """Return a scalar function f and its gradient function as a `GradientUnderTest`.

    `arguments` are those of f by name; `argnums` are the positions of the differentiated ones.
    """
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
    """Split pytrees into a dict of their float arrays and a dict of their other arrays.

    `trees` maps names to pytrees; the keys of both dicts are paths such as "params['weight']". Also
    returns a function that takes a dict of all arrays and returns the tuple of pytrees.
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
    """Flatten a dict of pytrees to a dict of leaves by path; None has no leaf."""
    return {
        name + jax.tree_util.keystr(path): leaf
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def cast(variables: Variables, dtype: Any) -> Variables:
    """Cast every array of a dict to one dtype."""
    return {path: np.asarray(leaf).astype(dtype) for path, leaf in variables.items()}


def cast_constants(test: GradientUnderTest, dtype: Any) -> GradientUnderTest:
    """Cast the float arrays that a check holds fixed: other arguments and arrays in closures."""

    def cast_leaf(leaf: Any) -> Any:
        return np.asarray(leaf).astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    constants_only = test._replace(variables={})
    return jax.tree.map(cast_leaf, constants_only)._replace(variables=test.variables)


def require_variables(variables: Variables) -> None:
    """Raise ValueError if there are no variables, or one of them is empty or not finite."""
    if not variables:
        raise ValueError(
            "params and x must hold at least one float array to differentiate, got none"
        )
    for path, leaf in variables.items():
        _validation.finite(path, leaf)
        if jnp.size(leaf) == 0:
            raise ValueError(f"{path} must not be empty, got shape {list(jnp.shape(leaf))}")
