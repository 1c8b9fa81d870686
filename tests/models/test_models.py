"""MLP, CNN and sequential models: named nodes, shapes, values and gradients against plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import backprop, models, nodes, program

ACTIVATIONS = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": lambda z: jax.nn.leaky_relu(z, 0.1),
    "elu": jax.nn.elu,
    "softmax": jax.nn.softmax,
}
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 6))
IMAGES = jax.random.normal(jax.random.key(2), (2, 8, 8, 1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_equals_plain_jax(activation):
    model = models.mlp((6, 7, 4, 3), activation=activation)
    params, s = model.init(KEY), ACTIVATIONS[activation]

    def plain(params, x):
        h = s(x @ params["affine1"]["weight"].T + params["affine1"]["bias"])
        h = s(h @ params["affine2"]["weight"].T + params["affine2"]["bias"])
        return h @ params["logits"]["weight"].T + params["logits"]["bias"]

    np.testing.assert_allclose(model.apply(params, X), plain(params, X), rtol=1e-5, atol=1e-6)
    gradients = [
        jax.grad(lambda params, f=f: (f(params, X) ** 2).sum())(params)
        for f in (model.apply, plain)
    ]
    jax.tree.map(
        lambda actual, expected: np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5),
        *gradients,
    )


def test_cnn_equals_plain_jax():
    model = models.cnn((8, 8, 1), channels=(3,), hidden=(5,), classes=4)
    params = model.init(KEY)

    def plain(params, x):
        layout = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(
            x, params["conv1"]["weight"], (1, 1), "SAME", dimension_numbers=layout
        )
        h = jax.nn.relu(h + params["conv1"]["bias"])
        h = jax.lax.reduce_window(
            h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        ).reshape(len(x), -1)
        h = jax.nn.relu(h @ params["affine2"]["weight"].T + params["affine2"]["bias"])
        return h @ params["logits"]["weight"].T + params["logits"]["bias"]

    np.testing.assert_allclose(
        model.apply(params, IMAGES), plain(params, IMAGES), rtol=1e-4, atol=1e-5
    )
    gradients = [
        jax.grad(lambda *args, f=f: (f(*args) ** 2).sum(), (0, 1))(params, IMAGES)
        for f in (model.apply, plain)
    ]
    jax.tree.map(
        lambda actual, expected: np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4),
        *gradients,
    )


@pytest.mark.slow
def test_nodes_are_named_in_order():
    model = models.cnn((8, 8, 1), channels=(3, 4), hidden=(5,))
    names = nodes.names(model.apply, model.init(KEY), IMAGES)
    assert list(names) == [
        "conv1",
        "hidden1",
        "pool1",
        "conv2",
        "hidden2",
        "pool2",
        "flat",
        "affine3",
        "hidden3",
        "logits",
    ]
    assert names["conv2"].shape == (2, 4, 4, 4)
    model = models.mlp((6, 7, 3))
    assert list(nodes.names(model.apply, model.init(KEY), X)) == ["affine1", "hidden1", "logits"]


def test_maxout_is_the_larger_of_two_affine_pieces():
    model = models.mlp((6, 2, 3), activation="maxout")
    params = model.init(KEY)
    pieces = X @ params["hidden1"]["weight"].T + params["hidden1"]["bias"]
    _, values = nodes.read(program(model.apply, params), ["hidden1"])(X)
    np.testing.assert_allclose(values["hidden1"], pieces.reshape(5, 2, 2).max(-1), rtol=1e-6)


def test_mlp_without_hidden_layers_is_a_linear_classifier():
    model = models.mlp((6, 3))
    assert list(model.init(KEY)) == ["logits"]


@pytest.mark.parametrize("sizes", [(6, 3), (6, 7, 3)])
def test_all_weights_of_an_mlp_are_drawn_by_its_initializer(sizes):
    layers = models.mlp(sizes, initializer=jax.nn.initializers.constant(2)).init(KEY).values()
    for layer, inputs, outputs in zip(layers, sizes, sizes[1:], strict=False):
        np.testing.assert_array_equal(layer["weight"], np.full((outputs, inputs), 2))


@pytest.mark.slow
def test_settings_are_passed_to_the_layers():
    model = models.cnn(
        (9, 7, 3),
        channels=(2,),
        hidden=(),
        classes=4,
        window=5,
        activation=backprop.elu(0.5),
        pool="average",
    )
    params = model.init(KEY)
    assert params["conv1"]["weight"].shape == (5, 5, 3, 2)
    assert model.apply(params, jnp.zeros((2, 9, 7, 3))).shape == (2, 4)


@pytest.mark.slow
def test_the_same_key_gives_the_same_parameters():
    model = models.cnn()
    jax.tree.map(np.testing.assert_array_equal, model.init(KEY), model.init(KEY))


def test_models_with_the_same_settings_have_the_same_structure():
    one, two = (
        program(models.mlp((6, 7, 3)).apply, models.mlp((6, 7, 3)).init(key))
        for key in jax.random.split(KEY)
    )
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert jax.tree.structure(one) != jax.tree.structure(
        program(models.mlp((6, 7, 3), activation="relu").apply, {})
    )


def test_sequential_taps_every_output():
    model = models.sequential([("a", backprop.affine(6, 3)), ("b", backprop.tanh())], shape=(None,))
    assert list(nodes.names(model.apply, model.init(KEY), X)) == ["a", "b"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: models.mlp((6,)),
            ValueError,
            r"sizes must be 2 or more positive integers, got \(6,\)",
        ),
        (lambda: models.mlp(6), ValueError, "sizes must be 2 or more positive integers, got 6"),
        (lambda: models.mlp((6, 0)), ValueError, r"sizes\[1\] must be an integer >= 1, got 0"),
        (lambda: models.mlp((6, 2.0)), TypeError, r"sizes\[1\] must be an integer, got float"),
        (
            lambda: models.mlp((6, 2, 2), activation="gelu"),
            ValueError,
            "activation must be one of 'sigmoid', .*got 'gelu'",
        ),
        (
            lambda: models.mlp((6, 2), initializer=3),
            TypeError,
            "initializer must be callable, got int",
        ),
        (lambda: models.cnn((8, 8)), ValueError, "shape must be 3 positive integers"),
        (
            lambda: models.cnn((2, 8, 1)),
            ValueError,
            "shape must have sides of at least 4 for 2 poolings",
        ),
        (
            lambda: models.cnn(channels=()),
            ValueError,
            "channels must be 1 or more positive integers",
        ),
        (
            lambda: models.cnn(hidden=(0,)),
            ValueError,
            r"hidden\[0\] must be an integer >= 1, got 0",
        ),
        (lambda: models.cnn(classes=0), ValueError, "classes must be an integer >= 1, got 0"),
        (
            lambda: models.cnn(pool="median"),
            ValueError,
            "pool must be one of 'max', 'average', got 'median'",
        ),
        (
            lambda: models.cnn(activation="maxout"),
            ValueError,
            "activation must keep the number of channels",
        ),
        (
            lambda: models.sequential([], shape=(1,)),
            ValueError,
            "stages must hold at least one layer",
        ),
        (
            lambda: models.sequential([("a", jnp.tanh)], shape=(1,)),
            TypeError,
            "the layer 'a' must be a Layer, got",
        ),
        (
            lambda: models.sequential([("a", backprop.tanh())] * 2, shape=(1,)),
            ValueError,
            "stages must have different names, got 'a' twice",
        ),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("model", "x", "error", "message"),
    [
        (
            models.mlp((6, 3)),
            jnp.ones((2, 5)),
            ValueError,
            r"x must have shape \(batch, 6\), got \[2, 5\]",
        ),
        (models.mlp((6, 3)), jnp.ones((0, 6)), ValueError, "x must not be empty"),
        (models.mlp((6, 3)), jnp.full((2, 6), jnp.nan), ValueError, "x must be finite"),
        (
            models.mlp((6, 3)),
            jnp.ones((2, 6), int),
            TypeError,
            "x must be a float array, got int32",
        ),
        (
            models.cnn(channels=(2,)),
            jnp.ones((2, 8, 8)),
            ValueError,
            r"x must have shape \(batch, 8, 8, 1\), got \[2, 8, 8\]",
        ),
        (
            models.cnn(channels=(2,)),
            jnp.ones((2, 9, 9, 1)),
            ValueError,
            r"x must have shape \(batch, 8, 8, 1\), got \[2, 9, 9, 1\]",
        ),
        (models.cnn(channels=(2,)), jnp.ones((0, 8, 8, 1)), ValueError, "x must not be empty"),
    ],
)
def test_bad_input_is_refused(model, x, error, message):
    with pytest.raises(error, match=message):
        model.apply(model.init(KEY), x)


@pytest.mark.parametrize("params", [None, {}, {"logits": {}, "other": {}}])
def test_the_parameters_of_another_model_are_refused(params):
    with pytest.raises(
        ValueError, match=r"params must be a dict with entries \['affine1', 'logits'\], got"
    ):
        models.mlp((6, 7, 3)).apply(params, X)


def test_layers_of_equal_shape_start_with_different_weights():
    params = models.mlp((3, 3, 3, 3)).init(jax.random.key(0))
    weights = [entry["weight"] for entry in params.values()]
    assert len(weights) == 3
    assert (weights[0] != weights[1]).all()
    assert (weights[1] != weights[2]).all()
