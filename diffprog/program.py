"""Programs: any callable as a pytree whose arrays are leaves and whose code is structure.

`jax.jit` compiles once for one *structure* and takes *leaves* as arguments. A Python callable hides both: weights in a closure would be
compiled in as constants (slow to compile, and again for every other value), and two closures made by one factory count as two programs.
`program` opens a callable up, through closures, bound methods, `functools.partial` and pytrees such as modules, and sorts what it finds:

    arrays               -> leaves, traced: other values are the same program
    code and all else    -> structure, compared by what it says: another number is another program

So the toolkit hands programs to its own jitted functions, and two programs of one structure and the same shapes compile once.

What a function reads from its module's globals belongs to it as much as its closure does, and is opened with it: a notebook cell that is
run again with another weight is the same program of other arrays, one with another number another program. Only installed packages are
trusted not to change their globals.
"""

import builtins
import dis
import functools
import sysconfig
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffprog import _validation, fast_gradients

_NOTHING = object()


class _Structure:
    """Anything that is not an array. There is one `_Structure` for one identity, so comparing two is comparing where they lie."""

    def __init__(self, value: Any) -> None:
        self.value = value


_EVERY_STRUCTURE: weakref.WeakValueDictionary[Hashable, _Structure] = weakref.WeakValueDictionary()


def _structure(value: Any, identity: Hashable) -> _Structure:
    """The structure that says `identity`; `value` is kept for it if it is the first to say so."""
    found = _EVERY_STRUCTURE.get(identity)
    if found is None:
        found = _EVERY_STRUCTURE[identity] = _Structure(value)
    return found


def _same(value: Any) -> _Structure:
    """The very object, whatever becomes of it."""
    return _structure(value, ("same", id(value)))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["join"])
