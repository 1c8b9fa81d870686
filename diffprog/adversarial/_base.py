"""Common parts of all attacks: argument checks, flattening, keys, compilation, final evaluation.

    find r such that f misclassifies x + r, or predicts the target class for it,
    subject to ||r|| <= ε (the ball) and low <= x + r <= high (the box)

with f the model, x the example and r its perturbation. A minimum-norm attack has ε = ∞ and looks
for the shortest such r.

The method of an attack is its search, a pure function Problem -> Search; `make_attack` does the
rest. It flattens examples of any shape or pytree to rows, gives every example its own PRNG key,
compiles the search once, and evaluates the perturbations that the search returns. In the
`AttackResult`, `adversarial` lies in the box, its distance from x is at most ε, and `success` is
decided by the prediction of f for it.

The key of an example is derived from the example's values. Its result therefore depends neither on
the other examples in the batch nor on its position in the batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Integer

from diffprog import _validation, distributed, norms
from diffprog.adversarial._losses import Labels, Logits, cross_entropy, is_adversarial, margin
from diffprog.program import Program, program

Flat = Float[Array, "batch n"]
PerExample = Float[Array, "batch"]
Bounds = tuple[float, float]
Tree = TypeVar("Tree")


class Problem(NamedTuple):
    """Input of an attack's search function: flattened examples, radii, bounds and the model.

    Attributes:
        logits: the attacked model, a function from rows (batch, n) to logits (batch, classes).
        x: (batch, n), the examples, flattened to rows, inside the bounds.
        y: (batch,), the labels, or the target classes of a targeted attack.
        epsilon: (batch,), the radii; infinite for a minimum-norm attack.
        keys: (batch,), one PRNG key per example.
        norm: the norm of the perturbations, `norms.linf`, `norms.l2` or `norms.l1`.
        bounds: (low, high) of every value of x + r.
        targeted: whether y holds target classes.
        shape: the shape of one example before flattening, or () if examples are pytrees.
        clean_logits: (batch, classes), the logits of x.
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
    clean_logits: Logits

    def perturbed_logits(self, r: Flat) -> Logits:
        """Compute the model's logits at the perturbed examples x + r, (batch, classes).

        The sum is rounded as in the result of the attack.
        """
        return self.logits(add_rounded_toward_x(self.x, r))

    def is_adversarial(self, logits: Logits) -> Bool[Array, "batch"]:
        """Return for which examples the logits are a success of the attack, (batch,).

        The attack succeeds if the logits predict a class other than the label y, or the target y.
        Logits with a NaN count as no success.
        """
        return is_adversarial(logits, self.y, self.targeted)

    def margin(self, logits: Logits) -> PerExample:
        """Compute the margin of the logits per example, positive where the attack has succeeded."""
        return margin(logits, self.y, self.targeted)

    def project(self, r: Flat) -> Flat:
        """Project perturbations r onto the intersection of the epsilon-ball and the box."""
        return self.norm.project_in_box(r, self.x, self.epsilon, self.bounds)

    def clip_to_box(self, r: Flat) -> Flat:
        """Clip perturbations r such that x + r lies exactly within the bounds in floating point."""
        return norms.linf.project_in_box(r, self.x, float(jnp.finfo(r.dtype).max), self.bounds)

    @property
    def box_width(self) -> float:
        """Width of the box, high - low."""
        return self.bounds[1] - self.bounds[0]

    def keys_at(self, *indices: Any) -> jax.Array:
        """Derive one PRNG key per example from loop indices, such as the restart and the step."""
        fold_in = jax.vmap(jax.random.fold_in, (0, None))
        return functools.reduce(fold_in, indices, self.keys)

    def sample(self, draw: Callable[..., Array], *indices: Any) -> Flat:
        """Sample an array like x, one row per example, by a function draw(key, shape, dtype).

        Further arguments are loop indices, such as (restart, step), to derive the keys from.
        """
        draw_row = lambda key: draw(key, self.x.shape[1:], self.x.dtype)
        return jax.vmap(draw_row)(self.keys_at(*indices))

    def sample_ball(self, radius: PerExample, *indices: Any) -> Flat:
        """Sample perturbations uniformly from balls of these radii (batch,), clipped to the box.

        Further arguments are loop indices, such as (restart, step), to derive the keys from.
        """
        draw = lambda key, shape, dtype: self.norm.sample(key, (1, *shape), 1.0, dtype)[0]
        # Clipping shortens every coordinate: r stays in the ball.
        return self.clip_to_box(radius[:, None] * self.sample(draw, *indices))


