"""Gradients: of a program with respect to its parameters, its input, its nodes or each example, and of second order.

All of them return what JAX returns, a gradient of the shape of its variable, save `jacobian`: it is in numerator layout, as the lectures
write derivatives, a matrix with a row for each output and a column for each input. For a scalar J of a vector the two are each other's
transpose: `jacobian` is the 1 x n row dJ/dx, the gradient has the shape (n,) of x.

Each function is jitted inside, with its program as an argument: for programs of one structure and one set of shapes it compiles once.
`f` and `cost` are any callables, plain functions or programs, and stay differentiable: these functions nest in each other, and in
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
    """dJ/dtheta of J = cost(params, x, ...).

    Args:
        cost: `cost(params, x, y, ...) -> J`, a float scalar.

    Returns:
        `gradient(params, x, y, ...)`, a pytree of the shapes of params.

    Raises:
        TypeError, ValueError: when called: params that are not finite floats, arguments that are not finite, a cost that is not a scalar.

    >>> wrt_params(lambda w, x: w * x**2)(jnp.float32(3), 2.0)
    Array(4., dtype=float32)
    """
    return _gradient(_validation.function("cost", cost), 0, "params")


def wrt_input(cost: Function) -> Function:
    """dJ/dx of J = cost(params, x, ...): the gradient behind unit visualization and adversarial perturbations.

    Args, Returns, Raises: as `wrt_params`, for x.

    >>> wrt_input(lambda w, x: w * x**2)(3.0, jnp.float32(2))
    Array(12., dtype=float32)
    """
    return _gradient(_validation.function("cost", cost), 1, "x")


def wrt_nodes(f: Function, names: Iterable[str] | None = None) -> Function:
    """The adjoint dJ/dh of nodes h of J = f(...), all in one backward pass.

    Args:
        f: a scalar function with taps or operations inside (see `diffprog.nodes`).
        names: of the nodes; None for every tap that is a float and may be changed.

    Returns:
        `adjoints(*args)`, a dict from name to an array of the shape that `nodes.read` gives.

    Raises:
        ValueError: when called: unknown names, a function that is not scalar, arguments that are not finite.

    >>> wrt_nodes(lambda x: jnp.sum(nodes.tap(2 * x, "h") ** 2))(jnp.ones(2))
    {'h': Array([4., 4.], dtype=float32)}
    """
    _validation.function("f", f)
    wanted = None if names is None else nodes.as_name_tuple(names)

    def adjoints(*args: Any) -> dict[str, Array]:
        _validation.finite("args", args)
        return _adjoints(program(f), wanted, args)

    return adjoints


@functools.partial(jax.jit, static_argnames="names")
def _adjoints(f: Program, names: tuple[str, ...] | None, args: tuple[Any, ...]) -> dict[str, Array]:
    names = tuple(nodes.differentiable(f, *args)) if names is None else names
    _, found = jax.eval_shape(nodes.read(f, names), *args)
    zeros = {name: jnp.zeros(node.shape, node.dtype) for name, node in found.items()}
    return jax.grad(lambda deltas: _scalar("f", nodes.perturb(f, deltas))(*args))(zeros)


def per_example(cost: Function) -> Function:
    """The gradient of every example, dJ_i/dtheta with J_i the cost of example i alone.

    Args:
        cost: `cost(params, x, y, ...) -> J` of a batch, a float scalar; it is called with batches of one.

    Returns:
        `gradients(params, xs, ys, ...)`, a pytree with the shapes of params after a leading axis of examples.

    Raises:
        TypeError, ValueError: when called: as `wrt_params`; leading axes of xs, ys, ... that differ or are empty.

    >>> per_example(lambda w, x: (w * x**2).sum())(jnp.float32(3), jnp.array([1.0, 2.0]))
    Array([1., 4.], dtype=float32)
    """
    _validation.function("cost", cost)

    def gradients(params: Any, *examples: Any) -> Any:
        if not examples:
            raise TypeError(
                "gradients takes params, xs, ys, ...: expected at least 2 arguments, got 1"
            )
        _check("params", params)
        _check_rest((params, *examples))
        names = ["xs", "ys", *(f"argument {k}" for k in range(3, len(examples) + 1))]
        _validation.batch(**dict(zip(names, examples, strict=False)))
        return _per_example(program(cost), params, examples)

    return gradients


@jax.jit
def _per_example(cost: Program, params: Any, examples: tuple[Any, ...]) -> Any:
    def alone(example: tuple[Any, ...]) -> Any:
        return jax.grad(_scalar("cost", cost))(
            params, *jax.tree.map(lambda leaf: leaf[None], example)
        )

    return jax.vmap(alone)(examples)


def jacobian(f: Function) -> Function:
    """dy/dx of y = f(x) in numerator layout: J[i, j] = dy_i / dx_j.

    A scalar counts as a vector of one: y scalar gives a 1 x n row, x scalar an m x 1 column. The derivative of a scalar with respect to
    a matrix X (n x m) is m x n, entry (i, j) being dy/dX_ji; of a matrix Y (m x n) with respect to a scalar it is m x n. Other cases
    have no agreed layout (lecture 000) and are refused.

    Args:
        f: function of one array.

    Returns:
        `derivative(x)`, a matrix.

    Raises:
        TypeError, ValueError: when called: x not a finite float array; ranks without an agreed layout.

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
        if not (
            hasattr(y, "ndim")
            and (max(y.ndim, x.ndim) <= 1 or (y.ndim, x.ndim) in ((0, 2), (2, 0)))
        ):
            ranks = f"y of rank {getattr(y, 'ndim', type(y).__name__)} by x of rank {x.ndim}"
            raise ValueError(
                f"x and f(x) must be vectors or scalars, or one of them a matrix and the other a scalar, got {ranks}"
            )
        plain = _jacobian(program(f), x)
        return (
            plain.T
            if x.ndim == 2
            else plain.reshape(*(y.shape if y.ndim == 2 else (y.size, x.size)))
        )

    return derivative


