"""Signs that a program only looks robust: its gradients are masked, and the attacks lost their way rather than their case.

What is looked at          on a few examples that f reads rightly                          a sign
    two calls              |f(x) - f(x)|                                                    they differ
    the logits             their sums, and what softmax leaves for other classes            probabilities; nothing is left
    the gradient           of the cross-entropy, or the margin where that has saturated     zero, NaN or infinite
    ascents inside a ball  of one step and of many; of twice the radius; from four starts   the loss falls, does not rise; they disagree
    the outcomes           who was broken without a gradient                                and not with one

The measures are those of A. Athalye, N. Carlini and D. Wagner, "Obfuscated gradients give a false sense of security", 2018, and of
N. Carlini et al., "On evaluating adversarial robustness", 2019. A sign is no proof: it says what was seen, and which attack to try.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffprog import norms
from diffprog.adversarial._base import Bounds, Labels, flatten_examples
from diffprog.adversarial._losses import Logits, cross_entropy
from diffprog.adversarial.evaluation._report import SLACK, Flag, Outcome
from diffprog.adversarial.gradient._pgd import pgd
from diffprog.adversarial.wrappers._expectation import expectation
from diffprog.program import Program, program

STEPS, STARTS = 20, 4
# Shares of the examples looked at, above which a sign is given: what a network without any defence shows stays well below.
_ZERO, _SATURATED, _FALLING, _FLAT, _DISAGREEING, _BLIND = 0.05, 0.25, 0.1, 0.25, 0.15, 0.02


class Seen(NamedTuple):
    """What a program does at a few examples that it reads rightly.

    Attributes:
        logits: (examples, classes).
        again: the logits of a second call; None of a program that takes a key, and may say another thing with another one.
        gradient: (examples, n), of the loss that attacks ascend.
        nearby: the logits and that gradient at a point drawn from the ball of each.
        saturated: (examples,), whether softmax leaves nothing for the other classes.
        short: (examples,), the largest loss that ascents of one step reach from several starts.
        long: (examples,), what one of many steps reaches from the first of these starts.
        wide: (examples,), the same in twice the radius.
        turned: (starts, examples), whether each of several ascents turned the example.
        widened: whether there is room for twice the radius.
    """

    logits: Logits
    again: Logits | None
    gradient: Float[Array, "examples n"]
    nearby: tuple[Logits, Float[Array, "examples n"]]
    saturated: Bool[Array, "examples"]
    short: Float[Array, "examples"]
    long: Float[Array, "examples"]
    wide: Float[Array, "examples"]
    turned: Bool[Array, "starts examples"]
    widened: bool


def look(
    f: Callable[..., Any],
    x: Any,
    y: Labels,
    *,
    norm: str,
    epsilon: float,
    bounds: Bounds,
    key: jax.Array,
    draws: int | None = None,
) -> Seen:
    """What f does at these examples and in balls around them; `draws` for an f of (x, key), which is seen as their mean."""
    drawn = f if draws is None else lambda x: f(x, key)
    opened = program(drawn)
    logits, gradient = _slope(opened, x, y)
    nearby = _slope(opened, _near(x, norm, epsilon, bounds, key), y)
    again = None if draws is not None else _called_again(f, x, logits)
    box = norms.named(norm).length(jnp.full_like(gradient[:1], bounds[1] - bounds[0]))
    wider = min(2 * epsilon, float(box[0]))

    def ascend(steps: int, radius: float, start: int) -> tuple[Array, Array]:
        attack = pgd(norm=norm, epsilon=radius, steps=steps, bounds=bounds)
        found = (attack if draws is None else expectation(attack, draws))(
            f, x, y, key=jax.random.fold_in(key, start)
        )
        return found.loss, found.success

    runs = [ascend(STEPS, epsilon, start) for start in range(STARTS)]
    return Seen(
        logits,
        again,
        gradient,
        nearby,
        jax.nn.softmax(logits).max(1) == 1,
        jnp.stack([ascend(1, epsilon, start)[0] for start in range(STARTS)]).max(0),
        runs[0][0],
        ascend(STEPS, wider, 0)[0],
        jnp.stack([turned for _, turned in runs]),
        wider > epsilon,
    )


@jax.jit
def _slope(f: Program, x: Any, y: Labels) -> tuple[Logits, Array]:
    def total(x: Any) -> tuple[Array, Logits]:
        logits = f(x)
        return cross_entropy(logits, y, False).sum(), logits

    gradient, logits = jax.grad(total, has_aux=True)(x)
    return logits, flatten_examples(gradient)[0]


def _near(x: Any, norm: str, epsilon: float, bounds: Bounds, key: jax.Array) -> Any:
    """A point drawn from the ball of each example, put into the box."""
    (rows, back), measure = flatten_examples(x), norms.named(norm)
    r = measure.project_in_box(
        measure.sample(key, rows.shape, epsilon, rows.dtype), rows, epsilon, bounds
    )
    return back(rows + r)


def _called_again(f: Callable[..., Any], x: Any, logits: Logits) -> Logits:
    """The call of two whose logits are farther from those already known: by Python, so that what f keeps outside JAX can move on."""
    calls = [jnp.asarray(f(x)) for _ in range(2)]
    return max(calls, key=lambda said: float(jnp.nan_to_num(jnp.abs(said - logits)).max()))


def of_logits(unsaid: Bool[np.ndarray, "batch"]) -> Iterator[Flag]:
    """The sign of examples at which f says NaN."""
    if unsaid.any():
        yield Flag(
            "NaN logits",
            f"f says NaN at {int(unsaid.sum())} of {len(unsaid)} examples themselves.",
            "They count as misread, with and without an attack: the accuracies are those of a program that is broken there.",
            "Find where it arises (jax.debug_nans), often a logarithm, root or division at 0.",
        )


def signs(
    seen: Seen | None, outcomes: tuple[Outcome, ...], right: Bool[np.ndarray, "batch"]
) -> tuple[Flag, ...]:
    """All signs there are: of what was seen, if any example could be looked at, and of the outcomes."""
    at_examples = (
        [] if seen is None else [*_of_calls(seen), *_of_gradients(seen), *_of_ascents(seen)]
    )
    return (*at_examples, *_of_outcomes(outcomes, right))


def _of_calls(seen: Seen) -> Iterator[Flag]:
    logits = np.asarray(seen.logits)
    if seen.again is not None:
        apart = np.abs(np.nan_to_num(np.asarray(seen.again) - logits)).max()
        if apart > 1e3 * np.finfo(logits.dtype).eps * np.abs(np.nan_to_num(logits)).max():
            yield Flag(
                "random program",
                f"two calls with the same examples differ by up to {apart:.3g} in a logit.",
                "An attack fits r to draws that are gone when it is judged, and gets credit for one lucky draw.",
                "Write the program as f(x, key) and put expectation(...) around every attack.",
            )
    if ((logits >= 0) & (logits <= 1)).all() and np.allclose(logits.sum(1), 1, atol=1e-3):
        yield Flag(
            "probabilities for logits",
            "every output lies in 0 .. 1, and they sum to 1.",
            "Cross-entropy takes the softmax of them once more: its gradient is nearly the same at all of them, and fades where f is sure.",
            "Return what goes into the last softmax, or the logarithm of what comes out.",
        )


def _of_gradients(seen: Seen) -> Iterator[Flag]:
    count = len(seen.gradient)
    places = [
        [np.asarray(part) for part in place]
        for place in ((seen.logits, seen.gradient), seen.nearby)
    ]
    bad = int(
        np.any(
            [
                np.isnan(logits).any(1) | ~np.isfinite(gradient).all(1)
                for logits, gradient in places
            ],
            axis=0,
        ).sum()
    )
    if bad:
        yield Flag(
            "NaN or infinite gradients",
            f"at {bad} of {count} examples, or a point near them.",
            "Attacks take such a number for zero, and a NaN in the logits for no success: that alone may leave an example standing.",
            "Find where it arises (jax.debug_nans), often a logarithm, root or division at 0.",
        )
    zero = int(np.all([(gradient == 0).all(1) for _, gradient in places], axis=0).sum())
    if zero > _ZERO * count:
        yield Flag(
            "zero gradients",
            f"exactly zero at {zero} of {count} examples and at a point near each.",
            "Attacks that follow the gradient do not move there; that they fail says nothing.",
            "If f rounds, attack bpda(f); else add square or hop_skip_jump, which need no gradient.",
        )
    blind = int(np.asarray(seen.saturated).sum())
    if blind > _SATURATED * count:
        yield Flag(
            "saturated softmax",
            f"at {blind} of {count} examples the largest probability rounds to 1.",
            "The cross-entropy has no gradient there. The attacks here take the margin instead; others, or a loss of your own, do not.",
            'Trust attacks with loss="margin" or "dlr" and auto_attack; compare with the same program in float64.',
        )


def _of_ascents(seen: Seen) -> Iterator[Flag]:
    short, long, wide, count = (
        np.asarray(seen.short),
        np.asarray(seen.long),
        np.asarray(seen.wide),
        len(seen.gradient),
    )
    falling = int((long < short - 0.1 * np.abs(short) - 1e-3).sum())
    if falling > _FALLING * count:
        yield Flag(
            "loss falls with steps",
            f"{STEPS} steps reach less than the best of {STARTS} single ones, at {falling} of {count} examples.",
            "To follow the gradient is worse than to guess: it does not point to where the loss is larger.",
            "Add square; if f rounds or draws, bpda and expectation.",
        )
    flat = int((wide <= long).sum())
    if seen.widened and flat > _FLAT * count:
        yield Flag(
            "loss does not rise with ε",
            f"twice the radius reaches no larger loss, at {flat} of {count} examples.",
            "A larger ball holds every worse point of the smaller one: the ascent does not find what is there.",
            "Raise the steps; look at the gradient; add square.",
        )
    turned = np.asarray(seen.turned)
    split = int((turned.any(0) & ~turned.all(0)).sum())
    if split > _DISAGREEING * count:
        yield Flag(
            "restarts disagree",
            f"{split} of {count} examples are turned from some of {len(turned)} random starts and not from others.",
            "One start more would turn others: the accuracy is what the number of starts makes it.",
            "Raise restarts until the accuracy stays; if f draws at random, expectation.",
        )


def _of_outcomes(outcomes: tuple[Outcome, ...], right: Bool[np.ndarray, "batch"]) -> Iterator[Flag]:
    for name, more in _only_blind(outcomes, right).items():
        if more > max(1, _BLIND * right.sum()):
            yield Flag(
                "black box beats white box",
                f"{name} turns {more} of {right.sum()} examples that no attack with a gradient turns.",
                "The gradient leads less far than none at all: it is masked, or the attacks that follow it are too weak.",
                "Add auto_attack and restarts; look for what hides the gradient.",
            )


def _only_blind(outcomes: tuple[Outcome, ...], right: Bool[np.ndarray, "batch"]) -> dict[str, int]:
    """How many examples each attack without a gradient turned within a radius in which those with one did not."""
    more = {}
    for outcome in (outcome for outcome in outcomes if _stages(outcome, blind=True)):
        turned = right & _turned(outcome, blind=True)
        radius = np.broadcast_to(
            1.05 * outcome.found.distance if outcome.epsilon is None else outcome.epsilon,
            right.shape,
        )
        seeing = [other for other in outcomes if _stages(other, blind=False)]
        fair = [
            other
            for other in seeing
            if other.epsilon is None
            or (np.asarray(other.epsilon) >= radius * (1 - SLACK))[turned].all()
        ]
        within = [
            _turned(other, blind=False) & (other.found.distance <= radius * (1 + SLACK))
            for other in fair
        ]
        if fair:
            more[outcome.name] = int((turned & ~np.any(within, axis=0)).sum())
    return more


def _stages(outcome: Outcome, *, blind: bool) -> list[int]:
    """Which stages of an attack take no gradient, or do; an attack that is no cascade is its only stage."""
    return [
        k
        for k, name in enumerate(getattr(outcome.found, "stages", (outcome.method,)))
        if _blind(name) == blind
    ]


def _turned(outcome: Outcome, *, blind: bool) -> Bool[np.ndarray, "batch"]:
    """Whom those stages turned."""
    stage = getattr(outcome.found, "stage", np.where(outcome.found.success, 0, -1))
    return np.isin(stage, _stages(outcome, blind=blind))


def _blind(name: str) -> bool:
    """Whether the attack of this name takes no gradient of f."""
    name = name.removeprefix("expectation of ")
    return name in ("square", "hop_skip_jump") or name.startswith("transfer of ")
