"""Programs: any callable as a pytree whose arrays are leaves and whose code is structure.

`jax.jit` compiles once for one *structure* and takes *leaves* as arguments. A Python callable hides both: weights in a closure would be
compiled in as constants (slow to compile, and again for every other value), and two closures made by one factory count as two programs.
`program` opens a callable up, through closures, bound methods, `functools.partial` and pytrees such as modules, and sorts what it finds:

    arrays               -> leaves, traced: other values are the same program
    code and all else    -> structure, compared by what it says: another number is another program

So the toolkit hands programs to its own jitted functions, and two programs of one structure and the same shapes compile once.
"""

import dis
import functools
import types
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from diffprog import require

_NOTHING = object()


class _Structure:
    """Anything that is not an array, compared by an `identity` that says what it is rather than where it lies."""

    def __init__(self, value: Any, identity: Hashable) -> None:
        self.value, self.identity = value, identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["join"])
class _Opened:
    """A callable that JAX would take for one leaf, as its parts and the function that joins them again."""

    def __init__(self, parts: Any, join: _Structure) -> None:
        self.parts, self.join = parts, join


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["structure"])
class Program:
    """A callable pytree, made by `program`.

    Attributes:
        arrays: the leaves, every array the callable holds.
        structure: everything else, hashable, equal for callables of one code.
    """

    def __init__(self, arrays: list[jax.Array], structure: _Structure) -> None:
        self.arrays, self.structure = arrays, structure

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Run the callable that the arrays and the structure make together."""
        treedef, fixed = self.structure.value
        arrays = iter(self.arrays)
        leaves = [next(arrays) if part is None else part for part in fixed]
        return _close(jax.tree.unflatten(treedef, leaves))(*args, **keywords)


def program(apply: Callable[..., Any], params: Any = _NOTHING) -> Program:
    """The program x -> apply(params, x), or x -> apply(x) of a callable that holds its own arrays.

    Args:
        apply: a plain function, with `params`; or alone any callable: an equinox or flax nnx module, a `jax.tree_util.Partial`, a closure.
            A callable object that is not a pytree, and what a function reads from its globals, stay inside as constants.
        params: any pytree; its arrays become leaves, the rest structure.

    Returns:
        A `Program`. A `Program` given alone comes back as it is.

    Raises:
        TypeError: `apply` is not callable.

    >>> double = program(lambda weight, x: weight * x, jax.numpy.float32(2))
    >>> double(3.0)
    Array(6., dtype=float32)
    """
    require.function("apply", apply)
    if params is _NOTHING and isinstance(apply, Program):
        return apply
    opened = _open(apply if params is _NOTHING else functools.partial(apply, params), frozenset())
    leaves, treedef = jax.tree.flatten(opened)
    fixed = tuple(leaf if isinstance(leaf, _Structure) else None for leaf in leaves)
    arrays = [jax.numpy.asarray(leaf) for leaf in leaves if not isinstance(leaf, _Structure)]
    return Program(arrays, _Structure((treedef, fixed), (treedef, fixed)))


def _open(tree: Any, within: frozenset[int]) -> Any:
    """`tree` with every callable leaf taken apart, and every other leaf either an array or a `_Structure`."""
    return jax.tree.map(lambda leaf: _open_leaf(leaf, within), tree, is_leaf=lambda node: isinstance(node, (functools.partial, Program)))


def _open_leaf(leaf: Any, within: frozenset[int]) -> Any:
    if _is_array(leaf) or isinstance(leaf, _Structure):
        return leaf
    if id(leaf) in within:
        raise _RefersToItself(id(leaf))
    try:
        return _take_apart(leaf, within | {id(leaf)})
    except _RefersToItself as recursion:
        if recursion.args != (id(leaf),):
            raise
        return _Structure(leaf, (types.FunctionType, id(leaf)))


class _RefersToItself(Exception):
    """A recursive function cannot be rebuilt around new arrays; it stays whole."""


def _take_apart(leaf: Any, within: frozenset[int]) -> Any:
    """Parts and join of a callable that holds arrays; a `_Structure` that names its parts of one that holds none."""
    parts: Any
    code: Hashable
    join: Callable[[Any], Any]
    match leaf:
        case functools.partial():
            names = tuple(leaf.keywords)
            parts, code = (leaf.func, leaf.args, tuple(leaf.keywords.values())), ("partial", names)
            join = lambda parts: functools.partial(parts[0], *parts[1], **dict(zip(names, parts[2], strict=True)))  # noqa: E731
        case types.MethodType():
            parts, code = (leaf.__func__, leaf.__self__), ("method",)
            join = lambda parts: types.MethodType(*parts)  # noqa: E731
        case types.FunctionType():
            parts, code = _function_parts(leaf), (leaf.__code__, id(leaf.__globals__))
            join = functools.partial(_function_from_parts, leaf)
        case Program():
            parts, code = leaf.arrays, ("program", leaf.structure)
            join = lambda arrays: Program(arrays, leaf.structure)  # noqa: E731
        case _:
            return _Structure(leaf, _identity(leaf))
    opened = _open(parts, within)
    leaves, treedef = jax.tree.flatten(opened)
    if any(not isinstance(part, _Structure) for part in leaves):
        return _Opened(opened, _Structure(join, code))
    return _Structure(leaf, (code, treedef, tuple(leaves)))


def _function_parts(function: types.FunctionType) -> tuple[Any, ...]:
    """Contents of the closure's cells, and the default arguments."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    contents = tuple(_contents(cell, name in _written_cells(function.__code__)) for name, cell in cells)
    return contents, function.__defaults__, tuple((function.__kwdefaults__ or {}).values())


def _contents(cell: types.CellType, written: bool) -> Any:
    """What a cell holds. The owner's state stays itself: a number that the code writes, a list, dict or set without arrays."""
    try:
        content = cell.cell_contents
    except ValueError:
        return _Structure(cell, id(cell))
    if written and isinstance(content, (int, float)):
        return _Structure(cell, id(cell))
    if isinstance(content, (list, dict, set)) and not any(map(_is_array, jax.tree.leaves(content))):
        return _Structure(content, id(content))
    return content


def _function_from_parts(original: types.FunctionType, parts: tuple[Any, ...]) -> types.FunctionType:
    contents, defaults, keyword_defaults = parts
    cells = tuple(value if isinstance(value, types.CellType) else types.CellType(value) for value in contents)
    function = types.FunctionType(original.__code__, original.__globals__, original.__name__, defaults, cells)
    function.__kwdefaults__ = dict(zip(original.__kwdefaults__ or {}, keyword_defaults, strict=True))
    return function


@functools.lru_cache(maxsize=1024)
def _written_cells(code: types.CodeType) -> frozenset[str]:
    """Names that the code assigns with `nonlocal`."""
    return frozenset(step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF" and step.argval in code.co_freevars)


def _close(opened: Any) -> Any:
    """The inverse of `_open`."""
    return jax.tree.map(_close_leaf, opened, is_leaf=lambda node: isinstance(node, _Opened))


def _close_leaf(leaf: Any) -> Any:
    if isinstance(leaf, _Opened):
        return leaf.join.value(_close(leaf.parts))
    return leaf.value if isinstance(leaf, _Structure) else leaf


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and value.dtype != object)


def _identity(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return type(value), id(value)
    return type(value), repr(value) if isinstance(value, float) else value