class Search(NamedTuple):
    """Perturbations that an attack's search function found, and their cost in model evaluations.

    Attributes:
        r: (batch, n), the perturbations.
        step: (batch,), the step at which r was found; -1 if the search found no perturbation.
        restart: (batch,), index of the restart in which r was found.
        gradients: (batch,), the number of forward-and-backward passes for each example.
        queries: (batch,), the number of forward-only passes for each example.
    """

    r: Flat
    step: Integer[Array, "batch"]
    restart: Integer[Array, "batch"]
    gradients: Integer[Array, "batch"]
    queries: Integer[Array, "batch"]


class AttackResult(NamedTuple):
    """Result of an attack; the leading axis is the example.

    Attributes:
        adversarial: the perturbed examples, of the shape of x, inside the bounds.
        perturbation: adversarial - x. Zero for initially misclassified examples.
        success: (batch,), whether `adversarial` is misclassified, or classified as the target.
            False where a logit is NaN.
        distance: (batch,), the norm of the perturbation.
        loss: (batch,), the cross-entropy of the label at `adversarial`, or minus the cross-entropy
            of the target. Where the softmax rounds to 1, the margin is returned instead.
        initially_misclassified: (batch,), whether x itself is misclassified, or classified as the
            target. Such an example is not perturbed, and counts as a success.
        step: (batch,), the step at which the perturbation was found; -1 if none was found.
        restart: (batch,), index of the restart in which the perturbation was found.
        gradients: (batch,), the number of forward-and-backward passes for each example.
        queries: (batch,), the number of forward-only passes for each example.
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
    """Attack with fixed settings: a function (f, x, y, key=key) -> AttackResult.

    Attributes:
        name: the name of the method.
        norm: "linf", "l2" or "l1".
        epsilon: the radius, a number or an array (batch,); None for a minimum-norm attack.
        bounds: (low, high) of every value of x.
        targeted: whether y holds target classes, rather than the true labels.
        run: function (f, x, y, epsilon, key) -> AttackResult that checks no arguments.
        draws: number of PRNG keys over which the softmax of a random model f(x, key) is averaged;
            None for an attack on a model f(x).
        uses_gradients: whether the attack evaluates gradients of f.
    """

    name: str
    norm: str
    epsilon: Any
    bounds: Bounds
    targeted: bool
    run: Run
    draws: int | None = None
    uses_gradients: bool = True

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
        """Attack every example of a batch.

        Args:
            f: function from a batch of examples to logits (batch, classes).
            x: float array (batch, ...), or a pytree of them, inside the bounds. Values that exceed
                the bounds by rounding errors are clipped.
            y: integer labels (batch,), or target classes if the attack is targeted.
            key: PRNG key.
            labels: true labels (batch,) of the examples of a targeted attack, used only to check
                that no target equals the label.
            mesh: devices to split the batch over, from `distributed.mesh()`.

        Returns:
            An `AttackResult` with the perturbed examples and where the attack succeeded.

        Raises:
            TypeError, ValueError: x is not finite, not floating, of several dtypes or outside the
                bounds; y are not integers in 0 .. classes - 1; f does not return logits; epsilon
                does not fit the batch; a target equals its label; labels for an untargeted attack.
        """
        f = program(_validation.function("f", f))
        _validation.key("key", key)
        x, y = validate_examples(f, x, y, self.bounds)
        if labels is not None:
            _validate_targets(y, labels, self.targeted)
        dtype = jnp.result_type(*jax.tree.leaves(x))
        epsilon = jnp.full(len(y), jnp.inf, dtype)
        if self.epsilon is not None:
            epsilon = per_example_epsilon(self.epsilon, len(y), dtype)
        args = f, x, y, epsilon, key
        if mesh is not None:
            args = distributed.replicate(distributed.validate_mesh(mesh), args)
        return self.run(*args)


def make_attack(
    name: str,
    search: Callable[[Problem], Search],
    *,
    norm: str,
    epsilon: Any = None,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    uses_gradients: bool = True,
) -> Attack:
    """Build an attack from a search function.

    The search gets examples that are checked and flattened to rows, and is traced by `jax.jit`. A
    perturbation that is not finite, or leaves the ball or the box (see `Problem.project`), is
    discarded, and the example counts as not attacked. Perturbations of initially misclassified
    examples are ignored. Success,
    distance and loss are computed afterwards. Arrays that the search closes over are traced;
    numbers are compiled in.

    Args:
        name: name of the method, for reports.
        search: function Problem -> Search that looks for perturbations.
        norm: "linf", "l2" or "l1".
        epsilon: radius >= 0, a number or an array (batch,); None for a minimum-norm attack.
        bounds: (low, high) of every value of x.
        targeted: whether y holds target classes.
        uses_gradients: whether the search differentiates `Problem.logits`. `evaluate` uses it to
            compare attacks with and without gradients.

    Returns:
        An `Attack`, which `evaluate`, `cascade`, `expectation` and `transfer` accept.

    Raises:
        TypeError, ValueError: an invalid norm, epsilon, bounds, targeted or uses_gradients.

    An attack by random search:

    >>> def random_search(problem):
    ...     margin = lambda r: problem.margin(problem.perturbed_logits(r))
    ...     def step(k, r):
    ...         noise = problem.sample(jax.random.normal, k)
    ...         proposal = problem.project(r + problem.epsilon[:, None] * noise)
    ...         return jnp.where((margin(proposal) > margin(r))[:, None], proposal, r)
    ...     r = jax.lax.fori_loop(0, 50, step, jnp.zeros_like(problem.x))
    ...     zeros = jnp.zeros(len(r), int)
    ...     return Search(r, step=zeros + 50, restart=zeros, gradients=zeros, queries=zeros + 100)
    >>> attack = make_attack(
    ...     "random_search", random_search, norm="linf", epsilon=0.25, uses_gradients=False
    ... )
    >>> x, y = jnp.array([[0.6, 0.5], [0.9, 0.1]]), jnp.array([0, 0])
    >>> print(attack(lambda x: x, x, y, key=jax.random.key(0)).success)
    [ True False]
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    _validation.function("search", search)
    norms.named(norm)
    for flag, value in (("targeted", targeted), ("uses_gradients", uses_gradients)):
        if not isinstance(value, bool):
            raise TypeError(f"{flag} must be True or False, got {value!r}")
    if epsilon is not None:
        per_example_epsilon(epsilon, None, jnp.float32)
    bounds = _validation.bounds("bounds", bounds)
    settings = norm, bounds, targeted
    search_program = program(search, fast_gradients=False)

    def run(f: Program, x: Any, y: Labels, epsilon: PerExample, key: jax.Array) -> AttackResult:
        def attack_batch(x: Any, y: Labels, epsilon: PerExample) -> AttackResult:
            clean_logits = _call(f, x)
            initial, _ = _success_and_loss(clean_logits, y, targeted)
            arrays = {"y": y, "epsilon": epsilon, "clean_logits": clean_logits}
            result = _run_search(
                search_program, f, x, settings, keys=_example_keys(key, x), **arrays
            )
            adversarial, perturbation, distance = _perturb(x, result.r, initial, norm)
            success, loss = _success_and_loss(_call(f, adversarial), y, targeted)
            attacked = adversarial, perturbation, success, distance, loss, initial
            return AttackResult(*attacked, *result[1:])

        return distributed.parallel_over_batch(attack_batch)(x, y, epsilon)

    return Attack(name, norm, epsilon, bounds, targeted, run, uses_gradients=uses_gradients)


