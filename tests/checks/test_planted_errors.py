"""Bugs planted in every layer, each of which the checker must pin on the right leaf, and on that leaf alone.

To plant another, add a line to the table of its layer: what is wrong, the leaves that are, and the wrong backward.
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
    """A layer with a wrong backward, what to give it, the leaves that are wrong, and what the hint must say of one."""

    layer: bp.Layer
    x: object
    leaves: set
    hint: str = ""


def uniform(*shape):
    """Inputs that are no one's special case; a little away from 0 and from each other."""
    return jax.random.uniform(
        jax.random.key(len(shape)), shape, minval=0.2, maxval=1.2
    ) * jax.random.rademacher(jax.random.key(7), shape)


def with_backward(layer, backward):
    return layer._replace(backward=backward)


def changed(layer, change):
    """The layer whose right (dparams, dx) are put through `change`."""
    return with_backward(layer, lambda params, kept, dy: change(*layer.backward(params, kept, dy)))


def changed_x(layer, change):
    return changed(layer, lambda dparams, dx: (dparams, change(dx)))


def changed_leaf(layer, name, change):
    return changed(layer, lambda dparams, dx: ({**dparams, name: change(dparams[name])}, dx))


def rule(layer, dx):
    """A layer without params with another formula for dx."""
    return with_backward(layer, lambda params, kept, dy: ((), dx(kept, dy)))


def swapped(dx):
    return dx[1], dx[0]


ROWS, SQUARE, IMAGE = uniform(5, 4), uniform(5, 4), uniform(2, 6, 5, 2)
AFFINE, SQUARE_AFFINE, WIDE = bp.affine(4, 3), bp.affine(4, 4), bp.affine(4, 16)
CONVOLUTION, SQUARE_CONVOLUTION = bp.convolution(2, 3, 3), bp.convolution(2, 2, 3)
NORM, BATCH_NORM, ATTENTION = bp.layer_norm(4), bp.batch_norm(4), bp.attention(4)
PAIR = (uniform(5, 4), uniform(5, 4)[::-1])
SOFT = (uniform(5, 4), jax.nn.softmax(uniform(5, 4)[::-1]))
LABELLED = (uniform(5, 4), jnp.array([0, 3, 1, 1, 2]))
IDS, PLACES = jnp.array([[1, 1, 0], [2, 1, 2]]), uniform(2, 3, 4)


def norm_backward(layer, dx_of):
    def backward(params, kept, dy):
        h, inverse = kept
        axes = (-1,) if layer is NORM else (0,)
        mean = lambda v: v.mean(axes, keepdims=True)
        return layer.backward(params, kept, dy)[0], dx_of(dy * params["scale"], h, inverse, mean)

    return with_backward(layer, backward)


