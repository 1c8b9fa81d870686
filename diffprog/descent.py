"""Gradient descent on any variable of a scalar cost function.

Training, unit visualization and gradient-based attacks all use this engine:

    v_{k+1} = project(v_k + update(dJ/dv (v_k, x_k)))

J is a pure function that returns a scalar cost, v the variable to optimize, and x_k the input of
step k: a batch, a PRNG key, or the number k. Update rules are optax's, and `project` maps the
variable back into a feasible set.

`descent` returns the pure functions (init, step), for use in any loop. `run` is a loop over them.
It compiles once for costs of one structure, and stops if the cost converges or is not finite. To
check the costs without slowing down the steps, it runs them in chunks, and repeats part of the last
chunk if it has to stop inside it.
"""

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jaxtyping import Array, Float

from diffprog import _loops, _validation, distributed, fast_gradients
from diffprog.program import Program, program

Ending = Literal["steps", "until", "nonfinite"]

_CHUNK_SECONDS = 0.5
# Auxiliary outputs are kept for all steps of a chunk, so chunks that have them are short.
_FIRST_CHUNK, _LARGEST_CHUNK, _LARGEST_CHUNK_WITH_AUX = 32, 1024, 32


class State(NamedTuple):
    """State of a gradient descent: the current variable and the optimizer's state."""

    variable: Any
    optimizer: Any


class Info(NamedTuple):
    """Output of a step: the cost before its update, and the cost function's auxiliary output."""

    cost: Float[Array, ""]
    aux: Any


class Descent(NamedTuple):
    """Gradient descent as two pure functions, for use in any loop.

    Attributes:
        init: `init(variable) -> State`, the state before the first step.
        step: `step(state, x) -> (State, Info)`, one update; x is the input of the step.
    """

    init: Callable[[Any], State]
    step: Callable[[State, Any], tuple[State, Info]]


class Result(NamedTuple):
    """Result of `run`: the optimized variable, its costs, and why the run stopped.

    Attributes:
        variable: the variable after `steps` updates.
        costs: the cost before each update, a NumPy array; if the run stopped early, the last one
            is the cost at which it stopped.
        aux: auxiliary outputs of the cost function, stacked like `costs`; None if there are none.
        steps: number of updates from the start to `variable`.
        state: the `State` with that variable, from which a run can continue.
        ending: "steps" if all steps were taken; "until" if the cost changed by at most `until`;
            "nonfinite" if the last of `costs` is NaN or infinite, or if the last step of the run
            made the variable NaN or infinite. `variable` is then the last one that was finite and
            had a finite cost (or the start).
    """

    variable: Any
    costs: np.ndarray
    aux: Any
    steps: int
    state: State
    ending: Ending

    def __str__(self) -> str:
        """Describe in one sentence how the run ended."""
        ending = {
            "steps": "took all steps",
            "until": f"stopped at step {self.steps}, where the cost no longer changed",
            "nonfinite": f"stopped at step {len(self.costs) - 1}, where the cost or the next "
            "variable is not finite",
        }[self.ending]
        return f"{ending}; {self.steps} updates, costs {self.costs[:1]} to {self.costs[-1:]}"


def descent(
    cost: Callable[[Any, Any], Any],
    optimizer: optax.GradientTransformation,
    project: Callable[[Any], Any] | None = None,
) -> Descent:
    """Build a gradient descent on a cost function from an optax optimizer and a projection.

    Args:
        cost: `cost(variable, x) -> J`, a float scalar, or `(J, aux)`; pure. x is the input of the
            step. To ascend, return -J.
        optimizer: any optax optimizer. One that takes more than a gradient, such as a line search,
            is passed those of `value`, `grad`, `value_fn`, `grad_fn` and `x` that it accepts.
        project: `project(variable) -> variable`, applied after each update; None for no constraint.

    Returns:
        A `Descent`, for `run` or for a loop of your own.

    Raises:
        TypeError: `cost` or `project` is not callable, or `optimizer` is not an optax optimizer.

    >>> quadratic = descent(lambda v, k: 0.5 * v**2, optax.sgd(0.5))
    >>> float(run(quadratic, 8.0, 3).variable)
    1.0
    """
    _validation.function("cost", cost)
    require_optimizer(optimizer)
    if project is not None:
        _validation.function("project", project)
    update = optax.with_extra_args_support(optimizer).update
    extra = extra_arguments(update)
    fast_cost = fast_gradients.faster(cost)

    def cost_and_aux(variable: Any, x: Any) -> tuple[Any, Any]:
        output = fast_cost(variable, x)
        has_aux = isinstance(output, tuple) and len(output) == 2
        value, aux = output if has_aux else (output, None)
        _validation.scalar("cost", value)
        return value, aux

    def init(variable: Any) -> State:
        return State(variable, optimizer.init(variable))

    def step(state: State, x: Any) -> tuple[State, Info]:
        (value, aux), gradient = jax.value_and_grad(cost_and_aux, has_aux=True)(state.variable, x)
        # optax passes its extra arguments on to `value_fn` if that names them.
        value_fn = lambda variable, x=x, grad_fn=None: cost_and_aux(variable, x)[0]
        available = {
            "value": value,
            "grad": gradient,
            "value_fn": value_fn,
            "grad_fn": lambda variable, *_: jax.grad(value_fn)(variable),
            "x": x,
        }
        updates, optimizer_state = update(
            gradient, state.optimizer, state.variable, **{name: available[name] for name in extra}
        )
        variable = optax.apply_updates(state.variable, updates)
        variable = variable if project is None else project(variable)
        return State(variable, optimizer_state), Info(value, aux)

    return Descent(init, step)


def require_optimizer(optimizer: Any) -> optax.GradientTransformation:
    """Check that `optimizer` is an optax optimizer, and return it."""
    if not isinstance(optimizer, optax.GradientTransformation):
        multi_steps = isinstance(optimizer, optax.MultiSteps)
        hint = "; pass its .gradient_transformation()" if multi_steps else ""
        raise TypeError(
            f"optimizer must be an optax optimizer, got {type(optimizer).__name__}{hint}"
        )
    return optimizer


def extra_arguments(update: Callable[..., Any]) -> tuple[str, ...]:
    """Return which of the arguments value, grad, value_fn, grad_fn, x an optax `update` takes."""
    parameters = inspect.signature(update).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    return tuple(
        name for name in ("value", "grad", "value_fn", "grad_fn", "x") if takes_all or name in names
    )


def run(
    descent: Descent,
    start: Any,
    xs: Any,
    *,
    until: float | None = None,
    loop: Literal["auto", "device", "host"] = "auto",
    progress: bool | None = None,
) -> Result:
    """Run a gradient descent from `start`, with one step for each entry of `xs`.

    Args:
        descent: a `Descent`, made by `descent`.
        start: initial variable, a pytree of finite float arrays; or a `State` to continue from.
        xs: inputs of the steps. With a count n, the input of step k is the integer k; with a pytree
            of finite arrays, their entry k on the leading axis; with an iterator of batches, its
            k-th item; some hundred items are read ahead.
        until: stop before step k >= 1 if |J_k - J_{k-1}| <= until, for the costs J_k of the steps
            (lecture 004); this also stops on a plateau. None takes all steps.
        loop: "device" runs the steps in one compiled loop, "host" calls a compiled step from
            Python, and "auto" selects the faster one (see `_loops.scan_is_fast`). An iterator needs
            the host.
        progress: whether to show a progress bar; None shows one for long runs in a terminal.

    Returns:
        A `Result`. A cost that is not finite does not raise: it stops the run, and `result.ending`
        and `str(result)` say so.

    Raises:
        TypeError, ValueError: a start that is not finite floats, a negative count, arrays that are
            empty, not finite or of different lengths, a cost that is not a float scalar, an
            optimizer or projection that changes a shape or dtype.

    >>> quadratic = descent(lambda v, k: 0.5 * v**2, optax.sgd(0.1))
    >>> run(quadratic, 4.0, 1000, until=1e-6).steps
    69
    """
    options: dict[str, Any] = {"until": until, "loop": loop, "progress": progress}
    results = list(run_in_chunks(descent, start, xs, first_chunk=_FIRST_CHUNK, **options))
    costs, aux = jax.tree.map(
        lambda *values: np.concatenate(values), *((result.costs, result.aux) for result in results)
    )
    return results[-1]._replace(costs=costs, aux=aux, steps=sum(result.steps for result in results))


def run_in_chunks(
    descent: Descent,
    start: Any,
    xs: Any,
    *,
    steps: int | None = None,
    until: float | None = None,
    previous_cost: float = np.nan,
    first_chunk: int = 1,
    loop: Literal["auto", "device", "host"] = "auto",
    progress: bool | None = None,
) -> Iterator[Result]:
    """Run a descent in chunks of about half a second, and yield the result of each.

    Args:
        descent, start, xs, until, loop, progress: arguments of `run`.
        steps: number of `xs` to use; None for all. Calls with `xs` of one shape and different
            `steps` compile once.
        previous_cost: cost before `start`, with which `until` compares the first one; NaN for none.
        first_chunk: number of steps in the first chunk, before the time per step is known.

    Yields:
        At least one `Result`, with the costs and steps of its chunk alone. All but the last have
        the ending "steps". If the first cost of a chunk is not finite, the last update of the
        previous chunk is undone: `steps` is then -1.

    Raises:
        TypeError, ValueError: as `run`, when the first result is requested.

    >>> quadratic = descent(lambda v, k: 0.5 * v**2, optax.sgd(0.1))
    >>> sum(result.steps for result in run_in_chunks(quadratic, 4.0, 40))
    40
    """
    if not isinstance(descent, Descent):
        raise TypeError(f"descent must be a Descent, got {type(descent).__name__}")
    _validation.choice("loop", loop, ("auto", "device", "host"))
    until = None if until is None else _validation.number("until", until, low=0)
    inputs, state = _loops.StepInputs(xs, steps), init_state(descent, start)
    if loop == "device" and inputs.is_iterator:
        raise ValueError("loop must be 'auto' or 'host' for an iterator of batches, got 'device'")
    if inputs.length == 0:
        yield Result(state.variable, np.zeros(0), None, 0, state, "steps")
        return
    step = program(descent.step, fast_gradients=False)
    traced = _loops.trace(step, state, inputs.first())
    next_state, info = traced.out_info
    _validate_next_state(state, next_state)
    compiled = not inputs.is_iterator and loop != "host"
    compiled = compiled and (loop == "device" or _loops.scan_is_fast(traced.jaxpr))
    run_loop = _loops.compiled_loop if compiled else _loops.python_loop
    largest = _LARGEST_CHUNK if info.aux is None else _LARGEST_CHUNK_WITH_AUX
    run_chunk = functools.partial(run_loop, step, capacity=largest)
    size = min(_validation.integer("first_chunk", first_chunk, low=1), largest)
    first_step = 0
    previous_chunk: _loops.Chunk | None = None
    with tqdm.tqdm(
        total=inputs.length,
        disable=None if progress is None else not progress,
        delay=0 if progress else 1,
    ) as bar:
        while True:
            chunk_xs, count = inputs.take(first_step, size)
            if count == 0:
                return
            chunk = _loops.Chunk(first_step, first_step + count, state, chunk_xs)
            start_time = time.perf_counter()
            state, info = run_chunk(chunk)
            state, costs = distributed.shard_like(chunk.state, state), np.asarray(info.cost)
            ending, at = _find_ending(np.append(previous_cost, costs), until)
            # After the last step there is no cost that would show a variable that is not finite.
            if ending is None and inputs.ends_at(chunk.stop) and not _is_finite(state.variable):
                ending, at = "nonfinite", count
            if ending is not None:
                # A nonfinite cost at step k is that of v_k, so v_{k-1} is the last good variable.
                good = first_step + at if ending == "until" else max(first_step + at - 1, 0)
                if previous_chunk is not None and good < chunk.start:
                    chunk = previous_chunk
                repeat = chunk._replace(stop=good)  # steps up to the good variable, taken again
                state = chunk.state if good == chunk.start else run_chunk(repeat)[0]
                costs, aux = costs[: at + 1], jax.tree.map(lambda v, at=at: v[: at + 1], info.aux)
                yield Result(state.variable, costs, aux, good - first_step, state, ending)
                return
            bar.set_postfix_str(f"cost={costs[-1]:.4g}", refresh=False)
            bar.update(count)
            yield Result(state.variable, costs, info.aux, count, state, "steps")
            previous_chunk, first_step, previous_cost = chunk, chunk.stop, float(costs[-1])
            size = chunk_length(count, time.perf_counter() - start_time, largest)


def init_state(descent: Descent, start: Any, *, name: str = "start") -> State:
    """Return the initial `State` of a run, from a variable or from the `State` of another run.

    Args:
        descent: a `Descent`, made by `descent`.
        start: initial variable, a pytree of finite float arrays; or a `State` of this descent.
        name: name of the argument in error messages.

    Raises:
        TypeError, ValueError: `start` is neither.

    >>> float(init_state(descent(lambda v, k: v**2, optax.sgd(0.1)), 3.0).variable)
    3.0
    """
    variable = start.variable if isinstance(start, State) else start
    _validation.floating_leaves(name, variable)
    _validation.concrete(name, variable, "inside jit, grad or vmap loop over descent.step")
    if not _is_finite(variable):  # a fast check; the slow one below names the leaf
        _validation.finite(name, variable)
    if not all(np.size(leaf) for leaf in jax.tree.leaves(variable)):
        raise ValueError(f"{name} must hold numbers, got an array of size 0")
    variable = jax.tree.map(_strongly_typed, variable)
    init = program(descent.init, fast_gradients=False)
    if not isinstance(start, State):
        state = jax.tree.map(_strongly_typed, _init(init, variable))
        return State(variable, distributed.match_shardings(variable, state.optimizer))
    expected = jax.tree.structure(_init.eval_shape(init, variable))
    got = jax.tree.structure(start)
    if str(expected) != str(got):
        raise ValueError(f"{name} must be a State of this descent, {expected}, got {got}")
    return jax.tree.map(_strongly_typed, start)


@jax.jit
def _init(init: Program, variable: Any) -> State:
    return init(variable)


def _strongly_typed(leaf: Any) -> jax.Array:
    """Convert a leaf to an array without JAX's weak type.

    The first update would remove the weak type, and so cause a second compilation.
    """
    if isinstance(leaf, jax.Array) and not getattr(leaf, "weak_type", False):
        return leaf
    return jnp.asarray(leaf, dtype=jnp.asarray(leaf).dtype)


def _validate_next_state(state: State, next_state: State) -> None:
    """Check that a step keeps the structure, shapes and dtypes of the state."""
    structures = jax.tree.structure(state), jax.tree.structure(next_state)
    if str(structures[0]) != str(structures[1]):
        raise ValueError(
            "optimizer and project must keep the structure of the state, got a step from "
            f"{structures[0]} to {structures[1]}"
        )
    old, new = (
        [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(tree)]
        for tree in (state, next_state)
    )
    changes = [f"{a} to {b}" for a, b in zip(old, new, strict=True) if a != b]
    if changes:
        raise ValueError(
            "optimizer and project must keep the shapes and dtypes of the state, got a step that "
            f"changes {changes[0]}"
        )


def chunk_length(count: int, seconds: float, longest: int = _LARGEST_CHUNK) -> int:
    """Return how many steps take half a second, at most `longest`, if `count` took `seconds`.

    With several processes it is twice `count`, because all must take the same number of steps.

    >>> chunk_length(100, 5.0)
    10
    """
    in_half_a_second = max(int(_CHUNK_SECONDS * count / seconds), 1)
    return min(2 * count if jax.process_count() > 1 else in_half_a_second, longest)


@jax.jit
def _is_finite(variable: Any) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(variable)]).all()


def _find_ending(costs: np.ndarray, until: float | None) -> tuple[Ending | None, int]:
    """Return (ending, i) if costs[1 + i] is the first cost that ends a run, otherwise (None, 0).

    The ending is "nonfinite", or "until" for a cost that changed by at most `until`. `costs[0]` is
    the cost of the step before, NaN if there was none.
    """
    nonfinite = ~np.isfinite(costs[1:])
    with np.errstate(invalid="ignore"):
        converged = np.zeros_like(nonfinite) if until is None else np.abs(np.diff(costs)) <= until
    stops = np.flatnonzero(nonfinite | converged)
    if len(stops) == 0:
        return None, 0
    return "nonfinite" if nonfinite[stops[0]] else "until", int(stops[0])
