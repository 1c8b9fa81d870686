"""Texts of values and local derivatives in a graph."""

import numpy as np

from diffprog.graph._format import format_array, format_local


def test_a_large_local_derivative_is_shown_by_its_frobenius_norm():
    matrix = np.arange(18.0).reshape(2, 9)  # √(0² + ... + 17²)
    assert format_local(matrix, (2,)) == format_local(matrix.reshape(2, 3, 3), (2,)) == "norm 42.2"


def test_a_large_array_is_shown_by_its_shape_and_norm():
    assert format_array(np.arange(18.0).reshape(2, 9)) == "2×9, norm 42.2"


def test_a_multiple_of_the_identity_and_a_diagonal_are_recognized():
    assert format_local(np.eye(3), (3,)) == "I"
    assert format_local(-2.5 * np.eye(3), (3,)) == "−2.5·I"
    assert format_local(np.diag([1.0, 2.0]), (2,)) == "diag[1 2]"
