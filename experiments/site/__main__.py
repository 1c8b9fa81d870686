"""Build the documentation into results/docs/: README, API reference, gallery and search.

    make docs        or        python -m experiments.site [--folder results/docs]

Everything works offline and from a file. The API reference is made from the docstrings by pdoc; the
gallery has a page for each experiment, with its figure from experiments/figures/, what it shows and
its code; llms.txt lists all pages in one line each. A link to a page or heading that does not exist
stops the build.
"""

import argparse
import ast
import html
import html.parser
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import markdown2
import pdoc
import pdoc.render
import pygments
from pdoc import doc
from pdoc.render_helpers import to_html
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from experiments.site._formulas import is_formula, typeset

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "experiments" / "figures"
NOT_IN_THE_GALLERY = {"__init__", "digit_captions", "digit_classifier", "trajectory_recorder"}


class Experiment(NamedTuple):
    """A script of the gallery: its name, summary, explanation, code and figures."""

    name: str
    title: str
    text: str
    code: str
    figures: list[str]


class _Depth(NamedTuple):
    """Stands for a module in pdoc's search template."""

    modulename: str


def main(folder: Path) -> list[Path]:
    """Build the site into `folder` and return its pages.

    Raises:
        ValueError: a link leads nowhere.
    """
    shutil.rmtree(folder, ignore_errors=True)
    configure_pdoc()
    experiments = list(find_experiments())
    pdoc.pdoc("diffprog", output_directory=folder)
    shorten_types(folder)
    shutil.copytree(FIGURES, folder / "figures")
    write_page(folder, "index.html", "diffprog", readme_to_html(folder))
    write_gallery(folder, experiments)
    write_llms_txt(folder, experiments)
    if broken := find_broken_links(folder):
        raise ValueError("the documentation has broken links:\n" + "\n".join(broken))
    return sorted(folder.rglob("*.html"))


def configure_pdoc() -> None:
    """Set pdoc's options, and typeset formulas wherever it turns a docstring into HTML."""
    pdoc.render.configure(
        docformat="google",
        include_undocumented=False,
        template_directory=Path(__file__).parent / "templates",
    )
    pdoc.render.env.filters["to_html"] = docstring_to_html


def docstring_to_html(text: str) -> Any:
    """Return the HTML of a Markdown docstring, its formulas typeset."""
    # A "<" before a letter, as in <g, r>, would open an HTML tag.
    page = to_html(re.sub(r"<(?=[a-zA-Z/])", "\x05", text))
    block = re.compile(
        r"<pre><code>(.*?)</code></pre>|<div class=\"pdoc-code[^>]*>\s*<pre>"
        r"<span></span><code>(.*?)</code></pre>\s*</div>",
        re.DOTALL,
    )

    def replace(match: re.Match[str]) -> str:
        plain = re.sub(r"<[^>]+>", "", match[1] or match[2] or "")
        plain = html.unescape(plain).replace("\x05", "<")
        return typeset(plain) if is_formula(plain) else match[0]

    typeset_page = markdown2.UnicodeWithAttrs(block.sub(replace, page).replace("\x05", "&lt;"))
    typeset_page.toc_html = getattr(page, "toc_html", None)
    return typeset_page


def shorten_types(folder: Path) -> None:
    """Remove module prefixes from signatures: jaxtyping.Float[jaxlib._jax.Array, "n"]."""
    span = r'(?:<span class=\\?"[a-z]+\\?">)?{}(?:</span>)?'
    qualifier = span.format("(?:jaxtyping|jaxlib|_jax|typing)") + span.format(r"\.")
    for path in (*folder.rglob("*.html"), folder / "search.js"):
        page = path.read_text(encoding="utf-8")
        path.write_text(re.sub(qualifier, "", page), encoding="utf-8")


def find_experiments() -> Iterator[Experiment]:
    """Yield the experiments in alphabetical order."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        if path.stem in NOT_IN_THE_GALLERY:
            continue
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        title, _, text = (ast.get_docstring(tree) or "").partition("\n")
        code = "\n".join(source.splitlines()[tree.body[0].end_lineno or 0 :]).strip()
        figures = [figure.name for figure in sorted(FIGURES.glob(f"{path.stem}*.png"))]
        if not figures:
            raise ValueError(f"experiments/figures/ has no {path.stem}.png")
        yield Experiment(path.stem, title, text.strip("\n"), code, figures)


def readme_to_html(folder: Path) -> str:
    """Return the README as HTML; its links to files lead to pages of the site."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def target(match: re.Match[str]) -> str:
        path = match[1]
        if path.startswith("experiments/figures/"):
            return f"](figures/{Path(path).name})"
        if path.startswith("experiments/") and path.count("/") == 1:
            return f"](gallery/{Path(path).stem}.html)"
        page = Path(path).with_suffix("")
        if (folder / f"{page}.html").exists():
            return f"]({page}.html)"
        if (ROOT / path).is_dir():  # a private package: its parent documents it
            return f"]({page.parent}.html)"
        write_source(folder, path)
        return f"](source/{page}.html)"

    return to_html(re.sub(r"\]\((?!https?:)([^)#]+)\)", target, text))


