"""Typeset the plain-text formulas of docstrings as HTML.

A formula in a docstring is an indented block such as

    r_{k+1} = project(r_k + ε d(∇L)),    ||r|| <= ε

It reads well in a terminal; on a page its variables become italic, `_k` and `^2` sub- and
superscripts, and columns that are separated by two or more spaces stay aligned.
"""

import html
import re

# `x_i`, `Σ_k` and `argmax_r` carry a subscript; `value_and_grads` is an identifier.
_SUBSCRIPT = re.compile(
    r"(?<![A-Za-z_])(d?[A-Za-zΑ-ωℓθ]{1,2}|[Σ∏∇∂)\]]|arg ?max|arg ?min|max|min|sum|mean|log)"
    r"_(\{[^}]*\}|[A-Za-z0-9]+)(?![A-Za-z_])"
)
_SUPERSCRIPT = re.compile(r"\^(\{[^}]*\}|\([^)]*\)|-?[A-Za-z0-9]+)")
_VARIABLE = re.compile(r"(?<![A-Za-zΑ-ω&;'<>/])([A-Za-zΑ-ωℓ])(?![A-Za-zΑ-ω'])")
_SYMBOLS = {"<=": "≤", ">=": "≥", "<-": "←", "->": "→", "||": "‖", "!=": "≠", "+-": "±"}
_SYMBOL = re.compile("|".join(map(re.escape, _SYMBOLS)))
_CODE = re.compile(r">>>|^(from|import|def|make|python|pip) |\w\(\w*=|\.\w+\(", re.MULTILINE)


def is_formula(block: str) -> bool:
    """Check whether an indented block of a docstring is mathematics and not code."""
    return bool(re.search(r"[=≤<>∝]|\|\|", block)) and not _CODE.search(block)


def typeset(block: str) -> str:
    """Return the HTML of a formula block: a table with a row per line and a cell per column.

    >>> typeset("x_{k+1} <- x_k - η g")
    '<table class="formula"><tr><td><i>x</i><sub><i>k</i>+1</sub> ← ... <i>g</i></td></tr></table>'
    """
    rows = []
    for line in filter(str.strip, block.splitlines()):
        cells = re.split(r" {2,}", line.strip())
        rows.append("<tr>" + "".join(f"<td>{_typeset_cell(cell)}</td>" for cell in cells) + "</tr>")
    return f'<table class="formula">{"".join(rows)}</table>'


def _typeset_cell(text: str) -> str:
    text = html.escape(_SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text), quote=False)
    text = _VARIABLE.sub(r"<i>\1</i>", _SUPERSCRIPT.sub(_raise, _SUBSCRIPT.sub(_lower, text)))
    return (
        text.replace("\x01", "<sub>")
        .replace("\x02", "</sub>")
        .replace("\x03", "<sup>")
        .replace("\x04", "</sup>")
    )


def _lower(match: re.Match[str]) -> str:
    return f"{match[1]}\x01{match[2].strip('{}')}\x02"


def _raise(match: re.Match[str]) -> str:
    return f"\x03{match[1].strip('{}')}\x04"
