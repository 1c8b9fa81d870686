"""What attacks are put over: programs that draw at random, programs that round, several examples at once, another program's gradients.

    expectation         f(x, key)          attack  log E_key softmax f(x, key), with new draws at every point it looks at
    bpda    f with steps       the gradient passes round, floor, ceil and sign as if they were the identity
    universal           one r, many x_i    argmax_r  mean_i min(L(clip(x_i + r)), β)  over the ball
    transfer            source and f       search with the gradients of the one, judge by the other

Success is always what the program itself says: under other draws, with its steps in place, for each of the examples.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from diffprog import _validation, descent, distributed, norms
from diffprog._jaxpr import ClosedJaxpr, JaxprEqn, evaluate_equation, find_equations, interpret
from diffprog.adversarial._base import (
    Attack,
    AttackResult,
    Bounds,
    Flat,
    Labels,
    Logits,
    PerExample,
    add_rounded_toward_x,
    flatten_examples,
    per_example_keys,
    validate_examples,
)
from diffprog.adversarial._losses import Loss, cross_entropy, is_adversarial
from diffprog.adversarial.gradient._pgd import resolve_loss
from diffprog.program import Program, program

_JUDGES = 4  # times as many draws decide on success as gave a gradient


def expectation(attack: Attack, draws: int = 16) -> Attack:
    """The attack on a program that takes a key, f(x, key): on the mean of its probabilities, log E_key softmax f(x, key).

    The draws follow from the point: every iterate of every example is seen through new ones, and yet the search sees a function. What is
    found is judged by others, four times as many, so that a lucky draw is no success. Each example has its own, and f is called for one
    at a time.

    Args:
        attack: any attack; called with an f of (x, key), x of shape (1, ...) under `jax.vmap`.
        draws: keys for each value and gradient.

    Raises:
        TypeError, ValueError: an attack that is none, draws below 1.

    Source: A. Athalye et al., "Synthesizing robust adversarial examples", 2018 (expectation over transformation).

    >>> from diffprog.adversarial.gradient._pgd import fgsm
    >>> f = lambda x, key: x + 0.1 * jax.random.normal(key, x.shape)
    >>> attack = expectation(fgsm(epsilon=0.5), draws=4)
    >>> print(attack(f, jnp.array([[0.75, 0.25]]), jnp.array([0]), key=jax.random.key(0)).success)
    [ True]
    """
    _require_attack(attack)
    draws = _validation.integer("draws", draws, low=1)
    return _Expectation(**{**vars(attack), "name": f"expectation of {attack.name}", "draws": draws})


@dataclasses.dataclass(frozen=True)
class _Expectation(Attack):
    draws: int = 1

    def mean_program(self, f: Callable[..., Any], key: jax.Array) -> Program:
        """The program that says what was found, for the key of the attack."""
        return program(_averaged(f, jax.random.split(key)[1], _JUDGES * self.draws))

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
        _validation.function("f", f)
        _validation.key("key", key)
        search_key, judge = jax.random.split(key)[0], self.mean_program(f, key)

        def run(
            seen: Program, x: Any, y: Labels, epsilon: PerExample, key: jax.Array
        ) -> AttackResult:
            return _judged(judge, self.run(seen, x, y, epsilon, key), x, y, self.targeted)

        alone = dataclasses.replace(Attack(**vars(self)), run=run, draws=None)
        return alone(_averaged(f, search_key, self.draws), x, y, key=key, labels=labels, mesh=mesh)


def _averaged(f: Callable[..., Any], key: jax.Array, draws: int) -> Callable[[Any], Logits]:
    """x -> log of the mean probability over draws that follow from the bits of x."""
    opened = program(f)

    def averaged(x: Any) -> Logits:
        keys = per_example_keys(key, jax.lax.stop_gradient(flatten_examples(x)[0]))
        alone = lambda x, key: opened(jax.tree.map(lambda leaf: leaf[None], x), key)[0]
        drawn = lambda k: jax.vmap(alone)(x, jax.vmap(jax.random.fold_in, (0, None))(keys, k))
        said = jax.vmap(drawn)(jnp.arange(draws))
        mean = jax.nn.logsumexp(jax.nn.log_softmax(said), axis=0) - jnp.log(draws).astype(
            said.dtype
        )
        # By hand: a compiled logsumexp may swallow a NaN.
        return jnp.where(jnp.isnan(said).any((0, 2))[:, None], jnp.nan, mean)

    return averaged


def bpda(f: Callable[..., Any], through: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """f, with another gradient: as if each round, floor, ceil and sign in it were the identity; or that of `through`.

    A program that quantises is constant almost everywhere: its gradient is zero, and says nothing of its robustness. The values stay those
    of f. Conversions to integers and comparisons have no such gradient: for f with these give `through`.

    Args:
        f: any callable of pytrees; with `through`, of floats that returns floats.
        through: a smooth stand-in for the whole of f, called with the same arguments, such as `lambda x: x`.

    Raises:
        TypeError: f or `through` is not callable.
        ValueError: on the call: f has none of the four, or one in a loop of unknown length or a function with a derivative rule of its own;
            `through` does not return what f does.

    Source: A. Athalye, N. Carlini and D. Wagner, "Obfuscated gradients give a false sense of security", 2018 (backward pass differentiable
    approximation); Y. Bengio, N. Léonard and A. Courville, "Estimating or propagating gradients through stochastic neurons", 2013.

    >>> f = bpda(lambda x: jnp.round(4 * x) / 4)
    >>> print(f(0.3), jax.grad(f)(0.3))
    0.25 1.0
    """
    _validation.function("f", f)
    if through is None:
        return lambda *args: _rounding_passed(program(f, fast_gradients=False), args)
    _validation.function("through", through)

    def seen(*args: Any) -> Any:
        value, stand_in = f(*args), through(*args)
        kinds = [
            jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)
            for tree in (value, stand_in)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(f"through must return what f does, {kinds[0]}, got {kinds[1]}")
        return jax.tree.map(_with_gradient_of, value, stand_in)

    return seen


@jax.custom_jvp
def _with_gradient_of(value: Array, stand_in: Array) -> Array:
    """The value, with the gradient of its stand-in."""
    return value


_with_gradient_of.defjvp(lambda primals, tangents: (primals[0], tangents[1]))

_ROUNDING = ("round", "floor", "ceil", "sign")


@jax.jit
def _rounding_passed(f: Program, args: tuple[Any, ...]) -> Any:
    traced, shape = jax.make_jaxpr(lambda f, args: f(*args), return_shape=True)(f, args)
    passed = dict.fromkeys(_rounding_paths(traced), _identity)
    outputs, _ = interpret(traced, passed, jax.tree.leaves((f, args)))
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


def _rounding_paths(traced: ClosedJaxpr) -> list[tuple[int, ...]]:
    found = find_equations(traced, lambda equation: equation.primitive.name in _ROUNDING)
    if not found:
        raise ValueError(
            f"f must have a {', '.join(_ROUNDING)}, got none; give `through` for the whole of f"
        )
    closed = [site for site in found if site.opaque_primitive or site.custom_rule_primitive]
    if closed:
        what, where = (
            closed[0].equation.primitive.name,
            sorted({str(site.opaque_primitive or site.custom_rule_primitive) for site in closed}),
        )
        raise ValueError(
            f"f must not have its {what} inside {', '.join(where)}; give `through` for the whole of f"
        )
    return [site.path for site in found]


def _identity(equation: JaxprEqn, inputs: list[Any], given: None) -> tuple[list[Any], None]:
    return [_with_gradient_of(evaluate_equation(equation, inputs)[0], inputs[0])], None


class Universal(NamedTuple):
    """One perturbation for many examples.

    Attributes:
        perturbation: r, of the shape of one example; ||r|| <= ε.
        found: what becomes of each example under it: clip(x + r), success, ...; its `step` is the last for all.
    """

    perturbation: Any
    found: AttackResult


def universal(
    *,
    norm: str = "linf",
    epsilon: float = 0.1,
    steps: int = 200,
    batch_size: int = 128,
    loss: str | Loss = "cross_entropy",
    ceiling: float = 9.0,
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
) -> Callable[..., Universal]:
    """One perturbation for a set: argmax_r mean_i min(L(clip(x_i + r)), β) over the ball, by projected ascent on minibatches.

    The clipped loss keeps examples that are long won from pulling r further. The rate falls from the width of the ball to 0, as that of
    `pgd`.

    Args:
        norm: "linf", "l2" or "l1".
        epsilon: the radius.
        steps: minibatches.
        batch_size: examples in each; all of them, where there are fewer.
        loss: "cross_entropy", "margin", "dlr", or a function (logits, y, targeted) -> (batch,) that grows towards what is wanted.
        ceiling: β.
        bounds: (low, high) of every number of x.
        targeted: whether y is the target.

    Returns:
        A function (f, x, y, key=key, mesh=None) -> Universal; a mesh divides a minibatch of a multiple of its devices.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Sources: S. Moosavi-Dezfooli et al., "Universal adversarial perturbations", 2017; A. Shafahi et al., of the same name, 2020, whose
    method this is, with its β.

    >>> attack = universal(epsilon=0.25, steps=10)
    >>> print(attack(lambda x: x, jnp.array([[0.6, 0.5], [0.7, 0.3]]), jnp.array([0, 0]), key=jax.random.key(0)).perturbation)
    [-0.25  0.25]
    """
    measure, value = norms.named(norm), resolve_loss(loss)
    epsilon, ceiling = (
        _validation.number("epsilon", epsilon, low=0),
        _validation.number("ceiling", ceiling),
    )
    length, size = (
        _validation.integer("steps", steps, low=1),
        _validation.integer("batch_size", batch_size, low=1),
    )
    low, high = _validation.bounds("bounds", bounds)
    direction = norms.linf if measure is norms.linf else norms.l2

    def search(
        f: Callable[..., Any], x: Any, y: Labels, *, key: jax.Array, mesh: Mesh | None = None
    ) -> Universal:
        _validation.key("key", key)
        f = program(f)
        x, y = validate_examples(f, x, y, (low, high))
        rows, back = flatten_examples(x)
        batches = _minibatches(key, len(y), min(size, len(y)), length)
        if mesh is not None:
            mesh = distributed.validate_mesh(mesh)
            axis = (
                mesh.axis_names[0]
                if batches.shape[1] % distributed.batch_axis_size(mesh) == 0
                else None
            )
            batches = distributed.put(batches, NamedSharding(mesh, PartitionSpec(None, axis)))
            f, x, y, rows = distributed.replicate(mesh, (f, x, y, rows))
        radius, most, count = (
            jnp.asarray(epsilon, rows.dtype),
            jnp.asarray(ceiling, rows.dtype),
            jnp.int32(length),
        )

        def cost(r: Flat, batch: Array) -> Array:
            logits = f(
                back(
                    jnp.clip(
                        rows[batch] + _heard(jnp.broadcast_to(r, (len(batch), r.shape[1]))),
                        low,
                        high,
                    )
                )
            )
            won = jnp.minimum(value(logits, y[batch], targeted), most)
            return -jnp.where(jnp.isfinite(won), won, 0).mean()

        up = optax.stateless(lambda gradient, _: radius * direction.ascent(-gradient))
        falling = optax.scale_by_schedule(lambda k: 2 * (1 - k / count))
        engine = descent.descent(
            cost, optax.chain(up, falling), lambda r: measure.project(r, radius)
        )
        end = descent.run(engine, jnp.zeros_like(rows[:1]), batches, progress=False)
        gradients = jnp.bincount(batches[: end.steps].ravel(), length=len(y))
        clip_to_box = norms.linf.project_in_box(
            jnp.broadcast_to(end.variable, rows.shape), rows, radius, (low, high)
        )
        moved = _unjudged(
            back(add_rounded_toward_x(rows, clip_to_box)), x, measure, end.steps, gradients
        )
        return Universal(
            jax.tree.map(lambda leaf: leaf[0], back(end.variable)),
            _judged(f, moved, x, y, targeted),
        )

    return search


@jax.custom_vjp
def _heard(r: Flat) -> Flat:
    """r itself; an example whose gradient is NaN or infinite has no say in it."""
    return r


_heard.defvjp(
    lambda r: (r, None),
    lambda _, gradient: (jnp.where(jnp.isfinite(gradient).all(1, keepdims=True), gradient, 0),),
)


def _minibatches(key: jax.Array, examples: int, size: int, steps: int) -> Array:
    """Indices (steps, size), every example once before any comes again."""
    per_epoch = examples // size
    keys = jax.random.split(key, -(-steps // per_epoch))
    orders = jax.vmap(lambda key: jax.random.permutation(key, examples)[: per_epoch * size])(keys)
    return orders.reshape(-1, size)[:steps]


def _unjudged(
    adversarial: Any, x: Any, norm: norms.Norm, steps: int, gradients: Array
) -> AttackResult:
    r = jax.tree.map(jnp.subtract, adversarial, x)
    none, distance = jnp.zeros_like(gradients), norm.length(flatten_examples(r)[0])
    return AttackResult(
        adversarial, r, none > 0, distance, distance, none > 0, none + steps, none, gradients, none
    )


def transfer(attack: Attack, source: Callable[..., Any]) -> Attack:
    """The attack on `source`, judged by the program it is called with, of which it asks no gradient.

    An example that `source` reads wrongly is left alone, as one that f does.

    Args:
        attack: any attack.
        source: a program of the same examples and classes.

    Raises:
        TypeError: an attack that is none, a source that cannot be called.

    Source: N. Papernot, P. McDaniel and I. Goodfellow, "Transferability in machine learning", 2016.

    >>> from diffprog.adversarial.gradient._pgd import fgsm
    >>> attack = transfer(fgsm(epsilon=0.25), source=lambda x: 2 * x)
    >>> print(attack(lambda x: jnp.round(x, 1), jnp.array([[0.6, 0.5]]), jnp.array([0]), key=jax.random.key(0)).success)
    [ True]
    """
    _require_attack(attack)
    if attack.draws is not None:
        raise ValueError(
            "attack must be one on a program of x alone, got an expectation; transfer the attack inside it"
        )
    opened = program(_validation.function("source", source))

    def run(f: Program, x: Any, y: Labels, epsilon: PerExample, key: jax.Array) -> AttackResult:
        validate_examples(opened, x, y, attack.bounds)
        return _judged(f, attack.run(opened, x, y, epsilon, key), x, y, attack.targeted)

    return dataclasses.replace(
        attack, name=f"transfer of {attack.name}", run=run, uses_gradients=False
    )


@functools.partial(jax.jit, static_argnames=("targeted",))
def _judged(f: Program, found: AttackResult, x: Any, y: Labels, targeted: bool) -> AttackResult:
    """What was found, as f says: success, loss, and which examples it leaves alone."""
    already = is_adversarial(f(x), y, targeted)
    own = lambda mine, other: jnp.where(jnp.expand_dims(already, range(1, other.ndim)), mine, other)
    adversarial = jax.tree.map(own, x, found.adversarial)
    said = f(adversarial)
    success = is_adversarial(said, y, targeted)
    broken = success & ~already
    stage = getattr(found, "stage", None)
    stages = {} if stage is None else {"stage": jnp.where(broken, stage, -1)}
    return found._replace(
        adversarial=adversarial,
        perturbation=jax.tree.map(lambda leaf: own(0, leaf), found.perturbation),
        success=success,
        distance=own(0, found.distance),
        loss=cross_entropy(said, y, targeted),
        initially_misclassified=already,
        **stages,
    )


def _require_attack(attack: Any) -> None:
    if not isinstance(attack, Attack):
        raise TypeError(f"attack must be an Attack, got {type(attack).__name__}")
