"""Whole attacks, against as many bare gradients as they take; what compiling adds; two devices; a cascade against its stages.

The network is the CNN of `dp.models` on 8 x 8 images. A bare gradient is one jitted `value_and_grad` of its cross-entropy with respect to
the images: `PGD-40` makes 40 of them, and besides draws a start, takes steps, projects them, keeps the best of each example, and asks three
times for the logits alone.

    PGD-40                    500 images: at most 1.10 of 40 bare gradients, also where weights, images, labels, ε and key are new each time
                              10 images: at most 1.5
    unmodified flax           at most 0.5 of 40 bare gradients of that same network, `nn.Conv` and `nn.max_pool`
    compiling                 the first call less the next one: at most 2 s, for 400 steps as for 40
    two devices               two host devices on two cores: at least 1.7 times faster than one device on both
    auto_attack               at most a quarter of its own four attacks, each run on all the images: digits, of which one in eight stands
"""

import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import optax

import diffprog as dp
from experiments import digit_classifier
from experiments.benchmarks.harness import Comparison, compare

adv = dp.adversarial

SHAPE, STEPS, EPSILON = (8, 8, 1), 40, 0.1
MODEL = dp.models.cnn(SHAPE)


class Flax(flax.linen.Module):
    """The same network as flax users write it."""

    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        for channels in (32, 64):
            x = flax.linen.max_pool(
                flax.linen.relu(flax.linen.Conv(channels, (3, 3))(x)), (2, 2), (2, 2)
            )
        x = flax.linen.relu(flax.linen.Dense(128)(x.reshape(len(x), -1)))
        return flax.linen.Dense(10)(x)


def main(fast: bool) -> dict[str, Comparison]:
    """Compare attacks with bare gradients, first calls with later ones, two devices with one, the cascade with its stages."""
    many, rounds = (20, 1) if fast else (500, 15)
    unmodified = Flax()
    flax_params = unmodified.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    return {
        f"PGD-40, {many} images": _of_the_models(many, rounds),
        "PGD-40, 10 images": _of_the_models(10, 4 * rounds),
        f"PGD-40 of an unmodified flax network, {many} images": _attacked(
            unmodified.apply, flax_params, many, rounds
        ),
        "compiling": _compiling(1 if fast else 5),
        f"PGD-40 on two devices, {many} images, load {os.getloadavg()[0]:.1f}": _in_two_devices(
            many, rounds
        ),
        "auto_attack": _cascade(10, 1, epochs=1, steps=2, queries=2)
        if fast
        else _cascade(200, 3, epochs=30, steps=100, queries=5000),
    }


def _of_the_models(many: int, rounds: int) -> Comparison:
    return _attacked(
        MODEL.apply,
        MODEL.init(jax.random.key(0)),
        many,
        rounds,
        other=[MODEL.init(jax.random.key(k)) for k in (1, 2, 3)],
    )


def _attacked(
    apply: Any, params: Any, many: int, rounds: int, other: list[Any] | None = None
) -> Comparison:
    """PGD-40 against 40 bare gradients of the network as it is; and of the one with other parameters, images, labels, ε and keys."""
    f, x, y = _case(apply, params, many, 0)
    baseline = f"{STEPS} bare gradients"
    attack = adv.pgd(epsilon=EPSILON, steps=STEPS)
    contenders = {
        "PGD-40": lambda: attack(f, x, y, key=jax.random.key(0)),
        baseline: bare_gradients(apply, params, x, y),
    }
    if other:
        cases = itertools.cycle(
            [(k, _case(apply, params, many, k)) for k, params in enumerate(other, 1)]
        )
        contenders["PGD-40, all new"] = lambda: _all_new(*next(cases))
    return compare(contenders, baseline=baseline, rounds=rounds, warmup=2)


def _all_new(k: int, case: tuple[dp.Program, jax.Array, jax.Array]) -> Any:
    return adv.pgd(epsilon=EPSILON / (k + 2), steps=STEPS)(*case, key=jax.random.key(k))


def _case(apply: Any, params: Any, many: int, seed: int) -> tuple[dp.Program, jax.Array, jax.Array]:
    """A program, images, and what it reads: an example that was misread from the start would not be attacked."""
    f = dp.program(apply, params)
    x = jax.random.uniform(jax.random.key(seed), (many, *SHAPE))
    return f, x, jax.jit(lambda f, x: f(x))(f, x).argmax(-1)


