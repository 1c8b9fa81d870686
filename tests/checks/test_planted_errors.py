"""Bugs planted in every layer: the check must find each in its leaf and in no other.

To plant another, add a row to `MUTANTS`: its name, the wrong layer, the input, the wrong leaves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.test_util
import pytest

from diffprog import backprop as bp
from diffprog import checks

W, B, X = "params['weight']", "params['bias']", "x"


class Mutant(NamedTuple):
    """A layer with a wrong backward pass, its input, the wrong leaves, and part of a hint."""

    layer: bp.Layer
    x: object
    leaves: set
    hint: str = ""


def uniform(*shape):
    """Sample inputs of random sign away from 0."""
    return jax.random.uniform(
        jax.random.key(len(shape)), shape, minval=0.2, maxval=1.2
    ) * jax.random.rademacher(jax.random.key(7), shape)


def with_backward(layer, backward):
    return layer._replace(backward=backward)


def with_changed_gradients(layer, change):
    """Apply `change` to the correct (dparams, dx) of a layer."""
    return with_backward(
        layer, lambda params, residuals, dy: change(*layer.backward(params, residuals, dy))
    )


def with_changed_dx(layer, change):
    return with_changed_gradients(layer, lambda dparams, dx: (dparams, change(dx)))


def with_changed_leaf(layer, name, change):
    return with_changed_gradients(
        layer, lambda dparams, dx: ({**dparams, name: change(dparams[name])}, dx)
    )


def with_dx(layer, dx):
    """Replace the formula for dx of a layer without parameters."""
    return with_backward(layer, lambda params, residuals, dy: ((), dx(residuals, dy)))


def swap(dx):
    return dx[1], dx[0]


MATRIX, SQUARE, IMAGE = uniform(5, 4), uniform(5, 4), uniform(2, 6, 5, 2)
AFFINE, SQUARE_AFFINE, WIDE = bp.affine(4, 3), bp.affine(4, 4), bp.affine(4, 16)
CONVOLUTION, SQUARE_CONVOLUTION = bp.convolution(2, 3, 3), bp.convolution(2, 2, 3)
NORM, BATCH_NORM, ATTENTION = bp.layer_norm(4), bp.batch_norm(4), bp.attention(4)
PAIR = (uniform(5, 4), uniform(5, 4)[::-1])
LOGITS_AND_DISTRIBUTION = (uniform(5, 4), jax.nn.softmax(uniform(5, 4)[::-1]))
LOGITS_AND_LABELS = (uniform(5, 4), jnp.array([0, 3, 1, 1, 2]))
IDS, SEQUENCES = jnp.array([[1, 1, 0], [2, 1, 2]]), uniform(2, 3, 4)


def norm_backward(layer, dx_of):
    def backward(params, residuals, dy):
        h, inverse = residuals
        axes = (-1,) if layer is NORM else (0,)
        mean = lambda v: v.mean(axes, keepdims=True)
        return layer.backward(params, residuals, dy)[0], dx_of(
            dy * params["scale"], h, inverse, mean
        )

    return with_backward(layer, backward)


def attention_backward(name):
    """Attention with one mistake in its backward pass."""

    def backward(params, residuals, dy):
        x, q, k, v, a, h = residuals
        scale = 0.5
        dh = dy @ params["output"]
        da, dv = dh @ v.mT, (a if name == "a not transposed" else a.mT) @ dh
        ds = (
            a * da
            if name == "softmax without its sum"
            else a * (da - (da * a).sum(-1, keepdims=True))
        )
        dq, dk = (1 if name == "query unscaled" else scale) * ds @ k, scale * ds.mT @ q
        outer = lambda dz, x: jnp.einsum("bli,blj->ij", dz, x)
        dx = (
            dq @ params["query"]
            + dk @ params["key"]
            + (0 if name == "value path missing" else dv @ params["value"])
        )
        return {
            "query": outer(dq, x),
            "key": outer(dk, x),
            "value": outer(dv, x),
            "output": outer(dy, h),
        }, dx

    return with_backward(ATTENTION, backward)


MUTANTS = {
    "affine: dW transposed": Mutant(
        with_changed_leaf(AFFINE, "weight", jnp.transpose), MATRIX, {W}, "transposed"
    ),
    "affine: square dW transposed": Mutant(
        with_changed_leaf(SQUARE_AFFINE, "weight", jnp.transpose), SQUARE, {W}, "transposed"
    ),
    "affine: W for its transpose": Mutant(
        with_backward(
            SQUARE_AFFINE,
            lambda p, x, dz: ({"weight": dz.T @ x, "bias": dz.sum(0)}, dz @ p["weight"].T),
        ),
        SQUARE,
        {X},
        "in place of its transpose",
    ),
    "affine: mean for sum in db": Mutant(
        with_changed_leaf(AFFINE, "bias", lambda d: d / 5), MATRIX, {B}, "a mean instead of a sum"
    ),
    "affine: mean for sum in dW": Mutant(
        with_changed_leaf(AFFINE, "weight", lambda d: d / 5), MATRIX, {W}, "a mean instead of a sum"
    ),
    "affine: db not returned": Mutant(
        with_changed_gradients(AFFINE, lambda d, dx: ({"weight": d["weight"]}, dx)),
        MATRIX,
        {B},
        "no gradient is returned",
    ),
    "affine: db zero": Mutant(
        with_changed_leaf(AFFINE, "bias", jnp.zeros_like), MATRIX, {B}, "detached"
    ),
    "affine: db of each example": Mutant(
        with_backward(
            AFFINE, lambda p, x, dz: ({"weight": dz.T @ x, "bias": dz}, dz @ p["weight"])
        ),
        MATRIX,
        {B},
        "sum over axis 0 is missing",
    ),
    "affine: sign of dx": Mutant(with_changed_dx(AFFINE, jnp.negative), MATRIX, {X}, "sign"),
    "affine: dW 0.1 % too large": Mutant(
        with_changed_leaf(AFFINE, "weight", lambda d: 1.001 * d),
        MATRIX,
        {W},
        "a constant factor 1.001",
    ),
    "affine: one of 64 by 0.1 %": Mutant(
        with_changed_leaf(WIDE, "weight", lambda d: d.at[9, 2].multiply(1.001)),
        MATRIX,
        {W},
        "1 of 64 elements",
    ),
    "affine: last example forgotten": Mutant(
        with_changed_dx(AFFINE, lambda d: d.at[-1].set(0)), MATRIX, {X}, "all at index 4 of axis 0"
    ),
    "affine: x clipped before it is residuals": Mutant(
        AFFINE._replace(forward=lambda p, x: (AFFINE.forward(p, x)[0], jnp.maximum(x, 0))),
        MATRIX,
        {W},
    ),
    "sigmoid: y for y (1 - y)": Mutant(with_dx(bp.sigmoid(), lambda y, dy: dy * y), MATRIX, {X}),
    "sigmoid: y (1 + y)": Mutant(
        with_dx(bp.sigmoid(), lambda y, dy: dy * y * (1 + y)), MATRIX, {X}
    ),
    "sigmoid: dy forgotten": Mutant(with_dx(bp.sigmoid(), lambda y, dy: y * (1 - y)), MATRIX, {X}),
    "tanh: square forgotten": Mutant(with_dx(bp.tanh(), lambda y, dy: dy * (1 - y)), MATRIX, {X}),
    "tanh: z residuals for y": Mutant(
        bp.tanh()._replace(forward=lambda p, z: (jnp.tanh(z), z)), MATRIX, {X}
    ),
    "tanh: nothing flows back from 2,000 outputs": Mutant(
        with_changed_dx(bp.tanh(), jnp.zeros_like), uniform(50, 40), {X}, "detached"
    ),
    "relu: wrong side": Mutant(with_dx(bp.relu(), lambda z, dy: dy * (z < 0)), MATRIX, {X}),
    "relu: the sign of dy decides": Mutant(
        with_dx(bp.relu(), lambda z, dy: dy * (dy > 0)), MATRIX, {X}
    ),
    "relu: leaks 0.001": Mutant(
        with_dx(bp.relu(), lambda z, dy: jnp.where(z > 0, dy, 1e-3 * dy)), MATRIX, {X}
    ),
    "leaky_relu: 0.01 for 0.1": Mutant(
        with_dx(bp.leaky_relu(), lambda z, dy: jnp.where(z >= 0, dy, 0.01 * dy)), MATRIX, {X}
    ),
    "elu: alpha forgotten": Mutant(
        with_dx(bp.elu(0.7), lambda z, dy: jnp.where(z >= 0, dy, dy * jnp.exp(z))), MATRIX, {X}
    ),
    "elu: y for its slope": Mutant(
        with_dx(bp.elu(0.7), lambda z, dy: jnp.where(z >= 0, dy, 0.7 * dy * jnp.expm1(z))),
        MATRIX,
        {X},
    ),
    "softmax: diagonal only": Mutant(
        with_dx(bp.softmax(), lambda y, dy: dy * y * (1 - y)), MATRIX, {X}, "diagonal"
    ),
    "softmax: sum forgotten": Mutant(
        with_dx(bp.softmax(), lambda y, dy: dy * y), MATRIX, {X}, "one path of a fan-out is missing"
    ),
    "softmax: sum over the batch": Mutant(
        with_dx(bp.softmax(), lambda y, dy: y * (dy - (dy * y).sum(0))), MATRIX, {X}
    ),
    "log_softmax: y sum(dy) forgotten": Mutant(
        with_changed_dx(bp.log_softmax(), lambda d: d - d.sum(-1, keepdims=True) / 4 + 1e-3),
        MATRIX,
        {X},
    ),
    "maxout: all pieces get it": Mutant(
        bp.maxout(4, 3)._replace(
            forward=lambda p, x: (
                lambda y, residuals: (y, (residuals[0], jnp.ones_like(residuals[1])))
            )(*bp.maxout(4, 3).forward(p, x))
        ),
        MATRIX,
        {W, B, X},
    ),
    "convolution: kernel not flipped": Mutant(
        with_backward(
            SQUARE_CONVOLUTION,
            lambda p, x, dz: (
                SQUARE_CONVOLUTION.backward(p, x, dz)[0],
                SQUARE_CONVOLUTION.backward({**p, "weight": p["weight"][::-1, ::-1]}, x, dz)[1],
            ),
        ),
        IMAGE,
        {X},
        "not flipped",
    ),
    "convolution: dW flipped": Mutant(
        with_changed_leaf(CONVOLUTION, "weight", lambda d: d[::-1, ::-1]),
        IMAGE,
        {W},
        "flipped along axes (0, 1)",
    ),
    "convolution: channels exchanged": Mutant(
        with_changed_leaf(SQUARE_CONVOLUTION, "weight", lambda d: d.swapaxes(2, 3)),
        IMAGE,
        {W},
        "transposed",
    ),
    "convolution: db mean over places": Mutant(
        with_changed_leaf(CONVOLUTION, "bias", lambda d: d / 30), IMAGE, {B}, "a constant factor"
    ),
    "convolution: border lost": Mutant(
        with_changed_dx(CONVOLUTION, lambda d: d.at[:, 0].set(0)),
        IMAGE,
        {X},
        "all at index 0 of axis 1",
    ),
    "max_pool: to all of the patch": Mutant(
        with_dx(
            bp.max_pool(),
            lambda residuals, dy: jnp.pad(
                dy.repeat(2, 1).repeat(2, 2), [(0, 0), (0, 0), (0, 1), (0, 0)]
            ),
        ),
        IMAGE,
        {X},
    ),
    "max_pool: shared as by a mean": Mutant(
        with_changed_dx(bp.max_pool(), lambda d: d / 4), IMAGE, {X}, "a constant factor 0.25"
    ),
    "average_pool: not divided": Mutant(
        with_changed_dx(bp.average_pool(), lambda d: 4 * d), IMAGE, {X}, "a constant factor 4"
    ),
    "flatten: column-major": Mutant(
        with_changed_dx(
            bp.flatten(), lambda d: d.reshape(2, -1).reshape(2, 2, 5, 6).transpose(0, 3, 2, 1)
        ),
        IMAGE,
        {X},
    ),
    "add: one input gets nothing": Mutant(
        with_changed_dx(bp.add(), lambda d: (d[0], 0 * d[1])), PAIR, {"x[1]"}, "detached"
    ),
    "multiply: each its own factor": Mutant(
        with_changed_dx(bp.multiply(), swap), PAIR, {"x[0]", "x[1]"}
    ),
    "copy: one path forgotten": Mutant(
        with_backward(bp.copy(3), lambda p, residuals, dy: ((), dy[0] + dy[2])), MATRIX, {X}
    ),
    "max_over: to the last": Mutant(
        with_changed_dx(bp.max_over([[0, 1], [2, 3]]), lambda d: jnp.roll(d, 1, -1)), MATRIX, {X}
    ),
    "pairwise_product: own factor": Mutant(
        with_changed_dx(
            bp.pairwise_product(), lambda d: d.reshape(5, 2, 2)[..., ::-1].reshape(5, 4)
        ),
        MATRIX,
        {X},
    ),
    "power_product: logarithm forgotten": Mutant(
        with_backward(
            bp.power_product(4, 3),
            lambda p, z, dy: (
                {"alpha": jnp.ones_like(z).T @ (dy * (z[:, :, None] ** p["alpha"]).prod(1))},
                bp.power_product(4, 3).backward(p, z, dy)[1],
            ),
        ),
        abs(MATRIX),
        {"params['alpha']"},
    ),
    "layer_norm: variance held constant": Mutant(
        norm_backward(NORM, lambda dh, h, inverse, mean: inverse * (dh - mean(dh))),
        MATRIX,
        {X},
        "missing",
    ),
    "layer_norm: mean held constant": Mutant(
        norm_backward(NORM, lambda dh, h, inverse, mean: inverse * (dh - h * mean(dh * h))),
        MATRIX,
        {X},
    ),
    "layer_norm: scale forgotten": Mutant(
        with_changed_leaf(NORM, "scale", lambda d: d / 2),
        MATRIX,
        {"params['scale']"},
        "a constant factor 0.5",
    ),
    "batch_norm: statistics held constant": Mutant(
        norm_backward(BATCH_NORM, lambda dh, h, inverse, mean: inverse * dh), MATRIX, {X}
    ),
    "batch_norm: n - 1 for n": Mutant(
        norm_backward(
            BATCH_NORM,
            lambda dh, h, inverse, mean: inverse * (dh - mean(dh) - h * mean(dh * h) * 5 / 4),
        ),
        MATRIX,
        {X},
    ),
    "batch_norm: mean of d shift": Mutant(
        with_changed_leaf(BATCH_NORM, "shift", lambda d: d / 5),
        MATRIX,
        {"params['shift']"},
        "a mean instead",
    ),
    "dropout: mask not scaled": Mutant(
        with_changed_dx(bp.dropout(0.5), lambda d: (d[0] / 2, None)),
        (MATRIX, jax.random.key(3)),
        {"x[0]"},
        "0.5",
    ),
    "embedding: repeated ids overwrite": Mutant(
        with_backward(
            bp.embedding(3, 4),
            lambda p, ids, dy: ({"weight": jnp.zeros_like(p["weight"]).at[ids].set(dy)}, None),
        ),
        IDS,
        {W},
    ),
    "attention: query unscaled": Mutant(
        attention_backward("query unscaled"), SEQUENCES, {"params['query']", X}
    ),
    "attention: softmax without its sum": Mutant(
        attention_backward("softmax without its sum"),
        SEQUENCES,
        {"params['query']", "params['key']", X},
    ),
    "attention: value path missing": Mutant(
        attention_backward("value path missing"), SEQUENCES, {X}, "one path of a fan-out is missing"
    ),
    "attention: a not transposed": Mutant(
        attention_backward("a not transposed"), SEQUENCES, {"params['value']", X}
    ),
    "residual: skip forgotten": Mutant(
        with_backward(bp.residual(SQUARE_AFFINE), SQUARE_AFFINE.backward),
        SQUARE,
        {X},
        "one path of a fan-out is missing",
    ),
    "half_squared_error: twice": Mutant(
        with_changed_dx(bp.half_squared_error(), lambda d: (2 * d[0], d[1])),
        PAIR,
        {"x[0]"},
        "factor 2",
    ),
    "half_squared_error: target like prediction": Mutant(
        with_changed_dx(bp.half_squared_error(), lambda d: (d[0], d[0])), PAIR, {"x[1]"}, "sign"
    ),
    "softmax_cross_entropy: label forgotten": Mutant(
        with_dx(bp.softmax_cross_entropy(), lambda residuals, d: (d[:, None] * residuals[0], None)),
        LOGITS_AND_LABELS,
        {"x[0]"},
        "at operand 0 of gather",
    ),
    "softmax_cross_entropy: dL forgotten": Mutant(
        with_changed_dx(bp.softmax_cross_entropy(), lambda d: (d[0].at[2].multiply(1.5), None)),
        LOGITS_AND_LABELS,
        {"x[0]"},
        "index 2 of axis 0",
    ),
    "mean over examples: a sum": Mutant(
        with_changed_dx(
            bp.mean_over_examples(bp.half_squared_error()), lambda d: (5 * d[0], 5 * d[1])
        ),
        PAIR,
        {"x[0]", "x[1]"},
        "a sum instead",
    ),
    "softmax_kl: target detached": Mutant(
        with_changed_dx(bp.softmax_kl(), lambda d: (d[0], 0 * d[1])),
        LOGITS_AND_DISTRIBUTION,
        {"x[1]"},
        "detached",
    ),
    "sigmoid_kl: sign": Mutant(
        with_changed_dx(bp.sigmoid_kl(), lambda d: (-d[0], d[1])),
        (uniform(5), abs(uniform(5)) / 1.3),
        {"x[0]"},
        "sign",
    ),
}


SLOW = {
    "convolution",
    "maxout",
    "power_product",
    "average_pool",
    "batch_norm",
    "elu",
    "log_softmax",
    "half_squared_error",
    "sigmoid_kl",
}
SLOW |= {
    "attention",
    "add",
    "copy",
    "max_over",
    "flatten",
    "mean over examples",
    "sigmoid",
    "leaky_relu",
    "softmax_kl",
    "pairwise_product",
}


def make_problem(mutant, seed=0):
    return mutant.layer, mutant.layer.init(jax.random.key(seed)), mutant.x


def first_mutant_of_each_layer():
    """Mark all mutants but the first of each layer as slow."""
    layers = set()
    for name, mutant in MUTANTS.items():
        layer = name.partition(":")[0]
        yield pytest.param(
            mutant, id=name, marks=pytest.mark.slow if layer in layers | SLOW else ()
        )
        layers.add(layer)


@pytest.mark.parametrize("mutant", list(first_mutant_of_each_layer()))
def test_a_planted_bug_is_found_in_its_leaf_only(mutant):
    report = checks.check_layer(*make_problem(mutant), key=jax.random.key(1))
    wrong = {finding.path: finding for finding in report.findings if finding.verdict == "wrong"}
    assert set(wrong) == mutant.leaves
    assert {finding.verdict for finding in report.findings if finding.path not in wrong} <= {
        "ok",
        "kink",
    }
    assert any(mutant.hint in finding.hint for finding in wrong.values()), str(report)


def test_a_detached_residual_is_found_by_the_second_derivative():
    layer = bp.tanh()._replace(
        forward=lambda p, z: (jnp.tanh(z), jax.lax.stop_gradient(jnp.tanh(z)))
    )
    report = checks.check_layer(layer, (), MATRIX, key=jax.random.key(1))
    assert [(finding.verdict, finding.order) for finding in report.findings] == [
        ("ok", 1),
        ("wrong", 2),
    ]


def test_there_are_at_least_40_mutants():
    assert len(MUTANTS) >= 40


@pytest.mark.slow
def test_finds_more_bugs_than_jax_test_util(capsys):
    ours, theirs = set(), set()
    for name, mutant in MUTANTS.items():
        if not checks.check_layer(*make_problem(mutant), key=jax.random.key(1)).ok:
            ours.add(name)
        if is_found_by_check_grads(mutant):
            theirs.add(name)
        jax.clear_caches()  # all planted bugs together are gigabytes of compiled programs
    with capsys.disabled():
        print(
            f"\n{len(MUTANTS)} planted bugs: diffprog.checks finds {len(ours)}, "
            f"jax.test_util.check_grads {len(theirs)}"
        )
        print(
            "\n".join(f"  missed by check_grads: {name}" for name in MUTANTS if name not in theirs)
        )
    assert len(ours) == len(MUTANTS)
    assert len(theirs) <= len(ours)


def is_found_by_check_grads(mutant):
    """Call `check_grads` in float32, in reverse mode, with its default tolerance."""
    layer, params, x = make_problem(mutant)
    leaves, treedef = jax.tree.flatten((params, x))
    floats = [k for k, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def f(*values):
        both = dict(enumerate(leaves)) | dict(zip(floats, values, strict=True))
        return bp.differentiable(layer)(
            *jax.tree.unflatten(treedef, [both[k] for k in range(len(leaves))])
        )

    try:
        jax.test_util.check_grads(f, tuple(leaves[k] for k in floats), order=1, modes=["rev"])
    except (AssertionError, TypeError, ValueError):
        return True
    return False


def replace_part(net, name, layer):
    """Replace one part of a chain."""
    return bp.chain([layer if part.name == name else part.layer for part in net.parts])


NET = bp.chain([bp.affine(4, 4), bp.tanh(), bp.affine(4, 4), bp.softmax()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "leaves", "wrong"),
    [
        ("affine2", {W}, with_changed_leaf(bp.affine(4, 4), "weight", jnp.transpose)),
        ("tanh1", {X}, with_dx(bp.tanh(), lambda y, dy: dy * (1 - y))),
        ("softmax1", {X}, with_dx(bp.softmax(), lambda y, dy: dy * y)),
    ],
)
def test_check_net_finds_a_bug_in_its_part_only(name, leaves, wrong):
    net = replace_part(NET, name, wrong)
    report = checks.check_net(net, net.init(jax.random.key(0)), MATRIX, key=jax.random.key(1))
    found = {(finding.layer, finding.path) for finding in report.findings if not finding.ok}
    assert found == {(name, leaf) for leaf in leaves}


@pytest.mark.slow
def test_check_net_finds_a_missing_path_in_the_whole_net():
    correct = bp.dag(
        {"a": (bp.tanh(), "x"), "b": (bp.sigmoid(), "x"), "y": (bp.multiply(), ("a", "b"))},
        output="y",
    )

    def backward(params, residuals, dy):
        (da, _) = bp.multiply().backward((), residuals["y"], dy)[1]
        return correct.backward(params, residuals, dy)[0], bp.tanh().backward(
            (), residuals["a"], da
        )[1]

    net = with_backward(correct, backward)
    report = checks.check_net(net, net.init(jax.random.key(0)), MATRIX, key=jax.random.key(1))
    (finding,) = [finding for finding in report.findings if not finding.ok]
    assert (finding.layer, finding.path) == ("the whole net", "x")
    assert "one path of a fan-out is missing" in finding.hint


@pytest.mark.slow
def test_check_net_passes_a_correct_nested_net():
    net = bp.chain([bp.affine(4, 4), bp.chain([bp.tanh(), bp.affine(4, 4)])])
    report = checks.check_net(net, net.init(jax.random.key(0)), MATRIX, key=jax.random.key(1))
    assert report.ok
    assert "chain1/affine1" in {finding.layer for finding in report.findings}
