"""The one walk over a jaxpr: run a traced program again, with other things done at chosen equations.

`jax.make_jaxpr` turns a function into a list of equations, some of which (`scan`, `cond`, `jit`, ...) hold programs of their own. The place
of an equation in this tree is its `Path`: (3,) is equation 3, and (3, 0, 2) equation 2 of the first sub-program in equation 3. A function
called twice has two paths.

    find_equations(program, wanted)                           finds equations
    interpret(program, actions, arguments, given)    runs the program with `actions[path]` in place of the equation at `path`

An action may return something on the side, and be given something. Both pass the walls of sub-programs, of each kind as its meaning asks:

    jit, closed_call    inlined
    remat               stays a remat with its policy
    scan                a side value has one more leading axis, and so has a given one: the steps
    cond                a side value is zero where its branch was not taken
    custom derivatives  outputs come from the equation as it is, so the custom rule stays; a copy of the body yields the side values

Every other primitive that holds a program, such as a `while` of unknown length, can be run but not entered. The walk enters a sub-program
only when an action lies inside it, and everything it does is traceable: it runs under jit, grad and vmap like the program itself.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

_EMPTY = jax.make_jaxpr(lambda: ())().jaxpr

Path: TypeAlias = tuple[int, ...]
Side: TypeAlias = dict[Path, Any]
Handler: TypeAlias = Callable[[JaxprEqn, list[Any], Any], tuple[Sequence[Any], Any]]
"""(equation, inputs, what is given for its path or None) -> (outputs, what to hand out on the side or None)."""


class EquationSite(NamedTuple):
    """An equation and where it stands.

    Attributes:
        path: its place, as `interpret` takes it.
        equation: the equation.
        scope: the name stack from the outermost program inwards, as "CNN/Conv_0"; empty where nothing was named.
        inside: the primitives entered on the way, outermost first.
        steps: the lengths of the scans among them: the axes that its values gain in front.
    """

    path: Path
    equation: JaxprEqn
    scope: str
    inside: tuple[str, ...]
    steps: tuple[int, ...]

    @property
    def opaque_primitive(self) -> str | None:
        """The outermost primitive around it that `interpret` cannot enter."""
        return next((primitive for primitive in self.inside if primitive not in _ENTERING), None)

    @property
    def custom_rule_primitive(self) -> str | None:
        """The outermost primitive around it that has its own derivative: only side values come out of it."""
        return next(
            (primitive for primitive in self.inside if _ENTERING.get(primitive) is _beside), None
        )


def find_equations(program: ClosedJaxpr, wanted: Callable[[JaxprEqn], bool]) -> list[EquationSite]:
    """The equations for which `wanted` holds, in program order, sub-programs included."""
    return list(_sites(program, wanted))


def _sites(
    program: ClosedJaxpr | Jaxpr,
    wanted: Callable[[JaxprEqn], bool],
    path: Path = (),
    scope: str = "",
    inside: tuple[str, ...] = (),
    steps: tuple[int, ...] = (),
) -> Iterator[EquationSite]:
    for index, equation in enumerate(program.eqns):
        here, named, entered = (
            (*path, index),
            str(equation.source_info.name_stack),
            (*inside, equation.primitive.name),
        )
        longer = (*steps, equation.params["length"]) if equation.primitive.name == "scan" else steps
        full = "/".join(filter(None, (scope, named)))
        if wanted(equation):
            yield EquationSite(here, equation, full, inside, steps)
        for number, inner in enumerate(sub_jaxprs(equation)):
            yield from _sites(inner, wanted, (*here, number), full, entered, longer)


def interpret(
    program: ClosedJaxpr,
    actions: Mapping[Path, Handler],
    arguments: Sequence[Any],
    given: Mapping[Path, Any] | None = None,
) -> tuple[list[Any], Side]:
    """Run `program` with `actions[path]` in place of the equation at `path`.

    Args:
        program: a traced function, from `jax.make_jaxpr`.
        actions: what to do, by path. Inside a function with its own derivative rule the outputs of an action are dropped.
        arguments: the arrays the program takes, flat.
        given: what each action is handed, by path; inside a scan with a leading axis of its steps.

    Returns:
        The outputs of the program, flat, and what each action handed out, by path.

    Raises:
        NotImplementedError: an action lies inside a primitive that cannot be entered.

    >>> program = jax.make_jaxpr(lambda x: jnp.exp(jnp.sin(x)))(0.0)
    >>> interpret(program, {(0,): lambda equation, inputs, given: ([inputs[0] + given], "seen")}, [0.0], {(0,): 1.0})
    ([Array(2.7182817, dtype=float32, weak_type=True)], {(0,): 'seen'})
    """
    return _walk(program, actions, given or {}, arguments)


def evaluate_equation(equation: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of one equation as it is, in the context it was traced in.

    One input for each of `equation.invars`. Literals stay the equation's own; a variable that it takes twice has one value, the last.
    """
    values = {
        variable: value
        for variable, value in zip(equation.invars, inputs, strict=True)
        if not isinstance(variable, Literal)
    }
    alone = _EMPTY.replace(
        invars=list(values), outvars=equation.outvars, eqns=[equation], effects=equation.effects
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*values.values())