class _Opened:
    """A callable that JAX would take for one leaf, as its parts and the function that joins them again."""

    def __init__(self, parts: Any, join: _Structure) -> None:
        self.parts, self.join = parts, join


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["structure", "fast_gradients"],
)
class Program:
    """A callable pytree, made by `program`.

    Attributes:
        arrays: the leaves, every array the callable holds.
        structure: everything else, hashable, equal for callables of one code.
        fast_gradients: whether it runs as `fast_gradients.faster` makes it.
    """

    def __init__(
        self, arrays: list[jax.Array], structure: _Structure, fast_gradients: bool = True
    ) -> None:
        self.arrays, self.structure, self.fast_gradients = arrays, structure, fast_gradients

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Run the callable that the arrays and the structure make together."""
        run = fast_gradients.faster(_run) if self.fast_gradients else _run
        return run(self, args, keywords)


def _run(program: Program, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    treedef, fixed = program.structure.value
    arrays = iter(program.arrays)
    leaves = [next(arrays) if part is None else part for part in fixed]
    return _close(jax.tree.unflatten(treedef, leaves))(*args, **keywords)


def program(
    apply: Callable[..., Any], params: Any = _NOTHING, *, fast_gradients: bool = True
) -> Program:
    """The program x -> apply(params, x), or x -> apply(x) of a callable that holds its own arrays.

    Args:
        apply: a plain function, with `params`; or alone any callable: an equinox or flax nnx module, a `jax.tree_util.Partial`, a closure.
            A callable object that is not a pytree stays inside as a constant; a program made after one of its attributes was set again
            is another program.
        params: any pytree; its arrays become leaves, the rest structure.
        fast_gradients: whether convolutions and max-pooling in it get the gradient that is fast on the CPU, where it is compiled: the same
            numbers but for rounding (see `fast_gradients.faster`). Part of the structure.

    Returns:
        A `Program`. A `Program` given alone comes back as it is.

    Raises:
        TypeError: `apply` is not callable.

    >>> double = program(lambda weight, x: weight * x, jax.numpy.float32(2))
    >>> double(3.0)
    Array(6., dtype=float32)
    """
    _validation.function("apply", apply)
    if not isinstance(fast_gradients, bool):
        raise TypeError(f"fast_gradients must be True or False, got {fast_gradients!r}")
    if params is _NOTHING and isinstance(apply, Program):
        return apply
    opened = _open(
        apply if params is _NOTHING else functools.partial(apply, params), frozenset(), {}
    )
    leaves, treedef = jax.tree.flatten(opened)
    fixed = tuple(leaf if isinstance(leaf, _Structure) else None for leaf in leaves)
    arrays = [jax.numpy.asarray(leaf) for leaf in leaves if not isinstance(leaf, _Structure)]
    return Program(arrays, _structure((treedef, fixed), (treedef, fixed)), fast_gradients)


def _open(tree: Any, within: frozenset[int], done: dict[int, Any]) -> Any:
    """`tree` with every callable leaf taken apart (once each: `done`), and every other leaf either an array or a `_Structure`."""
    is_leaf = lambda node: isinstance(node, (functools.partial, Program, _Held))
    return jax.tree.map(lambda leaf: _open_leaf(leaf, within, done), tree, is_leaf=is_leaf)


def _open_leaf(leaf: Any, within: frozenset[int], done: dict[int, Any]) -> Any:
    if _is_array(leaf) or isinstance(leaf, _Structure):
        return leaf
    if isinstance(leaf, _Held):
        return _open_held(leaf.value, within, done)
    if id(leaf) in within:
        raise _RefersToItself(id(leaf))
    if id(leaf) not in done:
        try:
            opened = _take_apart(leaf, within | {id(leaf)}, done)
        except _RefersToItself as recursion:
            if recursion.args != (id(leaf),):
                raise
            opened = _same(leaf)
        # With the leaf itself: an object that is gone could leave its id to another.
        done[id(leaf)] = leaf, opened
    return done[id(leaf)][1]


class _Held(NamedTuple):
    """A value that a function holds, before it is opened."""

    value: Any


def _open_held(value: Any, within: frozenset[int], done: dict[int, Any]) -> Any:
    """What has no arrays stays one object: the same wherever it is held, so that a function may ask with `is`."""
    opened = _open(value, within, done)
    leaves, treedef = jax.tree.flatten(opened)
    if isinstance(opened, _Structure) or any(not isinstance(leaf, _Structure) for leaf in leaves):
        return opened
    identity = ("held", treedef, tuple(leaves))
    return _EVERY_STRUCTURE.get(identity) or _structure(_close(opened), identity)


class _RefersToItself(Exception):
    """A recursive function cannot be rebuilt around new arrays; it stays whole."""


def _take_apart(leaf: Any, within: frozenset[int], done: dict[int, Any]) -> Any:
    """Parts and join of a callable that holds arrays; a `_Structure` that names its parts of one that holds none."""
    parts: Any
    code: Hashable
    join: Callable[[Any], Any]
    match leaf:
        case functools.partial():
            names = tuple(leaf.keywords)
            parts, code = (leaf.func, leaf.args, tuple(leaf.keywords.values())), ("partial", names)
            join = lambda parts: functools.partial(
                parts[0], *parts[1], **dict(zip(names, parts[2], strict=True))
            )
        case types.MethodType():
            parts, code = (leaf.__func__, leaf.__self__), ("method",)
            join = lambda parts: types.MethodType(*parts)
        case types.FunctionType():
            use = _use(leaf.__code__)
            if use.assigns_globals:
                return _same(leaf)
            parts, code = (
                _function_parts(leaf, use),
                (leaf.__code__, id(leaf.__globals__) if use.installed else None),
            )
            join = functools.partial(_function_from_parts, leaf)
        case Program():
            parts, code = leaf.arrays, ("program", leaf.structure, leaf.fast_gradients)
            join = lambda arrays: Program(arrays, leaf.structure, leaf.fast_gradients)
        case _:
            return _structure(leaf, _identity(leaf))
    opened = _open(parts, within, done)
    leaves, treedef = jax.tree.flatten(opened)
    if any(not isinstance(part, _Structure) for part in leaves):
        return _Opened(opened, _structure(join, code))
    identity = (code, treedef, tuple(leaves))
    if (
        isinstance(leaf, types.FunctionType)
        and leaf.__closure__ is None
        and _use(leaf.__code__).installed
    ):
        # Itself: JAX asks with `is` whether a pooling's operation is `lax.max`.
        return _structure(leaf, identity)
    # A copy: what the callable itself reads may be set again, and then it would no longer be what it is kept for.
    return _EVERY_STRUCTURE.get(identity) or _structure(join(_close(opened)), identity)


class _Use(NamedTuple):
    """What a function's code, nested functions included, does with names that are not its own.

    Attributes:
        globals: those it reads from its module; none for an installed package, whose globals are taken for constants.
        written: those it assigns: numbers among them are counters of their owner.
        records: whether it changes containers: lists, dicts and sets are then records of their owner.
        assigns_globals: whether it sets a global; it then stays whole, as it is.
        installed: whether it belongs to an installed package, the standard library, or diffprog.
    """

    globals: tuple[str, ...]
    written: frozenset[str]
    records: bool
    assigns_globals: bool
    installed: bool


_PACKAGES = tuple(
    {
        *(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
        str(Path(__file__).parent),
    }
)
_CHANGES = frozenset(
    ("append", "extend", "insert", "add", "update", "setdefault", "pop", "remove", "clear")
)


@functools.lru_cache(maxsize=4096)
def _use(code: types.CodeType) -> _Use:
    if code.co_filename.startswith(_PACKAGES):
        return _Use((), frozenset(), records=False, assigns_globals=False, installed=True)
    steps = list(_steps(code))
    reads = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    written = {step.argval for step in steps if step.opname == "STORE_DEREF"}
    assigns_globals = any(step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for step in steps)
    records = any(
        step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR") or step.argval in _CHANGES
        for step in steps
        if _is_hashable(step.argval)
    )
    return _Use(tuple(sorted(reads)), frozenset(written), records, assigns_globals, installed=False)


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _steps(constant)


def _function_parts(function: types.FunctionType, use: _Use) -> tuple[Any, ...]:
    """Contents of the closure's cells, the default arguments, and the globals that are read."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    contents = tuple(_Held(_contents(name, cell, use)) for name, cell in cells)
    defaults = None if function.__defaults__ is None else tuple(map(_Held, function.__defaults__))
    keyword_defaults = tuple(map(_Held, (function.__kwdefaults__ or {}).values()))
    found = {
        name: function.__globals__[name] for name in use.globals if name in function.__globals__
    }
    read = (
        None if use.installed else {name: _Held(_kept(value, use)) for name, value in found.items()}
    )
    return contents, defaults, keyword_defaults, read


