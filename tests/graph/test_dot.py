"""Graphviz' language with the same bytes each time; a page that works in a real browser."""

import html
import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffprog import tap
from diffprog.graph import trace

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def f(params, x, key, n):
    y = tap(params["a<b"] * x, "</script>")
    return (y * jax.nn.relu(x) * lax.stop_gradient(x)).sum() * n + jax.random.normal(key)


@pytest.fixture(scope="module")
def graph():
    return trace(
        f, {"a<b": np.float32(2.0)}, np.arange(100, dtype=np.float32), jax.random.key(0), 3
    )


def test_dot_has_every_node_and_edge(graph):
    dot = graph.to_dot()
    assert dot.startswith("digraph {")
    assert len(re.findall(r"^  n\d+ \[", dot, re.M)) == len(graph.nodes)
    assert len(re.findall(r"^  n\d+ -> n\d+ \[", dot, re.M)) == len(graph.edges)
    assert "a&lt;b" in dot
    assert "label=<cut>" in dot


def test_dot_is_the_same_each_time(graph):
    again = trace(
        f, {"a<b": np.float32(2.0)}, np.arange(100, dtype=np.float32), jax.random.key(0), 3
    )
    assert graph.to_dot() == again.to_dot()
    assert graph.to_html() == again.to_html()


def test_the_page_needs_nothing_else(graph):
    page = graph.to_html()
    assert not re.search(r"(src|href)=\"|@import|url\(|https?://", page)
    assert page.count("</script>") == 2  # its own two, none from a name
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S)[1])
    assert set(data) == {node.name for node in graph.nodes}
    assert data["x"]["value"]["said"].startswith("norm")
    assert data["params['a<b']"]["value"]["rows"] == [["2"]]
    assert data["n"]["adjoint"] is None


def test_wrong_edges_are_red():
    from diffprog.checks import check_grad

    report = check_grad(
        lambda x: jnp.sin(x), lambda x: -jnp.cos(x), jnp.float32(0.3), key=jax.random.key(0)
    )
    graph = trace(lambda x: jnp.sin(x), jnp.float32(0.3), against=report)
    assert "#d4142a" in graph.to_dot()
    assert 'class="wrong"' in graph.to_html()


ACTIONS = """
<script>
const report = {};
const wait = () => new Promise(done => setTimeout(done, 30));
const box = () => svg.getBoundingClientRect();
const at = (type, Kind, x, y, more) => new Kind(type, { bubbles: true, cancelable: true, clientX: x, clientY: y, ...more });
(async () => {
  report.first = panel.querySelector("h2").textContent;
  const node = [...svg.querySelectorAll(".node")].find(group => group.dataset.name === "NAME");
  node.dispatchEvent(at("pointerdown", PointerEvent, 5, 5));
  window.dispatchEvent(at("pointerup", PointerEvent, 5, 5));
  node.querySelector("rect").dispatchEvent(at("click", MouseEvent, 5, 5));
  await wait();
  report.panel = panel.innerText;
  report.chosen = svg.querySelectorAll(".chosen").length;
  report.before = svg.getAttribute("viewBox");
  svg.dispatchEvent(at("wheel", WheelEvent, box().left + box().width / 2, box().top + box().height / 2, { deltaY: -400 }));
  report.zoomed = svg.getAttribute("viewBox");
  svg.dispatchEvent(at("pointerdown", PointerEvent, 200, 200));
  window.dispatchEvent(at("pointermove", PointerEvent, 260, 230));
  window.dispatchEvent(at("pointerup", PointerEvent, 260, 230));
  await wait();
  report.panned = svg.getAttribute("viewBox");
  document.getElementById("whole").click();
  report.after = svg.getAttribute("viewBox");
  panel.querySelector("a").click();
  report.followed = panel.querySelector("h2").textContent;
  document.body.innerHTML = "<pre id='report'></pre>";
  document.getElementById("report").textContent = JSON.stringify(report);
})();
window.onerror = message => { document.title = "error: " + message; };
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_in_a_browser_one_can_click_pan_and_zoom(tmp_path):
    graph = trace(lambda x, y, z: (x + y) * z, -2.0, 5.0, -4.0)
    path = tmp_path / "graph.html"
    path.write_text(
        graph.to_html().replace("</body>", ACTIONS.replace("NAME", "add") + "</body>"),
        encoding="utf-8",
    )
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
        "--virtual-time-budget=3000",
        "--dump-dom",
    ]
    shown = subprocess.run(
        [*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    report = json.loads(html.unescape(re.search(r'<pre id="report">(.*?)</pre>', shown, re.S)[1]))
    assert report["first"] == "mul"
    assert report["chosen"] == 1
    for said in ("add", "Value", "3", "Adjoint", "−4", "d add / d x", "d add / d y", "from mul"):
        assert said in report["panel"]
    x, y, width, height = map(float, report["before"].split())
    zoomed, panned = (
        [float(number) for number in report[step].split()] for step in ("zoomed", "panned")
    )
    np.testing.assert_allclose(
        [zoomed[0] + zoomed[2] / 2, zoomed[1] + zoomed[3] / 2],
        [x + width / 2, y + height / 2],
        atol=0.5,
    )  # a mouse stands on whole pixels
    assert zoomed[2] < 0.6 * width
    assert panned[0] < zoomed[0]
    assert panned[1] < zoomed[1]
    assert panned[2:] == zoomed[2:]
    assert report["after"] == report["before"]
    assert report["followed"] == "x"