def as_function(
    equations: Sequence[JaxprEqn],
    operands: Sequence[Any] | None = None,
    results: Sequence[Any] | None = None,
) -> Callable[..., list[Any]]:
    """A stretch of a program as a function of its own.

    Args:
        equations: in program order.
        operands: the variables it takes, each once. By default those of a single equation, in their places: one argument for each, also for
            a literal, and two for a variable that is taken twice, so that x * x is a function of two arguments.
        results: the variables it returns; by default the outputs of the last equation.

    >>> (square,) = jax.make_jaxpr(lambda x: x * x)(0.0).eqns
    >>> jax.grad(lambda a, b: as_function([square])(a, b)[0], (0, 1))(2.0, 3.0)
    (Array(3., dtype=float32, weak_type=True), Array(2., dtype=float32, weak_type=True))
    """
    if operands is None:
        avals: list[Any] = [atom.aval for atom in equations[0].invars]
        operands = _variables(
            tuple((aval.shape, aval.dtype, getattr(aval, "weak_type", False)) for aval in avals)
        )
        equations = [equations[0].replace(invars=list(operands))]
    outvars = list(equations[-1].outvars if results is None else results)
    effects = frozenset().union(*(equation.effects for equation in equations))
    return jaxpr_as_fun(
        ClosedJaxpr(
            _EMPTY.replace(
                invars=list(operands), outvars=outvars, eqns=list(equations), effects=effects
            ),
            (),
        )
    )


@functools.lru_cache(maxsize=4096)
def _variables(shapes: tuple[tuple[Any, Any, bool], ...]) -> tuple[Any, ...]:
    """New variables; `make_jaxpr` is the public way to them."""
    arrays = [jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak in shapes]
    return tuple(jax.make_jaxpr(lambda *arrays: arrays)(*arrays).jaxpr.invars)


def _walk(
    program: ClosedJaxpr | Jaxpr,
    actions: Mapping[Path, Handler],
    given: Mapping[Path, Any],
    arguments: Sequence[Any],
) -> tuple[list[Any], Side]:
    jaxpr, constants = (
        (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, ())
    )
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))
    actions_at, given_at = _by_head(actions), _by_head(given)
    side: Side = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for index, equation in enumerate(jaxpr.eqns):
        outputs, seen = _do(
            equation,
            [read(atom) for atom in equation.invars],
            actions_at.get(index, {}),
            given_at.get(index, {}),
        )
        values.update(zip(equation.outvars, outputs, strict=True))
        side |= {(index, *path): value for path, value in seen.items()}
    return [read(atom) for atom in jaxpr.outvars], side


def _do(
    equation: JaxprEqn,
    inputs: list[Any],
    actions: Mapping[Path, Handler],
    given: Mapping[Path, Any],
) -> tuple[Sequence[Any], Side]:
    if not actions:
        return evaluate_equation(equation, inputs), {}
    if () in actions:
        outputs, seen = actions[()](equation, inputs, given.get(()))
        return outputs, {(): seen}
    enter = _ENTERING.get(equation.primitive.name)
    if enter is None:
        raise NotImplementedError(
            f"the program inside {equation.primitive.name!r} can be run, but not entered"
        )
    bodies = [
        functools.partial(_body, number, program, actions)
        for number, program in enumerate(sub_jaxprs(equation))
    ]
    with _context(equation):
        return enter(equation, bodies, dict(given), inputs)


