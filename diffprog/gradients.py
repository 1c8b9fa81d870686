"""Gradients with respect to parameters, input, nodes or each example, and second derivatives.

A gradient has the shape of its variable, as in JAX. Only `jacobian` is in numerator layout, as the
lectures write derivatives: one row per output, one column per input. For a scalar J of a vector x,
`jacobian` gives the 1 x n row dJ/dx, and a gradient the vector of shape (n,).

`f` and `cost` are any callables. Each function is jitted inside, where its callable is an argument:
a program, whose arrays are pytree leaves (see `diffprog.program`). It compiles once for callables
that differ only in the values of their arrays. All of these functions can be nested, and used in
`jax.jit`, `jax.grad` and `jax.vmap`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from diffprog import _validation, nodes
from diffprog.program import Program, program

Function = Callable[..., Any]


def wrt_params(cost: Function) -> Function:
    """Gradient dJ/dθ of J = cost(θ, x, ...) with respect to the parameters.

    Args:
        cost: `cost(params, x, y, ...) -> J`, a float scalar.

    Returns:
        `gradient(params, x, y, ...)`, a pytree with the structure and shapes of params.

    Raises:
        TypeError, ValueError: on the call: params that are not finite floats, other arguments that
            are not finite or have an empty leading axis, a cost that is not a float scalar.

    >>> wrt_params(lambda w, x: w * x**2)(jnp.float32(3), 2.0)
    Array(4., dtype=float32)
    """
    return _gradient(_validation.function("cost", cost), 0, "params")


def wrt_input(cost: Function) -> Function:
    """Gradient dJ/dx of J = cost(θ, x, ...) with respect to the input.

    Unit visualization and adversarial attacks follow this gradient. Returns `gradient(params, x, y,
    ...)`, a pytree with the structure and shapes of x. Arguments and errors are as of `wrt_params`,
    where x must be finite floats.

    >>> wrt_input(lambda w, x: w * x**2)(3.0, jnp.float32(2))
    Array(12., dtype=float32)
    """
    return _gradient(_validation.function("cost", cost), 1, "x")


def _gradient(cost: Function, argnum: int, name: str) -> Function:
    def gradient(*args: Any) -> Any:
        if len(args) <= argnum:
            raise TypeError(
                f"cost takes params, x, ...: expected at least {argnum + 1} arguments, "
                f"got {len(args)}"
            )
        _validate_variable(name, args[argnum])
        _validate_arguments(args)
        return _jitted_gradient(program(cost), args, argnum)

    return gradient


@functools.partial(jax.jit, static_argnames="argnum")
def _jitted_gradient(cost: Program, args: tuple[Any, ...], argnum: int) -> Any:
    return jax.grad(_scalar("cost", cost), argnum)(*args)


def wrt_nodes(f: Function, names: Iterable[str] | None = None) -> Function:
    """Adjoints dJ/dh of named intermediate values h of a scalar J = f(...), in one backward pass.

    Args:
        f: a scalar function; its nodes are the values named with `nodes.tap`, convolutions and
            matrix products (see `diffprog.nodes`).
        names: names of nodes; None for every floating-point value named with `tap`, except inside
            functions with a custom derivative.

    Returns:
        `adjoints(*args)`, a dict from names to arrays with the shapes that `nodes.read` gives.

    Raises:
        ValueError: on the call: unknown names, an f that is not scalar, arguments that are not
            finite.

    >>> wrt_nodes(lambda x: jnp.sum(nodes.tap(2 * x, "h") ** 2))(jnp.ones(2))
    {'h': Array([4., 4.], dtype=float32)}
    """
    _validation.function("f", f)
    selected = None if names is None else nodes.as_name_tuple(names)

    def adjoints(*args: Any) -> dict[str, Array]:
        _validation.finite("args", args)
        return _adjoints(program(f), selected, args)

    return adjoints


@functools.partial(jax.jit, static_argnames="names")
def _adjoints(f: Program, names: tuple[str, ...] | None, args: tuple[Any, ...]) -> dict[str, Array]:
    # dJ/dh is the gradient with respect to a δ that is added to h, at δ = 0.
    names = tuple(nodes.differentiable(f, *args)) if names is None else names
    _, values = jax.eval_shape(nodes.read(f, names), *args)
    zeros = {name: jnp.zeros(value.shape, value.dtype) for name, value in values.items()}
    return jax.grad(lambda deltas: _scalar("f", nodes.perturb(f, deltas))(*args))(zeros)


def per_example(cost: Function) -> Function:
    """Gradient dJ_i/dθ for every example i, with J_i the cost of that example alone.

    Args:
        cost: `cost(params, x, y, ...) -> J` of a batch, a float scalar; called with batches of one.

    Returns:
        `gradients(params, xs, ys, ...)`, a pytree like params with a leading axis of examples.

    Raises:
        TypeError, ValueError: on the call: as `wrt_params`; leading axes of xs, ys, ... that
            differ.

    >>> per_example(lambda w, x: (w * x**2).sum())(jnp.float32(3), jnp.array([1.0, 2.0]))
    Array([1., 4.], dtype=float32)
    """
    _validation.function("cost", cost)

    def gradients(params: Any, *examples: Any) -> Any:
        if not examples:
            raise TypeError(
                "gradients takes params, xs, ys, ...: expected at least 2 arguments, got 1"
            )
        _validate_variable("params", params)
        _validate_arguments((params, *examples))
        names = ["xs", "ys", *(f"argument {k}" for k in range(3, len(examples) + 1))]
        _validation.batch(**dict(zip(names, examples, strict=False)))
        return _per_example(program(cost), params, examples)

    return gradients


@jax.jit
def _per_example(cost: Program, params: Any, examples: tuple[Any, ...]) -> Any:
    def gradient(example: tuple[Any, ...]) -> Any:
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], example)
        return jax.grad(_scalar("cost", cost))(params, *batch_of_one)

    return jax.vmap(gradient)(examples)


def jacobian(f: Function) -> Function:
    """Jacobian dy/dx of y = f(x) in numerator layout.

        J[i, j] = dy_i / dx_j

    A scalar counts as a vector of length 1: a scalar y gives a 1 x n row, a scalar x an m x 1
    column. The derivative of a scalar y by an n x m matrix X is m x n, with entries dy/dX_ji; that
    of an m x n matrix Y by a scalar is m x n. Other ranks have no agreed layout (lecture 000) and
    raise.

    Args:
        f: function of one array.

    Returns:
        `derivative(x)`, a matrix.

    Raises:
        TypeError, ValueError: on the call: x or f(x) is not a finite float array; ranks without an
            agreed layout.

    >>> jacobian(lambda x: jnp.stack([x.sum(), x[0] * x[1]]))(jnp.array([2.0, 3.0]))
    Array([[1., 1.],
           [3., 2.]], dtype=float32)
    """
    _validation.function("f", f)

    def derivative(x: Float[Array, "..."]) -> Float[Array, "m n"]:
        _validation.floating("x", x, rank=(0, 1, 2))
        _validation.finite("x", x)
        y, x = jax.eval_shape(f, x), jnp.asarray(x)
        _validation.floating("f(x)", y)
        if max(y.ndim, x.ndim) > 1 and (y.ndim, x.ndim) not in ((0, 2), (2, 0)):
            raise ValueError(
                "x and f(x) must be vectors or scalars, or one of them a matrix and the other a "
                f"scalar, got y of rank {y.ndim} by x of rank {x.ndim}"
            )
        dy_dx = _jacobian(program(f), x)
        if x.ndim == 2:  # JAX gives dy/dX_ij at (i, j), the numerator layout at (j, i)
            return dy_dx.T
        return dy_dx.reshape(y.shape if y.ndim == 2 else (y.size, x.size))

    return derivative


@jax.jit
def _jacobian(f: Program, x: Array) -> Array:
    return jax.jacrev(f)(x)


def hessian(f: Function) -> Function:
    """Hessian matrix d²J / dx_i dx_j of a scalar J = f(x) of a vector.

    Returns:
        `second_derivative(x)`, the n x n Hessian at a vector x of length n.

    Raises:
        TypeError, ValueError: on the call: x is not a finite float vector, or f(x) not a scalar.

    >>> hessian(lambda x: x[0] ** 2 * x[1])(jnp.array([1.0, 2.0]))
    Array([[4., 2.],
           [2., 0.]], dtype=float32)
    """
    _validation.function("f", f)

    def second_derivative(x: Float[Array, " n"]) -> Float[Array, "n n"]:
        _validation.floating("x", x, rank=1)
        _validation.finite("x", x)
        return _hessian(program(f), jnp.asarray(x))

    return second_derivative


@jax.jit
def _hessian(f: Program, x: Array) -> Array:
    return jax.jacfwd(jax.grad(_scalar("f", f)))(x)


def hvp(f: Function) -> Function:
    """Build the function (x, v) -> H v, with H the Hessian of a scalar function f at x.

    It costs about two gradients and does not form H.

    Returns:
        `product(x, v)`, with v and the result of the structure and shapes of x.

    Raises:
        TypeError, ValueError: on the call: x or v is not finite floats; their structures, shapes or
            dtypes differ; f(x) is not a scalar.

    >>> hvp(lambda x: x[0] ** 2 * x[1])(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0]))
    Array([4., 2.], dtype=float32)
    """
    _validation.function("f", f)

    def product(x: Any, v: Any) -> Any:
        _validate_variable("x", x)
        _validate_variable("v", v)
        _validation.same_structure(x=x, v=v)
        x, v = jax.tree.map(jnp.asarray, (x, v))
        of_x, of_v = ({str(leaf.dtype) for leaf in jax.tree.leaves(tree)} for tree in (x, v))
        if of_x != of_v:
            raise TypeError(
                f"x and v must share their dtypes, got {sorted(of_x)} and {sorted(of_v)}"
            )
        return _hvp(program(f), x, v)

    return product


@jax.jit
def _hvp(f: Program, x: Any, v: Any) -> Any:
    return jax.jvp(jax.grad(_scalar("f", f)), (x,), (v,))[1]


def numerical(f: Function) -> Function:
    """Gradient of a scalar function of any pytree by central differences.

        dJ/dx_i ≈ (f(x + h e_i) - f(x - h e_i)) / 2h,    h = 6e-6 max(1, |x_i|)

    It is computed in float64 whatever the dtype of x; e_i is the i-th unit vector. The step h, from
    the cube root of float64's machine epsilon, balances the rounding error with the error of the
    formula. A function that uses a lower precision inside adds that precision's rounding error.

    Returns:
        `gradient(x)`, with the structure, shapes and dtypes of x; it evaluates f twice per entry of
        x.

    Raises:
        TypeError, ValueError: on the call: x is not finite floats, or f(x) not a scalar.

    >>> numerical(lambda x: (x**3).sum())(jnp.array([1.0, 2.0]))
    Array([ 3., 12.], dtype=float32)
    """
    _validation.function("f", f)

    def gradient(x: Any) -> Any:
        _validate_variable("x", x)
        dtypes = jax.tree.map(lambda leaf: jnp.asarray(leaf).dtype, x)
        with jax.enable_x64(True):
            in_float64 = jax.tree.map(
                lambda leaf: (
                    leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
                ),
                program(f, fast_gradients=False),
            )
            x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), x)
            differences = _central_differences(in_float64, x)
            return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), differences, dtypes)

    return gradient


@jax.jit
def _central_differences(f: Program, x: Any) -> Any:
    flat, unravel = ravel_pytree(x)
    value = _scalar("f", lambda flat: f(unravel(flat)))

    def partial_derivative(i: Array) -> Array:
        step = jnp.finfo(flat.dtype).eps ** (1 / 3) * jnp.maximum(1, jnp.abs(flat[i]))
        above = flat[i] + step
        below = 2 * flat[i] - above  # symmetric also after rounding
        difference = value(flat.at[i].set(above)) - value(flat.at[i].set(below))
        return difference / (above - below)

    return unravel(jax.lax.map(partial_derivative, jnp.arange(flat.size)))


def _validate_variable(name: str, variable: Any) -> None:
    _validation.floating_leaves(name, variable)
    _validation.finite(name, variable)


def _validate_arguments(args: tuple[Any, ...]) -> None:
    """Check that (params, x, y, ...) are finite and that no batch is empty."""
    names = ("params", "x", "y", *(f"argument {k}" for k in range(4, len(args) + 1)))
    for name, arg in zip(names, args, strict=False):
        _validation.finite(name, arg)
        shapes = [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(arg)]
        if name != "params" and any(shape[:1] == (0,) for shape in shapes):
            raise ValueError(f"{name} must not be empty, got a leading axis of 0")


def _scalar(name: str, f: Function) -> Function:
    """Wrap f to raise if its output is not a float scalar; `name` names f in the message."""

    def scalar_f(*args: Any) -> Any:
        value = f(*args)
        _validation.scalar(name, value)
        return value

    return scalar_f
