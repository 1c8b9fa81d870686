"""The engine: descent on any variable of any program.

    v_{k+1} = project(v_k + update(dJ/dv (v_k, x_k)))

J is a pure function to a scalar cost, v its free variable, x_k what step k sees (a batch, a random key, its number). optax says how to
move, a projection says where one may be. Training, visualization and attacks are this with another v.

`descent` gives the pair (init, step), pure functions for any loop of one's own. `run` is the loop: it compiles once for costs of one
structure, looks at the costs as it goes and stops where it should. It goes in pieces, and a piece in which it has to stop is replayed up
to that step, so that looking costs a step nothing.
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

_PIECE_SECONDS = 0.5
_FIRST_PIECE, _LONGEST_PIECE, _LONGEST_PIECE_WITH_AUX = 32, 1024, 32


class State(NamedTuple):
    """Where a descent stands: the free variable, and the optimizer's own state."""

    variable: Any
    optimizer: Any


class Info(NamedTuple):
    """What a step saw: the cost before its update, and what the cost function returned beside it (or None)."""

    cost: Float[Array, ""]
    aux: Any


class Descent(NamedTuple):
    """A descent as two pure functions.

    Attributes:
        init: `init(variable) -> State`.
        step: `step(state, x) -> (State, Info)`.
    """

    init: Callable[[Any], State]
    step: Callable[[State, Any], tuple[State, Info]]


class Result(NamedTuple):
    """What a run comes back with.

    Attributes:
        variable: the free variable after `steps` updates.
        costs: J(v_k, x_k) for k = 0, 1, ..., a NumPy array: one for each step, and the one it stopped at where the run stopped early.
        aux: what the cost function returned beside the cost, stacked like `costs`; None if nothing.
        steps: the updates that lead from the start to `variable`.
        state: the `State` with that variable, to go on from.
        ending: "steps" when all were taken; "until" when the cost changed by no more than that; "nonfinite" when it was NaN or infinite
            at step `len(costs) - 1`, or that step, the last, led to a variable that is: then `variable` is the last one that was finite
            and had a finite cost (or the start).
    """

    variable: Any
    costs: np.ndarray
    aux: Any
    steps: int
    state: State
    ending: Ending

    def __str__(self) -> str:
        """One sentence on how the run ended."""
        how = {
            "steps": "took all its steps",
            "until": f"stopped at step {self.steps}, where the cost no longer changed",
            "nonfinite": f"stopped at step {len(self.costs) - 1}, where the cost is not finite or what it leads to is not",
        }[self.ending]
        return f"{how}; {self.steps} updates, costs {self.costs[:1]} to {self.costs[-1:]}"


def descent(
    cost: Callable[[Any, Any], Any],
    optimizer: optax.GradientTransformation,
    project: Callable[[Any], Any] | None = None,
) -> Descent:
    """The descent of `cost` by `optimizer`, kept in a set by `project`.

    Args:
        cost: `cost(variable, x) -> J`, a float scalar, or `(J, aux)`; pure. To ascend, return -J.
        optimizer: any optax optimizer. Those that ask for more than a gradient, such as line searches, get the `value`, `grad`, `value_fn`,
            `grad_fn` and `x` they ask for.
        project: `project(variable) -> variable`, applied after each update; None for anywhere.

    Raises:
        TypeError: an argument is not of its kind.

    >>> bowl = descent(lambda v, k: 0.5 * v**2, optax.sgd(0.5))
    >>> float(run(bowl, 8.0, 3).variable)
    1.0
    """
    _validation.function("cost", cost)
    require_optimizer(optimizer)
    if project is not None:
        _validation.function("project", project)
    update = optax.with_extra_args_support(optimizer).update
    wanted = extra_arguments(update)

    fast_cost = fast_gradients.faster(cost)

    def cost_and_aux(variable: Any, x: Any) -> tuple[Any, Any]:
        returned = fast_cost(variable, x)
        value, aux = (
            returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        )
        _validation.scalar("cost", value)
        return value, aux

    def init(variable: Any) -> State:
        return State(variable, optimizer.init(variable))

    def step(state: State, x: Any) -> tuple[State, Info]:
        (value, aux), gradient = jax.value_and_grad(cost_and_aux, has_aux=True)(state.variable, x)
        # optax hands what it has for the rules on to `value_fn`, if that names it.
        value_of = lambda variable, x=x, grad_fn=None: cost_and_aux(variable, x)[0]
        gradient_of = lambda variable, *_: jax.grad(value_of)(variable)
        known = {
            "value": value,
            "grad": gradient,
            "value_fn": value_of,
            "grad_fn": gradient_of,
            "x": x,
        }
        updates, moved = update(
            gradient, state.optimizer, state.variable, **{name: known[name] for name in wanted}
        )
        variable = optax.apply_updates(state.variable, updates)
        return State(variable if project is None else project(variable), moved), Info(value, aux)

    return Descent(init, step)


