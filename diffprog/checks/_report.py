"""What a check found: a table that names the layer, the leaf and the element.

    verdict           meaning
    ok                the claimed gradient is autodiff's, to rounding, and the function moves as it says
    kink              the function has a kink there and the claim lies between its one-sided derivatives: a valid subgradient
    degenerate        zero everywhere at the given point, so that nothing could be seen there; right at a generic point
    unused            the function does not depend on this variable, at either point
    autodiff-wrong    the claim is what the function does, and `jax.grad` is not
    wrong             the claim is not what the function does
    invalid-kink      the function has a kink there and the claim lies outside its one-sided derivatives
    nonfinite         NaN or infinite
    nondeterministic  two calls with the same arguments gave different numbers
    precision         right in float64, but less exact in the dtype of the given arrays than rounding explains

The first five leave a report `ok`.
"""

import math
from typing import NamedTuple

from diffprog.checks._rounding_error import Precision

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
_FINE = VERDICTS[:5]
_COLUMNS = ("layer", "leaf", "worst index", "got", "want", "error/tolerance", "verdict", "hint")


class Finding(NamedTuple):
    """One leaf of a gradient.

    Attributes:
        path: the leaf, as "params['weight']".
        verdict: one of `VERDICTS`.
        index: its worst element.
        got: what was claimed there.
        want: what the better witness says.
        error: |got - want|.
        tolerance: what rounding explains, of `error`.
        hint: what the error looks like, or what else there is to say.
        layer: the layer it belongs to, within a net.
        point: "given", or "generic" for the second point, where the numbers are of random sign and magnitude.
        order: 1, or 2 for the derivative of the rule.
        interval: at a kink, from the lesser to the greater of the one-sided derivatives.
    """

    path: str
    verdict: str
    index: tuple[int, ...]  # type: ignore[assignment]  # the method `tuple.index` has no use here
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
        """Whether the gradient of this leaf can be used."""
        return self.verdict in _FINE


class Report(NamedTuple):
    """What a check found.

    Attributes:
        findings: one for each leaf, and one more for each whose second derivative is wrong.
        precision: the error of each leaf in float32, bfloat16 and float16, beside what one must expect.
        notes: what else is worth knowing, a sentence each.
        asymmetry: |u H w - w H u| over the size of their terms, for the Hessian H of a hand-written rule.
    """

    findings: tuple[Finding, ...]
    precision: tuple[Precision, ...] = ()
    notes: tuple[str, ...] = ()
    asymmetry: float = 0.0

    @property
    def ok(self) -> bool:
        """No gradient is wrong."""
        return all(finding.ok for finding in self.findings)

    def raise_if_wrong(self) -> None:
        """Raise an AssertionError with this table unless `ok`."""
        if not self.ok:
            raise AssertionError(f"a gradient is wrong\n{self}")

    def __str__(self) -> str:
        right = sum(finding.ok for finding in self.findings)
        header = f"{right} of {len(self.findings)} gradients right"
        table = _table(_COLUMNS, [_row(finding) for finding in self.findings])
        hessian = (
            [f"the Hessian is asymmetric by {self.asymmetry:.1e} of its terms"]
            if self.asymmetry
            else []
        )
        return "\n".join([header, *table, *_accuracies(self.precision), *hessian, *self.notes])


def worst(findings: list[Finding]) -> Finding:
    """The one with the gravest verdict, the first of several."""
    return max(findings, key=lambda finding: VERDICTS.index(finding.verdict))


def _row(finding: Finding) -> tuple[str, ...]:
    leaf = (
        finding.path
        + (", 2nd order" if finding.order == 2 else "")
        + (" (generic point)" if finding.point == "generic" else "")
    )
    ratio = _ratio(finding.error, finding.tolerance)
    index = str(finding.index) if len(finding.index) != 1 else f"({finding.index[0]})"
    return (
        finding.layer,
        leaf,
        index,
        _number(finding.got),
        _number(finding.want),
        f"{ratio:.2g}",
        finding.verdict,
        finding.hint,
    )


def _number(number: float) -> str:
    return f"{number + 0.0:.7g}"


def _ratio(error: float, tolerance: float) -> float:
    return error / tolerance if tolerance > 0 else math.inf if error else 0.0


def _accuracies(precision: tuple[Precision, ...]) -> list[str]:
    """For each dtype the leaf that is the least exact, measured by what one must expect."""
    lines = []
    for dtype in dict.fromkeys(found.dtype for found in precision):
        of_dtype = [found for found in precision if found.dtype == dtype]
        least = max(of_dtype, key=lambda found: _ratio(found.error, found.bound))
        said = f"{_ratio(least.error, least.bound):.2f} of what rounding explains at most, in {least.path}"
        lines.append(
            f"{dtype}: {said}" + ("" if least.error <= least.bound else "  <- too inexact")
        )
    return lines


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Columns of text; a column that is empty in every row is left out."""
    kept = [k for k in range(len(header)) if any(row[k] for row in rows)]
    lines = [[row[k] for k in kept] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
