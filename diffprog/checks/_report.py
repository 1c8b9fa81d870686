"""Result of a gradient check: a verdict for each checked array, printed as a table.

    verdict           meaning
    ok                agrees with autodiff and finite differences to rounding
    kink              f has a kink; the gradient lies between the one-sided derivatives
    degenerate        zero everywhere at the given point; correct at a generic point
    unused            the function does not depend on this variable, at either point
    autodiff-wrong    agrees with finite differences; `jax.grad` does not
    precision         correct in float64; in the given dtype the error exceeds the rounding bound
    nondeterministic  two calls with the same arguments gave different numbers
    nonfinite         NaN or infinite
    invalid-kink      f has a kink; the gradient lies outside the one-sided derivatives
    wrong             disagrees with finite differences

Here f is the checked function. The given point is the arguments that the user passed, the generic
point random values of them. The first five verdicts mean that no error was found; a report is `ok`
if it has no others.
"""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

VERDICTS = (
    "ok",
    "kink",
    "degenerate",
    "unused",
    "autodiff-wrong",
    "precision",
    "nondeterministic",
    "nonfinite",
    "invalid-kink",
    "wrong",
)
_ACCEPTABLE = VERDICTS[:5]
_COLUMNS = ("layer", "leaf", "worst index", "got", "want", "error/tolerance", "verdict", "hint")


class Precision(NamedTuple):
    """Rounding error of the gradient with respect to one array, computed in one dtype.

    Attributes:
        path: path of the array, such as "params['weight']".
        dtype: dtype of the computation.
        error: root mean square of the difference from the same gradient in float64.
        bound: largest error that rounding in this dtype explains.
    """

    path: str
    dtype: str
    error: float
    bound: float


class Finding(NamedTuple):
    """Result of a gradient check for one array of the arguments.

    Attributes:
        path: path of the array, such as "params['weight']".
        verdict: one of `VERDICTS`, such as "ok", "wrong" or "kink".
        index: index of the element with the largest error relative to its tolerance.
        got: gradient under test of this element.
        want: reference gradient of this element, by autodiff or by finite differences.
        error: |got - want|.
        tolerance: largest error that rounding explains.
        hint: diagnosis of the error, or other remarks.
        layer: name of the layer within a network; empty for a single layer or a function.
        point: "given" if the result is for the arguments that the user passed, "generic" if it is
            for random ones.
        order: 1 for the gradient, 2 for the derivative of the hand-written backward pass.
        interval: at a kink, the one-sided derivatives in ascending order; None otherwise.
    """

    path: str
    verdict: str
    index: tuple[int, ...]  # type: ignore[assignment]  # shadows the method `tuple.index`
    got: float
    want: float
    error: float
    tolerance: float
    hint: str = ""
    layer: str = ""
    point: str = "given"
    order: int = 1
    interval: tuple[float, float] | None = None

    @property
    def ok(self) -> bool:
        """Check if no error was found.

        The verdict is "ok", "kink", "degenerate", "unused" or "autodiff-wrong".
        """
        return self.verdict in _ACCEPTABLE


class Report(NamedTuple):
    """Result of a gradient check. `ok` says if it passed; printing it gives a table.

    Attributes:
        findings: one for each float array of the arguments, and one more for each array whose
            second derivative is wrong.
        precision: rounding error of each gradient in float32, bfloat16 and float16.
        notes: further remarks, one sentence each.
        asymmetry: relative asymmetry of the Hessian H that the hand-written backward pass gives,
            |u H w - w H u| for random vectors u and w over the size of its terms; 0 if not checked.
    """

    findings: tuple[Finding, ...]
    precision: tuple[Precision, ...] = ()
    notes: tuple[str, ...] = ()
    asymmetry: float = 0.0

    @property
    def ok(self) -> bool:
        """Check if no error was found in any gradient: every finding is `ok`."""
        return all(finding.ok for finding in self.findings)

    def raise_if_wrong(self) -> None:
        """Raise AssertionError with the printed report unless it is `ok`."""
        if not self.ok:
            raise AssertionError(f"incorrect gradient\n{self}")

    def __str__(self) -> str:
        correct = sum(finding.ok for finding in self.findings)
        lines = [f"{correct} of {len(self.findings)} gradients correct"]
        lines += _table(_COLUMNS, [_row(finding) for finding in self.findings])
        lines += _precision_lines(self.precision)
        if self.asymmetry:
            lines.append(f"relative asymmetry of the Hessian: {self.asymmetry:.1e}")
        return "\n".join([*lines, *self.notes])


def merge_reports(reports: Iterable[Report]) -> Report:
    """Merge several reports into one with all findings and the largest asymmetry."""
    findings, precision, notes, asymmetries = zip(*reports, strict=True)
    join = lambda parts: tuple(itertools.chain(*parts))
    return Report(join(findings), join(precision), join(notes), max(asymmetries))


def worst(findings: list[Finding]) -> Finding:
    """Return the finding with the most severe verdict, the first one if there are several."""
    return max(findings, key=lambda finding: VERDICTS.index(finding.verdict))


def _row(finding: Finding) -> tuple[str, ...]:
    order = ", 2nd order" if finding.order == 2 else ""
    point = " (generic point)" if finding.point == "generic" else ""
    return (
        finding.layer,
        f"{finding.path}{order}{point}",
        str(finding.index) if len(finding.index) != 1 else f"({finding.index[0]})",
        # Adding 0.0 prints -0 as 0.
        f"{finding.got + 0.0:.7g}",
        f"{finding.want + 0.0:.7g}",
        f"{_ratio(finding.error, finding.tolerance):.2g}",
        finding.verdict,
        finding.hint,
    )


def _ratio(error: float, tolerance: float) -> float:
    return error / tolerance if tolerance > 0 else math.inf if error else 0.0


def _precision_lines(precision: tuple[Precision, ...]) -> list[str]:
    """Return the report's lines on low precision, one per dtype.

    Each names the array whose gradient error is largest relative to its rounding error bound.
    """
    lines = []
    for dtype in dict.fromkeys(entry.dtype for entry in precision):
        entries = [entry for entry in precision if entry.dtype == dtype]
        largest = max(entries, key=lambda entry: _ratio(entry.error, entry.bound))
        ratio = f"{_ratio(largest.error, largest.bound):.2f}"
        line = f"{dtype}: error at most {ratio} of the rounding bound, in {largest.path}"
        lines.append(line + ("" if largest.error <= largest.bound else "  <- exceeds the bound"))
    return lines


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Format header and rows as lines of aligned text; omit columns that are empty in every row."""
    columns = [k for k in range(len(header)) if any(row[k] for row in rows)]
    lines = [[row[k] for k in columns] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
