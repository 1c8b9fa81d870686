"""Turn any callable into a pytree: its arrays are leaves, its code is structure.

`jax.jit` compiles once per *structure* and takes *leaves* as arguments. A Python callable hides
both: weights in a closure would be compiled in as constants, which is slow and repeated for every
new value, and two closures from one factory count as two programs. `program` decomposes a callable
through closures, bound methods, `functools.partial` and pytrees such as modules:

    arrays                 become leaves, which are traced: other values do not recompile
    code and other data    becomes structure, compared by value: another number recompiles

The toolkit passes programs to its own jitted functions, so that two programs of one structure and
the same shapes compile once.

The globals that a function reads are treated like its closure: a notebook cell that runs again with
another weight is the same program, and with another number another program. Globals of installed
packages count as constants.
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

_MISSING = object()


class _Static:
    """Wrapper of a value that is not an array, in a pytree's structure; equal values share one."""

    def __init__(self, value: Any) -> None:
        self.value = value


_INTERNED: weakref.WeakValueDictionary[Hashable, _Static] = weakref.WeakValueDictionary()


def _intern(value: Any, identity: Hashable) -> _Static:
    """Return the `_Static` stored under the key `identity`; if none, store one of `value`."""
    interned = _INTERNED.get(identity)
    if interned is None:
        interned = _INTERNED[identity] = _Static(value)
    return interned


def _opaque(value: Any) -> _Static:
    """Return a `_Static` of an object that is compared by `is`, not searched for arrays."""
    return _intern(value, ("same", id(value)))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["join"])
class _Decomposed:
    """A callable taken apart: a pytree of its parts, and `join`, which rebuilds it from them."""

    def __init__(self, parts: Any, join: _Static) -> None:
        self.parts, self.join = parts, join


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["structure", "fast_gradients"],
)
class Program:
    """A callable whose arrays are pytree leaves, made by `program`.

    It can be an argument of jitted functions, which compile once for programs of one structure.

    Attributes:
        arrays: the leaves, every array in the callable.
        structure: everything else; hashable, and equal for callables of the same code.
        fast_gradients: whether calls run through `fast_gradients.faster`.
    """

    def __init__(
        self, arrays: list[jax.Array], structure: _Static, fast_gradients: bool = True
    ) -> None:
        self.arrays, self.structure, self.fast_gradients = arrays, structure, fast_gradients

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Call the original callable on these arguments, with `arrays` in place of its arrays."""
        run = fast_gradients.faster(_run) if self.fast_gradients else _run
        return run(self, args, keywords)


def _run(program: Program, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    treedef, fixed = program.structure.value
    arrays = iter(program.arrays)
    leaves = [next(arrays) if part is None else part for part in fixed]
    return _recompose(jax.tree.unflatten(treedef, leaves))(*args, **keywords)


def program(
    apply: Callable[..., Any], params: Any = _MISSING, *, fast_gradients: bool = True
) -> Program:
    """Turn a function or module into a `Program`, a callable whose arrays are pytree leaves.

    Jitted functions that take a program compile once for all programs of the same structure, and
    not for each set of weights.

    Args:
        apply: if `params` is given, a function apply(params, x). Otherwise any callable of x, such
            as an equinox or flax nnx module, a `jax.tree_util.Partial` or a closure. An object that
            is callable but no pytree is a constant: its arrays are not leaves, and functions
            recompile after one of its attributes was set.
        params: first argument of `apply`, a pytree. Its arrays become leaves; everything else in it
            is part of the structure.
        fast_gradients: whether convolutions and max-pooling get gradients that are fast on the CPU
            and equal up to rounding (see `fast_gradients.faster`).

    Returns:
        A `Program`. A `Program` without `params` is returned unchanged.

    Raises:
        TypeError: `apply` is not callable.

    >>> double = program(lambda weight, x: weight * x, jax.numpy.float32(2))
    >>> double(3.0)
    Array(6., dtype=float32)
    """
    _validation.function("apply", apply)
    if not isinstance(fast_gradients, bool):
        raise TypeError(f"fast_gradients must be True or False, got {fast_gradients!r}")
    if params is _MISSING and isinstance(apply, Program):
        return apply
    decomposed = _decompose(
        apply if params is _MISSING else functools.partial(apply, params), frozenset(), {}
    )
    leaves, treedef = jax.tree.flatten(decomposed)
    fixed = tuple(leaf if isinstance(leaf, _Static) else None for leaf in leaves)
    arrays = [jax.numpy.asarray(leaf) for leaf in leaves if not isinstance(leaf, _Static)]
    return Program(arrays, _intern((treedef, fixed), (treedef, fixed)), fast_gradients)


def _decompose(tree: Any, within: frozenset[int], memo: dict[int, Any]) -> Any:
    """Replace every leaf of a pytree that is not an array by a `_Decomposed` or a `_Static`.

    A callable that holds arrays becomes a `_Decomposed`, any other leaf a `_Static`. `within` has
    the ids of the callables being decomposed, and `memo` the results of those already done, by id.
    """
    is_leaf = lambda node: isinstance(node, (functools.partial, Program, _Content))
    return jax.tree.map(lambda leaf: _decompose_leaf(leaf, within, memo), tree, is_leaf=is_leaf)


def _decompose_leaf(leaf: Any, within: frozenset[int], memo: dict[int, Any]) -> Any:
    if _is_array(leaf) or isinstance(leaf, _Static):
        return leaf
    if isinstance(leaf, _Content):
        return _decompose_content(leaf.value, within, memo)
    if id(leaf) in within:
        raise _RefersToItself(id(leaf))
    if id(leaf) not in memo:
        try:
            decomposed = _decompose_callable(leaf, within | {id(leaf)}, memo)
        except _RefersToItself as recursion:
            if recursion.args != (id(leaf),):
                raise
            decomposed = _opaque(leaf)
        # The leaf is stored too, because the id of a deleted object can be reused.
        memo[id(leaf)] = leaf, decomposed
    return memo[id(leaf)][1]


class _Content(NamedTuple):
    """Wrapper of a value in a function's closure, defaults or globals that is to be decomposed."""

    value: Any


