"""Run a compiled step many times, in one compiled loop or in a Python loop.

    compiled_loop   no Python between steps; fast on GPUs and for small programs
    python_loop     calls the compiled step; fast on the CPU for autodiff of convolutions

Both run a chunk of a longer loop, from the state before it to the state after it, so that a caller
can inspect the results of one chunk before it starts the next. A step is a callable (state, x) ->
(state, info), given as a `Program`, which makes its arrays pytree leaves.
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
    """Part of a loop to run: steps `start` to `stop` - 1, the state before them, their inputs."""

    start: int
    stop: int
    state: Any
    xs: Any


class StepInputs:
    """Inputs of the steps of a loop, given as a count, arrays or an iterator of batches.

    The input of step k is the integer k for a count, the entry k on the leading axis for arrays,
    and the k-th batch for an iterator.

    Attributes:
        length: number of steps; None for an iterator, whose length is not known in advance.
        is_iterator: whether the inputs come from an iterator.
    """

    def __init__(self, xs: Any, steps: int | None = None) -> None:
        self.is_iterator = isinstance(xs, Iterator)
        self.length: int | None = None
        self._read_ahead: list[Any] = []
        if isinstance(xs, int) or getattr(xs, "ndim", None) == 0:
            xs, self.length = None, _validation.integer("xs", xs, low=0)
        elif not self.is_iterator:
            self.length = _validation.batch(xs=xs)
            _validation.concrete("xs", xs, "inside jit, grad or vmap loop over descent.step")
            _validation.finite("xs", xs)
            xs = jax.tree.map(jnp.asarray, xs)
        self._xs = xs
        if steps is not None and self.length is not None:
            self.length = min(self.length, _validation.integer("steps", steps, low=0))

    def first(self) -> Any:
        """Return shapes and dtypes of a step's input; for an iterator, the first batch itself."""
        if not self.is_iterator:
            xs = jnp.zeros(1, jnp.int32) if self._xs is None else self._xs
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
        if self.ends_at(0):
            raise ValueError("xs must hold at least one batch, got an exhausted iterator")
        return self._read_ahead[0]

    def take(self, start: int, count: int) -> tuple[Any, int]:
        """Return the inputs of up to `count` steps from step `start`, and the number n of them.

        An iterator gives a list of its next n batches; n < `count` if it ends. Arrays are returned
        whole, and the caller indexes them by step. A count gives None.
        """
        if self.length is not None:
            return self._xs, min(count, self.length - start)
        batches = self._read_ahead + list(itertools.islice(self._xs, count - len(self._read_ahead)))
        self._read_ahead = []
        return batches, len(batches)

    def ends_at(self, step: int) -> bool:
        """Check whether there are no inputs after the first `step` steps.

        `take` must have returned the inputs of these steps before.
        """
        if self.length is not None:
            return step == self.length
        self._read_ahead = self._read_ahead or list(itertools.islice(self._xs, 1))
        return not self._read_ahead


@functools.lru_cache(maxsize=256)
def scan_is_fast(step: _jaxpr.ClosedJaxpr) -> bool:
    """Check whether a step, given as a jaxpr, runs as fast in a compiled loop as on its own.

    XLA's CPU backend rearranges a convolution for its fast kernel only outside of loops. Inside a
    loop, a convolution runs 10 to 100 times slower unless its layout is (batch, ..., channels) and
    (..., inputs, outputs). Autodiff of a convolution gives other layouts; the layers of
    `diffprog.backprop` and programs rewritten by `fast_gradients.faster` do not.

    >>> scan_is_fast(jax.make_jaxpr(jnp.sin)(1.0))
    True
    """

    def is_slow(equation: _jaxpr.JaxprEqn) -> bool:
        if equation.primitive.name != "conv_general_dilated":
            return False
        layout = _jaxpr.convolution_dimensions(equation)
        return layout != fast_layout(len(layout.lhs_spec))

    return jax.default_backend() != "cpu" or not _jaxpr.find_equations(step, is_slow)


def trace(step: Program, state: Any, x: Any) -> Any:
    """Trace `step(state, x)`; return JAX's `Traced`, with its `jaxpr` and output shapes.

    The loops of this module reuse the trace.
    """
    return _step.trace(step, state, x)


def python_loop(step: Program, chunk: Chunk, *, capacity: int) -> tuple[Any, Any]:
    """Run the steps of a chunk in a Python loop; return (final state, infos).

    The infos, outputs of `step(state, x) -> (state, info)`, are stacked on a leading axis.
    `capacity` is not used; `compiled_loop` needs it.
    """
    state, infos = chunk.state, []
    for k in range(chunk.start, chunk.stop):
        if isinstance(chunk.xs, list):
            state, info = _step(step, state, chunk.xs[k - chunk.start])
        else:
            state, info = _step_at(step, state, chunk.xs, k)
        infos.append(info)
    return state, jax.tree.map(lambda *values: np.stack(values), *distributed.fetch(infos))


def compiled_loop(step: Program, chunk: Chunk, *, capacity: int) -> tuple[Any, Any]:
    """Run the steps of a chunk in one compiled loop; return (final state, infos).

    The infos, outputs of `step(state, x) -> (state, info)`, are stacked on a leading axis. One
    compilation serves all chunks of up to `capacity` steps.
    """
    state, infos = _loop(step, chunk.state, chunk.xs, chunk.start, chunk.stop, capacity)
    count = chunk.stop - chunk.start
    return state, jax.tree.map(lambda values: values[:count], distributed.fetch(infos))


@jax.jit
def _step(step: Program, state: Any, x: Any) -> tuple[Any, Any]:
    return step(state, x)


@jax.jit
def _step_at(step: Program, state: Any, xs: Any, k: Any) -> tuple[Any, Any]:
    return _step(step, state, _input_at(xs, k))


def _input_at(xs: Any, k: Any) -> Any:
    # One dtype for Python integers and loop counters, so that the step is traced once.
    k = jnp.asarray(k, jnp.int32)
    return k if xs is None else jax.tree.map(lambda leaf: leaf[k], xs)


@functools.partial(jax.jit, static_argnames="capacity")
def _loop(
    step: Program, state: Any, xs: Any, start: Any, stop: Any, capacity: int
) -> tuple[Any, Any]:
    info = jax.eval_shape(_step, step, state, _input_at(xs, start))[1]
    infos = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), info)

    def body(k: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, infos = carry
        state, info = _step(step, state, _input_at(xs, k))
        return state, jax.tree.map(lambda all_, one: all_.at[k - start].set(one), infos, info)

    return jax.lax.fori_loop(start, stop, body, (state, infos))
