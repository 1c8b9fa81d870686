"""Read model folders saved by `transformers`: config files as JSON, weights from safetensors.

The caller describes the parameters as a pytree with a `TensorSpec` in place of each array. Names,
shapes and dtypes of all tensors in the files are compared with the specs before any tensor is
loaded, and all differences are reported in one error.

Pickles (pytorch_model.bin) are refused: loading one can run arbitrary code.
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

_SINGLE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_LISTED = 12  # tensors listed in an error message, for each kind of difference


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Specification of a checkpoint tensor that is loaded as an array of the parameters.

    Attributes:
        name: name of the tensor in the checkpoint.
        shape: shape of the tensor in the checkpoint.
        transform: function that maps the tensor to the array, such as a transposition.
        min_dtype: the array's dtype is promoted with this, as by `jnp.promote_types`; None: it is
            not promoted.
    """

    name: str
    shape: tuple[int, ...]
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray
    min_dtype: Any = None


def import_optional(package: str) -> Any:
    """Import a package that is installed with the extra: pip install 'diffprog[pretrained]'."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"pretrained models need {package}: pip install 'diffprog[pretrained]'"
        ) from error


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Check that a folder exists, and return its path."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be a path, got {type(folder).__name__}")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"folder must be an existing folder, got {Path(folder)}")
    return Path(folder)


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file that holds one object."""
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent}: expected a file {file.name}, found none")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def open_checkpoint(
    folder: str | os.PathLike[str], dtype: Any, model_type: str
) -> tuple[Path, Any, dict[str, Any]]:
    """Check the arguments of a loader; return folder path, dtype and content of config.json.

    `model_type` is the architecture that config.json must state.
    """
    folder, dtype = check_folder(folder), check_dtype(dtype)
    config = read_json(folder / "config.json")
    if (found := config.get("model_type")) != model_type:
        raise ValueError(
            f"{folder / 'config.json'}: expected a model_type {model_type!r}, found {found!r}"
        )
    return folder, dtype, config


def read_number(file: Path, content: Mapping[str, Any], name: str) -> float:
    """Return the entry `name` of a JSON file's `content`, a positive finite number."""
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{file}: expected {name} to be a finite number above 0, found {value!r}")
    return float(value)


def check_dtype(dtype: Any, name: str = "dtype") -> Any:
    """Check that `dtype` is a float dtype that JAX supports, float64 only with x64; return it."""
    try:
        checked = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        checked = None
    if checked is None or not jnp.issubdtype(checked, jnp.floating):
        raise TypeError(
            f"{name} must be a float dtype, such as 'float32' or 'bfloat16', got {dtype!r}"
        )
    if jax.dtypes.canonicalize_dtype(checked) != checked:
        raise ValueError(f"{name} must be supported by JAX, got {checked}; enable x64 to use it")
    return checked


def load_params(folder: Path, specs: Any, dtype: Any, *, unused: Iterable[str] = ()) -> Any:
    """Load parameters from a checkpoint, as a pytree of NumPy arrays like `specs`.

    Args:
        folder: folder with model.safetensors, or with model.safetensors.index.json and the files it
            names.
        specs: pytree of the parameters, with a `TensorSpec` in place of each array to load; other
            arrays are only cast to `dtype`.
        dtype: dtype of the arrays.
        unused: tensors of the checkpoint are ignored if their name ends in one of these.

    Raises:
        FileNotFoundError: the folder has none of these files, or one of them is missing.
        ValueError: a file is corrupt; tensors are missing, unexpected, of another shape or not
            floats (all are listed); values are not finite, or overflow in dtype.
    """
    is_spec = lambda leaf: isinstance(leaf, TensorSpec)
    shapes = {spec.name: spec.shape for spec in filter(is_spec, jax.tree.leaves(specs))}
    with contextlib.ExitStack() as stack:
        files = _open_tensors(folder, stack)
        _check_tensors(folder, shapes, files, tuple(unused))

        def load(leaf: Any) -> np.ndarray:
            if not is_spec(leaf):
                return np.asarray(leaf, dtype)
            own = dtype if leaf.min_dtype is None else jnp.promote_types(dtype, leaf.min_dtype)
            with np.errstate(over="ignore"):
                array = np.asarray(leaf.transform(files[leaf.name].get_tensor(leaf.name)), own)
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{folder}: expected a tensor {leaf.name} of finite numbers, "
                    f"found NaN, infinity or values that overflow in {own}"
                )
            return array

        return jax.tree.map(load, specs)


def _open_tensors(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Open the safetensors files of a folder; return the open file of each tensor, by its name.

    The files are closed with `stack`.
    """
    safetensors = import_optional("safetensors")
    tensors = {}
    for path in _find_files(folder):
        try:
            file = stack.enter_context(safetensors.safe_open(path, "numpy"))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: not a complete safetensors file: {error}") from error
        tensors.update(dict.fromkeys(file.keys(), file))
    return tensors


def _find_files(folder: Path) -> list[Path]:
    """Return the paths of a folder's safetensors files: one, or the shards that an index lists."""
    if (folder / _SINGLE_FILE).is_file():
        return [folder / _SINGLE_FILE]
    if (folder / _INDEX).is_file():
        shards = read_json(folder / _INDEX).get("weight_map")
        names = [*shards.values()] if isinstance(shards, dict) else []
        # An index must not lead out of the folder.
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise ValueError(
                f"{folder / _INDEX}: expected a weight_map from tensors to files of this folder, "
                f"found {shards!r:.100}"
            )
        files = [folder / name for name in sorted(set(names))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise FileNotFoundError(
                f"{folder}: expected the files that {_INDEX} names, found no {', '.join(missing)}"
            )
        return files
    suffixes = (".bin", ".pt", ".pth", ".pkl")
    if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in suffixes):
        raise ValueError(
            f"{folder}: expected {_SINGLE_FILE}, found only {', '.join(pickles)}. A pickle can run "
            "any code when it is loaded and is refused; if you trust it, convert it with "
            "transformers: AutoModel.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise FileNotFoundError(f"{folder}: expected {_SINGLE_FILE} or {_INDEX}, found neither")


def _check_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    files: Mapping[str, Any],
    unused: tuple[str, ...],
) -> None:
    """Check that the files hold exactly the tensors of `shapes`, as floats of these shapes.

    `files` has the open file of each tensor by name. Other tensors are ignored if their name ends
    in one of `unused`.
    """
    found = {
        name: file.get_slice(name)
        for name, file in files.items()
        if name in shapes or not name.endswith(unused)
    }
    found_shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
    missing, unexpected = shapes.keys() - found, found.keys() - shapes
    common = shapes.keys() & found
    dtypes = {name: found[name].get_dtype() for name in common}
    differences = {
        "missing": [f"{name} {list(shapes[name])}" for name in missing],
        "unexpected": [f"{name} {list(found_shapes[name])}" for name in unexpected],
        "of another shape": [
            f"{name} {list(found_shapes[name])} instead of {list(shapes[name])}"
            for name in common
            if found_shapes[name] != shapes[name]
        ],
        "not floats": [f"{name} {dtypes[name]}" for name in common if dtypes[name] not in _FLOATS],
    }
    report = ""
    for difference, tensors in differences.items():
        listed = sorted(tensors)[:_MAX_LISTED]
        if len(tensors) > _MAX_LISTED:
            listed.append(f"and {len(tensors) - _MAX_LISTED} more")
        if tensors:
            report += f"\n  {len(tensors)} {difference}: {', '.join(listed)}"
    if report:
        raise ValueError(
            f"{folder}: expected the tensors that its config.json describes, found{report}"
        )
