"""Interpret a jaxpr, with Python functions (handlers) in place of some of its equations.

`jax.make_jaxpr` turns a function into a list of equations. Some of them (`scan`, `cond`, `jit`)
hold jaxprs of their own, so the equations form a tree. The `Path` of an equation is its position in
that tree: (3,) is equation 3, and (3, 0, 2) is equation 2 of the first sub-jaxpr of equation 3.
The equations of a function that is called twice occur at two paths.

    find_equations(program, predicate)         equations that satisfy a predicate
    interpret(program, handlers, arguments)    run the jaxpr, with handlers[path] at that path

`diffprog.nodes` reads and replaces intermediate values in this way. Besides the outputs of its
equation, a handler can return a value to the caller of `interpret`, its side output; its side input
is a value that the caller gives it. Both also work inside sub-jaxprs:

    jit, closed_call      the body is inlined
    remat                 stays a remat with the same policy
    scan                  a side input or output gains a leading axis, the iterations
    cond                  a side output is zero if its branch was not taken
    custom derivatives    the outputs are those of the original equation, which keeps its derivative
                          rule; a second evaluation of the body gives the side outputs

Other primitives with a sub-jaxpr, such as a `while` loop of unknown length, run unchanged and
cannot be entered. A sub-jaxpr is entered only if it contains a handled equation. The interpreter
is traceable: it works under jit, grad and vmap.

No other file of the package imports `jax.extend.core`. Parameters of equations that several files
need are read here too, by functions such as `convolution_dimensions`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

# There is no public constructor of jaxprs: others are made from this one by `replace`.
_EMPTY = jax.make_jaxpr(lambda: ())().jaxpr

Path: TypeAlias = tuple[int, ...]
ByPath: TypeAlias = dict[Path, Any]
Handler: TypeAlias = Callable[[JaxprEqn, list[Any], Any], tuple[Sequence[Any], Any]]
"""(equation, inputs, side input or None) -> (outputs, side output or None)."""


class EquationSite(NamedTuple):
    """Equation of a jaxpr and where it is, as `find_equations` returns it.

    Attributes:
        path: position of the equation, a key of the `handlers` of `interpret`.
        equation: the equation.
        scope: named scopes around the equation, outermost first, such as "CNN/Conv_0"; may be
            empty.
        enclosing: names of the primitives that enclose the equation, outermost first.
        scan_lengths: lengths of the enclosing scans, outermost first: the leading axes of an output
            of the equation that is stacked over all iterations.
    """

    path: Path
    equation: JaxprEqn
    scope: str
    enclosing: tuple[str, ...]
    scan_lengths: tuple[int, ...]

    @property
    def opaque_primitive(self) -> str | None:
        """Name of the outermost primitive around it that `interpret` cannot enter; None if none."""
        return next((name for name in self.enclosing if name not in _ENTER), None)

    @property
    def custom_rule_primitive(self) -> str | None:
        """Name of the outermost primitive around it with a custom derivative; None if none.

        Values inside such a primitive (`jax.custom_jvp`, `jax.custom_vjp`) can be read, but not
        changed.
        """
        return next((name for name in self.enclosing if _ENTER.get(name) is _custom_rule), None)


class ScanParameters(NamedTuple):
    """Parameters of a `scan` equation: numbers of its constants and carries, length, options.

    The inputs of the equation are (*constants, *initial carry, *xs).
    """

    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: Any


def scan_parameters(equation: JaxprEqn) -> ScanParameters:
    """Read the `ScanParameters` of a `scan` equation, in any supported version of JAX."""
    params = equation.params
    if "num_carry" in params:
        counts = params["num_consts"], params["num_carry"]
    else:  # since JAX 0.12 the inputs are grouped as (constants, initial carry, xs)
        constants, carry, _ = params["ft_in"].unpack()
        counts = len(constants), len(carry)
    return ScanParameters(*counts, params["length"], params["reverse"], params["unroll"])


def convolution_dimensions(equation: JaxprEqn) -> jax.lax.ConvDimensionNumbers:
    """Return the `ConvDimensionNumbers` of a convolution equation: the axis order of each array."""
    return equation.params["dimension_numbers"]


def dot_dimensions(equation: JaxprEqn) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return the contracted and the batch axes of a `dot_general`: two pairs (left, right)."""
    return equation.params["dimension_numbers"]


