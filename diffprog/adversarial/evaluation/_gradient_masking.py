"""Detection of gradient masking: attacks fail although the model is not robust.

Gradient-based attacks fail on a model whose gradients are zero, NaN, random or misleading.

A few correctly classified examples are tested for these signs of it:

    measured                                      sign of gradient masking
    logits of repeated calls                      differ
    sum of the logits, softmax                    sum is 1 (probabilities); softmax rounds to 1
    gradient of the loss that attacks maximize    zero, NaN or infinite
    loss after 1 and 20 steps of PGD              not larger after 20 steps
    loss of PGD at radius ε and 2 ε               not larger at 2 ε
    success of PGD from four random starts        the starts disagree
    successes of all evaluated attacks            only attacks without gradients succeed

Each sign that is found gives a `Flag`. It is no proof, but names the attack to try next.

Sources: A. Athalye, N. Carlini and D. Wagner, "Obfuscated gradients give a false sense of
security", 2018; N. Carlini et al., "On evaluating adversarial robustness", 2019.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffprog import norms
from diffprog.adversarial._base import Attack, Labels, flatten_examples
from diffprog.adversarial._losses import Logits, cross_entropy
from diffprog.adversarial.evaluation._report import TOLERANCE, Flag, Outcome
from diffprog.adversarial.gradient._pgd import pgd
from diffprog.adversarial.wrappers._expectation import expectation
from diffprog.program import Program, program

STEPS, STARTS = 20, 4
# A flag is raised above these shares of examples; undefended networks stay well below all of them.
_MAX_ZERO_GRADIENT = 0.05
_MAX_SATURATED = 0.25
_MAX_LOSS_FALLS = 0.1
_MAX_LOSS_FLAT = 0.25
_MAX_DISAGREEING = 0.15
_MAX_ONLY_BLACK_BOX = 0.02


class Measurements(NamedTuple):
    """Logits, gradients and PGD losses of a model at a few examples and in the balls around them.

    Attributes:
        logits: (examples, classes), the logits.
        repeated_logits: the logits of a second call; None for a model that takes a PRNG key.
        gradient: (examples, n), gradient of the loss that attacks maximize.
        nearby: logits and gradient at a random point in the ball around each example.
        saturated: (examples,), whether the largest softmax probability rounds to 1.
        one_step_loss: (examples,), largest loss that one step of PGD reaches from several starts.
        loss: (examples,), loss that many steps reach from the first of these starts.
        wide_loss: (examples,), loss that many steps reach in a ball of twice the radius.
        success: (starts, examples), whether many steps from each start succeed.
        widened: whether the ball of twice the radius is larger: it is not if ε is the whole box.
    """

    logits: Logits
    repeated_logits: Logits | None
    gradient: Float[Array, "examples n"]
    nearby: tuple[Logits, Float[Array, "examples n"]]
    saturated: Bool[Array, "examples"]
    one_step_loss: Float[Array, "examples"]
    loss: Float[Array, "examples"]
    wide_loss: Float[Array, "examples"]
    success: Bool[Array, "starts examples"]
    widened: bool


def measure(
    f: Callable[..., Any],
    x: Any,
    y: Labels,
    attack: Attack,
    epsilon: float,
    key: jax.Array,
) -> Measurements:
    """Measure logits, gradients and PGD losses at examples and in the balls around them.

    Args:
        f: function x -> logits; a function of (x, key) if the attack is an `expectation`.
        x, y: correctly classified examples and their labels.
        attack: an attack, of which only the norm, the bounds and `draws` are used.
        epsilon: the radius of the balls.
        key: PRNG key.

    Returns:
        `Measurements`, from which `masking_flags` decides.
    """
    norm, bounds, draws = attack.norm, attack.bounds, attack.draws
    model = program(f if draws is None else lambda x: f(x, key))
    logits, gradient = _logits_and_gradient(model, x, y)
    flat, unflatten = flatten_examples(x)
    ball = norms.named(norm)
    r = ball.sample(key, flat.shape, epsilon, flat.dtype)
    neighbour = unflatten(flat + ball.project_in_box(r, flat, epsilon, bounds))
    box_diameter = ball.length(jnp.full_like(gradient[:1], bounds[1] - bounds[0]))[0]
    wide_epsilon = min(2 * epsilon, float(box_diameter))

    def run_pgd(steps: int, radius: float, start: int) -> tuple[Array, Array]:
        probe = pgd(norm=norm, epsilon=radius, steps=steps, bounds=bounds)
        probe = probe if draws is None else expectation(probe, draws)
        result = probe(f, x, y, key=jax.random.fold_in(key, start))
        return result.loss, result.success

    losses, successes = zip(*(run_pgd(STEPS, epsilon, k) for k in range(STARTS)), strict=True)
    return Measurements(
        logits,
        None if draws is not None else _repeated_logits(f, x, logits),
        gradient,
        _logits_and_gradient(model, neighbour, y),
        jax.nn.softmax(logits).max(1) == 1,
        jnp.stack([run_pgd(1, epsilon, k)[0] for k in range(STARTS)]).max(0),
        losses[0],
        run_pgd(STEPS, wide_epsilon, 0)[0],
        jnp.stack(successes),
        wide_epsilon > epsilon,
    )


@jax.jit
def _logits_and_gradient(f: Program, x: Any, y: Labels) -> tuple[Logits, Array]:
    def total_loss(x: Any) -> tuple[Array, Logits]:
        logits = f(x)
        return cross_entropy(logits, y, False).sum(), logits

    gradient, logits = jax.grad(total_loss, has_aux=True)(x)
    return logits, flatten_examples(gradient)[0]


def _repeated_logits(f: Callable[..., Any], x: Any, logits: Logits) -> Logits:
    """Call f twice more and return the logits that differ most from `logits`.

    They reveal a random model.
    """
    # Outside jit, so that a random state that f keeps in Python advances between the calls.
    calls = [jnp.asarray(f(x)) for _ in range(2)]
    return max(calls, key=lambda repeated: float(jnp.nan_to_num(jnp.abs(repeated - logits)).max()))


def masking_flags(
    measurements: Measurements | None,
    outcomes: tuple[Outcome, ...],
    correct: Bool[np.ndarray, "batch"],
    has_nan: Bool[np.ndarray, "batch"] | None = None,
) -> tuple[Flag, ...]:
    """Return a tuple with a `Flag` for each sign of gradient masking in measurements and results.

    Args:
        measurements: result of `measure`; None if no example is correctly classified.
        outcomes: results of the evaluated attacks.
        correct: (batch,), whether each example is correctly classified.
        has_nan: (batch,), whether a logit of each example is NaN; default none.
    """
    flags: list[Flag] = []
    if has_nan is not None and has_nan.any():
        flags.append(
            Flag(
                "NaN logits",
                f"A logit is NaN at {has_nan.sum()} of {len(has_nan)} unperturbed examples.",
                "They count as misclassified, in clean and in robust accuracy alike.",
                "Find where it arises (jax.debug_nans), often a logarithm, root or division at 0.",
            )
        )
    if measurements is not None:
        flags += _logit_flags(measurements)
        flags += _gradient_flags(measurements)
        flags += _pgd_flags(measurements)
    flags += _black_box_flags(outcomes, correct)
    return tuple(flags)


def _logit_flags(measurements: Measurements) -> Iterator[Flag]:
    logits = np.asarray(measurements.logits)
    if measurements.repeated_logits is not None:
        difference = np.abs(np.nan_to_num(np.asarray(measurements.repeated_logits) - logits)).max()
        rounding = np.finfo(logits.dtype).eps * np.abs(np.nan_to_num(logits)).max()
        if difference > 1e3 * rounding:
            yield Flag(
                "random program",
                f"Two calls on the same examples differ by up to {difference:.3g} in a logit.",
                "Attacks optimize for random draws that are gone when success is decided, "
                "and a lucky draw counts as a success.",
                "Write the model as f(x, key) and wrap every attack in expectation(...).",
            )
    if ((logits >= 0) & (logits <= 1)).all() and np.allclose(logits.sum(1), 1, atol=1e-3):
        yield Flag(
            "probabilities for logits",
            "Every output lies in 0 .. 1, and the outputs of each example sum to 1.",
            "Cross-entropy applies a second softmax to them: its gradient is nearly the same "
            "everywhere and vanishes where f is confident.",
            "Return the input of the last softmax, or the logarithm of its output.",
        )


def _gradient_flags(measurements: Measurements) -> Iterator[Flag]:
    pairs = [(measurements.logits, measurements.gradient), measurements.nearby]
    logits, gradients = (
        [np.asarray(array) for array in arrays] for arrays in zip(*pairs, strict=True)
    )
    count = len(gradients[0])
    nan_logits = np.any([np.isnan(at).any(1) for at in logits], axis=0)
    nonfinite = nan_logits | np.any([~np.isfinite(at).all(1) for at in gradients], axis=0)
    if nonfinite.any():
        yield Flag(
            "NaN or infinite gradients",
            f"Gradient or logits are NaN or infinite at {nonfinite.sum()} of {count} examples, "
            "or at a random point near them.",
            "Attacks replace such a gradient by zero and count NaN logits as a failure: "
            "that alone may leave an example robust.",
            "Find where it arises (jax.debug_nans), often a logarithm, root or division at 0.",
        )
    zero = np.all([(at == 0).all(1) for at in gradients], axis=0).sum()
    if zero > _MAX_ZERO_GRADIENT * count:
        yield Flag(
            "zero gradients",
            f"The gradient is exactly zero at {zero} of {count} examples, and near them.",
            "Gradient-based attacks do not move there; their failure is no sign of robustness.",
            "If f rounds, attack bpda(f); else add square or hop_skip_jump.",
        )
    saturated = np.asarray(measurements.saturated).sum()
    if saturated > _MAX_SATURATED * count:
        yield Flag(
            "saturated softmax",
            f"The largest probability rounds to 1 at {saturated} of {count} examples.",
            "The gradient of the cross-entropy vanishes there. The attacks of this package use the "
            "margin instead; other attacks and losses do not.",
            'Trust auto_attack and attacks with loss="margin" or "dlr"; compare with float64.',
        )


def _pgd_flags(measurements: Measurements) -> Iterator[Flag]:
    one_step, loss, wide = (
        np.asarray(losses)
        for losses in (measurements.one_step_loss, measurements.loss, measurements.wide_loss)
    )
    count = len(loss)
    falls = (loss < one_step - 0.1 * np.abs(one_step) - 1e-3).sum()
    if falls > _MAX_LOSS_FALLS * count:
        yield Flag(
            "loss falls with steps",
            f"{STEPS} steps of PGD reach a smaller loss than the best of {STARTS} single steps, "
            f"at {falls} of {count} examples.",
            "The gradient does not point to larger losses.",
            "Add square; if f rounds or is random, use bpda and expectation.",
        )
    flat = (wide <= loss).sum()
    if measurements.widened and flat > _MAX_LOSS_FLAT * count:
        yield Flag(
            "loss does not rise with ε",
            f"PGD in twice the radius reaches no larger loss, at {flat} of {count} examples.",
            "The larger ball contains the smaller one: PGD does not find the maximum.",
            "Use more steps, inspect the gradients, add square.",
        )
    success = np.asarray(measurements.success)
    disagreeing = (success.any(0) & ~success.all(0)).sum()
    if disagreeing > _MAX_DISAGREEING * count:
        yield Flag(
            "restarts disagree",
            f"PGD succeeds from some of {STARTS} random starts but not from others, "
            f"at {disagreeing} of {count} examples.",
            "More restarts would lower the robust accuracy further.",
            "Use more restarts until the accuracy stops falling; if f is random, expectation.",
        )


def _black_box_flags(
    outcomes: tuple[Outcome, ...], correct: Bool[np.ndarray, "batch"]
) -> Iterator[Flag]:
    for outcome in outcomes:
        success = correct & _stage_success(outcome, uses_gradients=False)
        radius = 1.05 * outcome.found.distance if outcome.epsilon is None else outcome.epsilon
        radius = np.broadcast_to(radius, correct.shape)
        # Compare only with gradient-based attacks that were allowed at least this radius.
        white_box_success = [
            _stage_success(other, uses_gradients=True)
            & (other.found.distance <= radius * (1 + TOLERANCE))
            for other in outcomes
            if any(_stages_use_gradients(other))
            and (
                other.epsilon is None
                or (np.asarray(other.epsilon) >= radius * (1 - TOLERANCE))[success].all()
            )
        ]
        if not white_box_success:
            continue
        only_black_box = (success & ~np.any(white_box_success, axis=0)).sum()
        if only_black_box > max(1, _MAX_ONLY_BLACK_BOX * correct.sum()):
            yield Flag(
                "black box beats white box",
                f"{outcome.name} succeeds on {only_black_box} of {correct.sum()} examples "
                "on which no gradient-based attack succeeds.",
                "Gradients are masked, or the gradient-based attacks are too weak.",
                "Add auto_attack and restarts; inspect the gradients.",
            )


def _stages_use_gradients(outcome: Outcome) -> tuple[bool, ...]:
    """Return one bool per stage of an attack: whether it uses gradients of the model.

    A cascade has one stage per attack in it; any other attack is one stage.
    """
    stages = getattr(outcome.found, "stage_uses_gradients", (True,))
    return tuple(outcome.uses_gradients and stage for stage in stages)


def _stage_success(outcome: Outcome, *, uses_gradients: bool) -> Bool[np.ndarray, "batch"]:
    """Return on which examples stages with (or without) use of gradients succeeded, (batch,).

    A cascade has one stage per attack in it; any other attack is one stage.
    """
    stage = getattr(outcome.found, "stage", np.where(outcome.found.success, 0, -1))
    uses = np.array(_stages_use_gradients(outcome))
    return np.isin(stage, np.flatnonzero(uses == uses_gradients))
