"""The HTML page is self-contained, reproducible and works in a real browser."""

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
from diffprog.checks import check_grad
from diffprog.graph import trace
from diffprog.plotting import graph_html

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def f(params, x, key, n):
    y = tap(params["a<b"] * x, "</script>")
    return (y * jax.nn.relu(x) * lax.stop_gradient(x)).sum() * n + jax.random.normal(key)


def page_of_f():
    params = {"a<b": np.float32(2.0)}
    return graph_html(trace(f, params, np.arange(100, dtype=np.float32), jax.random.key(0), 3))


def test_page_is_self_contained_and_holds_every_node():
    page = page_of_f()
    assert not re.search(r"(src|href)=\"|@import|url\(|https?://", page)
    assert page.count("</script>") == 2  # its own two, none from a name
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S)[1])
    params = {"a<b": np.float32(2.0)}
    graph = trace(f, params, np.arange(100, dtype=np.float32), jax.random.key(0), 3)
    assert set(data) == {node.name for node in graph.nodes}
    assert data["x"]["value"]["summary"].startswith("norm")
    assert data["params['a<b']"]["value"]["rows"] == [["2"]]
    assert data["n"]["adjoint"] is None


def test_page_is_reproducible():
    assert page_of_f() == page_of_f()


def test_page_draws_wrong_edges_in_red():
    x = jnp.float32(0.3)
    report = check_grad(jnp.sin, lambda x: -jnp.cos(x), x, key=jax.random.key(0))
    assert 'class="wrong"' in graph_html(trace(jnp.sin, x, against=report))


def test_page_refuses_what_is_no_graph():
    with pytest.raises(TypeError, match="graph must be a Graph"):
        graph_html("graph")


INTERACTIONS = """
<script>
const report = {};
const wait = () => new Promise(done => setTimeout(done, 30));
const box = () => svg.getBoundingClientRect();
const at = (type, Kind, x, y, more) =>
  new Kind(type, { bubbles: true, cancelable: true, clientX: x, clientY: y, ...more });
(async () => {
  report.first = panel.querySelector("h2").textContent;
  const node = [...svg.querySelectorAll(".node")].find(group => group.dataset.name === "NAME");
  node.dispatchEvent(at("pointerdown", PointerEvent, 5, 5));
  window.dispatchEvent(at("pointerup", PointerEvent, 5, 5));
  node.querySelector("rect").dispatchEvent(at("click", MouseEvent, 5, 5));
  await wait();
  report.panel = panel.innerText;
  report.selected = svg.querySelectorAll(".selected").length;
  report.before = svg.getAttribute("viewBox");
  const x = box().left + box().width / 2, y = box().top + box().height / 2;
  svg.dispatchEvent(at("wheel", WheelEvent, x, y, { deltaY: -400 }));
  report.zoomed = svg.getAttribute("viewBox");
  svg.dispatchEvent(at("pointerdown", PointerEvent, 200, 200));
  window.dispatchEvent(at("pointermove", PointerEvent, 260, 230));
  window.dispatchEvent(at("pointerup", PointerEvent, 260, 230));
  await wait();
  report.panned = svg.getAttribute("viewBox");
  document.getElementById("show-all").click();
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
def test_page_can_be_clicked_panned_and_zoomed(tmp_path):
    graph = trace(lambda x, y, z: (x + y) * z, -2.0, 5.0, -4.0)
    path = tmp_path / "graph.html"
    path.write_text(
        graph_html(graph).replace("</body>", INTERACTIONS.replace("NAME", "add") + "</body>"),
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
    dom = subprocess.run(
        [*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    report = json.loads(html.unescape(re.search(r'<pre id="report">(.*?)</pre>', dom, re.S)[1]))
    assert report["first"] == "mul"
    assert report["selected"] == 1
    for text in ("add", "Value", "3", "Adjoint", "−4", "d add / d x", "d add / d y", "from mul"):
        assert text in report["panel"]
    x, y, width, height = map(float, report["before"].split())
    zoomed, panned = (
        [float(number) for number in report[step].split()] for step in ("zoomed", "panned")
    )
    np.testing.assert_allclose(
        [zoomed[0] + zoomed[2] / 2, zoomed[1] + zoomed[3] / 2],
        [x + width / 2, y + height / 2],
        atol=0.5,
    )  # mouse positions are whole pixels
    assert zoomed[2] < 0.6 * width
    assert panned[0] < zoomed[0]
    assert panned[1] < zoomed[1]
    assert panned[2:] == zoomed[2:]
    assert report["after"] == report["before"]
    assert report["followed"] == "x"
