"""Loops over a compiled step, in the two forms that JAX has, and which of them is fast where.

    compiled_loop   one compiled loop around the step: no Python between steps; what a GPU and small programs want
    python_loop     a Python loop that calls the compiled step: what the CPU wants for convolutions it was not laid out for

Both run a piece of a longer loop, from the state before it to the state after it, so that a caller can look at what came of a piece
before it starts the next. A step is a `Program` (state, x) -> (state, info).
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffprog import _jaxpr, _validation, distributed
from diffprog.backprop._convolution import fast_layout
from diffprog.program import Program


class Chunk(NamedTuple):
    """Steps `first` to `last` - 1 of a loop: the state before them, and what they see (from `StepInputs.take`)."""

    first: int
    last: int
    state: Any
    xs: Any


class StepInputs:
    """What the steps see: a count (each step its number), arrays (each step its index of the leading axis) or an iterator of batches.

    Attributes:
        length: the number of steps; None for an iterator, which tells only at its end.
        iterated: whether it is an iterator.
    """

    def __init__(self, xs: Any, steps: int | None = None) -> None:
        self.iterated = isinstance(xs, Iterator)
        self.length: int | None = None
        self._xs: Any
        self._ahead: list[Any] = []
        if isinstance(xs, int) or getattr(xs, "ndim", None) == 0:
            self._xs, self.length = None, _validation.integer("xs", xs, low=0)
        elif self.iterated:
            self._xs = xs
        else:
            self.length = _validation.batch(xs=xs)
            _validation.concrete("xs", xs, "inside jit, grad or vmap loop over descent.step")
            _validation.finite("xs", xs)
            self._xs = jax.tree.map(jnp.asarray, xs)
        if steps is not None and self.length is not None:
            self.length = min(self.length, _validation.integer("steps", steps, low=0))

    def first(self) -> Any:
        """What step 0 sees, for its shapes."""
        if not self.iterated:
            like = jnp.zeros(1, jnp.int32) if self._xs is None else self._xs
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), like)
        if self.ends_at(0):
            raise ValueError("xs must hold at least one batch, got an iterator that is at its end")
        return self._ahead[0]

    def take(self, first: int, count: int) -> tuple[Any, int]:
        """What the steps from `first` on see, and how many there are, at most `count`."""
        if self.length is not None:
            return self._xs, min(count, self.length - first)
        batches = self._ahead + list(itertools.islice(self._xs, count - len(self._ahead)))
        self._ahead = []
        return batches, len(batches)

    def ends_at(self, last: int) -> bool:
        """Whether no step comes after so many, all that have been taken."""
        if self.length is not None:
            return last == self.length
        self._ahead = self._ahead or list(itertools.islice(self._xs, 1))
        return not self._ahead


@functools.lru_cache(maxsize=256)
def scan_is_fast(step: _jaxpr.ClosedJaxpr) -> bool:
    """Whether a step runs as fast inside a compiled loop as by itself.

    XLA's CPU backend rearranges a convolution for its fast kernel only outside of loops. Inside, one that is not laid out
    (batch, ..., channels) and (..., inputs, outputs) runs 10 to 100 times slower; autodiff of a convolution makes such ones, the layers
    of `diffprog.backprop` and what `fast_gradients.faster` has rewritten do not.

    >>> scan_is_fast(jax.make_jaxpr(jnp.sin)(1.0))
    True
    """
    return jax.default_backend() != "cpu" or not _jaxpr.find_equations(step, _is_slow_in_a_loop)


def _is_slow_in_a_loop(equation: _jaxpr.JaxprEqn) -> bool:
    if equation.primitive.name != "conv_general_dilated":
        return False
    layout = _jaxpr.convolution_dimensions(equation)
    return layout != fast_layout(len(layout.lhs_spec))


def trace(step: Program, state: Any, x: Any) -> Any:
    """The traced step: its `jaxpr` and `out_info`. Nothing is compiled, and neither loop traces it again."""
    return _step.trace(step, state, x)


def python_loop(step: Program, piece: Chunk, *, capacity: int) -> tuple[Any, Any]:
    """The state after the piece, and the steps' infos stacked, as NumPy arrays."""
    state, infos = piece.state, []
    for k in range(piece.first, piece.last):
        if isinstance(piece.xs, list):
            state, info = _step(step, state, piece.xs[k - piece.first])
        else:
            state, info = _step_at(step, state, piece.xs, k)
        infos.append(info)
    return state, jax.tree.map(lambda *values: np.stack(values), *distributed.fetch(infos))


def compiled_loop(step: Program, piece: Chunk, *, capacity: int) -> tuple[Any, Any]:
    """The same for a piece of at most `capacity` steps, which alone decides what is compiled."""
    state, infos = _loop(step, piece.state, piece.xs, piece.first, piece.last, capacity)
    return state, jax.tree.map(
        lambda values: values[: piece.last - piece.first], distributed.fetch(infos)
    )


@jax.jit
def _step(step: Program, state: Any, x: Any) -> tuple[Any, Any]:
    return step(state, x)


@jax.jit
def _step_at(step: Program, state: Any, xs: Any, k: Any) -> tuple[Any, Any]:
    return _step(step, state, _at(xs, k))


def _at(xs: Any, k: Any) -> Any:
    k = jnp.asarray(k, jnp.int32)
    return k if xs is None else jax.tree.map(lambda leaf: leaf[k], xs)


@functools.partial(jax.jit, static_argnames="capacity")
def _loop(
    step: Program, state: Any, xs: Any, first: Any, last: Any, capacity: int
) -> tuple[Any, Any]:
    info = jax.eval_shape(_step, step, state, _at(xs, first))[1]
    infos = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), info)

    def body(k: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, infos = carry
        state, info = _step(step, state, _at(xs, k))
        return state, jax.tree.map(lambda kept, value: kept.at[k - first].set(value), infos, info)

    return jax.lax.fori_loop(first, last, body, (state, infos))