def per_example_epsilon(epsilon: Any, batch: int | None, dtype: Any) -> PerExample:
    """Check the radius `epsilon`, a number or one per example, and return it as an array (batch,).

    If `batch` is None, any number of radii is accepted.
    """
    if isinstance(epsilon, int | float):
        return jnp.full(batch or 1, _validation.number("epsilon", epsilon, low=0), dtype)
    _validation.floating("epsilon", epsilon, rank=(0, 1))
    _validation.finite("epsilon", epsilon)
    _validation.within("epsilon", epsilon, 0, np.inf)
    if batch is not None and jnp.shape(epsilon) not in ((), (batch,)):
        raise ValueError(
            f"epsilon must be a number or have one value for each of {batch} examples, "
            f"got shape {list(jnp.shape(epsilon))}"
        )
    return jnp.broadcast_to(jnp.asarray(epsilon, dtype), batch or jnp.size(epsilon))


def validate_examples(f: Program, x: Any, y: Any, bounds: Bounds) -> tuple[Any, Labels]:
    """Check x, y and the output of f; return x clipped to the bounds, and y as int32."""
    _validation.floating_leaves("x", x)
    _validation.array("y", y)
    _validation.batch(x=x, y=y)
    if not any(np.size(leaf) for leaf in jax.tree.leaves(x)):
        raise ValueError("x must have at least one value per example, got arrays of size 0")
    _validation.finite("x", x)
    x = jax.tree.map(functools.partial(_clip_rounding_errors, bounds=bounds), x)
    if len(dtypes := {str(leaf.dtype) for leaf in jax.tree.leaves(x)}) > 1:
        raise TypeError(f"x must be of one dtype, got {', '.join(sorted(dtypes))}")
    logits = _call.eval_shape(f, x)
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