def reduced_axes(equation: JaxprEqn) -> tuple[int, ...]:
    """Return the axes over which an equation, such as `reduce_sum` or `cumsum`, reduces."""
    params = equation.params
    return params["axes"] if "axes" in params else (params["axis"],)


def tap_name(equation: JaxprEqn) -> str:
    """Return the name in a `name` equation, which `nodes.tap` adds to name a value."""
    return equation.params["name"]


def sub_jaxprs(equation: JaxprEqn) -> list[ClosedJaxpr | Jaxpr]:
    """Return the jaxprs that an equation contains, such as the body of a `scan`."""
    leaves = jax.tree.leaves(dict(equation.params))
    return [leaf for leaf in leaves if isinstance(leaf, ClosedJaxpr | Jaxpr)]


def find_equations(
    program: ClosedJaxpr | Jaxpr, predicate: Callable[[JaxprEqn], bool]
) -> list[EquationSite]:
    """Return the equations of a jaxpr for which `predicate(equation)` is true.

    They are in program order, with those of the sub-jaxprs.
    """

    def search(
        program: ClosedJaxpr | Jaxpr,
        path: Path,
        scope: str,
        enclosing: tuple[str, ...],
        scan_lengths: tuple[int, ...],
    ) -> Iterator[EquationSite]:
        for index, equation in enumerate(program.eqns):
            primitive, here = equation.primitive.name, (*path, index)
            names = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
            if predicate(equation):
                yield EquationSite(here, equation, names, enclosing, scan_lengths)
            lengths = (scan_parameters(equation).length,) if primitive == "scan" else ()
            context = names, (*enclosing, primitive), (*scan_lengths, *lengths)
            for number, inner in enumerate(sub_jaxprs(equation)):
                yield from search(inner, (*here, number), *context)

    return list(search(program, (), "", (), ()))


def evaluate_equation(equation: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """Evaluate one jaxpr equation, given one input per operand, and return its outputs as a list.

    Where an operand is a literal, its input is ignored. If two operands are the same variable, the
    input of the last one is used.
    """
    values = {
        variable: value
        for variable, value in zip(equation.invars, inputs, strict=True)
        if not isinstance(variable, Literal)
    }
    return as_function([equation], list(values))(*values.values())


def as_function(
    equations: Sequence[JaxprEqn],
    operands: Sequence[Any] | None = None,
    results: Sequence[Any] | None = None,
) -> Callable[..., list[Any]]:
    """Turn consecutive equations of a jaxpr into a function that returns a list of arrays.

    Args:
        equations: one or more consecutive equations, in order.
        operands: distinct variables that become the arguments. By default, for a single equation,
            each operand becomes an argument, literals too; a variable that occurs twice becomes two
            arguments, so that x * x is a function of two.
        results: variables to return; by default the outputs of the last equation.

    >>> (square,) = jax.make_jaxpr(lambda x: x * x)(0.0).eqns
    >>> jax.grad(lambda a, b: as_function([square])(a, b)[0], (0, 1))(2.0, 3.0)
    (Array(3., dtype=float32, weak_type=True), Array(2., dtype=float32, weak_type=True))
    """
    if operands is None:
        avals: list[Any] = [atom.aval for atom in equations[0].invars]
        operands = _fresh_variables(
            tuple((aval.shape, aval.dtype, getattr(aval, "weak_type", False)) for aval in avals)
        )
        equations = [equations[0].replace(invars=list(operands))]
    jaxpr = _EMPTY.replace(
        invars=list(operands),
        outvars=list(equations[-1].outvars if results is None else results),
        eqns=list(equations),
        effects=frozenset().union(*(equation.effects for equation in equations)),
    )
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))


