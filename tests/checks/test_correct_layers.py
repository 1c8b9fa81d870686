"""No false alarm: every layer is right, at every seed and in every dtype."""

import jax
import jax.numpy as jnp
import jax.test_util
import pytest

from diffprog import backprop as bp
from diffprog import checks


def rows(key):
    return jax.random.normal(key, (5, 4))


def image(key):
    return jax.random.normal(key, (2, 7, 6, 2))


def places(key):
    return jax.random.normal(key, (2, 3, 4))


def positive(key):
    return jax.random.uniform(key, (5, 4), minval=0.1, maxval=3.0)


def pair(key):
    return tuple(jax.random.normal(key, (2, 5, 4)))


def labelled(key):
    return rows(key), jax.random.randint(key, (5,), 0, 4)


def soft(key):
    return rows(key), jax.nn.softmax(rows(jax.random.fold_in(key, 1)))


def single(key):
    return rows(key)[:, 0], jax.nn.sigmoid(rows(jax.random.fold_in(key, 1))[:, 0])


def dropped(key):
    return rows(key), key


def ids(key):
    return jax.random.randint(key, (2, 5), 0, 3)


MLP = bp.chain(
    [bp.affine(4, 6), bp.tanh(), bp.affine(6, 6), bp.relu(), bp.affine(6, 3), bp.softmax()]
)
CNN = bp.chain([bp.convolution(2, 3, 3), bp.relu(), bp.max_pool(), bp.flatten(), bp.affine(27, 4)])
FORK = bp.dag(
    {"a": (bp.tanh(), "x"), "b": (bp.sigmoid(), "x"), "y": (bp.multiply(), ("a", "b"))}, output="y"
)
LAYERS = {
    "affine": (bp.affine(4, 3), rows),
    "affine without bias": (bp.affine(4, 3, bias=False), rows),
    "extended_affine": (bp.extended_affine(4, 3), rows),
    "sigmoid": (bp.sigmoid(), rows),
    "tanh": (bp.tanh(), rows),
    "relu": (bp.relu(), rows),
    "leaky_relu": (bp.leaky_relu(), rows),
    "elu": (bp.elu(0.7), rows),
    "softmax": (bp.softmax(), rows),
    "log_softmax": (bp.log_softmax(), rows),
    "maxout": (bp.maxout(4, 3, pieces=3), rows),
    "convolution": (bp.convolution(2, 3, 3), image),
    "convolution stride 2": (bp.convolution(2, 3, 3, stride=2, padding="VALID"), image),
    "max_pool": (bp.max_pool(2), image),
    "average_pool": (bp.average_pool(3), image),
    "flatten": (bp.flatten(), image),
    "add": (bp.add(), pair),
    "multiply": (bp.multiply(), pair),
    "copy": (bp.copy(3), rows),
    "max_over": (bp.max_over([[0, 1], [1, 2, 3]]), rows),
    "pairwise_product": (bp.pairwise_product(), rows),
    "power_product": (bp.power_product(4, 3), positive),
    "layer_norm": (bp.layer_norm(4), rows),
    "batch_norm": (bp.batch_norm(4), rows),
    "dropout": (bp.dropout(0.5), dropped),
    "embedding": (bp.embedding(3, 4), ids),
    "attention": (bp.attention(4), places),
    "attention causal": (bp.attention(4, causal=True), places),
    "residual": (bp.residual(bp.affine(4, 4)), rows),
    "half_squared_error": (bp.half_squared_error(), pair),
    "softmax_cross_entropy": (bp.softmax_cross_entropy(), labelled),
    "softmax_kl": (bp.softmax_kl(), soft),
    "sigmoid_kl": (bp.sigmoid_kl(), single),
    "mean_over_examples": (bp.mean_over_examples(bp.half_squared_error()), pair),
    "sum_over_examples": (bp.sum_over_examples(bp.softmax_cross_entropy()), labelled),
    "chain": (MLP, rows),
    "chain of spatial layers": (CNN, image),
    "dag": (FORK, rows),
}


def problem(name, seed, dtype):
    layer, draw = LAYERS[name]
    init_key, x_key, key = jax.random.split(jax.random.key(seed), 3)
    with jax.enable_x64(dtype == "float64"):
        cast = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        return layer, *jax.tree.map(cast, (layer.init(init_key), draw(x_key))), key


def alarms(name, seed, dtype):
    layer, params, x, key = problem(name, seed, dtype)
    report = checks.check_layer(layer, params, x, key=key)
    return (
        [str(report)]
        if not report.ok or any(f.verdict == "autodiff-wrong" for f in report.findings)
        else []
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["affine", "relu", "softmax", "embedding", "dag"])
def test_a_right_layer_is_found_right(name):
    assert not [
        alarm
        for seed, dtype in ((0, "float32"), (1, "bfloat16"))
        for alarm in alarms(name, seed, dtype)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_a_right_layer_is_found_right_at_20_seeds_in_three_dtypes(name):
    assert not [
        alarm
        for seed in range(20)
        for dtype in ("float64", "float32", "bfloat16")
        for alarm in alarms(name, seed, dtype)
    ]


@pytest.mark.slow
def test_the_bounds_of_float32_are_neither_broken_nor_far():
    """The largest error of a right layer over its bound: below 1, and half of them so near that a loss of two digits would be seen."""
    ratios = {}
    for name in LAYERS:
        layer, params, x, key = problem(name, 3, "float32")
        precision = checks.check_layer(layer, params, x, key=key).precision
        ratios[name] = max(
            (
                found.error / found.bound
                for found in precision
                if found.dtype == "float32" and found.error
            ),
            default=None,
        )
    known = sorted(ratio for ratio in ratios.values() if ratio is not None)
    assert len(known) > len(LAYERS) / 2
    assert known[len(known) // 2] > 0.01, ratios
    assert known[-1] < 1, ratios


@pytest.mark.slow
def test_fewer_false_alarms_than_jax_test_util(capsys):
    cases = [(name, dtype) for name in LAYERS for dtype in ("float64", "float32", "bfloat16")]
    ours = [case for case in cases if alarms(case[0], 0, case[1])]
    theirs = [case for case in cases if _jax_alarms(*problem(case[0], 0, case[1])[:3])]
    with capsys.disabled():
        print(
            f"\n{len(cases)} right layers: diffprog.checks accuses {len(ours)}, jax.test_util.check_grads {len(theirs)}"
        )
        print(
            *(
                f"  {dtype}: {sum(case[1] == dtype for case in theirs)}"
                for dtype in ("float64", "float32", "bfloat16")
            ),
            sep="\n",
        )
    assert not ours


def _jax_alarms(layer, params, x):
    """`check_grads` as its user would call it on the layer: reverse mode, its default tolerance, in the dtype of the arrays."""
    leaves, treedef = jax.tree.flatten((params, x))
    moved = [k for k, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def f(*values):
        both = dict(enumerate(leaves)) | dict(zip(moved, values, strict=True))
        return bp.differentiable(layer)(
            *jax.tree.unflatten(treedef, [both[k] for k in range(len(leaves))])
        )

    with jax.enable_x64(any(leaf.dtype == "float64" for leaf in leaves)):
        try:
            jax.test_util.check_grads(f, tuple(leaves[k] for k in moved), order=1, modes=["rev"])
        except (AssertionError, TypeError, ValueError):
            return True
    return False