def require_optimizer(optimizer: Any) -> optax.GradientTransformation:
    """`optimizer`, if it is one of optax."""
    if not isinstance(optimizer, optax.GradientTransformation):
        hint = (
            "; pass its .gradient_transformation()"
            if isinstance(optimizer, optax.MultiSteps)
            else ""
        )
        raise TypeError(
            f"optimizer must be an optax optimizer, got {type(optimizer).__name__}{hint}"
        )
    return optimizer


def extra_arguments(update: Callable[..., Any]) -> tuple[str, ...]:
    """Which of the things a step knows the optimizer's `update` takes."""
    takes = inspect.signature(update).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes)
    names = {parameter.name for parameter in takes}
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
    """Descend from `start`, one step for each of `xs`.

    Args:
        descent: from `descent`.
        start: the free variable, a pytree of finite float arrays; or a `State`, to go on from it.
        xs: what the steps see. A count n: step k sees the integer k. A pytree of finite arrays: step k sees each at k on its leading
            axis. An iterator of batches: step k sees the k-th; up to some hundred are read ahead.
        until: stop before step k >= 1 if |J_k - J_{k-1}| <= until, the rule of lecture 004 (which stops on a plateau as well).
        loop: "device" runs the steps in one compiled loop, "host" calls a compiled step from Python; "auto" takes the one that is fast
            (see `_loops.scan_is_fast`). An iterator has only the host.
        progress: a bar; None shows it for long runs where stderr is a terminal, True always, False never.

    Returns:
        A `Result`. `result.ending` and `str(result)` say why it ended; a cost that is not finite ends it, and raises nothing.

    Raises:
        TypeError, ValueError: a start that is not finite floats, a negative count, arrays that are empty, not finite or of several
            lengths, a cost that is not a float scalar, an optimizer or projection that changes a shape or dtype.

    >>> bowl = descent(lambda v, k: 0.5 * v**2, optax.sgd(0.1))
    >>> run(bowl, 4.0, 1000, until=1e-6).steps
    69
    """
    results = list(
        run_in_chunks(
            descent, start, xs, until=until, first_chunk=_FIRST_PIECE, loop=loop, progress=progress
        )
    )
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
    """`run`, a piece of about half a second at a time, to look at what has come of it so far.

    Args:
        descent, start, xs, until, loop, progress: as for `run`.
        steps: of the xs only the first so many; the others are there so that all pieces have one shape, for which to compile.
        previous_cost: the cost of the step before the first, for `until`.
        first_chunk: how many steps the first piece has, before it is known how long a step takes.

    Returns:
        An iterator of at least one `Result`, each of its piece alone: its costs, and its steps. All but the last end with "steps".
        Where the first cost of a piece is not finite, the way leads back into the piece before, and it has -1 steps.

    Raises:
        TypeError, ValueError: as `run`, when the first is asked for.

    >>> bowl = descent(lambda v, k: 0.5 * v**2, optax.sgd(0.1))
    >>> sum(result.steps for result in run_in_chunks(bowl, 4.0, 40))
    40
    """
    if not isinstance(descent, Descent):
        raise TypeError(f"descent must be a Descent, got {type(descent).__name__}")
    _validation.choice("loop", loop, ("auto", "device", "host"))
    until = None if until is None else _validation.number("until", until, low=0)
    source, state = _loops.StepInputs(xs, steps), init_state(descent, start)
    if loop == "device" and source.iterated:
        raise ValueError("loop must be 'auto' or 'host' for an iterator of batches, got 'device'")
    if source.length == 0:
        yield Result(state.variable, np.zeros(0), None, 0, state, "steps")
        return
    step = program(descent.step, fast_gradients=False)
    traced = _loops.trace(step, state, source.first())
    info = _checked_info(state, *traced.out_info)
    compiled_loop = (
        not source.iterated
        and loop != "host"
        and (loop == "device" or _loops.scan_is_fast(traced.jaxpr))
    )
    longest = _LONGEST_PIECE if info.aux is None else _LONGEST_PIECE_WITH_AUX
    advance = functools.partial(
        _loops.compiled_loop if compiled_loop else _loops.python_loop, step, capacity=longest
    )
    yield from _piece_by_piece(
        advance,
        source,
        state,
        until,
        previous_cost,
        _validation.integer("first_chunk", first_chunk, low=1),
        longest,
        progress,
    )


def init_state(descent: Descent, start: Any, *, name: str = "start") -> State:
    """The state that a run of the descent starts from.

    Args:
        descent: from `descent`.
        start: the free variable, a pytree of finite float arrays; or a `State`, which is checked to be one of this descent.
        name: what an error calls it.

    Raises:
        TypeError, ValueError: a start that is neither.

    >>> float(init_state(descent(lambda v, k: v**2, optax.sgd(0.1)), 3.0).variable)
    3.0
    """
    variable = start.variable if isinstance(start, State) else start
    _validation.floating_leaves(name, variable)
    _validation.concrete(name, variable, "inside jit, grad or vmap loop over descent.step")
    if not _is_finite(variable):
        _validation.finite(name, variable)
    if not all(np.size(leaf) for leaf in jax.tree.leaves(variable)):
        raise ValueError(f"{name} must hold numbers, got an array of size 0")
    variable = jax.tree.map(_strongly_typed, variable)
    init = program(descent.init, fast_gradients=False)
    if not isinstance(start, State):
        state = jax.tree.map(_strongly_typed, _init(init, variable))
        return State(variable, distributed.match_shardings(variable, state.optimizer))
    expected, given = (
        jax.tree.structure(state) for state in (_init.eval_shape(init, variable), start)
    )
    if str(expected) != str(given):
        raise ValueError(f"{name} must be a State of this descent, {expected}, got {given}")
    return jax.tree.map(_strongly_typed, start)


