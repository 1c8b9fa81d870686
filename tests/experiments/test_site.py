import pytest

from experiments.site import __main__ as site
from experiments.site._formulas import is_formula, typeset


@pytest.mark.parametrize(
    ("plain", "typeset_html"),
    [
        ("x_{k+1} <- x_k", "<i>x</i><sub><i>k</i>+1</sub> ← <i>x</i><sub><i>k</i></sub>"),
        ("argmax_r ||r||^2 <= ε", "argmax<sub><i>r</i></sub> ‖<i>r</i>‖<sup>2</sup> ≤ <i>ε</i>"),
        ("value_and_grads = f", "value_and_grads = <i>f</i>"),
        ("a < b", "<i>a</i> &lt; <i>b</i>"),
    ],
)
def test_formulas_are_typeset(plain, typeset_html):
    assert typeset(plain) == f'<table class="formula"><tr><td>{typeset_html}</td></tr></table>'


def test_columns_of_a_formula_become_cells():
    assert typeset("linf    max |r|\nl2    sum r").count("<td>") == 4


@pytest.mark.parametrize("code", [">>> x = 1", "make test", "python -m x", "from a import b", "ab"])
def test_code_and_words_are_no_formulas(code):
    assert not is_formula(code)


def test_broken_links_and_anchors_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">ok</a><a href="https://x.org">ok</a><img src="none.png">'
        '<a href="b.html#gone">no</a><a href="#gone">no</a><a href="c.html">no</a>'
    )
    (tmp_path / "b.html").write_text('<p id="here">')
    assert site.find_broken_links(tmp_path) == [
        "a.html: none.png",
        "a.html: b.html#gone",
        "a.html: #gone",
        "a.html: c.html",
    ]


def test_less_than_signs_of_docstrings_are_shown():
    assert "&lt;g, r" in site.docstring_to_html("The largest <g, r> of all.")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_site_has_reference_gallery_search_and_llms_txt(tmp_path):
    pages = {str(page.relative_to(tmp_path)) for page in site.main(tmp_path)}
    assert {"index.html", "diffprog/adversarial.html", "gallery/momentum.html"} <= pages
    assert 'class="formula"' in (tmp_path / "diffprog" / "norms.html").read_text()
    assert "integrated_gradients" in (tmp_path / "search.js").read_text()
    summary = "- [pgd](diffprog/adversarial.html#pgd): "
    assert summary in (tmp_path / "llms.txt").read_text()
    assert not any("/tmp" in page.read_text() for page in tmp_path.rglob("*.html"))