@functools.lru_cache(maxsize=4096)
def _fresh_variables(avals: tuple[tuple[Any, Any, bool], ...]) -> tuple[Any, ...]:
    """Return new jaxpr variables, one for each (shape, dtype, whether weakly typed)."""
    # There is no public constructor of variables; those of a traced identity are new ones.
    arrays = [jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak in avals]
    return tuple(jax.make_jaxpr(lambda *arrays: arrays)(*arrays).jaxpr.invars)


def interpret(
    program: ClosedJaxpr | Jaxpr,
    handlers: Mapping[Path, Handler],
    arguments: Sequence[Any],
    side_inputs: Mapping[Path, Any] | None = None,
) -> tuple[list[Any], ByPath]:
    """Run a jaxpr with `handlers[path]` in place of the equation at `path`.

    Args:
        program: a jaxpr, from `jax.make_jaxpr`.
        handlers: functions `handler(equation, inputs, side_input) -> (outputs, side_output)` by the
            path of the equation that they replace. Inside a function with a custom derivative,
            `outputs` is ignored.
        arguments: flat list of the arrays that the jaxpr takes.
        side_inputs: values for the `side_input` of handlers, by path; None for the others. Inside a
            scan the value has one entry for each iteration, on the leading axis.

    Returns:
        (outputs, side_outputs): the flat list of outputs of the jaxpr, and a dict of the side
        outputs of the handlers by path.

    Raises:
        NotImplementedError: a handled equation is inside a primitive that cannot be entered.

    >>> program = jax.make_jaxpr(lambda x: jnp.exp(jnp.sin(x)))(0.0)
    >>> shift = lambda equation, inputs, amount: ([inputs[0] + amount], "shifted")
    >>> interpret(program, {(0,): shift}, [0.0], {(0,): 1.0})
    ([Array(2.7182817, dtype=float32, weak_type=True)], {(0,): 'shifted'})
    """
    jaxpr, constants = (
        (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, ())
    )
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))
    handlers_at, side_inputs_at = _by_first_index(handlers), _by_first_index(side_inputs or {})
    side_outputs: ByPath = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for index, equation in enumerate(jaxpr.eqns):
        outputs, side = _interpret_equation(
            equation,
            [read(atom) for atom in equation.invars],
            handlers_at.get(index, {}),
            side_inputs_at.get(index, {}),
        )
        values.update(zip(equation.outvars, outputs, strict=True))
        side_outputs |= {(index, *path): value for path, value in side.items()}
    return [read(atom) for atom in jaxpr.outvars], side_outputs


def _interpret_equation(
    equation: JaxprEqn, inputs: list[Any], handlers: Mapping[Path, Handler], side_inputs: ByPath
) -> tuple[Sequence[Any], ByPath]:
    if not handlers:
        return evaluate_equation(equation, inputs), {}
    if () in handlers:
        outputs, side_output = handlers[()](equation, inputs, side_inputs.get(()))
        return outputs, {(): side_output}
    enter = _ENTER.get(equation.primitive.name)
    if enter is None:
        raise NotImplementedError(
            f"cannot enter primitive {equation.primitive.name!r}; it can only run unchanged"
        )

    def body(
        number: int, program: ClosedJaxpr | Jaxpr, side_inputs: ByPath, *arguments: Any
    ) -> tuple[list[Any], ByPath]:
        """Interpret `program`, the sub-jaxpr with index `number` of the equation.

        Returns its outputs and its side outputs. The paths of side inputs and side outputs are
        (number, ...), relative to the equation.
        """
        outputs, side = interpret(
            program,
            _by_first_index(handlers).get(number, {}),
            arguments,
            _by_first_index(side_inputs).get(number, {}),
        )
        return outputs, {(number, *path): value for path, value in side.items()}

    bodies = [
        functools.partial(body, number, program)
        for number, program in enumerate(sub_jaxprs(equation))
    ]
    with _tracing_context(equation):
        return enter(equation, bodies, side_inputs, inputs)


