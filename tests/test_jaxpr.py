"""Interpreting a jaxpr: unchanged without handlers, and handlers in every kind of sub-jaxpr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.compute_on import compute_on

from diffprog._jaxpr import (
    as_function,
    convolution_dimensions,
    dot_dimensions,
    evaluate_equation,
    find_equations,
    interpret,
    reduced_axes,
    scan_parameters,
    tap_name,
)

X = jnp.asarray([0.3, -0.7, 1.1])


@jax.custom_vjp
def doubled(x):
    return 2 * jnp.sin(x)


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (100.0 * g,))


def step(carry, x):
    carry = jnp.sin(carry) * x
    return carry, (jnp.cos(carry), x)


def scanned(x):
    return lax.scan(step, x, jnp.arange(4.0), reverse=True, unroll=2)


def nested_scan(x):
    def outer(carry, _):
        carry, ys = lax.scan(lambda c, s: (jnp.sin(c) * s, c), carry, jnp.arange(1.0, 3.0))
        return carry, ys

    return lax.scan(outer, x, None, length=3)


def branched(x):
    return lax.cond(x[0] > 0, lambda x: jnp.sin(x) ** 2, lambda x: jnp.cos(x), x)


def rematted(x):
    return jax.checkpoint(
        lambda x: jnp.sin(jnp.sin(x)),
        policy=jax.checkpoint_policies.dots_saveable,
        prevent_cse=False,
    )(x)


def jitted(x):
    inner = jax.jit(lambda x, s: jnp.sin(x) * s)
    return inner(inner(x, 2.0), 3.0)


def with_rules(x):
    return doubled(x) + jax.nn.relu(jnp.sin(x))


def plain(x):
    y, _ = lax.top_k(jnp.sin(x), 2)
    return jnp.concatenate([y * y, jnp.sin(x) + 1.0]), jnp.sin(2.0), 3


PROGRAMS = {
    f.__name__: f for f in (scanned, nested_scan, branched, rematted, jitted, with_rules, plain)
}


def is_sine(equation):
    return equation.primitive.name == "sin"


def keep(equation, inputs, side_input):
    return evaluate_equation(equation, inputs), None


def read(equation, inputs, side_input):
    outputs = evaluate_equation(equation, inputs)
    return outputs, outputs[0]


def interpreted(f, handler, side_inputs=None):
    """f with `handler` at every sine; returns flat outputs and side outputs."""

    def run(*args):
        program = jax.make_jaxpr(f)(*args)
        return interpret(
            program,
            {site.path: handler for site in find_equations(program, is_sine)},
            jax.tree.leaves(args),
            side_inputs,
        )

    return run


@pytest.mark.parametrize("name", PROGRAMS)
def test_handlers_that_evaluate_change_nothing(name):
    f = PROGRAMS[name]
    outputs, _ = interpreted(f, keep)(X)
    jax.tree.map(np.testing.assert_array_equal, outputs, jax.tree.leaves(jax.jit(f)(X)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_interpreted_programs_can_be_differentiated_and_batched(name):
    def total(f):
        return lambda x: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(f(x)))

    def again(x):
        return interpreted(PROGRAMS[name], keep)(x)[0]

    batch = jnp.stack([X, -X])
    got = jax.jit(jax.vmap(jax.grad(total(again))))(batch)
    np.testing.assert_allclose(got, jax.vmap(jax.grad(total(PROGRAMS[name])))(batch), rtol=1e-6)


def test_sites_are_in_program_order_and_know_what_encloses_them():
    def f(x):
        with jax.named_scope("Net"):
            x = jnp.sin(x)
            with jax.named_scope("Loop"):
                x, _ = lax.scan(lambda c, _: (jax.jit(jnp.sin)(c), None), x, None, length=4)
            return lax.while_loop(lambda c: c[0] < 0, jnp.sin, with_rules(x))

    found = find_equations(jax.make_jaxpr(f)(X), is_sine)
    assert [site.scope for site in found] == ["Net", "Net/Loop", "Net", "Net", "Net"]
    assert [site.scan_lengths for site in found] == [(), (4,), (), (), ()]
    assert [site.enclosing for site in found] == [
        (),
        ("scan", "jit"),
        ("custom_vjp_call",),
        (),
        ("while",),
    ]
    assert [site.opaque_primitive for site in found] == [None] * 4 + ["while"]
    assert [site.custom_rule_primitive for site in found] == [
        None,
        None,
        "custom_vjp_call",
        None,
        None,
    ]
    assert len({site.path for site in found}) == 5


def test_a_function_called_twice_has_two_paths():
    program = jax.make_jaxpr(jitted)(X)
    first, second = (site.path for site in find_equations(program, is_sine))
    outputs, _ = interpret(
        program, {second: lambda equation, inputs, side_input: ([inputs[0]], None)}, [X]
    )
    assert first != second
    np.testing.assert_allclose(outputs[0], 2.0 * jnp.sin(X) * 3.0, rtol=1e-6)


def test_side_outputs_of_nested_scans_are_stacked_outermost_first():
    _, side = interpreted(nested_scan, read)(X)
    (sines,) = side.values()
    carry, expected = np.asarray(X), np.zeros((3, 2, 3))
    for i in range(3):
        for j in range(2):
            expected[i, j] = np.sin(carry)
            carry = expected[i, j] * (j + 1)
    np.testing.assert_allclose(sines, expected, rtol=1e-5)


def test_equations_in_nested_scans_list_the_outer_length_first():
    def outer(x):
        inner = lambda carry: jax.lax.scan(lambda c, _: (jnp.sin(c), None), carry, length=3)[0]
        return jax.lax.scan(lambda carry, _: (inner(carry), None), x, length=2)[0]

    (sine,) = find_equations(jax.make_jaxpr(outer)(X), is_sine)
    assert sine.scan_lengths == (2, 3)


def test_a_reversed_scan_gives_each_iteration_its_own_side_input():
    program = jax.make_jaxpr(scanned)(X)
    (site,) = find_equations(program, is_sine)
    rows = jnp.arange(12.0).reshape(4, 3)
    (end, ys, xs), side = interpret(
        program,
        {site.path: lambda equation, inputs, row: ([row], inputs[0])},
        [X],
        {site.path: rows},
    )
    np.testing.assert_allclose(ys, jnp.cos(rows * jnp.arange(4.0)[:, None]), rtol=1e-5)
    np.testing.assert_array_equal(xs, jnp.arange(4.0))
    np.testing.assert_array_equal(end, 0 * X)
    np.testing.assert_array_equal(side[site.path][-1], X)


def test_side_outputs_of_a_branch_not_taken_are_zero():
    for x in (X, -X):
        outputs, side = interpreted(branched, read)(x)
        np.testing.assert_allclose(
            next(iter(side.values())), jnp.where(x[0] > 0, jnp.sin(x), 0), rtol=1e-6
        )
        np.testing.assert_allclose(outputs[0], branched(x), rtol=1e-6)


def test_remat_keeps_its_policy():
    program = jax.make_jaxpr(lambda x: interpreted(rematted, read)(x)[0])(X)
    (site,) = find_equations(
        program, lambda equation: equation.primitive.name in ("remat", "remat2", "checkpoint")
    )
    remat = site.equation
    assert remat.params["policy"] is jax.checkpoint_policies.dots_saveable
    assert remat.params["prevent_cse"] is False
    assert not any(map(is_sine, program.eqns))


def test_scan_keeps_its_parameters():
    program = jax.make_jaxpr(lambda x: interpreted(scanned, read)(x)[0])(X)
    (scan,) = [equation for equation in program.eqns if equation.primitive.name == "scan"]
    assert (scan.params["length"], scan.params["reverse"], scan.params["unroll"]) == (4, True, 2)


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 12),
    reason="since JAX 0.12 compute_on is a primitive, not a setting of the equations in it",
)
def test_the_compute_type_of_an_equation_is_kept():
    def python_loop(x):
        with compute_on("device_host"):
            return scanned(x)

    program = jax.make_jaxpr(lambda x: interpreted(python_loop, read)(x)[0])(X)
    assert {
        equation.ctx.compute_type for equation in program.eqns if equation.primitive.name == "scan"
    } == {"device_host"}


def test_custom_derivatives_are_kept_when_their_bodies_are_read():
    def again(x):
        return interpreted(with_rules, read)(x)[0][0].sum()

    assert len(interpreted(with_rules, read)(X)[1]) == 2
    np.testing.assert_allclose(
        jax.grad(again)(jnp.zeros(3)), 100.0
    )  # relu'(0) is 0 by its rule and 1/2 without


def test_only_sub_jaxprs_with_a_handler_are_entered():
    def f(x):
        return jnp.sin(jax.jit(jnp.cos)(x))

    names = [
        equation.primitive.name
        for equation in jax.make_jaxpr(lambda x: interpreted(f, read)(x)[0])(X).eqns
    ]
    assert names == ["jit", "sin"]


def test_name_scopes_are_kept():
    def f(x):
        with jax.named_scope("Net"):
            return jax.jit(jnp.sin)(x)

    (site,) = find_equations(jax.make_jaxpr(lambda x: interpreted(f, read)(x)[0])(X), is_sine)
    assert site.scope == "Net"


def test_evaluate_equation_takes_literals_and_repeated_variables():
    for equation in jax.make_jaxpr(lambda x: (x * x, jnp.maximum(x, 0.0), jnp.split(x, 3)[0]))(
        X
    ).eqns:
        inputs = [getattr(atom, "val", X) for atom in equation.invars]
        assert [output.shape for output in evaluate_equation(equation, inputs)] == [
            variable.aval.shape for variable in equation.outvars
        ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_literals_keep_their_dtype(dtype):
    def f(x):
        return lax.scan(lambda c, x: (jax.jit(lambda c: c * 2 - c)(c), -x), jnp.ones((), dtype), x)

    def run(x):
        program = jax.make_jaxpr(f)(x)
        found = find_equations(program, lambda equation: equation.primitive.name in ("mul", "neg"))
        return interpret(program, {site.path: read for site in found}, [x])[0]

    assert {str(output.dtype) for output in run(jnp.ones(3, dtype))} == {dtype}


def test_an_opaque_primitive_raises_and_is_named():
    with pytest.raises(NotImplementedError, match="cannot enter primitive 'while'"):
        interpreted(lambda x: lax.while_loop(lambda c: c[0] < 1, jnp.sin, x), read)(X)


def test_as_function_of_an_equation_takes_every_operand():
    for equation in jax.make_jaxpr(lambda x: (x * x, jnp.maximum(x, 0.5), 2.0 - x))(X).eqns:
        a, b = X + 1, 3 * X
        np.testing.assert_array_equal(
            as_function([equation])(a, b)[0], equation.primitive.bind(a, b, **equation.params)
        )


def test_as_function_of_several_equations_keeps_custom_derivatives():
    def f(x):
        y = jnp.cos(x)
        return with_rules(y) + y

    jaxpr = jax.make_jaxpr(f)(X).jaxpr
    first, *rest = jaxpr.eqns
    tail = as_function(rest, first.outvars, jaxpr.outvars)
    np.testing.assert_allclose(tail(jnp.cos(X))[0], f(X), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda y: tail(y)[0].sum())(X),
        jax.grad(lambda y: (with_rules(y) + y).sum())(X),
        rtol=1e-6,
    )
    (only,) = as_function([first], jaxpr.invars)(X)
    np.testing.assert_array_equal(only, jnp.cos(X))


@pytest.mark.parametrize(
    ("f", "primitive", "parameters", "expected"),
    [
        (scanned, "scan", scan_parameters, (0, 1, 4, True, 2)),
        (lambda x: x.reshape(1, 3) @ x, "dot_general", dot_dimensions, (((1,), (0,)), ((), ()))),
        (lambda x: x.reshape(1, 3).sum(1), "reduce_sum", reduced_axes, (1,)),
        (lambda x: jnp.cumsum(x.reshape(1, 3), 1), "cumsum", reduced_axes, (1,)),
        (lambda x: checkpoint_name(x, "h"), "name", tap_name, "h"),
        (
            lambda x: lax.conv(x.reshape(1, 1, 3), x[:1].reshape(1, 1, 1), (1,), "VALID"),
            "conv_general_dilated",
            convolution_dimensions,
            ((0, 1, 2), (0, 1, 2), (0, 1, 2)),
        ),
    ],
)
def test_parameters_of_equations(f, primitive, parameters, expected):
    has_primitive = lambda equation: equation.primitive.name == primitive
    (site,) = find_equations(jax.make_jaxpr(f)(X), has_primitive)
    assert parameters(site.equation) == expected
