"""What every attack is: a search for a perturbation, and the honest arrays that come of it.

    find r  with  f(x + r) wrong (or the target),  ||r|| <= ε  and  low <= x + r <= high       (or the smallest such r, for ε = ∞)

An attack's own part is its search, a pure function of a `Problem`. Everything else stands here, once: the checks, examples of any shape or
pytree as rows of numbers, a key for each example, what is compiled, and the last word. What is returned is judged in the arrays
returned: `adversarial` lies in the box, its distance from x in the ball, and success is what f says of `adversarial` itself.

The key of an example is folded with the example's own bits, so that its result depends neither on the batch it comes in nor on its place.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Integer

from diffprog import _validation, distributed, norms
from diffprog.adversarial._losses import Labels, Logits, cross_entropy, is_adversarial
from diffprog.program import Program, program

Flat = Float[Array, "batch n"]
PerExample = Float[Array, "batch"]
Bounds = tuple[float, float]


class Problem(NamedTuple):
    """What a search is given: everything as rows, one for each example.

    Attributes:
        logits: rows (batch, n) -> (batch, classes).
        x: (batch, n), inside the box.
        y: (batch,), the label to leave, or the target to reach.
        epsilon: (batch,), the radius of the ball; infinite for a search for the smallest perturbation.
        keys: (batch,), a random key for each example.
        norm: the norm.
        bounds: (low, high).
        targeted: whether y is the target.
        shape: of one example, where it is an array; () for other pytrees.
        clean: (batch, classes), the logits of x.
    """

    logits: Callable[[Flat], Logits]
    x: Flat
    y: Labels
    epsilon: PerExample
    keys: jax.Array
    norm: norms.Norm
    bounds: Bounds
    targeted: bool
    shape: tuple[int, ...]
    clean: Logits

    def perturbed_logits(self, r: Flat) -> Logits:
        """The logits of x + r, as it would be returned."""
        return self.logits(add_rounded_toward_x(self.x, r))

    def project(self, r: Flat) -> Flat:
        """The nearest perturbation in ball and box; for a radius of 0, no perturbation."""
        return self.norm.project_in_box(r, self.x, self.epsilon, self.bounds)

    def clip_to_box(self, r: Flat) -> Flat:
        """The nearest perturbation in the box alone; x + r does not leave it by a rounding either."""
        return norms.linf.project_in_box(r, self.x, float(jnp.finfo(r.dtype).max), self.bounds)


class Search(NamedTuple):
    """What a search comes back with.

    Attributes:
        r: (batch, n), the perturbations.
        step: (batch,), the step that found each; -1 where there is none.
        restart: (batch,), the restart that did.
        gradients: (batch,), how many gradients each example took, each with its value.
        queries: (batch,), how many values of f beside them.
    """

    r: Flat
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]
    gradients: Integer[Array, "batch"]
    queries: Integer[Array, "batch"]


class AttackResult(NamedTuple):
    """What an attack comes back with; leading axis example.

    Attributes:
        adversarial: like x, inside the bounds.
        perturbation: like x, adversarial - x; zero for an example that f misread from the start (or read as its target).
        success: (batch,), whether f reads `adversarial` wrongly, or as the target; never where a logit is NaN.
        distance: (batch,), the norm of the perturbation.
        loss: (batch,), what the attack makes large: the cross-entropy of the label at `adversarial`, or minus that of the target; where
            softmax has rounded to 1, the margin.
        initially_misclassified: (batch,), whether f was wrong (or right about the target) before: such an example is left alone.
        step: (batch,), the step that found it; -1 where there is none.
        restart: (batch,), the restart that did.
        gradients: (batch,), how many gradients were taken for it.
        queries: (batch,), how many values of f beside them.
    """

    adversarial: Any
    perturbation: Any
    success: Bool[Array, "batch"]
    distance: PerExample
    loss: PerExample
    initially_misclassified: Bool[Array, "batch"]
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]
    gradients: Integer[Array, "batch"]
    queries: Integer[Array, "batch"]


Run = Callable[[Program, Any, Labels, PerExample, jax.Array], AttackResult]


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack: a function (f, x, y, key=key) -> AttackResult, with the numbers it was made of.

    Attributes:
        name: of the method.
        norm: "linf", "l2" or "l1".
        epsilon: the radius, one for all or one for each example; None for a search for the smallest perturbation.
        bounds: (low, high) of every number of an example.
        targeted: whether y is what f shall say, and not what it shall no longer say.
        run: (f, x, y, epsilon, key) -> AttackResult, of arguments that have been checked.
        draws: for an attack on f of (x, key), how many keys stand for all; None for one on f of x.
    """

    name: str
    norm: str
    epsilon: Any
    bounds: Bounds
    targeted: bool
    run: Run
    draws: int | None = None

    def __call__(
        self,
        f: Callable[..., Any],
        x: Any,
        y: Labels,
        *,
        key: jax.Array,
        labels: Labels | None = None,
        mesh: Mesh | None = None,
    ) -> AttackResult:
        """Attack each example.

        Args:
            f: a program of a batch of examples, returning logits (batch, classes).
            x: float examples, an array (batch, ...) or a pytree of them, inside the bounds. What leaves them by rounding alone is clipped.
            y: integer labels (batch,); the targets, for a targeted attack.
            key: a random key.
            labels: the true labels of a targeted attack, to refuse a target that is one.
            mesh: devices among which the examples are divided, from `distributed.mesh()`.

        Raises:
            TypeError, ValueError: x that is not finite floats of one dtype or lies outside the bounds, y that is not integers in
                0 .. classes - 1, an f that does not return logits, an epsilon that does not fit the batch, a target equal to the label,
                labels of an attack that has no targets.
        """
        f = program(_validation.function("f", f))
        _validation.key("key", key)
        x, y = validate_examples(f, x, y, self.bounds)
        batch = len(y)
        if labels is not None:
            _require_other(y, labels, self.targeted)
        dtype = jnp.result_type(*jax.tree.leaves(x))
        epsilon = (
            jnp.full(batch, jnp.inf, dtype)
            if self.epsilon is None
            else per_example_epsilon(self.epsilon, batch, dtype)
        )
        if mesh is None:
            return self.run(f, x, y, epsilon, key)
        return self.run(
            *distributed.replicate(distributed.validate_mesh(mesh), (f, x, y, epsilon, key))
        )


