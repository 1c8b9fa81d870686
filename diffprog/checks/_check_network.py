"""A net checked part by part: each alone, at the inputs it really gets, with a cotangent of its own."""

import itertools
from collections.abc import Iterable
from typing import Any

import jax
from jaxtyping import Array

from diffprog import _validation
from diffprog.backprop import Layer, Part
from diffprog.backprop._layer import require_layer
from diffprog.backprop._net import by_name, gathered, run_forward
from diffprog.checks._check_layer import check_layer
from diffprog.checks._gradient_function import layer_claim
from diffprog.checks._report import Report


def check_net(net: Layer, params: Any, x: Any, *, key: Array) -> Report:
    """Check every part of a net alone, at the inputs it really gets, then their composition.

    Each part has a random cotangent of its own, so that an error downstream cannot reach it. The net as a whole is checked once its parts
    are right; what is wrong then is how it puts them together.

    Args:
        net: a net made by `chain` or `dag`, whose `parts` are layers or nets again.
        params, x, key: as for `check_layer`.

    Returns:
        A `Report`, with a finding for each float leaf of each part; `Finding.layer` names the part.

    >>> from diffprog import backprop as bp
    >>> check_net(bp.tanh(), (), jax.numpy.ones((2, 3)), key=jax.random.key(0)).ok
    True
    """
    require_layer("net", net)
    if not net.parts:
        return check_layer(net, params, x, key=key)
    _validation.key("key", key)
    keys = jax.random.split(key, len(net.parts) + 1)
    named = by_name(net, params)
    values, _ = run_forward(net, named, x)
    reports = [
        _check_part(part, named[part.name], gathered(values, part.sources), of_part)
        for part, of_part in zip(net.parts, keys[1:], strict=True)
    ]
    if all(report.ok for report in reports):
        reports.append(_within("the whole net", check_layer(net, params, x, key=keys[0])))
    findings, precision, notes, asymmetries = zip(*reports, strict=True)
    return Report(_joined(findings), _joined(precision), _joined(notes), max(asymmetries))


def _check_part(part: Part, params: Any, x: Any, key: Array) -> Report:
    if not layer_claim(part.layer, params, x).variables:
        return Report((), notes=(f"{part.name}: nothing to differentiate",))
    return _within(part.name, check_net(part.layer, params, x, key=key))


def _joined(tuples: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(itertools.chain(*tuples))


def _within(name: str, report: Report) -> Report:
    """A report on a part, by the part's name."""
    return Report(
        tuple(
            finding._replace(layer="/".join(filter(None, (name, finding.layer))))
            for finding in report.findings
        ),
        tuple(found._replace(path=f"{name}: {found.path}") for found in report.precision),
        tuple(f"{name}: {note}" for note in report.notes),
        report.asymmetry,
    )
