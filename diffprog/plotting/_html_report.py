"""Self-contained HTML pages of results: figures are embedded, so that a page opens offline."""

import base64
import importlib.resources
import io
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure


class Table(NamedTuple):
    """Table on an HTML page; numbers are right-aligned and have four significant digits.

    Attributes:
        columns: names of the columns.
        rows: rows of cells, each as long as `columns`.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


class Section(NamedTuple):
    """Section of an HTML page: heading, text, figure and table, from top to bottom.

    Attributes:
        title: the heading.
        text: plain text, with empty lines between paragraphs; default none.
        figure: a matplotlib figure; default none.
        table: a `Table`; default none.
        caption: caption of the figure and its alternative text; default no caption, and the title
            as alternative text.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    table: Table | None = None
    caption: str = ""


def write_page(
    path: str | Path, title: str, sections: Sequence[Section], *, summary: str = ""
) -> Path:
    """Write sections of text, figures and tables to one self-contained HTML file.

    Args:
        path: the file, usually `.../index.html`. Missing folders are created, an existing file is
            replaced.
        title: title of the page.
        sections: sections of the page, at least one.
        summary: a sentence or two below the title; default none.

    Returns:
        The path.

    Raises:
        ImportError: Jinja2 is not installed.
        TypeError: a section, figure or table has the wrong type.
        ValueError: there is no section, or a row of a table is not as long as its columns.

    >>> import tempfile
    >>> accuracy = Section("Accuracy", table=Table(["split", "accuracy"], [["test", 0.98]]))
    >>> write_page(f"{tempfile.mkdtemp()}/index.html", "Digits", [accuracy]).name
    'index.html'
    """
    if not sections:
        raise ValueError("sections must hold at least one Section, got none")
    for k, section in enumerate(sections):
        _validate_section(f"sections[{k}]", section)
    template = (importlib.resources.files(__package__) / "page.html.j2").read_text(encoding="utf-8")
    page = _jinja_environment().from_string(template)
    html = page.render(title=title, summary=summary, sections=sections)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _jinja_environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("write_page needs Jinja2: pip install 'diffprog[experiments]'") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "data_uri": _to_data_uri,
        "format_cell": _format_cell,
        "paragraphs": _split_paragraphs,
    }
    environment.tests["numeric"] = _is_numeric
    return environment


def _validate_section(name: str, section: Section) -> None:
    _validate_type(name, section, Section)
    if section.figure is not None:
        _validate_type(f"{name}.figure", section.figure, Figure)
    if section.table is None:
        return
    _validate_type(f"{name}.table", section.table, Table)
    columns, rows = section.table
    for k, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"{name}.table.rows[{k}] must have {len(columns)} cells, one for each column, "
                f"got {len(row)}"
            )


def _validate_type(name: str, value: object, expected: type) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be a {expected.__name__}, got {type(value).__name__}")


def _to_data_uri(figure: Figure) -> str:
    """Encode a figure as a PNG in a data URI, with a transparent background."""
    png = io.BytesIO()
    # Without the version of matplotlib, so that equal figures give equal bytes.
    figure.savefig(png, format="png", dpi=200, transparent=True, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _split_paragraphs(text: str) -> list[str]:
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


def _is_numeric(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _format_cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{float(value):.4g}"
    return str(value)