@jax.jit
def _jacobian(f: Program, x: Array) -> Array:
    return jax.jacrev(f)(x)


def hessian(f: Function) -> Function:
    """The n x n matrix d2J / dx_i dx_j of a scalar J = f(x) of a vector.

    Raises:
        TypeError, ValueError: when called: x not a finite float vector, f(x) not a scalar.

    >>> hessian(lambda x: x[0] ** 2 * x[1])(jnp.array([1.0, 2.0]))
    Array([[4., 2.],
           [2., 0.]], dtype=float32)
    """
    _validation.function("f", f)

    def second(x: Float[Array, " n"]) -> Float[Array, "n n"]:
        _validation.floating("x", x, rank=1)
        _validation.finite("x", x)
        return _hessian(program(f), jnp.asarray(x))

    return second


@jax.jit
def _hessian(f: Program, x: Array) -> Array:
    return jax.jacfwd(jax.grad(_scalar("f", f)))(x)


def hvp(f: Function) -> Function:
    """The Hessian times a vector, H v, of a scalar J = f(x) of any pytree, for about the cost of two gradients and without H.

    Returns:
        `product(x, v)`, with v and the result of the structure and shapes of x.

    Raises:
        TypeError, ValueError: when called: x or v not finite floats, of other structure or shapes than each other; f(x) not a scalar.

    >>> hvp(lambda x: x[0] ** 2 * x[1])(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0]))
    Array([4., 2.], dtype=float32)
    """
    _validation.function("f", f)

    def product(x: Any, v: Any) -> Any:
        _check("x", x)
        _check("v", v)
        _validation.same_structure(x=x, v=v)
        kinds = [
            {str(jnp.asarray(leaf).dtype) for leaf in jax.tree.leaves(tree)} for tree in (x, v)
        ]
        if kinds[0] != kinds[1]:
            raise TypeError(
                f"x and v must share their dtypes, got {sorted(kinds[0])} and {sorted(kinds[1])}"
            )
        return _hvp(program(f), *(jax.tree.map(jnp.asarray, tree) for tree in (x, v)))

    return product


@jax.jit
def _hvp(f: Program, x: Any, v: Any) -> Any:
    return jax.jvp(jax.grad(_scalar("f", f)), (x,), (v,))[1]


def numerical(f: Function) -> Function:
    """Central differences, (f(x + h e_i) - f(x - h e_i)) / 2h, for a scalar f of any pytree: what a gradient is held against.

    Computed in float64 whatever the dtype of x, with h = 6e-6 max(1, |x_i|), the cube root of the rounding error that balances it with
    the error of the formula. A function that turns to a lower precision inside gives that precision's noise.

    Returns:
        `gradient(x)`, of the structure, shapes and dtypes of x; two evaluations of f for each number in x.

    Raises:
        TypeError, ValueError: when called: x not finite floats, f(x) not a scalar.

    >>> numerical(lambda x: (x**3).sum())(jnp.array([1.0, 2.0]))
    Array([ 3., 12.], dtype=float32)
    """
    _validation.function("f", f)

    def gradient(x: Any) -> Any:
        _check("x", x)
        dtypes = jax.tree.map(lambda leaf: jnp.asarray(leaf).dtype, x)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), x)
            found = _central_differences(_in_float64(program(f, fast_gradients=False)), wide)
            return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), found, dtypes)

    return gradient


def _in_float64(f: Program) -> Program:
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        f,
    )


@jax.jit
def _central_differences(f: Program, x: Any) -> Any:
    flat, unravel = ravel_pytree(x)
    value = _scalar("f", lambda flat: f(unravel(flat)))

    def along(i: Array) -> Array:
        up = flat[i] + jnp.finfo(flat.dtype).eps ** (1 / 3) * jnp.maximum(1, jnp.abs(flat[i]))
        down = 2 * flat[i] - up
        return (value(flat.at[i].set(up)) - value(flat.at[i].set(down))) / (up - down)

    return unravel(jax.lax.map(along, jnp.arange(flat.size)))


def _gradient(cost: Function, argument: int, name: str) -> Function:
    def gradient(*args: Any) -> Any:
        if len(args) <= argument:
            raise TypeError(
                f"cost takes params, x, ...: expected at least {argument + 1} arguments, got {len(args)}"
            )
        _check(name, args[argument])
        _check_rest(args)
        return _jitted_gradient(program(cost), args, argument)

    return gradient


@functools.partial(jax.jit, static_argnames="argument")
def _jitted_gradient(cost: Program, args: tuple[Any, ...], argument: int) -> Any:
    return jax.grad(_scalar("cost", cost), argument)(*args)


def _check(name: str, variable: Any) -> None:
    _validation.floating_leaves(name, variable)
    _validation.finite(name, variable)


def _check_rest(args: tuple[Any, ...]) -> None:
    """Finite, and no empty batch, in (params, x, y, ...)."""
    for k, given in enumerate(args):
        name = ("params", "x", "y", *(f"argument {i}" for i in range(4, len(args) + 1)))[k]
        _validation.finite(name, given)
        if k and any(getattr(leaf, "shape", (1,))[:1] == (0,) for leaf in jax.tree.leaves(given)):
            raise ValueError(f"{name} must not be empty, got a leading axis of 0")


def _scalar(name: str, f: Function) -> Function:
    def checked(*args: Any) -> Any:
        value = f(*args)
        _validation.scalar(name, value)
        return value

    return checked
