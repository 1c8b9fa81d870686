"""Nodes: read values are those computed, in every construct and framework, and errors are clear."""

import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from diffprog import _loops, nodes
from diffprog.nodes import tap
from diffprog.program import Program, program

X = jnp.asarray([0.3, -0.7, 1.1])
IMAGES = jnp.linspace(-1.0, 1.0, 2 * 6 * 6).reshape(2, 6, 6, 1)


def plain(x):
    return jnp.cos(tap(jnp.sin(x), "h") * x)


def jitted(x):
    return jax.jit(jax.jit(plain))(x)


def nested_scan(x):
    def outer(carry, _):
        return lax.scan(lambda c, s: (plain(c) + s, c), carry, jnp.arange(2.0))

    return lax.scan(outer, x, None, length=3)


def looped(x):
    return lax.fori_loop(0, 3, lambda i, c: plain(c) + i, x)


def branched(x):
    return lax.cond(x[0] > 0, plain, lambda x: 2 * x, x)


def rematted(x):
    return jax.checkpoint(plain)(x)


def vmapped(x):
    return jax.vmap(plain)(x)


def differentiated(x):
    return jax.grad(lambda x: plain(x).sum())(x)


def before_relu(x):
    return jax.nn.relu(tap(x, "h")) * 3


@jax.custom_vjp
def cubed(x):
    return tap(x * x, "square") * x


cubed.defvjp(lambda x: (cubed(x), x), lambda x, g: (100.0 * g * x,))


def with_while(x):
    return lax.while_loop(lambda c: c.sum() < 10, lambda c: tap(c + 1, "inside"), tap(x, "outside"))


PROGRAMS = {
    f.__name__: f
    for f in (
        plain,
        jitted,
        nested_scan,
        looped,
        branched,
        rematted,
        vmapped,
        differentiated,
        before_relu,
    )
}
SHAPES = dict.fromkeys(PROGRAMS, (3,)) | {"nested_scan": (3, 2, 3), "looped": (3, 3)}