def attention_backward(name):
    """Attention with one mistake."""

    def backward(params, kept, dy):
        x, q, k, v, a, h = kept
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
        changed_leaf(AFFINE, "weight", jnp.transpose), ROWS, {W}, "transposed"
    ),
    "affine: square dW transposed": Mutant(
        changed_leaf(SQUARE_AFFINE, "weight", jnp.transpose), SQUARE, {W}, "transposed"
    ),
    "affine: W for its transpose": Mutant(
        with_backward(
            SQUARE_AFFINE,
            lambda p, x, dz: ({"weight": dz.T @ x, "bias": dz.sum(0)}, dz @ p["weight"].T),
        ),
        SQUARE,
        {X},
        "transpose is meant",
    ),
    "affine: mean for sum in db": Mutant(
        changed_leaf(AFFINE, "bias", lambda d: d / 5), ROWS, {B}, "a mean where a sum is meant"
    ),
    "affine: mean for sum in dW": Mutant(
        changed_leaf(AFFINE, "weight", lambda d: d / 5), ROWS, {W}, "a mean where a sum is meant"
    ),
    "affine: db not returned": Mutant(
        changed(AFFINE, lambda d, dx: ({"weight": d["weight"]}, dx)),
        ROWS,
        {B},
        "no gradient is returned",
    ),
    "affine: db zero": Mutant(changed_leaf(AFFINE, "bias", jnp.zeros_like), ROWS, {B}, "detached"),
    "affine: db of each example": Mutant(
        with_backward(
            AFFINE, lambda p, x, dz: ({"weight": dz.T @ x, "bias": dz}, dz @ p["weight"])
        ),
        ROWS,
        {B},
        "sum over axis 0 is missing",
    ),
    "affine: sign of dx": Mutant(changed_x(AFFINE, jnp.negative), ROWS, {X}, "sign"),
    "affine: dW 0.1 % too large": Mutant(
        changed_leaf(AFFINE, "weight", lambda d: 1.001 * d), ROWS, {W}, "a constant factor 1.001"
    ),
    "affine: one of 64 by 0.1 %": Mutant(
        changed_leaf(WIDE, "weight", lambda d: d.at[9, 2].multiply(1.001)),
        ROWS,
        {W},
        "1 of 64 elements",
    ),
    "affine: last example forgotten": Mutant(
        changed_x(AFFINE, lambda d: d.at[-1].set(0)), ROWS, {X}, "all at index 4 of axis 0"
    ),
    "affine: x clipped before it is kept": Mutant(
        AFFINE._replace(forward=lambda p, x: (AFFINE.forward(p, x)[0], jnp.maximum(x, 0))),
        ROWS,
        {W},
    ),
    "sigmoid: y for y (1 - y)": Mutant(rule(bp.sigmoid(), lambda y, dy: dy * y), ROWS, {X}),
    "sigmoid: y (1 + y)": Mutant(rule(bp.sigmoid(), lambda y, dy: dy * y * (1 + y)), ROWS, {X}),
    "sigmoid: dy forgotten": Mutant(rule(bp.sigmoid(), lambda y, dy: y * (1 - y)), ROWS, {X}),
    "tanh: square forgotten": Mutant(rule(bp.tanh(), lambda y, dy: dy * (1 - y)), ROWS, {X}),
    "tanh: z kept for y": Mutant(
        bp.tanh()._replace(forward=lambda p, z: (jnp.tanh(z), z)), ROWS, {X}
    ),
    "tanh: nothing flows back from 2,000 outputs": Mutant(
        changed_x(bp.tanh(), jnp.zeros_like), uniform(50, 40), {X}, "detached"
    ),
    "relu: wrong side": Mutant(rule(bp.relu(), lambda z, dy: dy * (z < 0)), ROWS, {X}),
    "relu: the sign of dy decides": Mutant(rule(bp.relu(), lambda z, dy: dy * (dy > 0)), ROWS, {X}),
    "relu: leaks 0.001": Mutant(
        rule(bp.relu(), lambda z, dy: jnp.where(z > 0, dy, 1e-3 * dy)), ROWS, {X}
    ),
    "leaky_relu: 0.01 for 0.1": Mutant(
        rule(bp.leaky_relu(), lambda z, dy: jnp.where(z >= 0, dy, 0.01 * dy)), ROWS, {X}
    ),
    "elu: alpha forgotten": Mutant(
        rule(bp.elu(0.7), lambda z, dy: jnp.where(z >= 0, dy, dy * jnp.exp(z))), ROWS, {X}
    ),
    "elu: y for its slope": Mutant(
        rule(bp.elu(0.7), lambda z, dy: jnp.where(z >= 0, dy, 0.7 * dy * jnp.expm1(z))), ROWS, {X}
    ),
    "softmax: diagonal only": Mutant(
        rule(bp.softmax(), lambda y, dy: dy * y * (1 - y)), ROWS, {X}, "diagonal"
    ),
    "softmax: sum forgotten": Mutant(
        rule(bp.softmax(), lambda y, dy: dy * y), ROWS, {X}, "one path of a fan-out is missing"
    ),
    "softmax: sum over the batch": Mutant(
        rule(bp.softmax(), lambda y, dy: y * (dy - (dy * y).sum(0))), ROWS, {X}
    ),
    "log_softmax: y sum(dy) forgotten": Mutant(
        changed_x(bp.log_softmax(), lambda d: d - d.sum(-1, keepdims=True) / 4 + 1e-3), ROWS, {X}
    ),
    "maxout: all pieces get it": Mutant(
        bp.maxout(4, 3)._replace(
            forward=lambda p, x: (lambda y, kept: (y, (kept[0], jnp.ones_like(kept[1]))))(
                *bp.maxout(4, 3).forward(p, x)
            )
        ),
        ROWS,
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
        changed_leaf(CONVOLUTION, "weight", lambda d: d[::-1, ::-1]),
        IMAGE,
        {W},
        "flipped along axes (0, 1)",
    ),
    "convolution: channels exchanged": Mutant(
        changed_leaf(SQUARE_CONVOLUTION, "weight", lambda d: d.swapaxes(2, 3)),
        IMAGE,
        {W},
        "transposed",
    ),
    "convolution: db mean over places": Mutant(
        changed_leaf(CONVOLUTION, "bias", lambda d: d / 30), IMAGE, {B}, "a constant factor"
    ),
    "convolution: border lost": Mutant(
        changed_x(CONVOLUTION, lambda d: d.at[:, 0].set(0)), IMAGE, {X}, "all at index 0 of axis 1"
    ),
    "max_pool: to all of the patch": Mutant(
        rule(
            bp.max_pool(),
            lambda kept, dy: jnp.pad(
                dy.repeat(2, 1).repeat(2, 2), [(0, 0), (0, 0), (0, 1), (0, 0)]
            ),
        ),
        IMAGE,
        {X},
    ),
    "max_pool: shared as by a mean": Mutant(
        changed_x(bp.max_pool(), lambda d: d / 4), IMAGE, {X}, "a constant factor 0.25"
    ),
    "average_pool: not divided": Mutant(
        changed_x(bp.average_pool(), lambda d: 4 * d), IMAGE, {X}, "a constant factor 4"
    ),
    "flatten: column-major": Mutant(
        changed_x(
            bp.flatten(), lambda d: d.reshape(2, -1).reshape(2, 2, 5, 6).transpose(0, 3, 2, 1)
        ),
        IMAGE,
        {X},
    ),
    "add: one input gets nothing": Mutant(
        changed_x(bp.add(), lambda d: (d[0], 0 * d[1])), PAIR, {"x[1]"}, "detached"
    ),
    "multiply: each its own factor": Mutant(
        changed_x(bp.multiply(), swapped), PAIR, {"x[0]", "x[1]"}
    ),
    "copy: one path forgotten": Mutant(
        with_backward(bp.copy(3), lambda p, kept, dy: ((), dy[0] + dy[2])), ROWS, {X}
    ),
    "max_over: to the last": Mutant(
        changed_x(bp.max_over([[0, 1], [2, 3]]), lambda d: jnp.roll(d, 1, -1)), ROWS, {X}
    ),
    "pairwise_product: own factor": Mutant(
        changed_x(bp.pairwise_product(), lambda d: d.reshape(5, 2, 2)[..., ::-1].reshape(5, 4)),
        ROWS,
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
        abs(ROWS),
        {"params['alpha']"},
    ),
    "layer_norm: variance held constant": Mutant(
        norm_backward(NORM, lambda dh, h, inverse, mean: inverse * (dh - mean(dh))),
        ROWS,
        {X},
        "missing",
    ),
    "layer_norm: mean held constant": Mutant(
        norm_backward(NORM, lambda dh, h, inverse, mean: inverse * (dh - h * mean(dh * h))),
        ROWS,
        {X},
    ),
    "layer_norm: scale forgotten": Mutant(
        changed_leaf(NORM, "scale", lambda d: d / 2),
        ROWS,
        {"params['scale']"},
        "a constant factor 0.5",
    ),
    "batch_norm: statistics held constant": Mutant(
        norm_backward(BATCH_NORM, lambda dh, h, inverse, mean: inverse * dh), ROWS, {X}
    ),
    "batch_norm: n - 1 for n": Mutant(
        norm_backward(
            BATCH_NORM,
            lambda dh, h, inverse, mean: inverse * (dh - mean(dh) - h * mean(dh * h) * 5 / 4),
        ),
        ROWS,
        {X},
    ),
    "batch_norm: mean of d shift": Mutant(
        changed_leaf(BATCH_NORM, "shift", lambda d: d / 5),
        ROWS,
        {"params['shift']"},
        "a mean where",
    ),
    "dropout: mask not scaled": Mutant(
        changed_x(bp.dropout(0.5), lambda d: (d[0] / 2, None)),
        (ROWS, jax.random.key(3)),
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
        attention_backward("query unscaled"), PLACES, {"params['query']", X}
    ),
    "attention: softmax without its sum": Mutant(
        attention_backward("softmax without its sum"),
        PLACES,
        {"params['query']", "params['key']", X},
    ),
    "attention: value path missing": Mutant(
        attention_backward("value path missing"), PLACES, {X}, "one path of a fan-out is missing"
    ),
    "attention: a not transposed": Mutant(
        attention_backward("a not transposed"), PLACES, {"params['value']", X}
    ),
    "residual: skip forgotten": Mutant(
        with_backward(bp.residual(SQUARE_AFFINE), SQUARE_AFFINE.backward),
        SQUARE,
        {X},
        "one path of a fan-out is missing",
    ),
    "half_squared_error: twice": Mutant(
        changed_x(bp.half_squared_error(), lambda d: (2 * d[0], d[1])), PAIR, {"x[0]"}, "factor 2"
    ),
    "half_squared_error: target like prediction": Mutant(
        changed_x(bp.half_squared_error(), lambda d: (d[0], d[0])), PAIR, {"x[1]"}, "sign"
    ),
    "softmax_cross_entropy: label forgotten": Mutant(
        rule(bp.softmax_cross_entropy(), lambda kept, d: (d[:, None] * kept[0], None)),
        LABELLED,
        {"x[0]"},
        "at operand 0 of gather",
    ),
    "softmax_cross_entropy: dL forgotten": Mutant(
        changed_x(bp.softmax_cross_entropy(), lambda d: (d[0].at[2].multiply(1.5), None)),
        LABELLED,
        {"x[0]"},
        "index 2 of axis 0",
    ),
    "mean over examples: a sum": Mutant(
        changed_x(bp.mean_over_examples(bp.half_squared_error()), lambda d: (5 * d[0], 5 * d[1])),
        PAIR,
        {"x[0]", "x[1]"},
        "a sum where",
    ),
    "softmax_kl: target detached": Mutant(
        changed_x(bp.softmax_kl(), lambda d: (d[0], 0 * d[1])), SOFT, {"x[1]"}, "detached"
    ),
    "sigmoid_kl: sign": Mutant(
        changed_x(bp.sigmoid_kl(), lambda d: (-d[0], d[1])),
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


def problem(mutant, seed=0):
    return mutant.layer, mutant.layer.init(jax.random.key(seed)), mutant.x


def first_of_each_layer():
    """One mutant of each layer in the fast run, the others among the slow tests."""
    seen = set()
    for name, mutant in MUTANTS.items():
        layer = name.partition(":")[0]
        yield pytest.param(mutant, id=name, marks=pytest.mark.slow if layer in seen | SLOW else ())
        seen.add(layer)


@pytest.mark.parametrize("mutant", list(first_of_each_layer()))
def test_a_planted_bug_is_pinned_on_its_leaf(mutant):
    report = checks.check_layer(*problem(mutant), key=jax.random.key(1))
    caught = {finding.path: finding for finding in report.findings if finding.verdict == "wrong"}
    assert set(caught) == mutant.leaves
    assert {finding.verdict for finding in report.findings if finding.path not in caught} <= {
        "ok",
        "kink",
    }
    assert any(mutant.hint in finding.hint for finding in caught.values()), str(report)


def test_a_detached_residual_is_caught_by_the_second_derivative():
    layer = bp.tanh()._replace(
        forward=lambda p, z: (jnp.tanh(z), jax.lax.stop_gradient(jnp.tanh(z)))
    )
    report = checks.check_layer(layer, (), ROWS, key=jax.random.key(1))
    assert [(finding.verdict, finding.order) for finding in report.findings] == [
        ("ok", 1),
        ("wrong", 2),
    ]


def test_there_are_enough_of_them():
    assert len(MUTANTS) >= 40


@pytest.mark.slow
def test_more_bugs_are_caught_than_by_jax_test_util(capsys):
    ours = {
        name
        for name, mutant in MUTANTS.items()
        if not checks.check_layer(*problem(mutant), key=jax.random.key(1)).ok
    }
    theirs = {name for name, mutant in MUTANTS.items() if _jax_catches(mutant)}
    with capsys.disabled():
        print(
            f"\n{len(MUTANTS)} planted bugs: diffprog.checks catches {len(ours)}, jax.test_util.check_grads {len(theirs)}"
        )
        print(
            "\n".join(f"  missed by check_grads: {name}" for name in MUTANTS if name not in theirs)
        )
    assert len(ours) == len(MUTANTS)
    assert len(theirs) <= len(ours)


def _jax_catches(mutant):
    """As its user would call it: float32, reverse mode (forward raises on a custom rule), the default tolerance."""
    layer, params, x = problem(mutant)
    floats, treedef = jax.tree.flatten((params, x))
    moved = [k for k, leaf in enumerate(floats) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def f(*leaves):
        both = dict(enumerate(floats)) | dict(zip(moved, leaves, strict=True))
        return bp.differentiable(layer)(
            *jax.tree.unflatten(treedef, [both[k] for k in range(len(floats))])
        )

    try:
        jax.test_util.check_grads(f, tuple(floats[k] for k in moved), order=1, modes=["rev"])
    except (AssertionError, TypeError, ValueError):
        return True
    return False


def plant(net, name, layer):
    """The net with a layer in place of one of its parts."""
    return bp.chain([layer if part.name == name else part.layer for part in net.parts])


NET = bp.chain([bp.affine(4, 4), bp.tanh(), bp.affine(4, 4), bp.softmax()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "leaves", "wrong"),
    [
        ("affine2", {W}, changed_leaf(bp.affine(4, 4), "weight", jnp.transpose)),
        ("tanh1", {X}, rule(bp.tanh(), lambda y, dy: dy * (1 - y))),
        ("softmax1", {X}, rule(bp.softmax(), lambda y, dy: dy * y)),
    ],
)
def test_a_net_names_the_part_and_accuses_no_other(name, leaves, wrong):
    net = plant(NET, name, wrong)
    report = checks.check_net(net, net.init(jax.random.key(0)), ROWS, key=jax.random.key(1))
    caught = {(finding.layer, finding.path) for finding in report.findings if not finding.ok}
    assert caught == {(name, leaf) for leaf in leaves}


@pytest.mark.slow
def test_a_net_that_loses_a_path_is_wrong_as_a_whole():
    right = bp.dag(
        {"a": (bp.tanh(), "x"), "b": (bp.sigmoid(), "x"), "y": (bp.multiply(), ("a", "b"))},
        output="y",
    )

    def backward(params, kept, dy):
        (da, _) = bp.multiply().backward((), kept["y"], dy)[1]
        return right.backward(params, kept, dy)[0], bp.tanh().backward((), kept["a"], da)[1]

    net = with_backward(right, backward)
    report = checks.check_net(net, net.init(jax.random.key(0)), ROWS, key=jax.random.key(1))
    (caught,) = [finding for finding in report.findings if not finding.ok]
    assert (caught.layer, caught.path) == ("the whole net", "x")
    assert "one path of a fan-out is missing" in caught.hint


@pytest.mark.slow
def test_a_right_net_is_right_nested_too():
    net = bp.chain([bp.affine(4, 4), bp.chain([bp.tanh(), bp.affine(4, 4)])])
    report = checks.check_net(net, net.init(jax.random.key(0)), ROWS, key=jax.random.key(1))
    assert report.ok
    assert "chain1/affine1" in {finding.layer for finding in report.findings}
