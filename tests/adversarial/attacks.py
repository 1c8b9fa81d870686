"""Table of all attacks in a small form, and the program that the protocol tests attack.

A new attack needs one row here; `test_protocol.py` does the rest.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffprog as dp
from diffprog import adversarial

# Bounds that are not round numbers in binary: there high - x + x can differ from high.
BOUNDS = (-2.1179, 2.64)
BATCH, SIZE = 8, 8
HEALTHY, NAN_LOGITS, NAN_GRADIENTS = range(3)
TRACES: list[int] = []  # one entry for every time JAX traces the program


class Row(NamedTuple):
    """How to make an attack small, and what it promises.

    Attributes:
        make: the factory.
        small: settings with which it runs fast.
        other: settings that must not need a new compilation.
        norms: those to test; the first in every test, the others in a few slow ones.
        has_epsilon: whether it takes a radius.
        targeted: whether it can be targeted.
        uses_gradients: whether it differentiates the program.
        random: whether its result depends on the key.
        slow: whether it takes long to compile.
    """

    make: Callable[..., adversarial.Attack]
    small: Mapping[str, Any] = MappingProxyType({})
    other: Mapping[str, Any] = MappingProxyType({})
    norms: tuple[str, ...] = ("linf", "l2", "l1")
    has_epsilon: bool = True
    targeted: bool = True
    uses_gradients: bool = True
    random: bool = False
    slow: bool = True


def random_search(*, norm="linf", epsilon=0.1, steps=20, bounds=(0.0, 1.0), targeted=False):
    """A user's own attack, made from the public API alone."""
    count = jnp.int32(steps)

    def search(problem):
        margin = lambda r: problem.margin(problem.perturbed_logits(r))

        def step(k, r):
            keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, k)
            noise = jax.vmap(lambda key: jax.random.normal(key, r.shape[1:], r.dtype))(keys)
            proposal = problem.project(r + problem.epsilon[:, None] * noise)
            return jnp.where((margin(proposal) > margin(r))[:, None], proposal, r)

        r = jax.lax.fori_loop(0, count, step, jnp.zeros_like(problem.x))
        zeros = jnp.zeros(len(r), int)
        return adversarial.Search(r, zeros + count, zeros, zeros, zeros + 2 * count)

    settings = {"norm": norm, "epsilon": epsilon, "bounds": bounds, "targeted": targeted}
    return adversarial.make_attack("random_search", search, uses_gradients=False, **settings)


