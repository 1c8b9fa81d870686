"""Digits: shapes, range, a fixed split, and errors."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from diffprog import data

FIRST_TEN_TEST_LABELS = [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]


@pytest.fixture(scope="module", params=[8, 16])
def size_and_digits(request):
    return request.param, data.digits(request.param)


def test_shapes_dtypes_and_range(size_and_digits):
    size, digits = size_and_digits
    assert digits.x_train.shape == (1437, size, size, 1)
    assert digits.x_test.shape == (360, size, size, 1)
    for x, y in ((digits.x_train, digits.y_train), (digits.x_test, digits.y_test)):
        assert x.dtype == np.float32
        assert y.dtype == np.int32
        assert y.shape == x.shape[:1]
        assert float(x.min()) == 0
        assert float(x.max()) == 1
        assert set(np.asarray(y).tolist()) == set(range(10))


def test_the_split_contains_every_scan_once():
    digits, scans = data.digits(flatten=True), load_digits()
    together = np.concatenate([digits.x_train, digits.x_test]) * 16
    labels = np.concatenate([digits.y_train, digits.y_test])
    rows = sorted(map(tuple, np.column_stack([together, labels])))
    assert rows == sorted(map(tuple, np.column_stack([scans.data, scans.target])))


def test_the_split_is_stratified():
    digits = data.digits()
    counts = np.bincount(digits.y_train), np.bincount(digits.y_test)
    assert np.abs(counts[1] - (counts[0] + counts[1]) * 360 / 1797).max() <= 1


def test_the_split_is_the_same_every_time_and_at_every_size(size_and_digits):
    size, digits = size_and_digits
    again = data.digits(size, flatten=True)
    np.testing.assert_array_equal(digits.x_train.reshape(1437, -1), again.x_train)
    np.testing.assert_array_equal(data.digits(8).y_train, digits.y_train)
    assert np.asarray(digits.y_test[:10]).tolist() == FIRST_TEN_TEST_LABELS


def test_labels_belong_to_their_images(size_and_digits):
    _, digits = size_and_digits
    nearest = KNeighborsClassifier(3).fit(digits.x_train.reshape(1437, -1), digits.y_train)
    assert nearest.score(digits.x_test.reshape(360, -1), digits.y_test) > 0.97


def test_interpolated_digits_average_to_the_scans():
    small, large = data.digits(8).x_test, data.digits(16).x_test
    means = np.asarray(large).reshape(360, 8, 2, 8, 2).mean((2, 4))
    assert np.abs(means - small[..., 0]).mean() < 0.05  # shifted by one pixel: 0.1


@pytest.mark.parametrize(
    ("size", "error"),
    [(28, ValueError), (0, ValueError), (8.0, TypeError), ("8", TypeError), (True, TypeError)],
)
def test_other_sizes_are_refused(size, error):
    with pytest.raises(error, match="size must be"):
        data.digits(size)


def test_without_scikit_learn_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'diffprog\[experiments\]'"):
        data.digits()


def test_importing_the_module_imports_neither_scikit_learn_nor_matplotlib():
    code = "import sys, diffprog.data; print({'sklearn', 'matplotlib'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )
