"""Every layer: its backward pass equals autodiff, to second order, under jit and vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop as bp
from diffprog import losses

IMAGE = (3, 7, 6, 2)


def uniform(*shape):
    return lambda rng: rng.uniform(0.2, 0.8, shape)


def ids(*shape, below):
    return lambda rng: rng.integers(0, below, shape, np.int32)


def distributions(*shape):
    return lambda rng: rng.dirichlet(np.ones(shape[1]), shape[0])


def prng_key(rng):
    return jax.random.key(1)


# One row per layer: the layer and its input, which is the shape of a normal sample, a function of a
# NumPy generator, or a tuple of these.
LAYERS = {
    "affine": (bp.affine(4, 3), (5, 4)),
    "affine without bias": (bp.affine(4, 3, bias=False), (5, 4)),
    "extended_affine": (bp.extended_affine(4, 3), (5, 4)),
    "sigmoid": (bp.sigmoid(), (5, 4)),
    "tanh": (bp.tanh(), (5, 4)),
    "relu": (bp.relu(), (5, 4)),
    "leaky_relu": (bp.leaky_relu(), (5, 4)),
    "elu": (bp.elu(0.7), (5, 4)),
    "softmax": (bp.softmax(), (5, 4)),
    "log_softmax": (bp.log_softmax(), (5, 4)),
    "maxout": (bp.maxout(4, 3, pieces=3), (5, 4)),
    "add": (bp.add(), ((5, 4), (5, 4), (5, 4))),
    "multiply": (bp.multiply(), ((5, 4), (5, 4), (5, 4))),
    "copy": (bp.copy(3), (5, 4)),
    "max_over": (bp.max_over([[0, 1, 3], [1, 2], [3]]), (5, 4)),
    "pairwise_product": (bp.pairwise_product(), (5, 4)),
    "power_product": (bp.power_product(4, 3), uniform(5, 4)),
    "layer_norm": (bp.layer_norm(4), (5, 4)),
    "layer_norm of sequences": (bp.layer_norm(4), (2, 3, 4)),
    "batch_norm": (bp.batch_norm(4), (5, 4)),
    "batch_norm of images": (bp.batch_norm(2), IMAGE),
    "dropout": (bp.dropout(0.4), ((5, 4), prng_key)),
    "embedding": (bp.embedding(4, 3), ids(5, 2, below=4)),
    "attention": (bp.attention(4), (2, 3, 4)),
    "attention, causal": (bp.attention(4, causal=True), (2, 3, 4)),
    "residual": (bp.residual(bp.affine(4, 4)), (5, 4)),
    "flatten": (bp.flatten(), IMAGE),
    "max_pool": (bp.max_pool(2), IMAGE),
    "max_pool of 3": (bp.max_pool(3), IMAGE),
    "average_pool": (bp.average_pool(2), IMAGE),
    "convolution 1 stride 2": (bp.convolution(2, 3, 1, stride=2), IMAGE),
    "convolution 2": (bp.convolution(2, 3, 2), IMAGE),
    "convolution 3": (bp.convolution(2, 3, 3), IMAGE),
    "convolution 3 stride 2": (bp.convolution(2, 3, 3, stride=2), IMAGE),
    "convolution 2 stride 3 valid": (bp.convolution(2, 3, 2, stride=3, padding="VALID"), IMAGE),
    "convolution 3 stride 3 valid": (bp.convolution(2, 3, 3, stride=3, padding="VALID"), IMAGE),
    "half_squared_error": (bp.half_squared_error(), ((5, 4), (5, 4))),
    "softmax_cross_entropy": (bp.softmax_cross_entropy(), ((5, 4), ids(5, below=4))),
    "softmax_kl": (bp.softmax_kl(), ((5, 4), distributions(5, 4))),
    "sigmoid_kl": (bp.sigmoid_kl(), ((5,), uniform(5))),
    "sum_over_examples": (bp.sum_over_examples(bp.half_squared_error()), ((5, 4), (5, 4))),
    "mean_over_examples": (
        bp.mean_over_examples(bp.softmax_cross_entropy()),
        ((5, 4), ids(5, below=4)),
    ),
    "chain": (bp.chain([bp.affine(4, 3), bp.tanh()]), (5, 4)),
    "dag": (
        bp.dag(
            {"h": (bp.affine(4, 4), "a"), "y": (bp.multiply(), ("h", "b"))},
            output="y",
            inputs=("a", "b"),
        ),
        ((5, 4), (5, 4)),
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def sample(spec, rng):
    if callable(spec):
        return spec(rng)
    if isinstance(spec[0], int):
        return rng.normal(size=spec)
    return tuple(sample(entry, rng) for entry in spec)


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def split(x):
    """Return the float leaves of x, and a function that replaces them."""
    leaves, treedef = jax.tree.flatten(x)

    def merge(floats):
        floats = iter(floats)
        return jax.tree.unflatten(
            treedef, [next(floats) if is_float(leaf) else leaf for leaf in leaves]
        )

    return [leaf for leaf in leaves if is_float(leaf)], merge


def make_problem(layer, spec):
    """Sample params and input of one layer in float64, with NumPy to compile nothing."""
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape), jax.eval_shape(layer.init, jax.random.key(0))
    )
    return params, sample(spec, rng)


def inner(a, b):
    return sum(jnp.vdot(*pair) for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def normal_like(tree):
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), tree)


@functools.cache
def compute_all(name):
    """Compute everything that the protocol tests of one layer compare, in one compilation."""
    layer, spec = LAYERS[name]

    def compute(params, floats):
        forward = lambda params, floats: layer.forward(params, merge(floats))[0]
        by_hand = lambda params, floats: bp.differentiable(layer)(params, merge(floats))
        y, residuals = layer.forward(params, merge(floats))
        dy = normal_like(y)
        dparams, dx = layer.backward(params, residuals, dy)

        def gradient(f):
            return jax.grad(
                lambda params, floats: inner(dy, jax.tree.map(jnp.square, f(params, floats))),
                (0, 1),
            )

        def second(f):
            return jax.jvp(gradient(f), (params, floats), normal_like((params, floats)))[1]

        batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.7 * leaf]), floats)
        return {
            "backward": (dparams, jax.tree.leaves(dx)),
            "automatic": jax.vjp(forward, params, floats)[1](dy),
            "second": second(by_hand),
            "second automatic": second(forward),
            "batched": jax.vmap(gradient(by_hand), (None, 0), axis_size=2)(params, batch),
            "looped": jax.lax.map(
                lambda i: gradient(by_hand)(params, [leaf[i] for leaf in batch]), jnp.arange(2)
            ),
        }

    with jax.enable_x64(True):
        params, x = make_problem(layer, spec)
        floats, merge = split(x)
        return jax.jit(compute, compiler_options={"xla_backend_optimization_level": 0})(
            params, floats
        )


def assert_close(got, want, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), got, want
    )


@every_layer
def test_backward_equals_autodiff_of_forward(name):
    assert_close(compute_all(name)["backward"], compute_all(name)["automatic"])


@every_layer
def test_second_derivative_equals_autodiff(name):
    assert_close(compute_all(name)["second"], compute_all(name)["second automatic"], 1e-11)


@every_layer
def test_vmap_equals_loop(name):
    assert_close(compute_all(name)["batched"], compute_all(name)["looped"])


@every_layer
def test_gradients_have_the_shapes_of_their_variables(name):
    layer, spec = LAYERS[name]
    params, x = make_problem(layer, spec)
    dparams, dx = jax.eval_shape(
        lambda params, x: layer.backward(params, *layer.forward(params, x)[::-1]), params, x
    )
    assert jax.tree.map(jnp.shape, dparams) == jax.tree.map(jnp.shape, params)
    is_none = lambda leaf: leaf is None
    shapes = jax.tree.map(lambda leaf: leaf.shape if is_float(leaf) else None, x)
    assert jax.tree.map(lambda leaf: getattr(leaf, "shape", None), dx, is_leaf=is_none) == shapes


@every_layer
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_keeps_the_dtype(name, dtype):
    layer, spec = LAYERS[name]
    with jax.enable_x64(False):
        cast = functools.partial(
            jax.tree.map, lambda leaf: leaf.astype(dtype) if is_float(leaf) else leaf
        )
        params, x = jax.eval_shape(lambda: cast(make_problem(layer, spec)))
        y, residuals = jax.eval_shape(layer.forward, params, x)
        gradients = jax.eval_shape(layer.backward, params, residuals, y)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, gradients))} == {jnp.dtype(dtype)}


def test_every_exported_layer_has_a_row():
    others = {"Gradients", "Layer", "Part", "deltas", "differentiable", "log_softmax_jacobian"}
    others |= {"numerator_layout", "overdots", "softmax_jacobian", "value_and_grads"}
    assert {name.split()[0].rstrip(",") for name in LAYERS} == set(bp.__all__) - others


def test_every_layer_has_a_name():
    names = {name: layer.name for name, (layer, _) in LAYERS.items()}
    assert "layer" not in names.values()
    assert names["affine"] == "affine(4, 3)"
    assert names["leaky_relu"] == "leaky_relu(0.1)"
    assert names["convolution 3"] == "convolution(2, 3, 3)"
    assert names["mean_over_examples"] == "mean of softmax_cross_entropy"


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_convolution_gradients_have_the_shapes_of_their_variables(window, stride, padding):
    layer, x = bp.convolution(2, 3, window, stride=stride, padding=padding), jnp.ones((2, 9, 8, 2))
    params = jax.eval_shape(layer.init, jax.random.key(0))
    dparams, dx = jax.eval_shape(
        lambda params: layer.backward(params, x, layer.forward(params, x)[0]), params
    )
    assert jax.tree.map(jnp.shape, (dparams, dx)) == jax.tree.map(jnp.shape, (params, x))


def test_max_pool_shares_the_gradient_on_a_tie():
    dx = jax.grad(lambda x: bp.differentiable(bp.max_pool())((), x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(dx, 0.25)


@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_relu_at_zero_has_the_given_subgradient(at_zero):
    dx = jax.grad(lambda x: bp.differentiable(bp.relu(at_zero=at_zero))((), x).sum())(
        jnp.array([[-1.0, 0.0, 1.0]])
    )
    np.testing.assert_array_equal(dx, [[0, at_zero, 1]])


def test_derivatives_at_kinks_equal_jax_nn():
    for layer, function in (
        (bp.relu(), jax.nn.relu),
        (bp.leaky_relu(), jax.nn.leaky_relu),
        (bp.elu(), jax.nn.elu),
    ):
        ours = jax.grad(lambda x, layer=layer: bp.differentiable(layer)((), x)[0])(jnp.zeros(1))
        np.testing.assert_array_equal(
            ours, jax.grad(lambda x, function=function: function(x)[0])(jnp.zeros(1))
        )


def test_max_over_shares_the_gradient_on_a_tie_within_a_subset():
    layer, z = bp.max_over([[0, 1, 2], [1, 3]]), jnp.array([[1.0, 5.0, 2.0, 5.0]])
    y, residuals = layer.forward((), z)
    np.testing.assert_array_equal(y, [[5, 5]])
    np.testing.assert_array_equal(
        layer.backward((), residuals, jnp.array([[10.0, 1.0]]))[1], [[0, 10.5, 0, 0.5]]
    )


@pytest.mark.parametrize(
    ("z", "alpha", "y", "dz", "dalpha"),
    [
        ([0.0, 3.0], [1.0, 2.0], 0, [9, 0], [0, 0]),
        ([0.0, 0.0], [1.0, 1.0], 0, [0, 0], [0, 0]),
        ([0.0, 3.0], [0.0, 1.0], 3, [0, 1], [0, 3 * np.log(3)]),
        ([0.0, 3.0], [2.0, 1.0], 0, [0, 0], [0, 0]),
        ([-2.0, 3.0], [3.0, 1.0], -24, [36, -8], [0, -24 * np.log(3)]),
        ([-2.0, 3.0], [-1.0, 1.0], -1.5, [-0.75, -0.5], [0, -1.5 * np.log(3)]),
    ],
)
def test_power_product_at_zero_and_below(z, alpha, y, dz, dalpha):
    layer, params = bp.power_product(2, 1), {"alpha": jnp.array(alpha)[:, None]}
    got, residuals = layer.forward(params, jnp.array([z]))
    dparams, dx = layer.backward(params, residuals, jnp.ones((1, 1)))
    np.testing.assert_allclose(got, [[y]], rtol=1e-6)
    np.testing.assert_allclose(dx, [dz], rtol=1e-6)
    np.testing.assert_allclose(dparams["alpha"][:, 0], dalpha, rtol=1e-6)


def test_power_product_mixed_derivative_at_exponent_zero():
    slope = lambda alpha: (
        bp.power_product(1, 1)
        .backward({"alpha": alpha}, jnp.array([[2.0]]), jnp.ones((1, 1)))[1]
        .sum()
    )
    np.testing.assert_allclose(jax.grad(slope)(jnp.zeros((1, 1))), 1 / 2)


def test_softmax_jacobians_equal_autodiff():
    with jax.enable_x64(True):
        z = np.random.default_rng(0).normal(size=(3, 4))
        y = jax.nn.softmax(z)
        assert_close(bp.softmax_jacobian(y), jax.vmap(jax.jacfwd(jax.nn.softmax))(z))
        assert_close(bp.log_softmax_jacobian(y), jax.vmap(jax.jacfwd(jax.nn.log_softmax))(z))


def test_norms_standardize_to_mean_zero_and_variance_one():
    x = 5 + 3 * np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    for layer, axis in ((bp.layer_norm(6), 1), (bp.batch_norm(6), 0)):
        y = layer.forward(layer.init(jax.random.key(0)), x)[0]
        np.testing.assert_allclose(y.mean(axis), 0, atol=1e-5)
        np.testing.assert_allclose(y.var(axis), 1, rtol=1e-4)


def test_dropout_is_determined_by_its_key_and_preserves_the_mean():
    layer, x = bp.dropout(0.25), jnp.ones((100, 100))
    y = layer.forward((), (x, jax.random.key(0)))[0]
    np.testing.assert_array_equal(y, layer.forward((), (x, jax.random.key(0)))[0])
    assert (y != layer.forward((), (x, jax.random.key(1)))[0]).any()
    assert {round(float(value), 4) for value in np.unique(y)} == {0, 1.3333}
    # A mean of 10,000 draws of deviation sqrt(1/3): five sigma.
    np.testing.assert_allclose(y.mean(), 1, atol=5 * (1 / 3) ** 0.5 / 100)


def test_causal_attention_ignores_later_positions():
    layer = bp.attention(4, causal=True)
    params, x = make_problem(layer, (1, 5, 4))
    changed = x.copy()
    changed[:, 3:] += 1
    y, other = (layer.forward(params, inputs)[0] for inputs in (x, changed))
    np.testing.assert_array_equal(y[:, :3], other[:, :3])
    assert (y[:, 3:] != other[:, 3:]).all()
    full = bp.attention(4)
    assert (full.forward(params, x)[0][:, :3] != full.forward(params, changed)[0][:, :3]).all()


def test_extended_affine_equals_affine_with_the_bias_in_column_zero():
    params, x = make_problem(bp.affine(4, 3), (5, 4))
    extended = {"weight": np.concatenate([params["bias"][:, None], params["weight"]], 1)}
    y, residuals = bp.extended_affine(4, 3).forward(extended, x)
    assert_close(y, bp.affine(4, 3).forward(params, x)[0], 1e-6)
    dparams, dx = bp.affine(4, 3).backward(params, x, y)
    got, got_dx = bp.extended_affine(4, 3).backward(extended, residuals, y)
    assert_close(
        got["weight"], jnp.concatenate([dparams["bias"][:, None], dparams["weight"]], 1), 1e-5
    )
    assert_close(got_dx, dx, 1e-5)


def test_losses_equal_the_losses_module():
    for name in ("half_squared_error", "softmax_cross_entropy", "softmax_kl", "sigmoid_kl"):
        layer, spec = LAYERS[name]
        pair = jax.tree.map(jnp.asarray, make_problem(layer, spec)[1])
        np.testing.assert_array_equal(layer.forward((), pair)[0], getattr(losses, name)(*pair))


@pytest.mark.slow
def test_one_hot_targets_have_finite_gradients():
    logits, onehot = jnp.array([[-1.0, 2.0, 0.0]]), jnp.array([[0.0, 1.0, 0.0]])
    for layer, x in (
        (bp.softmax_kl(), (logits, onehot)),
        (bp.sigmoid_kl(), (logits[0], onehot[0])),
    ):
        value, residuals = layer.forward((), x)
        dx = layer.backward((), residuals, jnp.ones_like(value))[1]
        automatic = jax.grad(lambda x, layer=layer: layer.forward((), x)[0].sum())(x)
        assert_close(dx, automatic, 1e-6)


def test_elu_far_below_zero_has_a_finite_gradient():
    dx = jax.grad(lambda x: bp.differentiable(bp.elu())((), x).sum())(jnp.array([[-1e4, 1e4]]))
    np.testing.assert_array_equal(dx, [[0, 1]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bp.affine(0, 3), ValueError, "inputs must be an integer >= 1, got 0"),
        (lambda: bp.affine(3, 1.5), TypeError, "outputs must be an integer, got float"),
        (
            lambda: bp.affine(3, 1, initializer="he"),
            TypeError,
            "initializer must be callable, got str",
        ),
        (
            lambda: bp.relu(at_zero=2),
            ValueError,
            "at_zero must be a finite number >= 0 and <= 1, got 2",
        ),
        (lambda: bp.leaky_relu(-1), ValueError, "slope must be"),
        (lambda: bp.elu(float("nan")), ValueError, "alpha must be"),
        (lambda: bp.maxout(3, 2, pieces=1), ValueError, "pieces must be an integer >= 2, got 1"),
        (lambda: bp.convolution(1, 2, stride=0), ValueError, "stride must be"),
        (
            lambda: bp.convolution(1, 2, padding="FULL"),
            ValueError,
            "padding must be one of 'SAME', 'VALID', got 'FULL'",
        ),
        (lambda: bp.max_pool(0), ValueError, "window must be"),
        (lambda: bp.average_pool(-1), ValueError, "window must be"),
        (lambda: bp.differentiable(jnp.tanh), TypeError, "layer must be a Layer"),
        (lambda: bp.extended_affine(0, 3), ValueError, "inputs must be an integer >= 1, got 0"),
        (lambda: bp.copy(0), ValueError, "count must be an integer >= 1, got 0"),
        (lambda: bp.max_over([]), ValueError, "subsets must be a sequence of at least one subset"),
        (
            lambda: bp.max_over([[0], []]),
            ValueError,
            r"subsets\[1\] must be at least one position, without duplicates, got \[\]",
        ),
        (
            lambda: bp.max_over([[1, 1]]),
            ValueError,
            r"subsets\[0\] must be at least one position, without duplicates",
        ),
        (
            lambda: bp.max_over([[0, -1]]),
            ValueError,
            r"subsets\[0\] must be an integer >= 0, got -1",
        ),
        (lambda: bp.max_over([0, 1]), ValueError, r"subsets\[0\] must be at least one position"),
        (lambda: bp.power_product(2, 0), ValueError, "outputs must be"),
        (lambda: bp.power_product(2, 1, initializer=1), TypeError, "initializer must be callable"),
        (lambda: bp.layer_norm(0), ValueError, "features must be an integer >= 1, got 0"),
        (
            lambda: bp.batch_norm(3, epsilon=0),
            ValueError,
            "epsilon must be a finite number > 0, got 0",
        ),
        (lambda: bp.dropout(1), ValueError, "rate must be below 1"),
        (lambda: bp.dropout(-0.1), ValueError, "rate must be a finite number >= 0"),
        (lambda: bp.embedding(0, 2), ValueError, "count must be"),
        (lambda: bp.attention(2.0), TypeError, "width must be an integer, got float"),
        (lambda: bp.residual("affine"), TypeError, "layer must be a Layer, got str"),
        (
            lambda: bp.sum_over_examples(losses.softmax_kl),
            TypeError,
            "loss must be a Layer, got function",
        ),
        (lambda: bp.mean_over_examples(None), TypeError, "loss must be a Layer, got NoneType"),
        (lambda: bp.softmax_jacobian(jnp.ones(2, int)), TypeError, "y must be a float array"),
    ],
)
def test_invalid_settings_are_rejected(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "error", "message"),
    [
        (
            bp.affine(4, 3),
            jnp.ones((5, 3)),
            ValueError,
            r"x must have shape \(batch, 4\) for this affine layer, got \[5, 3\]",
        ),
        (bp.affine(4, 3), jnp.ones(4), ValueError, r"x must have rank 2, got float32\[4\]"),
        (bp.affine(4, 3), jnp.ones((5, 4), int), TypeError, "x must be a float array, got int32"),
        (bp.maxout(4, 3), jnp.ones((5, 3)), ValueError, "x must have shape"),
        (bp.convolution(2, 3), jnp.ones((1, 5, 5, 1)), ValueError, "x must have shape"),
        (
            bp.convolution(2, 3, padding="VALID"),
            jnp.ones((1, 2, 5, 2)),
            ValueError,
            "sides of at least 3",
        ),
        (bp.max_pool(3), jnp.ones((1, 2, 2, 1)), ValueError, "sides of at least 3"),
        (bp.average_pool(3), jnp.ones((1, 2, 1)), ValueError, "x must have rank 4"),
        (bp.tanh(), jnp.ones((1, 2), int), TypeError, "z must be a float array"),
        (bp.flatten(), jnp.ones((1, 2), int), TypeError, "x must be a float array"),
        (bp.extended_affine(4, 3), jnp.ones((5, 5)), ValueError, r"x must have shape \(batch, 4\)"),
        (bp.add(), jnp.ones(3), TypeError, "x must be a tuple of arrays"),
        (
            bp.add(),
            (jnp.ones(3), jnp.ones(2)),
            ValueError,
            r"shapes must agree, got x\[0\]: \[3\], x\[1\]: \[2\]",
        ),
        (
            bp.multiply(),
            (jnp.ones(3), jnp.ones(3, int)),
            TypeError,
            r"x\[1\] must be a float array",
        ),
        (bp.copy(2), jnp.ones(3, int), TypeError, "x must be a float array"),
        (
            bp.max_over([[0, 4]]),
            jnp.ones((1, 4)),
            ValueError,
            r"z must have shape \(batch, 5\) or longer",
        ),
        (bp.pairwise_product(), jnp.ones((1, 3)), ValueError, r"z must have shape \(batch, 2 n\)"),
        (bp.power_product(2, 1), jnp.ones((1, 3)), ValueError, r"z must have shape \(batch, 2\)"),
        (
            bp.power_product(2, 1),
            -jnp.ones((1, 2)),
            ValueError,
            r"z \*\* alpha must be a finite real number, got z\[0, 0\] = -1.0",
        ),
        (
            bp.layer_norm(3),
            jnp.ones((2, 4)),
            ValueError,
            r"x must have shape \(batch, ..., 3\) for this layer_norm layer, got \[2, 4\]",
        ),
        (bp.batch_norm(3), jnp.ones((1, 3)), ValueError, "at least two values of each feature"),
        (bp.dropout(0.5), jnp.ones((1, 3)), TypeError, r"x must be a tuple \(values, key\)"),
        (bp.dropout(0.5), (jnp.ones((1, 3)), jnp.ones(2)), TypeError, "key must be a PRNG key"),
        (bp.dropout(0.5), (jnp.ones((1, 3)), 3.0), TypeError, "key must be a PRNG key"),
        (bp.embedding(3, 2), 1.0, TypeError, "ids must be integers, got float64"),
        (bp.embedding(3, 2), jnp.ones((2, 1)), TypeError, "ids must be integers, got float32"),
        (
            bp.embedding(3, 2),
            jnp.array([0, 3]),
            ValueError,
            r"ids must lie in 0 .. 2, got values from 0 to 3",
        ),
        (
            bp.attention(3),
            jnp.ones((1, 2, 4)),
            ValueError,
            r"x must have shape \(batch, length, 3\)",
        ),
        (bp.attention(3), jnp.ones((1, 0, 3)), ValueError, "a length of at least 1"),
        (
            bp.residual(bp.affine(3, 2)),
            jnp.ones((1, 3)),
            ValueError,
            r"shapes must agree, got x: \[1, 3\], affine\(3, 2\) of x: \[1, 2\]",
        ),
        (
            bp.half_squared_error(),
            jnp.ones((1, 3)),
            TypeError,
            r"x must be a tuple \(prediction, target\)",
        ),
        (
            bp.softmax_cross_entropy(),
            (jnp.ones((1, 3)), jnp.array([3])),
            ValueError,
            "labels must lie in 0 .. 2",
        ),
        (
            bp.softmax_kl(),
            (jnp.ones((1, 2)), jnp.ones((1, 2))),
            ValueError,
            "target must hold distributions",
        ),
        (bp.sigmoid_kl(), (jnp.ones(2), jnp.full(2, 1.5)), ValueError, "target must lie in 0 .. 1"),
        (
            bp.sum_over_examples(bp.tanh()),
            jnp.ones((2, 3)),
            ValueError,
            "the output of tanh must have rank 1",
        ),
    ],
)
def test_invalid_inputs_are_rejected(layer, x, error, message):
    with pytest.raises(error, match=message):
        layer.forward(layer.init(jax.random.key(0)), x)
