"""Check the gradients of a network part by part, each at the inputs it gets in the network."""

from typing import Any

import jax
from jaxtyping import Array

from diffprog import _validation
from diffprog.backprop import Layer, Part
from diffprog.backprop._layer import require_layer
from diffprog.backprop._network import params_by_name, run_forward, select
from diffprog.checks._check_layer import check_layer
from diffprog.checks._gradient_function import layer_under_test
from diffprog.checks._report import Report, merge_reports


def check_net(net: Layer, params: Any, x: Any, *, key: Array) -> Report:
    """Check every part of a network at the inputs that it gets there, then the whole network.

    Each part gets its own random cotangent, so that a mistake downstream does not affect it. The
    whole network is checked only if all parts are correct; a mistake there is in how it combines
    them.

    Args:
        net: network made by `chain` or `dag`; its parts may be networks again. Other layers are
            checked by `check_layer`.
        params: parameters of the network, as for `check_layer`.
        x: input of the network, as for `check_layer`.
        key: PRNG key of the cotangents and the generic points.

    Returns:
        A `Report` with one finding for each float leaf of each part; `Finding.layer` names the
        part.

    Raises:
        TypeError, ValueError: as for `check_layer`; also if layers do not fit together.

    >>> from diffprog import backprop as bp
    >>> check_net(bp.tanh(), (), jax.numpy.ones((2, 3)), key=jax.random.key(0)).ok
    True
    """
    require_layer("net", net)
    if not net.parts:
        return check_layer(net, params, x, key=key)
    _validation.key("key", key)
    keys = jax.random.split(key, len(net.parts) + 1)
    params_of = params_by_name(net, params)
    values, _ = run_forward(net, params_of, x)
    reports = [
        _check_part(part, params_of[part.name], select(values, part.sources), part_key)
        for part, part_key in zip(net.parts, keys[1:], strict=True)
    ]
    # A wrong part makes the whole network wrong as well, which is no new finding.
    if all(report.ok for report in reports):
        whole = check_layer(net, params, x, key=keys[0])
        reports.append(_add_layer_name("the whole net", whole))
    return merge_reports(reports)


def _check_part(part: Part, params: Any, x: Any, key: Array) -> Report:
    if not layer_under_test(part.layer, params, x).variables:
        return Report((), notes=(f"{part.name}: nothing to differentiate",))
    return _add_layer_name(part.name, check_net(part.layer, params, x, key=key))


def _add_layer_name(name: str, report: Report) -> Report:
    """Add the name of a part before the layer, path or note of every entry of its report."""
    findings = tuple(
        finding._replace(layer=f"{name}/{finding.layer}" if finding.layer else name)
        for finding in report.findings
    )
    precision = tuple(entry._replace(path=f"{name}: {entry.path}") for entry in report.precision)
    notes = tuple(f"{name}: {note}" for note in report.notes)
    return Report(findings, precision, notes, report.asymmetry)
