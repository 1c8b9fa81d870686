"""Compare attacks with as many bare gradients; measure compilation, two devices and the cascade.

The network is the CNN of `dp.models` on 8 x 8 images. A bare gradient is one jitted
`value_and_grad` of its cross-entropy with respect to the images. `PGD-40` computes 40 of them;
besides, it draws a start, takes steps, projects, keeps the best iterate of each example, and
evaluates the logits alone three times. Targets:

    PGD-40           500 images: at most 1.10 of 40 bare gradients, also with new weights, images,
                     labels, ε and key in each call; 10 images: at most 1.5
    flax network     at most 0.5 of 40 bare gradients of that network (`nn.Conv`, `nn.max_pool`)
    compilation      first call minus next call: at most 2 s, for 400 steps as for 40
    two devices      two host devices on two cores: at least 1.7 times as fast as one
    auto_attack      at most a quarter of its four attacks, each run on all images
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


class FlaxNetwork(flax.linen.Module):
    """The same network in flax."""

    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of images."""
        for channels in (32, 64):
            x = flax.linen.max_pool(
                flax.linen.relu(flax.linen.Conv(channels, (3, 3))(x)), (2, 2), (2, 2)
            )
        x = flax.linen.relu(flax.linen.Dense(128)(x.reshape(len(x), -1)))
        return flax.linen.Dense(10)(x)


def main(fast: bool) -> dict[str, Comparison]:
    """Compare attacks with bare gradients, and the cascade with its stages."""
    count, rounds = (20, 1) if fast else (500, 15)
    network = FlaxNetwork()
    flax_params = network.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    small, large = (10, 1, 1, 2, 2), (200, 3, 30, 100, 5000)
    return {
        f"PGD-40, {count} images": _pgd_of_models(count, rounds),
        "PGD-40, 10 images": _pgd_of_models(10, 4 * rounds),
        f"PGD-40 of a flax network, {count} images": _pgd(
            network.apply, flax_params, count, rounds
        ),
        "compilation": _compilation(1 if fast else 5),
        f"PGD-40 on two devices, {count} images, load {os.getloadavg()[0]:.1f}": _on_two_devices(
            count, rounds
        ),
        "auto_attack": _cascade(*(small if fast else large)),
    }


def _pgd_of_models(count: int, rounds: int) -> Comparison:
    params, *others = (MODEL.init(jax.random.key(k)) for k in range(4))
    return _pgd(MODEL.apply, params, count, rounds, others)


def _pgd(
    apply: Any, params: Any, count: int, rounds: int, others: list[Any] | None = None
) -> Comparison:
    """Compare PGD-40 with 40 bare gradients; with `others` also on new parameters in each call."""
    f, x, y = _case(apply, params, count, 0)
    baseline = f"{STEPS} bare gradients"
    attack = adv.pgd(epsilon=EPSILON, steps=STEPS)
    contenders = {
        "PGD-40": lambda: attack(f, x, y, key=jax.random.key(0)),
        baseline: bare_gradients(apply, params, x, y),
    }
    if others:
        cases = itertools.cycle(
            [(k, _case(apply, params, count, k)) for k, params in enumerate(others, 1)]
        )

        def attack_new_case() -> Any:
            k, case = next(cases)
            return adv.pgd(epsilon=EPSILON / (k + 2), steps=STEPS)(*case, key=jax.random.key(k))

        contenders["PGD-40, all inputs new"] = attack_new_case
    return compare(contenders, baseline=baseline, rounds=rounds, warmup=2)


def _case(
    apply: Any, params: Any, count: int, seed: int
) -> tuple[dp.Program, jax.Array, jax.Array]:
    """Return a program, images and its predictions as labels, as misclassified are not attacked."""
    f = dp.program(apply, params)
    x = jax.random.uniform(jax.random.key(seed), (count, *SHAPE))
    return f, x, jax.jit(lambda f, x: f(x))(f, x).argmax(-1)


def bare_gradients(apply: Any, params: Any, x: jax.Array, y: jax.Array) -> Callable[[], Any]:
    """Compute `STEPS` gradients with respect to the images, without steps between them."""

    def loss(x: jax.Array, params: Any, y: jax.Array) -> jax.Array:
        return optax.losses.softmax_cross_entropy_with_integer_labels(apply(params, x), y).sum()

    gradient = jax.jit(jax.value_and_grad(loss))
    return lambda: [gradient(x, params, y) for _ in range(STEPS)][-1]


def _compilation(rounds: int) -> Comparison:
    """Compare the times of first calls minus those of next calls, on 10 images."""
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
    wall, cpu = {}, {}
    for name, call in calls.items():
        wall[name], cpu[name] = _compilation_times(call, rounds)
    return Comparison(baseline, wall, cpu)


def _compilation_times(call: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    def first_call() -> Any:
        jax.clear_caches()
        return call()

    time_alone = lambda call: compare({"": call}, baseline="", rounds=rounds, warmup=0)
    first, later = time_alone(first_call), time_alone(call)
    difference = lambda a, b: [one - other for one, other in zip(a[""], b[""], strict=True)]
    return difference(first.wall, later.wall), difference(first.cpu, later.cpu)


def _on_two_devices(count: int, rounds: int) -> Comparison:
    """Run `two_devices` in a new process, as JAX sets the number of devices when it starts."""
    code = (
        "import sys; from experiments.benchmarks import attacks; "
        "attacks.two_devices(*map(int, sys.argv[1:]))"
    )
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    output = subprocess.run(
        [sys.executable, "-c", code, str(count), str(rounds)],
        env={**os.environ, "XLA_FLAGS": flags},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return Comparison(*json.loads(output.splitlines()[-1]))


def two_devices(count: int, rounds: int) -> None:
    """Print the comparison of two devices with one as JSON; one device uses all cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    f, x, y = _case(MODEL.apply, MODEL.init(jax.random.key(0)), count, 0)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    halves = jax.device_put((x, y), jax.NamedSharding(mesh, jax.P("batch")))
    attack = adv.pgd(epsilon=EPSILON, steps=STEPS)
    contenders = {
        "two devices": functools.partial(attack, f, *halves, key=jax.random.key(0)),
        "one device": functools.partial(attack, f, x, y, key=jax.random.key(0)),
    }
    print(json.dumps(compare(contenders, baseline="one device", rounds=rounds, warmup=2)))


def _cascade(count: int, rounds: int, epochs: int, steps: int, queries: int) -> Comparison:
    """Compare `auto_attack` with its stages, each on all images, on correctly classified digits."""
    digits = dp.data.digits()
    trained = digit_classifier.train(
        MODEL, digits.x_train, digits.y_train, epochs, jax.random.key(0)
    )
    correct = trained.program(digits.x_test).argmax(-1) == digits.y_test
    case = trained.program, digits.x_test[correct][:count], digits.y_test[correct][:count]
    epsilon = 0.15
    stages = [
        adv.apgd(epsilon=epsilon, steps=steps),
        adv.apgd(epsilon=epsilon, steps=steps, targets=9, loss="dlr"),
        adv.fab(epsilon=epsilon, steps=steps, targets=9),
        adv.square(epsilon=epsilon, queries=queries),
    ]
    cascade = adv.auto_attack(epsilon=epsilon, steps=steps, queries=queries)
    contenders = {
        "auto_attack": lambda: cascade(*case, key=jax.random.key(0)),
        "its stages": lambda: [attack(*case, key=jax.random.key(0)) for attack in stages],
    }
    return compare(contenders, baseline="its stages", rounds=rounds)