def _clip_rounding_errors(leaf: Any, bounds: Bounds) -> Array:
    """Clip an array to the bounds; raise if a value exceeds them by more than rounding errors."""
    x, values = jnp.asarray(leaf), _validation.values(leaf)
    low, high = bounds
    if values is not None:
        excess = np.maximum(low - values, values - high)
        if not (excess > 0).any():
            return x
        slack = 4 * float(jnp.finfo(x.dtype).eps) * max(abs(low), abs(high))
        if (excess > slack).any():
            raise ValueError(
                f"x must lie in {low:g} .. {high:g}, got {int((excess > slack).sum())} values "
                f"outside, the worst {values.flat[excess.argmax()]:g}"
            )
    # Not simply `jnp.clip`, which flushes subnormal values inside the bounds to zero.
    return jnp.where((x < low) | (x > high), jnp.clip(x, low, high), x)


def _validate_targets(y: Labels, labels: Any, targeted: bool) -> None:
    if not targeted:
        raise ValueError("labels must be None for an untargeted attack, where y are the labels")
    _validation.same_shape(y=y, labels=labels)
    if not jnp.issubdtype(_validation.array("labels", labels).dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    label_values, targets = _validation.values(labels), _validation.values(y)
    if label_values is None or targets is None:
        return
    if (equal := label_values == targets).any():
        raise ValueError(
            f"y must be targets that differ from the labels, got {equal.sum()} equal to theirs"
        )


def validate_num_targets(targets: Any, targeted: bool) -> Array | None:
    """Check the argument `targets`, the number of target classes to try, and return it as an array.

    None stays None. Raises ValueError for a targeted attack, whose targets are y.
    """
    if targets is None:
        return None
    if targeted:
        raise ValueError(
            f"targets must be None for a targeted attack, whose targets are y, got {targets}"
        )
    return jnp.int32(_validation.integer("targets", targets, low=1))


def validate_attack(attack: Any, name: str = "attack") -> None:
    """Raise TypeError if `attack` is not an `Attack`; the message calls the argument `name`."""
    if not isinstance(attack, Attack):
        raise TypeError(f"{name} must be an Attack, got {type(attack).__name__}")


def select(which: Bool[Array, "batch"], new: Tree, old: Tree) -> Tree:
    """Select per example from two pytrees: from `new` where `which` holds, else from `old`."""
    where = lambda new, old: jnp.where(jnp.expand_dims(which, range(1, old.ndim)), new, old)
    return jax.tree.map(where, new, old)


def zero_nonfinite(gradient: Flat) -> Flat:
    """Replace NaN and infinite entries of a gradient by zero, so that perturbations stay finite."""
    return jnp.where(jnp.isfinite(gradient), gradient, 0)


@functools.partial(jax.jit, static_argnames=("targeted",))
def reevaluate(f: Program, result: AttackResult, x: Any, y: Labels, targeted: bool) -> AttackResult:
    """Evaluate the perturbed examples of an attack result with another model f.

    Returns the result with `success`, `loss` and `initially_misclassified` recomputed for f.
    Examples that f misclassifies without a perturbation are reset to x. The result of a `cascade`
    is accepted too.
    """
    initial = is_adversarial(f(x), y, targeted)
    adversarial = select(initial, x, result.adversarial)
    moved = result.perturbation, result.distance
    perturbation, distance = select(initial, jax.tree.map(jnp.zeros_like, moved), moved)
    success, loss = _success_and_loss(f(adversarial), y, targeted)
    stage = getattr(result, "stage", None)
    stages = {} if stage is None else {"stage": jnp.where(success & ~initial, stage, -1)}
    return result._replace(
        adversarial=adversarial,
        perturbation=perturbation,
        success=success,
        distance=distance,
        loss=loss,
        initially_misclassified=initial,
        **stages,
    )


@jax.jit
def _call(f: Program, x: Any) -> Any:
    return f(x)


def add_rounded_toward_x(x: Flat, r: Flat) -> Flat:
    """Add perturbations r to x, rounded such that |(x + r) - x| <= |r| holds in floating point."""
    rounded = x + r
    value = jax.lax.stop_gradient(rounded)
    # Where rounding went outward, go back by one unit in the last place; that difference is exact.
    correction = jnp.where(jnp.abs(value - x) > jnp.abs(r), jnp.nextafter(value, x) - value, 0)
    return rounded + jax.lax.stop_gradient(correction)


def per_example_keys(key: jax.Array, rows: Flat) -> jax.Array:
    """Derive a PRNG key for each row (example) from `key` and a hash of the bits of the row."""
    bits = jax.lax.bitcast_convert_type(rows.astype(jnp.float32), jnp.uint32)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B)
    # Odd multipliers, another one for each position: a permuted row has another hash.
    multipliers = (2 * jnp.arange(rows.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(0x9E3779B1)
    hashes = ((bits ^ (bits >> 13)) * multipliers).sum(1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)


def flatten_examples(x: Any) -> tuple[Flat, Callable[[Flat], Any]]:
    """Flatten an array or pytree of examples to rows (batch, n).

    Returns the rows, and the function from rows back to examples.
    """
    leaves, structure = jax.tree.flatten(x)
    sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]

    def unflatten(rows: Flat) -> Any:
        parts = jnp.split(rows, list(np.cumsum(sizes)[:-1]), axis=1) if len(leaves) > 1 else [rows]
        shape_like = lambda part, leaf: part.reshape(len(part), *leaf.shape[1:]).astype(leaf.dtype)
        return jax.tree.unflatten(structure, map(shape_like, parts, leaves))

    dtype = jnp.result_type(*leaves)
    flat = [leaf.reshape(len(leaf), -1).astype(dtype) for leaf in leaves]
    return jnp.concatenate(flat, axis=1), unflatten


@jax.jit
def _example_keys(key: jax.Array, x: Any) -> jax.Array:
    return per_example_keys(key, flatten_examples(x)[0])


@functools.partial(jax.jit, static_argnames="settings")
def _run_search(
    search: Program, f: Program, x: Any, settings: tuple[str, Bounds, bool], **arrays: Array
) -> Search:
    """Run an attack's search function on the examples x, flattened to rows; return its result.

    `settings` are (norm, bounds, targeted). The keyword arguments `arrays` are y, epsilon, keys and
    clean_logits, which become fields of the `Problem` that `search` gets.
    """
    rows, unflatten = flatten_examples(x)
    norm, bounds, targeted = settings
    problem = Problem(
        logits=lambda rows: f(unflatten(rows)),
        x=rows,
        norm=norms.named(norm),
        bounds=bounds,
        targeted=targeted,
        shape=x.shape[1:] if isinstance(x, jax.Array) else (),
        **arrays,
    )
    result = search(problem)
    if not isinstance(result, Search):
        raise TypeError(f"search must return a Search, got {type(result).__name__}")
    batch = rows.shape[:1]
    for field, value in result._asdict().items():
        if jnp.shape(value) not in ((rows.shape,) if field == "r" else ((), batch)):
            expected, got = rows.shape if field == "r" else batch, jnp.shape(value)
            raise ValueError(f"search must return {field} of shape {expected}, got {got}")
    # Of one dtype for all attacks, so that a cascade can merge them; with x64, some are int64.
    counts = (jnp.broadcast_to(jnp.asarray(count, jnp.int32), batch) for count in result[1:])
    return Search(_discard_invalid(problem, result.r), *counts)


def _discard_invalid(problem: Problem, r: Flat) -> Flat:
    """Set perturbations that are not finite, or leave ball or box by more than rounding, to 0."""
    slack = 64 * float(jnp.finfo(r.dtype).eps)
    (low, high), perturbed = problem.bounds, add_rounded_toward_x(problem.x, r)
    margin = slack * max(abs(low), abs(high))
    in_box = ((perturbed >= low - margin) & (perturbed <= high + margin)).all(1)
    in_ball = problem.norm.length(r) <= problem.epsilon * (1 + slack)
    is_valid = jnp.isfinite(r).all(1) & in_box & in_ball
    return jnp.where(is_valid[:, None], r, 0)


@functools.partial(jax.jit, static_argnames=("norm",))
def _perturb(
    x: Any, r: Flat, unperturbed: Bool[Array, "batch"], norm: str
) -> tuple[Any, Any, PerExample]:
    """Compute the perturbed examples x + r, their differences from x after rounding, and the norms.

    Where `unperturbed` holds or a value of r is 0, the value of x is kept exactly.
    """
    rows, unflatten = flatten_examples(x)
    adversarial = jnp.where(unperturbed[:, None] | (r == 0), rows, add_rounded_toward_x(rows, r))
    perturbation = adversarial - rows
    return unflatten(adversarial), unflatten(perturbation), norms.named(norm).length(perturbation)


@functools.partial(jax.jit, static_argnames=("targeted",))
def _success_and_loss(
    logits: Logits, y: Labels, targeted: bool
) -> tuple[Bool[Array, "batch"], PerExample]:
    return is_adversarial(logits, y, targeted), cross_entropy(logits, y, targeted)