def _contents(name: str, cell: types.CellType, use: _Use) -> Any:
    try:
        content = cell.cell_contents
    except ValueError:
        return _same(cell)
    if name in use.written and isinstance(content, (int, float)):
        return _same(cell)
    return _kept(content, use)


def _kept(value: Any, use: _Use) -> Any:
    """A container that the code changes stays the very same, so that its owner sees the changes."""
    return _same(value) if use.records and isinstance(value, (list, dict, set)) else value


def _function_from_parts(
    original: types.FunctionType, parts: tuple[Any, ...]
) -> types.FunctionType:
    contents, defaults, keyword_defaults, read = parts
    cells = tuple(
        value if isinstance(value, types.CellType) else types.CellType(value) for value in contents
    )
    names = (
        original.__globals__
        if read is None
        else {"__builtins__": builtins, "__name__": original.__module__, **read}
    )
    function = types.FunctionType(original.__code__, names, original.__name__, defaults, cells)
    function.__kwdefaults__ = dict(
        zip(original.__kwdefaults__ or {}, keyword_defaults, strict=True)
    )
    return function


def _close(opened: Any) -> Any:
    """The inverse of `_open`."""
    return jax.tree.map(_close_leaf, opened, is_leaf=lambda node: isinstance(node, _Opened))


def _close_leaf(leaf: Any) -> Any:
    if isinstance(leaf, _Opened):
        return leaf.join.value(_close(leaf.parts))
    return leaf.value if isinstance(leaf, _Structure) else leaf


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and value.dtype != object)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _identity(value: Any) -> Hashable:
    """By value where a type compares by value; otherwise the very object, with what its attributes are now."""
    if isinstance(value, float):
        return float, repr(value)
    if isinstance(value, set):
        return set, frozenset(value)
    compared_by_value = type(value).__eq__ is not object.__eq__ and _is_hashable(value)
    if (
        compared_by_value
        or isinstance(value, (type, types.ModuleType))
        or not hasattr(value, "__dict__")
    ):
        return (type(value), value) if _is_hashable(value) else (type(value), id(value))
    return (
        type(value),
        id(value),
        tuple((name, _Attribute(held)) for name, held in vars(value).items()),
    )


class _Attribute:
    """What an attribute holds, compared as `_identity` does for plain values and otherwise as the very object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Attribute) and (
            self.value is other.value or self._plain() == other._plain()
        )

    def __hash__(self) -> int:
        return hash(self._plain())

    def _plain(self) -> Hashable:
        plain = isinstance(self.value, (bool, int, float, complex, str, bytes, type(None)))
        return (type(self.value), repr(self.value)) if plain else id(self.value)
