"""Checkpoints: a folder as the `transformers` library saves it, read into arrays by name and shape and nothing else.

What is wanted is said first, as a *layout*: the pytree of the parameters with a `Stored` in place of each array, the tensor that it is made
of. The names and shapes of all files are held against it before a number is read, and every difference is reported at once.

Tensors are read from safetensors files, which hold numbers and nothing else. A pickle (pytorch_model.bin) can hold programs and is refused.
"""

import contextlib
import dataclasses
import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_AT_MOST = 12  # differences of a kind that are written out


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint, in place of the array that it becomes.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        turned: from its layout to ours.
        least: a dtype that the array has at least.
    """

    name: str
    shape: tuple[int, ...]
    turned: Callable[[np.ndarray], np.ndarray] = np.asarray
    least: Any = None


def extra(package: str) -> Any:
    """A package of the extra "pretrained"."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"pretrained models need {package}: pip install 'diffprog[pretrained]'"
        ) from error


def folder_of(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder that exists."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be a path, got {type(folder).__name__}")
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"folder must be an existing folder, got {place}")
    return place


def json_of(file: Path) -> dict[str, Any]:
    """What a JSON file holds, which must be an object."""
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent}: expected a file {file.name}, found none")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, found something else: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def config_of(folder: Path, kind: str) -> dict[str, Any]:
    """The config.json of a model of one kind: "clip", "vit", "resnet"."""
    config = json_of(folder / "config.json")
    if config.get("model_type") != kind:
        raise ValueError(
            f"{folder / 'config.json'}: expected a model_type {kind!r}, found {config.get('model_type')!r}"
        )
    return config


def number_of(file: Path, stated: Mapping[str, Any], name: str) -> float:
    """A finite number above 0."""
    given = stated.get(name)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise ValueError(f"{file}: expected {name} to be a finite number above 0, found {given!r}")
    return float(given)


def dtype_of(dtype: Any, name: str = "dtype") -> Any:
    """A float dtype that JAX has as it is configured."""
    try:
        known = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.floating):
        raise TypeError(f"{name} must be of floats, such as 'float32' or 'bfloat16', got {dtype!r}")
    if jax.dtypes.canonicalize_dtype(known) != known:
        raise ValueError(
            f"{name} must be one that JAX has as it is configured, got {known}; enable x64 for it"
        )
    return known


def read(folder: Path, layout: Any, dtype: Any, *, unused: Iterable[str] = ()) -> Any:
    """The arrays of a checkpoint as the layout has them, NumPy's.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the files that it names.
        layout: a pytree of `Stored`, and of arrays that no checkpoint holds.
        dtype: of the arrays.
        unused: ends of the names of tensors that may be there and are not read.

    Raises:
        FileNotFoundError: none of these files, or one of them missing.
        ValueError: a corrupt file; tensors that are missing, unexpected, of another shape or not floats: their names and shapes; one with
            numbers that are not finite, or not in the dtype.
    """
    wanted = {leaf.name: leaf.shape for leaf in jax.tree.leaves(layout) if isinstance(leaf, Stored)}
    with contextlib.ExitStack() as open_files:
        held = {name: file for file in _opened(folder, open_files) for name in file.keys()}
        _compare(folder, wanted, held, tuple(unused))

        def array(leaf: Any) -> np.ndarray:
            if not isinstance(leaf, Stored):
                return np.asarray(leaf, dtype)
            own = dtype if leaf.least is None else jnp.promote_types(dtype, leaf.least)
            with np.errstate(over="ignore"):
                numbers = np.asarray(leaf.turned(held[leaf.name].get_tensor(leaf.name)), own)
            if not np.isfinite(numbers).all():
                raise ValueError(
                    f"{folder}: expected a tensor {leaf.name} of finite numbers, found NaN, infinity or more than {own} holds"
                )
            return numbers

        return jax.tree.map(array, layout)


def _opened(folder: Path, open_files: contextlib.ExitStack) -> list[Any]:
    library = extra("safetensors")
    opened = []
    for file in _files(folder):
        try:
            opened.append(open_files.enter_context(library.safe_open(file, "numpy")))
        except library.SafetensorError as error:
            raise ValueError(
                f"{file}: expected a complete safetensors file, found a corrupt or truncated one: {error}"
            ) from error
    return opened


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that an index names."""
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if (folder / _INDEX).is_file():
        shards = json_of(folder / _INDEX).get("weight_map")
        names = (
            sorted(set(shards.values()))
            if isinstance(shards, dict) and all(isinstance(n, str) for n in shards.values())
            else []
        )
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(
                f"{folder / _INDEX}: expected a weight_map from tensors to files of this folder, found {short(shards)}"
            )
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise FileNotFoundError(
                f"{folder}: expected the files that {_INDEX} names, found no {', '.join(missing)}"
            )
        return [folder / name for name in names]
    if pickles := sorted(
        file.name
        for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl")
        for file in folder.glob(pattern)
    ):
        raise ValueError(
            f"{folder}: expected {_WHOLE}, found only {', '.join(pickles)}. A pickle can run any program when it is read and is refused; "
            "where you trust it, convert it with transformers: AutoModel.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise FileNotFoundError(f"{folder}: expected {_WHOLE} or {_INDEX}, found neither")


def _compare(
    folder: Path,
    wanted: Mapping[str, tuple[int, ...]],
    held: Mapping[str, Any],
    unused: tuple[str, ...],
) -> None:
    """Every name and shape of the files is that of the layout, or an error that says which are not."""
    found = {
        name: file.get_slice(name)
        for name, file in held.items()
        if name in wanted or not name.endswith(unused)
    }
    shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
    both = sorted(wanted.keys() & found)
    faults = {
        "missing": [
            f"{name} {list(shape)}" for name, shape in sorted(wanted.items()) if name not in found
        ],
        "unexpected": [
            f"{name} {list(shape)}" for name, shape in sorted(shapes.items()) if name not in wanted
        ],
        "of another shape": [
            f"{n} {list(shapes[n])} instead of {list(wanted[n])}"
            for n in both
            if shapes[n] != tuple(wanted[n])
        ],
        "not floats": [
            f"{name} {found[name].get_dtype()}"
            for name in both
            if found[name].get_dtype() not in _FLOATS
        ],
    }
    if said := "".join(
        f"\n  {len(names)} {fault}: {_listed(names)}" for fault, names in faults.items() if names
    ):
        raise ValueError(
            f"{folder}: expected the tensors that its config.json describes, found{said}"
        )


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - _AT_MOST} more"] * (len(names) > _AT_MOST)
    return ", ".join(names[:_AT_MOST] + more)


def short(value: Any) -> str:
    """What came, cut to fit a line."""
    said = repr(value)
    return said if len(said) <= 100 else f"{said[:100]}..."