def total(tree):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_replacing_a_node_by_its_own_value_changes_nothing(name):
    f = PROGRAMS[name]
    out, values = nodes.read(f)(X)
    assert_close(out, f(X))
    assert {key: value.shape for key, value in values.items()} == {"h": SHAPES[name]}
    assert_close(nodes.replace(f, values)(X), out)
    assert_close(nodes.perturb(f, jax.tree.map(jnp.zeros_like, values))(X), out)
    assert nodes.names(f, X) == {"h": jax.ShapeDtypeStruct(SHAPES[name], "float32")}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_of_perturb_match_finite_differences(name):
    f, shape = PROGRAMS[name], SHAPES[name]

    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(X, np.float64) + 0.01)
        cost = jax.jit(lambda delta: total(nodes.perturb(f, {"h": delta})(x)))
        direction = jnp.cos(jnp.arange(np.prod(shape), dtype=float)).reshape(shape)
        slope = jnp.vdot(jax.grad(cost)(jnp.zeros(shape)), direction)
        np.testing.assert_allclose(
            slope, (cost(1e-6 * direction) - cost(-1e-6 * direction)) / 2e-6, rtol=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_read_works_under_jit_vmap_and_grad(name):
    f, batch = PROGRAMS[name], jnp.stack([X, -X])

    def read_total(x):
        out, values = nodes.read(f)(x)
        return total(out) + total(values)

    assert_close(
        jax.jit(jax.vmap(jax.grad(read_total)))(batch),
        jnp.stack([jax.grad(read_total)(x) for x in batch]),
    )


def test_read_values_are_those_computed():
    (_, ys), values = nodes.read(nested_scan)(X)
    assert_close(values["h"], jnp.sin(ys))
    assert_close(nodes.read(branched)(-X)[1]["h"], 0 * X)
    assert_close(nodes.read(plain)(X)[1]["h"], jnp.sin(X))


def test_replaced_values_can_be_batched():
    values = jnp.stack([X, 2 * X, 3 * X])
    got = jax.vmap(lambda v, x: nodes.replace(plain, {"h": v})(x))(values, values)
    assert_close(got, jnp.cos(values**2))


def test_a_replaced_node_cuts_off_the_gradient_before_it():
    def f(x):
        return jnp.sum(tap(x**2, "h") * x)

    v = jnp.asarray([1.0, 2.0, 3.0])
    assert_close(jax.grad(lambda v: nodes.replace(f, {"h": v})(X))(v), X)
    assert_close(jax.grad(nodes.replace(f, {"h": v}))(X), v)


def test_node_transformations_nest():
    def f(x):
        return tap(tap(x + 1, "first") * 2, "second")

    out, values = nodes.read(nodes.perturb(f, {"first": X}))(X)
    assert_close((out, values["second"]), (4 * X + 2, 4 * X + 2))
    assert_close(nodes.replace(nodes.replace(f, {"first": X}), {"second": 5 * X})(X), 5 * X)


def test_arguments_and_outputs_are_pytrees():
    out, values = nodes.read(lambda a, b: {"sum": tap(a["x"] + b[0], "s"), "none": None})(
        {"x": X}, (X,)
    )
    assert_close((out["sum"], values["s"]), (2 * X, 2 * X))
    assert out["none"] is None


def test_custom_derivatives_are_kept():
    def f(x):
        return jnp.sum(cubed(tap(x, "h")))

    assert_close(jax.grad(lambda x: nodes.read(f)(x)[0])(X), 100 * X)
    assert_close(jax.grad(lambda delta: nodes.perturb(f, {"h": delta})(X))(0 * X), 100 * X)
    assert_close(nodes.read(f)(X)[1]["square"], X**2)
    assert_close(
        jax.grad(lambda x: total(nodes.perturb(before_relu, {"h": x})(x)))(0 * X), 0 * X
    )  # 3 without relu's own rule


def test_remat_is_kept():
    jaxpr = str(jax.make_jaxpr(lambda x: nodes.perturb(rematted, {"h": x})(x))(X))
    assert "prevent_cse" in jaxpr


def test_nodes_that_are_not_read_cost_nothing():
    def flops(f):
        return jax.jit(f).lower(jnp.ones((8, 8))).compile().cost_analysis()["flops"]

    def f(x):
        return tap(tap(x @ x, "h") @ x, "g") + jnp.sin(x)

    def untapped(x):
        return x @ x @ x + jnp.sin(x)

    assert flops(lambda x: nodes.read(f)(x)[0]) == flops(f) == flops(untapped)
    assert flops(lambda x: nodes.read(f)(x)[1]["h"]) == flops(lambda x: x @ x)


def test_names_and_operations_do_not_run_the_function():
    def f(x):
        jax.debug.callback(calls.append, x[0])
        return tap(x @ x, "h")

    calls = []
    abstract = jax.ShapeDtypeStruct((4,), "float32")
    assert list(nodes.names(f, abstract)) == ["h"]
    assert list(nodes.operations(f, abstract)) == ["matmul:0"]
    assert nodes.names(f, X)["h"].shape == ()
    jax.effects_barrier()
    assert calls == []


def test_programs_of_one_structure_compile_once():
    traces = []

    def network(params, x):
        traces.append(x.shape)
        return tap(x * params, "h")

    for scale in (1.0, 2.0, 3.0):
        model = program(network, jnp.float32(scale))
        assert_close(nodes.read(model)(X)[1]["h"], scale * X)
        assert_close(nodes.perturb(model, {"h": scale * X})(X), 2 * scale * X)
    assert len(traces) == 2


def test_a_name_used_twice_gives_two_nodes():
    def f(x):
        return plain(plain(x))

    assert list(nodes.names(f, X)) == ["h#0", "h#1"]
    values = nodes.read(f)(X)[1]
    assert_close(values["h#1"], jnp.sin(plain(X)))
    assert_close(nodes.replace(f, {"h#1": values["h#1"]})(X), f(X))
    with pytest.raises(ValueError, match="'h' is ambiguous, expected one of 'h#0', 'h#1'"):
        nodes.read(f, ["h"])(X)


def test_intervene_keeps_the_names_of_nodes():
    def f(x):
        return plain(plain(x @ jnp.eye(3)) @ jnp.eye(3)) @ jnp.eye(3)

    v = 2 * X
    for values, name in (
        ({"h#0": v}, "h#1"),
        ({"matmul:0": v}, "matmul:2"),
        ({"matmul:0": v, "h#1": X}, "matmul:1"),
    ):
        out, read = nodes.intervene(f, values, [name, *values])(X)
        assert_close(out, nodes.replace(f, values)(X))
        assert_close({key: read[key] for key in values}, values)
        if len(values) == 1:
            expected = {"h#1": jnp.sin(jnp.cos(v * X)), "matmul:2": plain(plain(v))}
            assert_close(read[name], expected[name])


def test_values_in_a_loop_are_stacked():
    v = jnp.ones((3, 3)) * X
    out, values = nodes.intervene(looped, {"h": v}, ["h"])(X)
    assert_close((out, values["h"]), (nodes.replace(looped, {"h": v})(X), v))


class Block(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.relu(linen.Conv(4, (3, 3))(x))


class LinenCNN(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.remat(Block)(name="second")(Block(name="first")(x))
        return linen.Dense(3)(x.mean((1, 2)))


class NnxCNN(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.convolution, self.head = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.convolution(x)).mean((1, 2)))


class EquinoxCNN(equinox.Module):
    convolution: equinox.nn.Conv2d
    head: equinox.nn.Linear

    def __call__(self, x):
        return self.head(jax.nn.relu(self.convolution(x.transpose(2, 0, 1))).mean((1, 2)))


@pytest.fixture(scope="module")
def linen_model():
    return program(LinenCNN().apply, jax.jit(LinenCNN().init)(jax.random.key(0), IMAGES))


@pytest.fixture(scope="module")
def equinox_model():
    first, second = jax.random.split(jax.random.key(0))
    return EquinoxCNN(equinox.nn.Conv2d(1, 4, 3, key=first), equinox.nn.Linear(4, 3, key=second))


@pytest.mark.slow
def test_operations_of_an_unmodified_linen_model(linen_model):
    assert nodes.operations(linen_model, IMAGES) == {
        "conv:0": ((2, 6, 6, 4), jnp.float32, "LinenCNN/first/Conv_0"),
        "conv:1": ((2, 6, 6, 4), jnp.float32, "LinenCNN/second/Conv_0"),
        "matmul:0": ((2, 3), jnp.float32, "LinenCNN/Dense_0"),
    }
    out, values = nodes.read(
        linen_model, ["conv:1", "second/Conv_0", "LinenCNN/Dense_0", "Dense_0"]
    )(IMAGES)
    assert_close(values["conv:1"], values["second/Conv_0"])
    assert_close(values["Dense_0"], out)  # the bias is still zero
    assert_close(nodes.replace(linen_model, {"second/Conv_0": values["conv:1"]})(IMAGES), out)
    with pytest.raises(
        ValueError, match="'Conv_0' is ambiguous, expected one of 'conv:0', 'conv:1'"
    ):
        nodes.read(linen_model, ["Conv_0"])(IMAGES)


def test_fast_gradients_do_not_change_nodes(linen_model):
    jax_rules = Program(linen_model.arrays, linen_model.structure, fast_gradients=False)
    assert nodes.operations(linen_model, IMAGES) == nodes.operations(jax_rules, IMAGES)
    delta = jnp.linspace(-1.0, 1.0, 2 * 6 * 6 * 4).reshape(2, 6, 6, 4)
    for change in (nodes.perturb, nodes.replace):
        assert_close(
            change(linen_model, {"conv:1": delta})(IMAGES),
            change(jax_rules, {"conv:1": delta})(IMAGES),
        )
    assert_close(
        nodes.read(linen_model, ["conv:1"])(IMAGES), nodes.read(jax_rules, ["conv:1"])(IMAGES)
    )


@pytest.mark.slow
def test_transformed_programs_keep_fast_gradients(linen_model):
    delta = jnp.zeros((2, 6, 6, 4))
    transformed = {
        "read": lambda model, x: nodes.read(model, ["conv:1"])(x)[1]["conv:1"].sum(),
        "replace": lambda model, x: (
            nodes.replace(model, {"first/Conv_0": delta})(x).sum() + model(x).sum()
        ),
        "perturb": lambda model, x: nodes.perturb(lambda x: model(x) ** 2, {"conv:1": delta})(
            x
        ).sum(),
    }
    jax_rules = Program(linen_model.arrays, linen_model.structure, fast_gradients=False)
    for transform in transformed.values():
        steps = [
            jax.make_jaxpr(jax.grad(functools.partial(transform, model)))(IMAGES)
            for model in (linen_model, jax_rules)
        ]
        assert [_loops.scan_is_fast(step) for step in steps] == [True, False]
        assert_close(
            *(
                jax.grad(functools.partial(transform, model))(IMAGES)
                for model in (linen_model, jax_rules)
            )
        )


def test_module_paths_do_not_contain_transformations(linen_model):
    def slope(x):
        return jax.vmap(jax.grad(lambda x: linen_model(x[None]).sum()))(x)

    forward = [operation.scope for operation in nodes.operations(slope, IMAGES).values()][:2]
    assert forward == ["LinenCNN/first/Conv_0", "LinenCNN/second/Conv_0"]


def test_operations_of_an_unmodified_nnx_model():
    model = NnxCNN()
    assert [(key, value.shape) for key, value in nodes.operations(model, IMAGES).items()] == [
        ("conv:0", (2, 6, 6, 4)),
        ("matmul:0", (2, 3)),
    ]
    out, values = nodes.read(model, ["matmul:0"])(IMAGES)
    assert_close((out, values["matmul:0"]), (model(IMAGES), model(IMAGES)))
    assert_close(nodes.perturb(model, {"matmul:0": jnp.ones((2, 3))})(IMAGES), out + 1)


@pytest.mark.slow
def test_operations_of_an_unmodified_equinox_model(equinox_model):
    batched = jax.vmap(equinox_model)
    (convolution, matmul) = nodes.operations(batched, IMAGES).values()
    assert (convolution.scope, matmul.scope) == ("eqx.nn.Conv", "eqx.nn.Linear")
    out, values = nodes.read(equinox_model, ["eqx.nn.Conv"])(IMAGES[0])
    assert_close(nodes.replace(equinox_model, values)(IMAGES[0]), out)
    assert_close(out, equinox_model(IMAGES[0]))


# Invalid arguments


@pytest.mark.parametrize(
    ("name", "error"),
    [("", ValueError), ("a#0", ValueError), ("conv:0", ValueError), (3, TypeError)],
)
def test_tap_raises_for_invalid_names(name, error):
    with pytest.raises(error, match="name must be a string"):
        tap(X, name)


def test_an_unknown_name_raises_and_lists_the_known_ones():
    def f(x):
        return tap(x, "hidden1") @ tap(x, "hidden2")

    for call in (
        nodes.read(f, ["hidden"]),
        nodes.replace(f, {"hidden": X}),
        nodes.perturb(f, {"": X}),
    ):
        with pytest.raises(
            ValueError, match="is unknown, expected one of 'hidden1', 'hidden2', 'matmul:0'"
        ):
            call(X)
    with pytest.raises(ValueError, match=r"'h' is unknown.*the program has no nodes"):
        nodes.read(jnp.sin, ["h"])(X)


def test_a_module_path_is_found_by_its_last_whole_names():
    def f(x):
        with jax.named_scope("Block_1"), jax.named_scope("MyConv_0"):
            return x @ x

    square = jnp.eye(2)
    for name in ("MyConv_0", "Block_1/MyConv_0"):
        assert list(nodes.read(f, [name])(square)[1]) == [name]
    for name in ("Conv_0", "1/MyConv_0", "Block_1"):
        with pytest.raises(ValueError, match=f"node '{name}' is unknown"):
            nodes.read(f, [name])(square)


def test_nodes_in_a_loop_of_unknown_length_raise():
    assert list(nodes.names(with_while, X)) == list(nodes.read(with_while)(X)[1]) == ["outside"]
    for call in (nodes.read(with_while, ["inside"]), nodes.perturb(with_while, {"inside": X})):
        with pytest.raises(
            ValueError, match="'inside' is inside a 'while': a loop of unknown length"
        ):
            call(X)


@pytest.mark.parametrize("change", [nodes.replace, nodes.perturb])
def test_changing_a_node_inside_a_custom_derivative_raises(change):
    with pytest.raises(
        ValueError, match=r"'square'.* inside a 'custom_vjp_call'.* bypass its derivative rule"
    ):
        change(cubed, {"square": X})(X)


def test_intervene_checks_values_and_names():
    with pytest.raises(
        ValueError, match=r"values\['h'\] must be float32\[3, 3\] like its node, got float32\[3\]"
    ):
        nodes.intervene(looped, {"h": X}, [])(X)
    with pytest.raises(ValueError, match="'g' is unknown"):
        nodes.intervene(plain, {"h": X}, ["g"])(X)
    with pytest.raises(TypeError, match="names must be a sequence of strings"):
        nodes.intervene(plain, {"h": X}, 3)
    with pytest.raises(TypeError, match="f must be callable, got int"):
        nodes.intervene(3, {"h": X}, ["h"])


@pytest.mark.parametrize(
    ("change", "argument"), [(nodes.replace, "values"), (nodes.perturb, "deltas")]
)
def test_values_that_do_not_fit_their_node_raise(change, argument):
    with pytest.raises(
        ValueError,
        match=rf"{argument}\['h'\] must be float32\[3, 3\] like its node, got float32\[3\]",
    ):
        change(looped, {"h": X})(X)
    with pytest.raises(
        TypeError, match=rf"{argument}\['h'\] must be float32\[3\] like its node, got int32\[3\]"
    ):
        change(plain, {"h": jnp.arange(3)})(X)
    with pytest.raises(ValueError, match=rf"{argument}\['h'\] must be finite, got 1 NaN"):
        change(plain, {"h": X.at[1].set(jnp.nan)})
    with pytest.raises(TypeError, match=f"{argument} must be a mapping"):
        change(plain, [X])
    with pytest.raises(TypeError, match="f must be callable, got int"):
        change(3, {"h": X})


def test_two_values_for_one_node_raise(linen_model):
    value = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="got two for one node among 'Dense_0', 'matmul:0'"):
        nodes.replace(linen_model, {"matmul:0": value, "Dense_0": value})(IMAGES)


def test_names_must_be_strings():
    assert nodes.as_name_tuple("h") == ("h",)
    for names in (3, [3]):
        with pytest.raises(TypeError, match="names must be a sequence of strings"):
            nodes.read(plain, names)
    for call in (nodes.read, nodes.names, nodes.operations):
        with pytest.raises(TypeError, match="f must be callable, got str"):
            call("plain")