def make_attack(
    name: str,
    search: Callable[[Problem], Search],
    *,
    norm: str,
    epsilon: Any = None,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Attack:
    """The attack that a search makes. What the search holds besides numbers must be arrays where it should not be compiled in."""
    norms.named(norm)
    if not isinstance(targeted, bool):
        raise TypeError(f"targeted must be True or False, got {targeted!r}")
    if epsilon is not None:
        per_example_epsilon(epsilon, None, jnp.float32)
    bounds = _validation.bounds("bounds", bounds)
    opened = program(search, fast_gradients=False)

    def run(f: Program, x: Any, y: Labels, epsilon: PerExample, key: jax.Array) -> AttackResult:
        def found(x: Any, y: Labels, epsilon: PerExample) -> AttackResult:
            clean = _said(f, x)
            already, _ = _judged(clean, y, targeted)
            result = _searched(
                opened, f, x, y, epsilon, _keys(key, x), clean, norm, bounds, targeted
            )
            adversarial, perturbation, distance = _moved(x, result.r, already, norm)
            success, loss = _judged(_said(f, adversarial), y, targeted)
            return AttackResult(
                adversarial, perturbation, success, distance, loss, already, *result[1:]
            )

        return distributed.parallel_over_batch(found)(x, y, epsilon)

    return Attack(name, norm, epsilon, bounds, targeted, run)


def per_example_epsilon(epsilon: Any, batch: int | None, dtype: Any) -> PerExample:
    """One radius for each example; of whatever length where the batch is not known."""
    if isinstance(epsilon, int | float):
        return jnp.full(batch or 1, _validation.number("epsilon", epsilon, low=0), dtype)
    _validation.floating("epsilon", epsilon, rank=(0, 1))
    _validation.finite("epsilon", epsilon)
    _validation.within("epsilon", epsilon, 0, np.inf)
    if batch is not None and jnp.shape(epsilon) not in ((), (batch,)):
        raise ValueError(
            f"epsilon must be a number or have one value for each of {batch} examples, got {list(jnp.shape(epsilon))}"
        )
    return jnp.broadcast_to(jnp.asarray(epsilon, dtype), batch or jnp.size(epsilon))


def validate_examples(f: Program, x: Any, y: Any, bounds: Bounds) -> tuple[Any, Labels]:
    """Examples inside the box and labels of f's classes, or an error."""
    _validation.floating_leaves("x", x)
    _validation.array("y", y)
    _validation.batch(x=x, y=y)
    if not any(np.size(leaf) for leaf in jax.tree.leaves(x)):
        raise ValueError("x must hold numbers, got arrays of size 0")
    _validation.finite("x", x)
    x = jax.tree.map(functools.partial(_inside, bounds=bounds), x)
    if len(dtypes := {str(leaf.dtype) for leaf in jax.tree.leaves(x)}) > 1:
        raise TypeError(f"x must be of one dtype, got {', '.join(sorted(dtypes))}")
    logits = _said.eval_shape(f, x)
    if (
        getattr(logits, "ndim", 0) != 2
        or len(logits) != len(y)
        or logits.shape[1] < 2
        or not jnp.issubdtype(logits.dtype, jnp.floating)
    ):
        raise ValueError(
            f"f must return float logits of shape ({len(y)}, classes), classes >= 2, got {logits}"
        )
    _validation.labels("y", y, logits.shape[1])
    return x, jnp.asarray(y, jnp.int32)


def _inside(leaf: Any, bounds: Bounds) -> Array:
    given, known = jnp.asarray(leaf), _validation.values(leaf)
    low, high = bounds
    if known is not None:
        out = np.maximum(low - known, known - high)
        if not (out > 0).any():
            return given
        slack = 4 * float(jnp.finfo(given.dtype).eps) * max(abs(low), abs(high))
        if (out > slack).any():
            worst = known.flat[out.argmax()]
            raise ValueError(
                f"x must lie in {low:g} .. {high:g}, got {int((out > slack).sum())} numbers outside, the worst {worst:g}"
            )
    # Only what is outside: clipping flushes the smallest numbers to zero, and what is inside comes back bit for bit.
    return jnp.where((given < low) | (given > high), jnp.clip(given, low, high), given)


def _require_other(y: Labels, labels: Any, targeted: bool) -> None:
    if not targeted:
        raise ValueError("labels must be None for an attack without targets: there y is the labels")
    _validation.same_shape(y=y, labels=labels)
    if not jnp.issubdtype(_validation.array("labels", labels).dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    known = _validation.values(labels), _validation.values(y)
    if known[0] is not None and known[1] is not None and (same := known[0] == known[1]).any():
        raise ValueError(
            f"y must be targets other than the labels, got {same.sum()} equal to theirs"
        )


@jax.jit
def _said(f: Program, x: Any) -> Any:
    return f(x)


def add_rounded_toward_x(x: Flat, r: Flat) -> Flat:
    """x + r, rounded towards x: its distance from x, in the numbers of its dtype, is never more than r says."""
    rounded = x + r
    known = jax.lax.stop_gradient(rounded)
    # One unit in the last place, which is exact to add.
    back = jnp.where(jnp.abs(known - x) > jnp.abs(r), jnp.nextafter(known, x) - known, 0)
    return rounded + jax.lax.stop_gradient(back)


def per_example_keys(key: jax.Array, rows: Flat) -> jax.Array:
    """A key for each example, folded with its bits."""
    bits = jax.lax.bitcast_convert_type(rows.astype(jnp.float32), jnp.uint32)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B)
    places = (2 * jnp.arange(rows.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(0x9E3779B1)
    return jax.vmap(jax.random.fold_in, (None, 0))(
        key, ((bits ^ (bits >> 13)) * places).sum(1, dtype=jnp.uint32)
    )


def flatten_examples(x: Any) -> tuple[Flat, Callable[[Flat], Any]]:
    """A batch of examples as rows of numbers, and the way back."""
    leaves, structure = jax.tree.flatten(x)
    sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]

    def back(rows: Flat) -> Any:
        parts = jnp.split(rows, list(np.cumsum(sizes)[:-1]), axis=1) if len(leaves) > 1 else [rows]
        shaped = [
            part.reshape(len(part), *leaf.shape[1:]).astype(leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, shaped)

    dtype = jnp.result_type(*leaves)
    return jnp.concatenate(
        [leaf.reshape(len(leaf), -1).astype(dtype) for leaf in leaves], axis=1
    ), back


@jax.jit
def _keys(key: jax.Array, x: Any) -> jax.Array:
    return per_example_keys(key, flatten_examples(x)[0])


@functools.partial(jax.jit, static_argnames=("norm", "bounds", "targeted"))
def _searched(
    search: Program,
    f: Program,
    x: Any,
    y: Labels,
    epsilon: PerExample,
    keys: jax.Array,
    clean: Logits,
    norm: str,
    bounds: Bounds,
    targeted: bool,
) -> Search:
    rows, back = flatten_examples(x)
    shape = x.shape[1:] if isinstance(x, jax.Array) else ()
    return search(
        Problem(
            lambda rows: f(back(rows)),
            rows,
            y,
            epsilon,
            keys,
            norms.named(norm),
            bounds,
            targeted,
            shape,
            clean,
        )
    )


@functools.partial(jax.jit, static_argnames=("norm",))
def _moved(x: Any, r: Flat, alone: Bool[Array, "batch"], norm: str) -> tuple[Any, Any, PerExample]:
    """x + r but for the examples to leave alone, how far it is from x, and that distance."""
    rows, back = flatten_examples(x)
    adversarial = jnp.where(alone[:, None] | (r == 0), rows, add_rounded_toward_x(rows, r))
    perturbation = adversarial - rows
    return back(adversarial), back(perturbation), norms.named(norm).length(perturbation)


@functools.partial(jax.jit, static_argnames=("targeted",))
def _judged(logits: Logits, y: Labels, targeted: bool) -> tuple[Bool[Array, "batch"], PerExample]:
    """Whether the logits are what is wanted, and their loss."""
    return is_adversarial(logits, y, targeted), cross_entropy(logits, y, targeted)