def write_source(folder: Path, path: str) -> None:
    """Write the page of one source file."""
    source = highlight((ROOT / path).read_text(encoding="utf-8"))
    title = f"<h1>{html.escape(path)}</h1>"
    write_page(folder, f"source/{Path(path).with_suffix('.html')}", path, title + source)


def write_gallery(folder: Path, experiments: list[Experiment]) -> None:
    """Write the gallery: an overview, and a page for each experiment."""
    cards = [
        f'<a class="card" href="{item.name}.html"><img src="../figures/{item.figures[0]}" '
        f'alt=""><strong>{heading(item)}</strong><span>{html.escape(item.title)}</span></a>'
        for item in experiments
    ]
    body = f'<h1>Gallery</h1><div class="cards">{"".join(cards)}</div>'
    write_page(folder, "gallery/index.html", "Gallery", body)
    for item in experiments:
        figures = [
            f'<img src="../figures/{figure}" alt="{html.escape(item.title)}">'
            for figure in item.figures
        ]
        run = f"<pre>python -m experiments.{item.name}</pre>"
        text = docstring_to_html(re.sub(r" {4}.*python -m experiments.*\n", "", item.text))
        body = (
            f"<h1>{heading(item)}</h1><p>{html.escape(item.title)}</p>{run}{''.join(figures)}{text}"
            f"<h2>Code</h2>{highlight(item.code)}"
        )
        write_page(folder, f"gallery/{item.name}.html", item.name, body)


def heading(item: Experiment) -> str:
    """Return an experiment's name as words."""
    return item.name.replace("_", " ").capitalize()


def highlight(source: str) -> str:
    """Return Python source as HTML with the classes of pdoc's style sheet."""
    return pygments.highlight(source, PythonLexer(), HtmlFormatter(cssclass="pdoc-code codehilite"))


def write_page(folder: Path, path: str, title: str, body: str) -> None:
    """Write one page with the site's navigation."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    template = pdoc.render.env.get_template("page.html.jinja2")
    depth = path.count("/")
    # pdoc's search finds its index by the depth of the page's module.
    page = template.render(title=title, body=body, root="../" * depth, module=_Depth("." * depth))
    file.write_text(page, encoding="utf-8")


def write_llms_txt(folder: Path, experiments: list[Experiment]) -> None:
    """Write llms.txt: the library in one page of Markdown, with a line and a link for each name."""
    package = doc.Module.from_name("diffprog")
    lines = ["# diffprog", "", f"> {first_line(package.docstring)}", ""]
    for module in package.submodules:
        page = module.fullname.replace(".", "/") + ".html"
        lines += [f"## {module.fullname}", "", f"[{first_line(module.docstring)}]({page})", ""]
        public = getattr(module.obj, "__all__", None)
        members = [
            member
            for name, member in module.members.items()
            if member.docstring and (name in public if public else name[0] != "_")
        ]
        lines += [f"- [{m.name}]({page}#{m.name}): {first_line(m.docstring)}" for m in members]
        lines += [""]
    lines += ["## experiments", ""]
    lines += [f"- [{item.name}](gallery/{item.name}.html): {item.title}" for item in experiments]
    (folder / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def first_line(docstring: str) -> str:
    """Return the summary of a docstring."""
    return docstring.strip().partition("\n")[0]


class _Links(html.parser.HTMLParser):
    """Collects the link targets and the anchors of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.targets += [values[name] for name in ("href", "src") if name in values]
        self.anchors |= {values[name] for name in ("id", "name") if name in values}


def find_broken_links(folder: Path) -> list[str]:
    """Return the links of all pages to files or anchors that do not exist, as "page: link"."""
    pages = {
        path.resolve(): _Links(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")
    }
    broken = []
    for path, page in pages.items():
        for link in page.targets:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            missing = not target.exists()
            if parts.fragment and target in pages:
                missing |= unquote(parts.fragment) not in pages[target].anchors
            if missing:
                broken.append(f"{path.relative_to(folder.resolve())}: {link}")
    return broken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the documentation.")
    parser.add_argument("--folder", type=Path, default=Path("results/docs"))
    folder = parser.parse_args().folder
    print(f"{len(main(folder))} pages: {folder / 'index.html'}")
