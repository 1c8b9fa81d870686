"""Transformer and vision transformer: values and gradients against plain JAX, masks, nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffprog import models, nodes, program
from diffprog.models._vit import _split_into_patches

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 5, 8))
IMAGES = jax.random.uniform(jax.random.key(2), (3, 4, 6, 2))
S = {
    "gelu": lambda z: z * jax.scipy.stats.norm.cdf(z),
    "gelu_tanh": jax.nn.gelu,
    "quick_gelu": lambda z: z * jax.nn.sigmoid(1.702 * z),
}


def random_params(model):
    """Random parameters; biases and norms too, which `init` sets to 0 and 1."""
    shapes, generator = jax.eval_shape(model.init, KEY), np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0.2, 0.4, leaf.shape), leaf.dtype), shapes
    )


def norm(params, x, epsilon=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return (
        params["scale"] * centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        + params["shift"]
    )


def affine(params, x):
    return x @ params["weight"].T + params["bias"]


def plain(params, x, heads, s, mask):
    """The formulas of the papers, head by head."""
    for block in params.values():
        h = norm(block["norm1"], x)
        q, k, v = (
            jnp.split(affine(block[name], h), heads, -1) for name in ("query", "key", "value")
        )
        outputs = []
        for head in range(heads):
            scores = q[head] @ k[head].mT / np.sqrt(q[head].shape[-1])
            outputs.append(jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)) @ v[head])
        x = x + affine(block["output"], jnp.concatenate(outputs, -1))
        x = x + affine(block["out"], s(affine(block["hidden"], norm(block["norm2"], x))))
    return x


def assert_same_values_and_gradients(functions, params, x):
    """Compare two functions in double precision, where rounding errors are negligible."""
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda leaf: leaf.astype("float64"), (params, x))
        results = [
            jax.jit(jax.value_and_grad(lambda *args, f=f: (f(*args) ** 2).sum(), (0, 1)))(params, x)
            for f in functions
        ]
        jax.tree.map(
            lambda actual, expected: np.testing.assert_allclose(
                actual, expected, rtol=1e-9, atol=1e-9
            ),
            *results,
        )


@pytest.mark.parametrize(
    ("activation", "depth"),
    [
        ("gelu", 2),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("gelu_tanh", "quick_gelu")),
    ],
)
def test_transformer_equals_plain_jax(activation, depth):
    model = models.transformer(8, depth=depth, heads=2, hidden=12, activation=activation)
    params = random_params(model)
    functions = [model.apply, lambda params, x: plain(params, x, 2, S[activation], True)]
    assert_same_values_and_gradients(functions, params, X)


def test_causal_and_visible_mask_the_attention():
    model = models.transformer(8, depth=1, heads=4, causal=True)
    params = random_params(model)
    visible = jnp.array([[True, True, True, False, True], [True, False, True, True, False]])
    mask = jnp.tri(5, dtype=bool) & visible[:, None, :]
    actual, expected = jax.jit(
        lambda params: (model.apply(params, X, visible), plain(params, X, 4, S["gelu"], mask))
    )(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_no_position_depends_on_masked_positions():
    causal, full = (
        models.transformer(8, depth=2, heads=2, causal=causal) for causal in (True, False)
    )
    params, causal, full = random_params(causal), jax.jit(causal.apply), jax.jit(full.apply)
    other = X.at[:, 3].multiply(-1)
    np.testing.assert_array_equal(causal(params, X)[:, :3], causal(params, other)[:, :3])
    assert not jnp.allclose(full(params, X)[:, :3], full(params, other)[:, :3])
    visible = jnp.arange(5)[None] != jnp.array([[3], [3]])
    np.testing.assert_array_equal(
        *(jnp.delete(full(params, x, visible), 3, axis=1) for x in (X, other))
    )


def test_values_and_gradients_are_finite_if_all_is_masked():
    model = models.transformer(8, depth=1, heads=2)
    visible = jnp.zeros((2, 5), bool)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: model.apply(random_params(model), x, visible).sum())
    )(X)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_residual_weights_are_initialized_smaller_in_deeper_models():
    params = models.transformer(64, depth=2, heads=4).init(KEY)["block1"]
    deviations = {
        name: float(params[name]["weight"].std()) * np.sqrt(params[name]["weight"].shape[1])
        for name in ("hidden", "output", "out")
    }
    # The relative error of the standard deviation of 4096 numbers is 1 / sqrt(8192), about 0.01.
    np.testing.assert_allclose([*deviations.values()], [1, 0.5, 0.5], rtol=0.05)


def test_nodes_are_named_block_by_block():
    model = models.transformer(8, depth=2, heads=2)
    names = nodes.names(model.apply, random_params(model), X)
    assert list(names) == [
        f"block{k}{part}" for k in range(2) for part in (".attention", ".hidden", "")
    ]
    assert names["block1.hidden"].shape == (2, 5, 32)
    params = random_params(model)
    _, values = nodes.read(program(model.apply, params))(X)
    added = {f"block0{part}": values[f"block0{part}"] for part in (".attention", "")}
    np.testing.assert_allclose(
        affine(
            params["block0"]["hidden"],
            norm(params["block0"]["norm2"], X + added["block0.attention"]),
        ),
        values["block0.hidden"],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.slow  # the values alone are compared by faster tests of checkpoints
@pytest.mark.parametrize("norm_first", [True, False])
def test_vit_equals_plain_jax(norm_first):
    model = models.vit(
        (4, 6, 2), patch=2, width=8, depth=1, heads=2, outputs=3, norm_first=norm_first
    )
    params = random_params(model)

    def plain_vit(params, x):
        kernel = params["patches"]["weight"].reshape(8, 2, 2, 2).transpose(1, 2, 3, 0)
        patches = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        tokens = (patches + params["patches"]["bias"]).reshape(len(x), 6, 8)
        tokens = (
            jnp.concatenate([jnp.tile(params["class"], (len(x), 1, 1)), tokens], 1)
            + params["positions"]
        )
        tokens = norm(params["norm_first"], tokens) if norm_first else tokens
        return affine(
            params["logits"],
            norm(params["norm"], plain(params["blocks"], tokens, 2, S["gelu"], True)[:, 0]),
        )

    functions = [model.apply, plain_vit]
    assert_same_values_and_gradients(functions, params, IMAGES)


@pytest.mark.slow
def test_vit_taps_patches_tokens_blocks_and_pooled():
    model = models.vit((4, 6, 2), patch=2, width=8, depth=1, heads=2, outputs=None)
    params = random_params(model)
    out, values = nodes.read(program(model.apply, params))(IMAGES)
    assert values.keys() == {
        "patches",
        "tokens",
        "block0.attention",
        "block0.hidden",
        "block0",
        "pooled",
    }
    assert values["patches"].shape == (3, 2, 3, 8)
    np.testing.assert_array_equal(out, values["pooled"])
    changed = nodes.read(program(model.apply, params), ["patches"])(IMAGES.at[:, 2:, 4:].add(1))[1][
        "patches"
    ]
    assert jnp.argwhere((changed != values["patches"]).any((0, 3))).tolist() == [[1, 2]]


def test_models_with_the_same_settings_have_the_same_structure():
    def make(scale):
        model = models.vit(patch=4, width=8, depth=1, heads=2)
        return program(model.apply, jax.tree.map(lambda leaf: leaf * scale, random_params(model)))

    one, two = make(1), make(2)
    assert jax.tree.structure(one) == jax.tree.structure(two)


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        model = models.vit((4, 6, 2), patch=2, width=8, depth=1, heads=2)
        params = jax.tree.map(lambda leaf: leaf.astype("float64"), random_params(model))
        assert jax.eval_shape(model.apply, params, IMAGES.astype("float64")).dtype == "float64"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: models.transformer(8, 0, 2), ValueError, "depth must be an integer >= 1, got 0"),
        (lambda: models.transformer(8.0, 1, 2), TypeError, "width must be an integer, got float"),
        (
            lambda: models.transformer(8, 1, 3),
            ValueError,
            "width must be a multiple of heads, got 8 and 3 heads",
        ),
        (
            lambda: models.transformer(8, 1, 2, hidden=0),
            ValueError,
            "hidden must be an integer >= 1, got 0",
        ),
        (
            lambda: models.transformer(8, 1, 2, activation="relu"),
            ValueError,
            "activation must be one of 'gelu', .*got 'relu'",
        ),
        (
            lambda: models.transformer(8, 1, 2, causal=2),
            ValueError,
            "causal must be one of True, False, got 2",
        ),
        (
            lambda: models.transformer(8, 1, 2, epsilon=0),
            ValueError,
            "epsilon must be a finite number > 0, got 0",
        ),
        (lambda: models.vit((8, 8)), ValueError, "shape must be 3 positive integers"),
        (
            lambda: models.vit((8, 9, 1), patch=4),
            ValueError,
            r"shape must have sides that are multiples of the patch, 4, got \(8, 9, 1\)",
        ),
        (lambda: models.vit(patch=0), ValueError, "patch must be an integer >= 1, got 0"),
        (lambda: models.vit(outputs=0), ValueError, "outputs must be an integer >= 1, got 0"),
        (
            lambda: models.vit(norm_first=None),
            ValueError,
            "norm_first must be one of True, False, got None",
        ),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            (jnp.ones((2, 5, 7)),),
            ValueError,
            r"x must have shape \(batch, length, 8\), none of them 0, got \[2, 5, 7\]",
        ),
        (
            (jnp.ones((2, 0, 8)),),
            ValueError,
            r"x must have shape \(batch, length, 8\), none of them 0, got \[2, 0, 8\]",
        ),
        ((jnp.ones((2, 8)),), ValueError, r"x must have rank 3, got float32\[2, 8\]"),
        ((jnp.full((2, 5, 8), jnp.nan),), ValueError, "x must be finite"),
        ((jnp.ones((2, 5, 8), int),), TypeError, "x must be a float array, got int32"),
        (
            (X, jnp.ones((2, 5))),
            TypeError,
            r"visible must be bool \(batch, length\), got float32\[2, 5\]",
        ),
        (
            (X, jnp.ones((2, 4), bool)),
            ValueError,
            r"visible must have shape \[2, 5\], .* got \[2, 4\]",
        ),
    ],
)
def test_bad_input_is_refused(args, error, message):
    model = models.transformer(8, depth=1, heads=2)
    with pytest.raises(error, match=message):
        model.apply(random_params(model), *args)


def test_the_parameters_of_another_model_are_refused():
    one, two = models.transformer(8, depth=1, heads=2), models.transformer(8, depth=2, heads=2)
    with pytest.raises(
        ValueError,
        match=r"params must be a dict with entries \['block0'\], got \['block0', 'block1'\]",
    ):
        one.apply(random_params(two), X)
    with pytest.raises(
        ValueError, match=r"params\['weight'\] must have shape \[32, 8\], got \[16, 8\]"
    ):
        one.apply(random_params(models.transformer(8, depth=1, heads=2, hidden=16)), X)
    image = models.vit((4, 6, 2), width=8, depth=1, heads=2)
    with pytest.raises(
        ValueError,
        match=r"params must be a dict with entries \['blocks', 'class', .*\], got \['block0'\]",
    ):
        image.apply(random_params(one), IMAGES)
    with pytest.raises(
        ValueError, match=r"params\['positions'\] must have shape \[7, 8\], got \[4, 8\]"
    ):
        image.apply(random_params(image) | {"positions": jnp.zeros((4, 8))}, IMAGES)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            jnp.ones((2, 6, 4, 2)),
            ValueError,
            r"x must have shape \(batch, 4, 6, 2\), got \[2, 6, 4, 2\]",
        ),
        (jnp.ones((0, 4, 6, 2)), ValueError, "x must not be empty"),
        (jnp.full((2, 4, 6, 2), jnp.inf), ValueError, "x must be finite"),
    ],
)
def test_bad_images_are_refused(x, error, message):
    model = models.vit((4, 6, 2), width=8, depth=1, heads=2)
    with pytest.raises(error, match=message):
        model.apply(random_params(model), x)


def test_patches_are_split_row_by_row():
    images = np.arange(2 * 4 * 6 * 2).reshape(2, 4, 6, 2)
    patches = np.asarray(_split_into_patches(jnp.asarray(images), 2))
    assert patches.shape == (2, 2, 3, 8)
    for row in range(2):
        for column in range(3):
            part = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(patches[:, row, column], part.reshape(2, 8))