@jax.jit
def _init(init: Program, variable: Any) -> State:
    return init(variable)


def _strongly_typed(leaf: Any) -> jax.Array:
    """Without JAX's weak type, which the first update would change, for a second compile."""
    if isinstance(leaf, jax.Array) and not getattr(leaf, "weak_type", False):
        return leaf
    return jnp.asarray(leaf, dtype=jnp.asarray(leaf).dtype)


def _checked_info(before: State, after: State, info: Info) -> Info:
    kinds = [
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)] for state in (before, after)
    ]
    if str(jax.tree.structure(before)) != str(jax.tree.structure(after)):
        raise ValueError(
            "optimizer and project must keep the structure of the state, got a step from "
            f"{jax.tree.structure(before)} to {jax.tree.structure(after)}"
        )
    if kinds[0] != kinds[1]:
        pairs = zip(
            *([f"{dtype}{list(shape)}" for shape, dtype in leaves] for leaves in kinds),
            strict=False,
        )
        changed = next((f"{old} to {new}" for old, new in pairs if old != new), "their number")
        raise ValueError(
            f"optimizer and project must keep the shapes and dtypes of the state, got a step that changes {changed}"
        )
    return info


Advance = Callable[[_loops.Chunk], tuple[State, Info]]


def _piece_by_piece(
    advance: Advance,
    source: _loops.StepInputs,
    state: State,
    until: float | None,
    latest_cost: float,
    length: int,
    longest: int,
    progress: bool | None,
) -> Iterator[Result]:
    """Advance by a piece, look at its costs, then stop or go on."""
    before: _loops.Chunk | None = None
    length, first = min(length, longest), 0
    with tqdm.tqdm(
        total=source.length,
        disable=None if progress is None else not progress,
        delay=0 if progress else 1,
    ) as bar:
        while True:
            xs, count = source.take(first, length)
            if count == 0:
                return
            piece, began = _loops.Chunk(first, first + count, state, xs), time.perf_counter()
            state, info = advance(piece)
            state, costs = distributed.shard_like(piece.state, state), np.asarray(info.cost)
            ending, at = _stop(np.append(latest_cost, costs), until)
            if ending is None and source.ends_at(piece.last) and not _is_finite(state.variable):
                ending, at = "nonfinite", count
            if ending is not None:
                aux = jax.tree.map(lambda values, last=at + 1: values[:last], info.aux)
                steps = first + at if ending == "until" else max(first + at - 1, 0)
                replayed = _replay(advance, before, piece, steps)
                yield Result(
                    replayed.variable, costs[: at + 1], aux, steps - first, replayed, ending
                )
                return
            bar.set_postfix_str(f"cost={costs[-1]:.4g}", refresh=False)
            bar.update(count)
            yield Result(state.variable, costs, info.aux, count, state, "steps")
            before, first, latest_cost = piece, piece.last, float(costs[-1])
            length = chunk_length(count, time.perf_counter() - began, longest)


def chunk_length(count: int, seconds: float, longest: int = _LONGEST_PIECE) -> int:
    """How many steps fit in half a second, after so many have taken so long; processes that run one program together have to agree on it.

    >>> chunk_length(100, 5.0)
    10
    """
    return min(
        2 * count if jax.process_count() > 1 else max(int(_PIECE_SECONDS * count / seconds), 1),
        longest,
    )


@jax.jit
def _is_finite(variable: Any) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(variable)]).all()


def _stop(costs: np.ndarray, until: float | None) -> tuple[Ending | None, int]:
    """Why and where among `costs[1:]` the run stops; `costs[0]` is the cost before them, NaN if there is none."""
    nonfinite = ~np.isfinite(costs[1:])
    with np.errstate(invalid="ignore"):
        settled = np.zeros_like(nonfinite) if until is None else np.abs(np.diff(costs)) <= until
    stops = np.flatnonzero(nonfinite | settled)
    if len(stops) == 0:
        return None, 0
    return "nonfinite" if nonfinite[stops[0]] else "until", int(stops[0])


def _replay(
    advance: Advance, before: _loops.Chunk | None, piece: _loops.Chunk, steps: int
) -> State:
    """The state after `steps` updates, which lies in `piece` or in the one before it."""
    if before is not None and steps < piece.first:
        piece = before
    return piece.state if steps == piece.first else advance(piece._replace(last=steps))[0]