def _decompose_content(value: Any, within: frozenset[int], memo: dict[int, Any]) -> Any:
    """Decompose a value that a function reads.

    A value without arrays becomes one `_Static`: the function then gets the same object in every
    call, and can compare it by `is`.
    """
    decomposed = _decompose(value, within, memo)
    leaves, treedef = jax.tree.flatten(decomposed)
    if isinstance(decomposed, _Static) or any(not isinstance(leaf, _Static) for leaf in leaves):
        return decomposed
    identity = ("content", treedef, tuple(leaves))
    return _INTERNED.get(identity) or _intern(_recompose(decomposed), identity)


class _RefersToItself(Exception):
    """Raised for a function that refers to itself: it cannot be rebuilt around new arrays."""


def _decompose_callable(leaf: Any, within: frozenset[int], memo: dict[int, Any]) -> Any:
    """Return a callable that holds arrays as a `_Decomposed`, any other as a `_Static`.

    Callables without arrays share one `_Static` if their code and the values they read are equal.
    """
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
            use = _code_effects(leaf.__code__)
            if use.assigns_globals:
                return _opaque(leaf)
            module = id(leaf.__globals__) if use.installed else None
            parts, code = _function_parts(leaf, use), (leaf.__code__, module)
            join = functools.partial(_function_from_parts, leaf)
        case Program():
            parts, code = leaf.arrays, ("program", leaf.structure, leaf.fast_gradients)
            join = lambda arrays: Program(arrays, leaf.structure, leaf.fast_gradients)
        case _:
            return _intern(leaf, _identity_key(leaf))
    decomposed = _decompose(parts, within, memo)
    leaves, treedef = jax.tree.flatten(decomposed)
    if any(not isinstance(part, _Static) for part in leaves):
        return _Decomposed(decomposed, _intern(join, code))
    identity = (code, treedef, tuple(leaves))
    is_function = isinstance(leaf, types.FunctionType)
    if is_function and leaf.__closure__ is None and _code_effects(leaf.__code__).installed:
        # The function itself, because JAX tests whether a pooling's operation `is` `lax.max`.
        return _intern(leaf, identity)
    # A copy, because what the callable reads can be set again later.
    return _INTERNED.get(identity) or _intern(join(_recompose(decomposed)), identity)


class _CodeEffects(NamedTuple):
    """Names outside a function that its code, with nested functions, reads or modifies.

    `program` splits a function into arrays and code, and rebuilds it around other arrays. These
    effects decide which outer values the rebuilt function gets as copies, and which it shares.

    Attributes:
        globals: names that it reads from its module; empty for an installed package.
        written: names of closure variables that it assigns; those that hold numbers, such as
            counters, are shared.
        records: whether it mutates containers; the lists, dicts and sets that it reads are then
            shared.
        assigns_globals: whether it assigns a global; the function is then kept whole.
        installed: whether it belongs to an installed package, the standard library, or diffprog.
    """

    globals: tuple[str, ...]
    written: frozenset[str]
    records: bool
    assigns_globals: bool
    installed: bool


_LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")
_PACKAGES = (*map(sysconfig.get_path, _LIBRARIES), str(Path(__file__).parent))
_MUTATING_METHODS = frozenset(
    ("append", "extend", "insert", "add", "update", "setdefault", "pop", "remove", "clear")
)


@functools.lru_cache(maxsize=4096)
def _code_effects(code: types.CodeType) -> _CodeEffects:
    if code.co_filename.startswith(_PACKAGES):
        return _CodeEffects((), frozenset(), records=False, assigns_globals=False, installed=True)
    steps = list(_instructions(code))
    reads = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    written = {step.argval for step in steps if step.opname == "STORE_DEREF"}
    assigns_globals = any(step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for step in steps)
    records = any(
        step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR") or step.argval in _MUTATING_METHODS
        for step in steps
        if _is_hashable(step.argval)
    )
    return _CodeEffects(
        tuple(sorted(reads)), frozenset(written), records, assigns_globals, installed=False
    )


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _function_parts(function: types.FunctionType, use: _CodeEffects) -> tuple[Any, ...]:
    """Return the values that a function reads, from its closure, defaults and globals.

    Returns (closure contents, defaults, keyword defaults, dict of globals), each value wrapped as
    a `_Content`. The globals are None for an installed package.
    """
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    contents = tuple(_Content(_cell_contents(name, cell, use)) for name, cell in cells)
    defaults = function.__defaults__ and tuple(map(_Content, function.__defaults__))
    keyword_defaults = tuple(map(_Content, (function.__kwdefaults__ or {}).values()))
    read: dict[str, _Content] | None = None
    if not use.installed:
        names = [name for name in use.globals if name in function.__globals__]
        read = {n: _Content(_unless_mutated(function.__globals__[n], use)) for n in names}
    return contents, defaults, keyword_defaults, read


def _cell_contents(name: str, cell: types.CellType, use: _CodeEffects) -> Any:
    try:
        content = cell.cell_contents
    except ValueError:
        return _opaque(cell)
    if name in use.written and isinstance(content, (int, float)):
        return _opaque(cell)
    return _unless_mutated(content, use)


def _unless_mutated(value: Any, use: _CodeEffects) -> Any:
    """Return `value`, wrapped as a constant if it is a container and the code mutates containers.

    A constant is not copied, so that whoever holds the list, dict or set sees the changes.
    """
    return _opaque(value) if use.records and isinstance(value, (list, dict, set)) else value


def _function_from_parts(
    original: types.FunctionType, parts: tuple[Any, ...]
) -> types.FunctionType:
    contents, defaults, keyword_defaults, read = parts
    cells = tuple(
        value if isinstance(value, types.CellType) else types.CellType(value) for value in contents
    )
    names = original.__globals__
    if read is not None:
        names = {"__builtins__": builtins, "__name__": original.__module__, **read}
    function = types.FunctionType(original.__code__, names, original.__name__, defaults, cells)
    keywords = original.__kwdefaults__ or {}
    function.__kwdefaults__ = dict(zip(keywords, keyword_defaults, strict=True))
    return function


def _recompose(decomposed: Any) -> Any:
    """Invert `_decompose`: return the original pytree, with its callables rebuilt."""

    def join(leaf: Any) -> Any:
        if isinstance(leaf, _Decomposed):
            return leaf.join.value(_recompose(leaf.parts))
        return leaf.value if isinstance(leaf, _Static) else leaf

    return jax.tree.map(join, decomposed, is_leaf=lambda node: isinstance(node, _Decomposed))


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and value.dtype != object)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _identity_key(value: Any) -> Hashable:
    """Return a hashable key, which is equal for two values that count as the same constant.

    It has the value itself if its type compares by value, otherwise the object's id and attributes.
    """
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
    attributes = tuple((name, _Attribute(entry)) for name, entry in vars(value).items())
    return type(value), id(value), attributes


class _Attribute:
    """Attribute in an `_identity_key`: numbers and strings compare by value, others by `is`."""

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