# One function for each kind of sub-jaxpr, which runs the equation around interpreted bodies.


def _inline(
    equation: JaxprEqn, bodies: list[Any], side_inputs: ByPath, inputs: list[Any]
) -> tuple[Sequence[Any], ByPath]:
    return bodies[0](side_inputs, *inputs)


def _remat(
    equation: JaxprEqn, bodies: list[Any], side_inputs: ByPath, inputs: list[Any]
) -> tuple[Sequence[Any], ByPath]:
    policy, prevent_cse = equation.params["policy"], equation.params["prevent_cse"]
    if isinstance(prevent_cse, tuple):  # one flag per argument, and the side inputs are one more
        prevent_cse = (True, *prevent_cse)
    return jax.checkpoint(bodies[0], policy=policy, prevent_cse=prevent_cse)(side_inputs, *inputs)


def _scan(
    equation: JaxprEqn, bodies: list[Any], side_inputs: ByPath, inputs: list[Any]
) -> tuple[Sequence[Any], ByPath]:
    num_consts, num_carry, length, reverse, unroll = scan_parameters(equation)
    split = num_consts + num_carry
    constants, init, xs = inputs[:num_consts], inputs[num_consts:split], inputs[split:]

    def step(carry: list[Any], x: tuple[ByPath, list[Any]]) -> tuple[list[Any], Any]:
        side_input, slices = x
        outputs, side = bodies[0](side_input, *constants, *carry, *slices)
        return outputs[:num_carry], (outputs[num_carry:], side)

    carry, (ys, side) = jax.lax.scan(
        step, init, (side_inputs, xs), length=length, reverse=reverse, unroll=unroll
    )
    return [*carry, *ys], side


def _cond(
    equation: JaxprEqn, bodies: list[Any], side_inputs: ByPath, inputs: list[Any]
) -> tuple[Sequence[Any], ByPath]:
    index, *operands = inputs
    # All branches must return one structure: each gets zeros for the side outputs of the others.
    zeros: ByPath = {}
    for body in bodies:
        zeros |= jax.tree.map(jnp.zeros_like, jax.eval_shape(body, side_inputs, *operands)[1])

    def with_all_side_outputs(body: Callable[..., Any], *operands: Any) -> tuple[Any, ByPath]:
        outputs, side = body(*operands)
        return outputs, zeros | side

    branches = [functools.partial(with_all_side_outputs, body) for body in bodies]
    return jax.lax.switch(index, branches, side_inputs, *operands)


def _custom_rule(
    equation: JaxprEqn, bodies: list[Any], side_inputs: ByPath, inputs: list[Any]
) -> tuple[Sequence[Any], ByPath]:
    # XLA removes whatever the second evaluation computes beyond the side outputs.
    return evaluate_equation(equation, inputs), bodies[0](side_inputs, *inputs)[1]


_ENTER: dict[str, Callable[..., tuple[Sequence[Any], ByPath]]] = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call"), _inline),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), _remat),
    "scan": _scan,
    "cond": _cond,
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"), _custom_rule),
}


@contextlib.contextmanager
def _tracing_context(equation: JaxprEqn) -> Iterator[None]:
    """Restore, within a `with` block, the named scope and JAX settings of an equation's trace."""
    scope = str(equation.source_info.name_stack)
    with (
        jax.named_scope(scope) if scope else contextlib.nullcontext(),
        getattr(equation.ctx, "manager", contextlib.nullcontext()),
    ):
        yield


def _by_first_index(mapping: Mapping[Path, Any]) -> dict[int, ByPath]:
    """Group a dict by the first index of its paths: {(i, *rest): v} becomes {i: {rest: v}}."""
    grouped: dict[int, ByPath] = {}
    for (first, *rest), value in mapping.items():
        grouped.setdefault(first, {})[tuple(rest)] = value
    return grouped
