"""Check the gradients of a network layer by layer: `check_net`."""

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
    """Check the backward pass of every layer of a network, then of the network as a whole.

    A forward pass computes the input of each layer; there `check_layer` checks it with its own
    random cotangent, so that a mistake in one layer does not affect the results of others. The
    whole network is checked only if all layers are correct; a mistake there is in how it combines
    them.

    Args:
        net: network made by `chain` or `dag`; its layers may be networks, which are checked layer
            by layer too. Any other layer is checked by `check_layer`.
        params: parameters of the network, as for `check_layer`.
        x: input of the network, as for `check_layer`.
        key: PRNG key of the cotangents and of the random values, as for `check_layer`.

    Returns:
        A `Report` with one `Finding` (verdict and worst element) for each float array among the
        parameters and inputs of each layer; `Finding.layer` names the layer.

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
    """Return a report on one layer with the layer's name added to every finding and note."""
    findings = tuple(
        finding._replace(layer=f"{name}/{finding.layer}" if finding.layer else name)
        for finding in report.findings
    )
    precision = tuple(entry._replace(path=f"{name}: {entry.path}") for entry in report.precision)
    notes = tuple(f"{name}: {note}" for note in report.notes)
    return Report(findings, precision, notes, report.asymmetry)
