"""Whether a tower of texts knows the ids that its tokenizer makes.

Where a tower is compiled its ids have no values, and one that it does not know is silently read as another. So before, the tower is traced
on a row of the largest id, which is not: its own check of its ids then holds, nothing is computed, and one trace serves all towers of a
structure.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from diffprog.contrastive._tokenizers import Tokenizer
from diffprog.program import Program


def require_reads(name: str, tower: Program, tokenizer: Tokenizer) -> None:
    """A tower of texts that knows what its tokenizer says, where that states how much it can say."""
    count, length = (getattr(tokenizer, stated, None) for stated in ("count", "length"))
    if isinstance(count, int) and isinstance(length, int):
        require_reads_row(name, tower, count - 1, length)


def require_reads_row(name: str, tower: Program, largest: int, length: int) -> None:
    """A tower of texts that takes rows of so many ids up to the largest."""
    leaves, structure = jax.tree.flatten(tower)
    refused = _refusal(
        structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), largest, length
    )
    if refused is not None:
        raise ValueError(
            f"{name} must read rows of {length} ids up to {largest}, as the tokenizer makes them: {refused}"
        )


@functools.lru_cache(maxsize=64)
def _refusal(structure: Any, stated: tuple[Any, ...], largest: int, length: int) -> str | None:
    """What a tower of this structure says against a row of the largest id."""
    with jax.ensure_compile_time_eval():
        row = jnp.full((1, length), largest, jnp.int32)
    tower = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*each) for each in stated])
    try:
        jax.eval_shape(lambda tower: tower(row), tower)
    except ValueError as error:
        return str(error)
    return None
