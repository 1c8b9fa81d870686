"""Results as one HTML file that needs nothing else: figures are inlined, so it can be mailed, archived and opened offline."""

import base64
import importlib.resources
import io
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure


class Table(NamedTuple):
    """Names of the columns and rows of cells: text is set left, numbers right with four significant digits."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


class Section(NamedTuple):
    """A piece of a page, from top to bottom; whatever is left out is not drawn.

    Attributes:
        title: the heading.
        text: paragraphs with an empty line between them, plain text.
        figure: a matplotlib figure.
        table: columns and rows.
        caption: what the figure shows, for those who see it and those who do not; the title if empty.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    table: Table | None = None
    caption: str = ""


def write_page(
    path: str | Path, title: str, sections: Sequence[Section], *, summary: str = ""
) -> Path:
    """Write sections as one self-contained HTML file.

    Args:
        path: the file, usually `.../index.html`; missing folders are made, an older file is replaced.
        title: of the page.
        sections: at least one.
        summary: a sentence or two below the title.

    Returns:
        The path.

    Raises:
        ImportError: Jinja2 is not installed.
        TypeError: a section, figure or table that is something else.
        ValueError: no section, or a row that is not as long as the columns.

    >>> import tempfile
    >>> accuracy = Section("Accuracy", table=Table(["split", "share"], [["held out", 0.98]]))
    >>> write_page(f"{tempfile.mkdtemp()}/index.html", "Digits", [accuracy]).name
    'index.html'
    """
    if not sections:
        raise ValueError("sections must hold at least one Section, got none")
    for k, section in enumerate(sections):
        _check(f"sections[{k}]", section)
    template = _environment().from_string(
        (importlib.resources.files(__package__) / "page.html.j2").read_text(encoding="utf-8")
    )
    html = template.render(title=title, summary=summary, sections=sections)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("write_page needs Jinja2: pip install 'diffprog[experiments]'") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"inlined": _inlined, "cell": _cell, "paragraphs": _paragraphs}
    environment.tests["numeric"] = _numeric
    return environment


def _check(name: str, section: Section) -> None:
    _kind(name, section, Section)
    if section.figure is not None:
        _kind(f"{name}.figure", section.figure, Figure)
    if section.table is None:
        return
    _kind(f"{name}.table", section.table, Table)
    columns, rows = section.table
    for k, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"{name}.table.rows[{k}] must have {len(columns)} cells, one for each column, got {len(row)}"
            )


def _kind(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")


def _inlined(figure: Figure) -> str:
    """A data URI; without the software's version, so that the same figure gives the same bytes, and on the page's own ground."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=200, transparent=True, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _paragraphs(text: str) -> list[str]:
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


def _numeric(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{float(value):.4g}"
        if isinstance(value, Real) and not isinstance(value, Integral)
        else str(value)
    )
