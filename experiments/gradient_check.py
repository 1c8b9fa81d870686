"""Plant bugs in a hand-written network, one after another, and read what the gradient checker says of each.

    python -m experiments.gradient_check [--fast]

The network is a small one for images: convolution, relu, max pool, affine with tanh, affine with softmax cross-entropy. First the right one
is checked, part by part; then each bug in `BUGS` is put into one of its parts, the table of the parts that are not right is printed, and
beside it what a single number (the cosine between the wrong gradient and the right one) would have said. Most wrong gradients point more or
less downhill: training would go on, only worse, and nobody would know.

Last comes Taylor's test of the right gradient and of one that is 1 % off: lines of slope 2 and 1.

Writes results/gradient_check/: bugs.json (bug, part, leaf, verdict, hint, cosine), slopes.png.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffprog import backprop as bp
from diffprog import checks, plotting
from diffprog.backprop import Layer

RESULTS = Path("results/gradient_check")
BATCH, SIDE, CHANNELS, UNITS, CLASSES = 6, 8, 4, 8, 5
SEED = 0


class Bug(NamedTuple):
    """What is wrong, in which part of the network, and how it gets there: `plant(layer)` gives the wrong layer."""

    said: str
    part: str
    plant: Callable[[Layer], Layer]


def backward_through(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Layer], Layer]:
    """Put the right (dparams, dx) through `change`."""
    return lambda layer: layer._replace(
        backward=lambda params, kept, dy: change(*layer.backward(params, kept, dy))
    )


def in_leaf(name: str, change: Callable[[Array], Array]) -> Callable[[Layer], Layer]:
    """Change the gradient of one parameter."""
    return backward_through(lambda dparams, dx: ({**dparams, name: change(dparams[name])}, dx))


def in_input(change: Callable[[Array], Array]) -> Callable[[Layer], Layer]:
    """Change the gradient of the input."""
    return backward_through(lambda dparams, dx: (dparams, change(dx)))


def with_rule(rule: Callable[[Any, Any, Any], tuple[Any, Any]]) -> Callable[[Layer], Layer]:
    """Put another formula in place of the backward pass."""
    return lambda layer: layer._replace(backward=rule)


def with_kernel_as_it_is(layer: Layer) -> Layer:
    """The kernel of dx not turned by 180 degrees."""

    def backward(params: Any, kept: Any, dy: Array) -> tuple[Any, Any]:
        turned = {**params, "weight": params["weight"][::-1, ::-1]}
        return layer.backward(params, kept, dy)[0], layer.backward(turned, kept, dy)[1]

    return layer._replace(backward=backward)


def with_residual_detached(layer: Layer) -> Layer:
    """What is kept for the backward pass is cut off from what it came from."""

    def forward(params: Any, x: Any) -> tuple[Any, Any]:
        y, kept = layer.forward(params, x)
        return y, jax.lax.stop_gradient(kept)

    return layer._replace(forward=forward)


BUGS = [
    Bug(
        "bias: mean over the examples for their sum",
        "affine2",
        in_leaf("bias", lambda d: d / BATCH),
    ),
    Bug(
        "weight: transposed (it is square, so that every shape fits)",
        "affine2",
        in_leaf("weight", jnp.transpose),
    ),
    Bug(
        "weight: one of 64 numbers too large by 0.1 %",
        "affine2",
        in_leaf("weight", lambda d: d.at[3, 5].multiply(1.001)),
    ),
    Bug(
        "dx = dz W^T for dz W",
        "affine2",
        with_rule(lambda p, x, dz: ({"weight": dz.T @ x, "bias": dz.sum(0)}, dz @ p["weight"].T)),
    ),
    Bug("convolution: kernel of dx not flipped", "convolution2", with_kernel_as_it_is),
    Bug(
        "relu: the mask is taken from dy, not from z",
        "relu1",
        with_rule(lambda p, z, dy: ((), dy * (dy > 0))),
    ),
    Bug(
        "relu: a slope of 0.001 left of 0",
        "relu1",
        with_rule(lambda p, z, dy: ((), jnp.where(z > 0, dy, 1e-3 * dy))),
    ),
    Bug("tanh: 1 - y for 1 - y^2", "tanh1", with_rule(lambda p, y, dy: ((), dy * (1 - y)))),
    Bug("tanh: detached (nothing flows back)", "tanh1", in_input(jnp.zeros_like)),
    Bug(
        "tanh: residual detached, seen only in a second derivative", "tanh1", with_residual_detached
    ),
    Bug("softmax: its sum forgotten", "softmax1", with_rule(lambda p, y, dy: ((), dy * y))),
    Bug(
        "softmax: the diagonal of its Jacobian only",
        "softmax1",
        with_rule(lambda p, y, dy: ((), dy * y * (1 - y))),
    ),
]


LAYERS = {
    "convolution1": bp.convolution(1, CHANNELS),
    "relu1": bp.relu(),
    "convolution2": bp.convolution(CHANNELS, CHANNELS),
    "max_pool1": bp.max_pool(),
    "flatten1": bp.flatten(),
    "affine1": bp.affine(CHANNELS * (SIDE // 2) ** 2, UNITS),
    "tanh1": bp.tanh(),
    "affine2": bp.affine(UNITS, UNITS),
    "sigmoid1": bp.sigmoid(),
    "affine3": bp.affine(UNITS, CLASSES),
    "softmax1": bp.softmax(),
}
FAST = ("flatten1", "affine1", "tanh1", "affine2", "softmax1")


def network(names: Iterable[str], bug: Bug | None = None) -> Layer:
    """The network of these layers, with a bug or without."""
    return bp.chain(
        [
            bug.plant(LAYERS[name]) if bug is not None and bug.part == name else LAYERS[name]
            for name in names
        ]
    )


def cosine(right: Layer, wrong: Layer, params: Any, x: Array) -> float:
    """Between the gradients of all parameters, as training would see them: of the sum of the squared outputs."""
    flat = [_flat_gradient(net, params, x) for net in (right, wrong)]
    return float(flat[0] @ flat[1] / (np.linalg.norm(flat[0]) * np.linalg.norm(flat[1])))


def _flat_gradient(net: Layer, params: Any, x: Array) -> np.ndarray:
    gradient = jax.grad(lambda params: (bp.differentiable(net)(params, x) ** 2).sum())(params)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])


def check_bug(bug: Bug, names: Iterable[str], params: Any, x: Array, key: Array) -> dict[str, Any]:
    """Plant it, print what the checker says, return it."""
    net = network(names, bug)
    report = checks.check_net(net, params, x, key=key)
    wrong = [finding for finding in report.findings if not finding.ok]
    angle = cosine(network(names), net, params, x)
    print(f"\nplanted in {bug.part}: {bug.said}")
    print(
        f"cosine to the right gradient {angle:.4f}; {len(report.findings) - len(wrong)} other gradients right"
    )
    print("\n".join(str(checks.Report(tuple(wrong))).splitlines()[1:]) if wrong else "NOT CAUGHT")
    found = [
        {
            "part": finding.layer,
            "leaf": finding.path,
            "verdict": finding.verdict,
            "hint": finding.hint,
        }
        for finding in wrong
    ]
    caught = {finding.layer for finding in wrong} == {bug.part}
    return {"bug": bug.said, "part": bug.part, "caught": caught, "cosine": angle, "found": found}


def taylor(names: list[str], params: Any, x: Array, key: Array) -> checks.SlopeReport:
    """Taylor's test of two affine layers' weights; the gradient of the second is 1 % off."""
    net, (first, second) = network(names), (names.index("affine1"), names.index("affine2"))

    def cost(weights: dict[str, Array]) -> Array:
        moved = list(params)
        moved[first] = {**params[first], "weight": weights["right"]}
        moved[second] = {**params[second], "weight": weights["1 % off"]}
        return (bp.differentiable(net)(tuple(moved), x) ** 2).sum()

    def claimed(weights: dict[str, Array]) -> dict[str, Array]:
        gradient = jax.grad(cost)(weights)
        return {**gradient, "1 % off": 1.01 * gradient["1 % off"]}

    return checks.slope_test(
        cost,
        claimed,
        {"right": params[first]["weight"], "1 % off": params[second]["weight"]},
        key=key,
    )


def main(fast: bool = False) -> list[dict[str, Any]]:
    """Check the right network, then every bug; save the table and the figure."""
    names = list(FAST if fast else LAYERS)
    bugs = [bug for bug in BUGS if bug.part in names][:: 3 if fast else 1]
    init_key, x_key, key = jax.random.split(jax.random.key(SEED), 3)
    params = network(names).init(init_key)
    x = jax.random.normal(
        x_key, (BATCH, SIDE // 2, SIDE // 2, CHANNELS) if fast else (BATCH, SIDE, SIDE, 1)
    )
    print("the right network, part by part\n")
    print(checks.check_net(network(names), params, x, key=key))
    found = [check_bug(bug, names, params, x, key) for bug in bugs]
    print(
        f"\n{sum(bug['caught'] for bug in found)} of {len(found)} bugs caught, in the part they were planted in and no other"
    )
    slopes = taylor(names, params, x, key)
    print(f"\nTaylor's test\n{slopes}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "bugs.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plotting.draw_slopes(slopes).savefig(RESULTS / "slopes.png", dpi=150)
    print(f"\nwritten: {RESULTS / 'bugs.json'}, {RESULTS / 'slopes.png'}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gradient_check", description="Bugs planted and caught."
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="a smaller network and fewer bugs: a check that everything runs",
    )
    main(parser.parse_args().fast)