def _body(
    number: int,
    program: ClosedJaxpr | Jaxpr,
    actions: Mapping[Path, Handler],
    given: Side,
    *arguments: Any,
) -> tuple[list[Any], Side]:
    """Sub-program `number` of an equation, with paths as the equation sees them."""
    outputs, side = _walk(
        program, _by_head(actions).get(number, {}), _by_head(given).get(number, {}), arguments
    )
    return outputs, {(number, *path): value for path, value in side.items()}


def _inline(
    equation: JaxprEqn, bodies: list[Any], given: Side, inputs: list[Any]
) -> tuple[Sequence[Any], Side]:
    return bodies[0](given, *inputs)


def _remat(
    equation: JaxprEqn, bodies: list[Any], given: Side, inputs: list[Any]
) -> tuple[Sequence[Any], Side]:
    prevent = equation.params["prevent_cse"]
    prevent = (True, *prevent) if isinstance(prevent, tuple) else prevent
    return jax.checkpoint(bodies[0], policy=equation.params["policy"], prevent_cse=prevent)(
        given, *inputs
    )


def _scan(
    equation: JaxprEqn, bodies: list[Any], given: Side, inputs: list[Any]
) -> tuple[Sequence[Any], Side]:
    carries, split = equation.params["num_carry"], equation.params["num_consts"]
    constants, start, xs = (
        inputs[:split],
        inputs[split : split + carries],
        inputs[split + carries :],
    )

    def step(
        carry: list[Any], now: tuple[Side, list[Any]]
    ) -> tuple[list[Any], tuple[list[Any], Side]]:
        outputs, side = bodies[0](now[0], *constants, *carry, *now[1])
        return outputs[:carries], (outputs[carries:], side)

    kept = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
    end, (ys, side) = jax.lax.scan(step, start, (given, xs), **kept)
    return [*end, *ys], side


def _cond(
    equation: JaxprEqn, bodies: list[Any], given: Side, inputs: list[Any]
) -> tuple[Sequence[Any], Side]:
    branch, *operands = inputs
    zeros: Side = {}
    for body in bodies:
        zeros |= jax.tree.map(jnp.zeros_like, jax.eval_shape(body, given, *operands)[1])

    def padded(body: Callable[..., Any], *operands: Any) -> tuple[Sequence[Any], Side]:
        outputs, side = body(*operands)
        return outputs, zeros | side

    return jax.lax.switch(
        branch, [functools.partial(padded, body) for body in bodies], given, *operands
    )


def _beside(
    equation: JaxprEqn, bodies: list[Any], given: Side, inputs: list[Any]
) -> tuple[Sequence[Any], Side]:
    return evaluate_equation(equation, inputs), bodies[0](given, *inputs)[1]


_ENTERING: dict[str, Callable[..., tuple[Sequence[Any], Side]]] = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call"), _inline),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), _remat),
    "scan": _scan,
    "cond": _cond,
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"), _beside),
}


def sub_jaxprs(equation: JaxprEqn) -> list[ClosedJaxpr | Jaxpr]:
    """The sub-programs of an equation, wherever its parameters hold them."""
    return [
        leaf
        for leaf in jax.tree.leaves(dict(equation.params))
        if isinstance(leaf, ClosedJaxpr | Jaxpr)
    ]


@contextlib.contextmanager
def _context(equation: JaxprEqn) -> Iterator[None]:
    """The name stack and the settings under which an equation was traced."""
    scope = str(equation.source_info.name_stack)
    with (
        jax.named_scope(scope) if scope else contextlib.nullcontext(),
        getattr(equation.ctx, "manager", contextlib.nullcontext()),
    ):
        yield


def _by_head(mapping: Mapping[Path, Any]) -> dict[int, dict[Path, Any]]:
    """The entries by the first number of their path, each under the rest of it."""
    grouped: dict[int, dict[Path, Any]] = {}
    for (head, *rest), value in mapping.items():
        grouped.setdefault(head, {})[tuple(rest)] = value
    return grouped