def bare_gradients(apply: Any, params: Any, x: jax.Array, y: jax.Array) -> Callable[[], Any]:
    """What one would write without the toolkit, `STEPS` times, without moving."""

    def cost(x: jax.Array, params: Any, y: jax.Array) -> jax.Array:
        return optax.losses.softmax_cross_entropy_with_integer_labels(apply(params, x), y).sum()

    gradient = jax.jit(jax.value_and_grad(cost))
    return lambda: [gradient(x, params, y) for _ in range(STEPS)][-1]


def _compiling(rounds: int) -> Comparison:
    """Seconds of the first call less those of the next one, of 10 images, in a process that has compiled nothing."""
    params = MODEL.init(jax.random.key(0))
    f, x, y = _case(MODEL.apply, params, 10, 0)
    baseline = f"{STEPS} bare gradients"
    calls: dict[str, Callable[[], Any]] = {
        f"PGD-{steps}": functools.partial(
            adv.pgd(epsilon=EPSILON, steps=steps), f, x, y, key=jax.random.key(0)
        )
        for steps in (40, 400)
    }
    calls[baseline] = bare_gradients(MODEL.apply, params, x, y)
    added = {name: _added_at_first(call, rounds) for name, call in calls.items()}
    return Comparison(
        baseline,
        {name: wall for name, (wall, _) in added.items()},
        {name: cpu for name, (_, cpu) in added.items()},
    )


def _added_at_first(call: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    def first() -> Any:
        jax.clear_caches()
        return call()

    alone = lambda call: compare({"": call}, baseline="", rounds=rounds, warmup=0)
    firsts, later = alone(first), alone(call)
    less = lambda times, base: [one - other for one, other in zip(times[""], base[""], strict=True)]
    return less(firsts.wall, later.wall), less(firsts.cpu, later.cpu)


def _in_two_devices(many: int, rounds: int) -> Comparison:
    """`two_devices` in a process that has two devices: how many there are is settled when JAX starts."""
    code = "import sys; from experiments.benchmarks import attacks; attacks.two_devices(*map(int, sys.argv[1:]))"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
    }
    said = subprocess.run(
        [sys.executable, "-c", code, str(many), str(rounds)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return Comparison(*json.loads(said.splitlines()[-1]))


def two_devices(many: int, rounds: int) -> None:
    """Print the comparison of one device with two, as JSON; one device computes with all cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    f, x, y = _case(MODEL.apply, MODEL.init(jax.random.key(0)), many, 0)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    halves = jax.device_put((x, y), jax.NamedSharding(mesh, jax.P("batch")))
    attack = adv.pgd(epsilon=EPSILON, steps=STEPS)
    contenders = {
        "two devices": functools.partial(attack, f, *halves, key=jax.random.key(0)),
        "one device": functools.partial(attack, f, x, y, key=jax.random.key(0)),
    }
    print(json.dumps(compare(contenders, baseline="one device", rounds=rounds, warmup=2)))


def _cascade(many: int, rounds: int, epochs: int, steps: int, queries: int) -> Comparison:
    """`auto_attack` against its stages, each on all images, of digits that a trained network reads rightly."""
    digits = dp.data.digits()
    trained = digit_classifier.train(
        MODEL, digits.x_train, digits.y_train, epochs, jax.random.key(0)
    )
    right = trained.program(digits.x_test).argmax(-1) == digits.y_test
    case = trained.program, digits.x_test[right][:many], digits.y_test[right][:many]
    epsilon = 0.15
    stages = [
        adv.apgd(epsilon=epsilon, steps=steps),
        adv.apgd(epsilon=epsilon, steps=steps, targets=9, loss="dlr"),
        adv.fab(epsilon=epsilon, steps=steps, targets=9),
        adv.square(epsilon=epsilon, queries=queries),
    ]
    whole = adv.auto_attack(epsilon=epsilon, steps=steps, queries=queries)
    contenders = {
        "auto_attack": lambda: whole(*case, key=jax.random.key(0)),
        "its stages": lambda: [attack(*case, key=jax.random.key(0)) for attack in stages],
    }
    return compare(contenders, baseline="its stages", rounds=rounds)
