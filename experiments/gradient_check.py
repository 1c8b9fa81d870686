"""Plant bugs in hand-written backward passes and show how the gradient checker reports them.

    python -m experiments.gradient_check [--fast]

The network classifies small images: convolution, relu, max pooling, affine layers with tanh and
sigmoid, softmax. First the correct network is checked, layer by layer. Then each bug in `BUGS` is
planted in one of its layers, and the findings that are not ok are printed, together with the cosine
between the wrong gradient and the correct one. Most wrong gradients still point downhill: training
would be worse, but not fail, so a check is needed to notice them.

The last part is a Taylor test of a correct gradient and of one that is 1 % off: slopes 2 and 1.

Writes results/gradient_check/: bugs.json (bug, layer, leaf, verdict, hint, cosine), slopes.png.

To check your own layer call `checks.check_layer`; for a network of layers `checks.check_net`.
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
    """Bug with the name of its layer; `plant` maps the correct layer to the wrong one."""

    description: str
    layer: str
    plant: Callable[[Layer], Layer]


def change_backward(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Layer], Layer]:
    """Apply `change` to the correct (dparams, dx)."""
    return lambda layer: layer._replace(
        backward=lambda params, residuals, dy: change(*layer.backward(params, residuals, dy))
    )


def change_param(name: str, change: Callable[[Array], Array]) -> Callable[[Layer], Layer]:
    """Apply `change` to the gradient of one parameter."""
    return change_backward(lambda dparams, dx: ({**dparams, name: change(dparams[name])}, dx))


def replace_backward(rule: Callable[[Any, Any, Any], tuple[Any, Any]]) -> Callable[[Layer], Layer]:
    return lambda layer: layer._replace(backward=rule)


def unflipped_kernel(layer: Layer) -> Layer:
    """Compute dx of a convolution without rotating the kernel by 180 degrees."""

    def backward(params: Any, residuals: Any, dy: Array) -> tuple[Any, Any]:
        # Rotating it once more undoes the rotation of the correct backward pass.
        rotated = {**params, "weight": params["weight"][::-1, ::-1]}
        dparams, _ = layer.backward(params, residuals, dy)
        return dparams, layer.backward(rotated, residuals, dy)[1]

    return layer._replace(backward=backward)


def detached_residuals(layer: Layer) -> Layer:
    """Stop the gradient of the residuals, so that second derivatives are wrong."""

    def forward(params: Any, x: Any) -> tuple[Any, Any]:
        y, residuals = layer.forward(params, x)
        return y, jax.lax.stop_gradient(residuals)

    return layer._replace(forward=forward)


BUGS = [
    Bug(
        "bias: mean over the examples instead of the sum",
        "affine2",
        change_param("bias", lambda d: d / BATCH),
    ),
    Bug(
        "weight: transposed (it is square, so all shapes fit)",
        "affine2",
        change_param("weight", jnp.transpose),
    ),
    Bug(
        "weight: one of 64 numbers too large by 0.1 %",
        "affine2",
        change_param("weight", lambda d: d.at[3, 5].multiply(1.001)),
    ),
    Bug(
        "dx = dz Wᵀ instead of dz W",
        "affine2",
        replace_backward(
            lambda p, x, dz: ({"weight": dz.T @ x, "bias": dz.sum(0)}, dz @ p["weight"].T)
        ),
    ),
    Bug("convolution: kernel of dx not flipped", "convolution2", unflipped_kernel),
    Bug(
        "relu: mask taken from dy instead of z",
        "relu1",
        replace_backward(lambda p, z, dy: ((), dy * (dy > 0))),
    ),
    Bug(
        "relu: slope 0.001 for z < 0",
        "relu1",
        replace_backward(lambda p, z, dy: ((), jnp.where(z > 0, dy, 1e-3 * dy))),
    ),
    Bug(
        "tanh: 1 - y instead of 1 - y²",
        "tanh1",
        replace_backward(lambda p, y, dy: ((), dy * (1 - y))),
    ),
    Bug(
        "tanh: dx is 0 (detached)",
        "tanh1",
        change_backward(lambda dparams, dx: (dparams, jnp.zeros_like(dx))),
    ),
    Bug(
        "tanh: residuals detached, visible only in second derivatives",
        "tanh1",
        detached_residuals,
    ),
    Bug(
        "softmax: the sum is missing",
        "softmax1",
        replace_backward(lambda p, y, dy: ((), dy * y)),
    ),
    Bug(
        "softmax: only the diagonal of the Jacobian",
        "softmax1",
        replace_backward(lambda p, y, dy: ((), dy * y * (1 - y))),
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


def make_network(names: Iterable[str], bug: Bug | None = None) -> Layer:
    """Return the network of these layers, with a bug or without."""
    return bp.chain(
        [
            bug.plant(LAYERS[name]) if bug is not None and bug.layer == name else LAYERS[name]
            for name in names
        ]
    )


def cosine(right: Layer, wrong: Layer, params: Any, x: Array) -> float:
    """Return the cosine between the parameter gradients of the sum of squared outputs."""

    def flat_gradient(net: Layer) -> np.ndarray:
        gradient = jax.grad(lambda params: (bp.differentiable(net)(params, x) ** 2).sum())(params)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])

    a, b = flat_gradient(right), flat_gradient(wrong)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def check_bug(bug: Bug, names: Iterable[str], params: Any, x: Array, key: Array) -> dict[str, Any]:
    """Plant a bug, print the findings of the checker and return them."""
    net = make_network(names, bug)
    report = checks.check_net(net, params, x, key=key)
    wrong = [finding for finding in report.findings if not finding.ok]
    angle = cosine(make_network(names), net, params, x)
    print(f"\nplanted in {bug.layer}: {bug.description}")
    print(
        f"cosine to the correct gradient {angle:.4f}; "
        f"{len(report.findings) - len(wrong)} other gradients correct"
    )
    print("\n".join(str(checks.Report(tuple(wrong))).splitlines()[1:]) if wrong else "NOT CAUGHT")
    return {
        "bug": bug.description,
        "layer": bug.layer,
        "caught": {finding.layer for finding in wrong} == {bug.layer},
        "cosine": angle,
        "findings": [
            {"layer": f.layer, "leaf": f.path, "verdict": f.verdict, "hint": f.hint} for f in wrong
        ],
    }


def taylor_test(names: list[str], params: Any, x: Array, key: Array) -> checks.SlopeReport:
    """Run a Taylor test on the weights of two layers; the gradient of the second is 1 % off."""
    net, (first, second) = make_network(names), (names.index("affine1"), names.index("affine2"))

    def loss(weights: dict[str, Array]) -> Array:
        changed = list(params)
        changed[first] = {**params[first], "weight": weights["right"]}
        changed[second] = {**params[second], "weight": weights["1 % off"]}
        return (bp.differentiable(net)(tuple(changed), x) ** 2).sum()

    def gradient(weights: dict[str, Array]) -> dict[str, Array]:
        right = jax.grad(loss)(weights)
        return {**right, "1 % off": 1.01 * right["1 % off"]}

    weights = {"right": params[first]["weight"], "1 % off": params[second]["weight"]}
    return checks.slope_test(loss, gradient, weights, key=key)


def main(fast: bool = False) -> list[dict[str, Any]]:
    """Check the correct network, then every bug; write and return the findings."""
    names = list(FAST if fast else LAYERS)
    bugs = [bug for bug in BUGS if bug.layer in names][:: 3 if fast else 1]
    init_key, x_key, key = jax.random.split(jax.random.key(SEED), 3)
    params = make_network(names).init(init_key)
    shape = (BATCH, SIDE // 2, SIDE // 2, CHANNELS) if fast else (BATCH, SIDE, SIDE, 1)
    x = jax.random.normal(x_key, shape)
    print("the correct network\n")
    print(checks.check_net(make_network(names), params, x, key=key))
    results = [check_bug(bug, names, params, x, key) for bug in bugs]
    caught = sum(result["caught"] for result in results)
    print(f"\n{caught} of {len(results)} bugs caught in the layer of the bug and in no other")
    slopes = taylor_test(names, params, x, key)
    print(f"\nTaylor test\n{slopes}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "bugs.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plotting.draw_slopes(slopes).savefig(RESULTS / "slopes.png", dpi=150)
    print(f"\n{RESULTS / 'bugs.json'}\n{RESULTS / 'slopes.png'}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="a smaller network and fewer bugs")
    main(parser.parse_args().fast)
