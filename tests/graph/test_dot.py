"""The DOT export has every node and edge and is reproducible."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffprog import tap
from diffprog.checks import check_grad
from diffprog.graph import trace


def f(params, x, key, n):
    y = tap(params["a<b"] * x, "</script>")
    return (y * jax.nn.relu(x) * lax.stop_gradient(x)).sum() * n + jax.random.normal(key)


def trace_f():
    params = {"a<b": np.float32(2.0)}
    return trace(f, params, np.arange(100, dtype=np.float32), jax.random.key(0), 3)


@pytest.fixture(scope="module")
def graph():
    return trace_f()


def test_dot_has_every_node_and_edge(graph):
    dot = graph.to_dot()
    assert dot.startswith("digraph {")
    assert len(re.findall(r"^  n\d+ \[", dot, re.M)) == len(graph.nodes)
    assert len(re.findall(r"^  n\d+ -> n\d+ \[", dot, re.M)) == len(graph.edges)
    assert "a&lt;b" in dot
    assert "label=<cut>" in dot


def test_dot_is_reproducible(graph):
    assert graph.to_dot() == trace_f().to_dot()


def test_dot_draws_wrong_edges_in_red():
    x = jnp.float32(0.3)
    report = check_grad(jnp.sin, lambda x: -jnp.cos(x), x, key=jax.random.key(0))
    assert "#d4142a" in trace(jnp.sin, x, against=report).to_dot()