ATTACKS = {
    "fgsm": Row(adversarial.fgsm, slow=False),
    "pgd": Row(
        adversarial.pgd,
        {"steps": 5, "restarts": 2},
        {"steps": 7, "restarts": 3},
        norms=("l2", "linf", "l1"),
        random=True,
        slow=False,
    ),
    "mi_fgsm": Row(adversarial.mi_fgsm, {"steps": 5}, {"steps": 7, "decay": 0.5}, slow=False),
    "apgd": Row(
        adversarial.apgd,
        {"steps": 4},
        {"steps": 12, "restarts": 2},
        norms=("l2", "linf", "l1"),
        random=True,
    ),
    "apgd_targets": Row(
        functools.partial(adversarial.apgd, loss="dlr"),
        {"steps": 4, "targets": 2},
        {"steps": 12, "targets": 1},
        norms=("linf",),
        targeted=False,
    ),
    "square": Row(
        adversarial.square,
        {"queries": 40, "restarts": 2},
        {"queries": 30, "restarts": 1, "p": 0.5},
        uses_gradients=False,
        random=True,
    ),
    "hop_skip_jump": Row(
        adversarial.hop_skip_jump,
        {"steps": 3, "draws": 5},
        {"steps": 2, "draws": 7},
        norms=("l2", "linf"),
        has_epsilon=False,
        uses_gradients=False,
        random=True,
    ),
    "box_lbfgs": Row(
        adversarial.box_lbfgs,
        {"searches": 3},
        {"searches": 2, "steps": 7},
        norms=("l2",),
        has_epsilon=False,
    ),
    "carlini_wagner": Row(
        adversarial.carlini_wagner,
        {"searches": 3, "steps": 100},
        {"searches": 2, "steps": 7, "rate": 0.1},
        norms=("l2",),
        has_epsilon=False,
    ),
    "elastic_net": Row(
        adversarial.elastic_net,
        {"searches": 3},
        {"searches": 2, "steps": 7, "rate": 0.1, "beta": 1.0},
        norms=("l1",),
        has_epsilon=False,
    ),
    "ddn": Row(
        adversarial.ddn,
        {"steps": 20},
        {"steps": 7, "rate": 0.5, "gamma": 0.1},
        norms=("l2",),
        has_epsilon=False,
    ),
    "fmn": Row(
        adversarial.fmn,
        {"steps": 20, "restarts": 2},
        {"steps": 7, "rate": 0.5, "gamma": 0.1},
        has_epsilon=False,
    ),
    "deep_fool": Row(
        adversarial.deep_fool,
        {},
        {"steps": 7, "overshoot": 0.5},
        norms=("l2", "linf", "l1"),
        has_epsilon=False,
    ),
    "fab": Row(
        adversarial.fab,
        {"steps": 10, "restarts": 2},
        {"steps": 4, "restarts": 1, "overshoot": 0.1, "pull": 0.2, "backward": 0.8},
    ),
    "fab_minimum": Row(
        adversarial.fab,
        {"steps": 10},
        {"steps": 4, "overshoot": 0.1, "pull": 0.2, "backward": 0.8},
        has_epsilon=False,
    ),
    "auto_attack": Row(
        adversarial.auto_attack,
        {"steps": 4, "queries": 20, "targets": 2},
        {"steps": 6, "queries": 10},
        norms=("linf",),
    ),
    "random_search": Row(
        random_search, {}, {"steps": 30}, uses_gradients=False, random=True, slow=False
    ),
}


def make_small(name, norm=None, epsilon=0.3, **settings):
    """Make the attack of this name with its small settings; without a radius if it takes none."""
    row = ATTACKS[name]
    settings = {"bounds": BOUNDS, **row.small, **settings}
    if len(row.norms) > 1:
        settings["norm"] = norm or row.norms[0]
    if row.has_epsilon:
        settings["epsilon"] = epsilon
    return row.make(**settings)


def linear(weights, x):
    """Compute x W + b, with a fault that is a number: all faults are one compiled program."""
    TRACES.append(1)
    matrix, bias, fault = weights
    x = x.reshape(len(x), -1)
    # Where the first value is below 0, the square root has an infinite slope and `maximum` a slope
    # of 0: their product is NaN.
    first = jnp.where(fault == NAN_GRADIENTS, x[:, :1], 1.0)
    logits = (
        x @ matrix
        + bias
        + jnp.where(fault == NAN_GRADIENTS, 0.01, 0) * jnp.sqrt(jnp.maximum(first, 0))
    )
    return jnp.where((fault == NAN_LOGITS) & (x[:, :1] > 1), jnp.nan, logits)


def linear_problem(seed, *, faces=0.3, fault=HEALTHY, dtype=np.float32, batch=BATCH, scale=1.0):
    """Draw a linear program of three classes, examples, and the classes it predicts.

    A share of the values, `faces`, lies on the faces of the box.
    """
    rng = np.random.default_rng(seed)
    low, high = (dtype(bound) for bound in BOUNDS)
    x = rng.uniform(low, high, (batch, SIZE)).astype(dtype)
    x = np.where(rng.uniform(size=x.shape) < faces, rng.choice([low, high], x.shape), x)
    matrix = rng.normal(size=(SIZE, 3)).astype(dtype)
    bias = -x.mean(0) @ matrix
    weights = [jnp.asarray(value, dtype) for value in (scale * matrix, scale * bias, fault)]
    f = dp.program(linear, weights)
    return f, x, np.asarray(jnp.nan_to_num(f(x)).argmax(1))
