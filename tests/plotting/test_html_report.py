"""`write_page`: content, links, escaping and self-containment of the HTML file."""

import base64
import io
import re
import sys
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from diffprog.plotting import Section, Table, draw_costs, write_page


class Page(HTMLParser):
    """Parsed page: its tags with their attributes, and its texts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())

    def attributes_of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes sections and parses the page."""
    return lambda *sections, **keywords: Page(
        write_page(tmp_path / "index.html", "Digits", sections, **keywords).read_text(
            encoding="utf-8"
        )
    )


def test_folders_are_created_and_the_path_is_returned(tmp_path):
    path = tmp_path / "results" / "tour" / "index.html"
    assert write_page(str(path), "Digits", [Section("One")]) == path
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_summary_titles_and_paragraphs_are_in_order(write):
    texts = write(Section("One", "first\n\nsecond"), Section("Two"), summary="summary").texts
    order = [text for text in texts if text in {"summary", "One", "first", "second", "Two"}]
    assert order == ["summary", "One", "Two", "One", "first", "second", "Two"]


def test_links_point_to_sections(write):
    page = write(Section("One"), Section("Two"))
    assert [link["href"] for link in page.attributes_of("a")] == [
        "#" + section["id"] for section in page.attributes_of("section")
    ]


def test_figures_are_embedded_as_png(write):
    figure = Figure(figsize=(2, 1))
    (image,) = write(Section("Costs", figure=figure, caption="falling costs")).attributes_of("img")
    pixels = matplotlib.image.imread(
        io.BytesIO(base64.b64decode(image["src"].removeprefix("data:image/png;base64,")))
    )
    assert pixels.shape == (200, 400, 4)
    assert image["alt"] == "falling costs"
    assert image["width"] == "192"


def test_alternative_text_defaults_to_the_title(write):
    (image,) = write(Section("Costs", figure=draw_costs(np.ones(3)))).attributes_of("img")
    assert image["alt"] == "Costs"


def test_table_cells_are_formatted_and_numbers_right_aligned(write):
    page = write(
        Section(
            "Accuracy",
            table=Table(
                ["split", "share", "count", "good"], [["test", np.float32(0.98612), 360, True]]
            ),
        )
    )
    assert page.texts[-8:] == [
        "split",
        "share",
        "count",
        "good",
        "test",
        "0.9861",
        "360",
        "yes",
    ]
    assert [cell.get("class") for cell in page.attributes_of("td")] == [
        None,
        "number",
        "number",
        None,
    ]
    assert [cell.get("class") for cell in page.attributes_of("th")] == [
        None,
        "number",
        "number",
        None,
    ]


def test_a_table_may_be_empty(write):
    assert write(Section("None", table=Table(["split"], []))).texts[-1] == "split"


def test_text_is_escaped(write):
    page = write(
        Section(
            "<script>a</script>",
            "<b>b</b>",
            table=Table(["<i>c</i>"], [["<u>d</u>"]]),
            figure=Figure(),
            caption='"<s>',
        )
    )
    assert {"script", "b", "i", "u", "s"}.isdisjoint(tag for tag, _ in page.tags)
    assert {"<b>b</b>", "<i>c</i>", "<u>d</u>"} <= set(page.texts)


def test_page_is_self_contained(tmp_path):
    html = write_page(
        tmp_path / "index.html", "Digits", [Section("One", figure=Figure())]
    ).read_text(encoding="utf-8")
    assert not re.search(r"https?:|<link|<script|@import|url\(", html)
    assert all(image["src"].startswith("data:") for image in Page(html).attributes_of("img"))


def test_equal_results_give_equal_bytes(tmp_path):
    pages = [
        write_page(
            tmp_path / name, "Digits", [Section("One", figure=draw_costs(np.arange(1.0, 4.0)))]
        )
        for name in "ab"
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_error_without_jinja2_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'diffprog[experiments]'")):
        write_page(tmp_path / "index.html", "Digits", [Section("One")])


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ([], ValueError, "sections must hold at least one Section, got none"),
        (["text"], TypeError, r"sections\[0\] must be a Section, got str"),
        (
            [Section("a"), Section("b", figure=np.ones(3))],
            TypeError,
            r"sections\[1\].figure must be a Figure, got ndarray",
        ),
        (
            [Section("a", table=[["b"]])],
            TypeError,
            r"sections\[0\].table must be a Table, got list",
        ),
        (
            [Section("a", table=Table(["b"], [[1], [1, 2]]))],
            ValueError,
            r"sections\[0\].table.rows\[1\] must have 1 cells, .* got 2",
        ),
    ],
)
def test_invalid_sections_raise(sections, error, message, tmp_path):
    with pytest.raises(error, match=message):
        write_page(tmp_path / "index.html", "Digits", sections)
    assert not (tmp_path / "index.html").exists()
