"""IDX files: all file names are read, and errors name the file."""

import gzip
import struct

import numpy as np
import pytest

from diffprog import data

RNG = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (6, 4, 5), np.uint8),
    "train-labels-idx1-ubyte": RNG.integers(0, 10, 6, np.uint8),
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (3, 4, 5), np.uint8),
    "t10k-labels-idx1-ubyte": RNG.integers(0, 10, 3, np.uint8),
}
IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder, **changed):
    """Write the four files, some with changed content."""
    for name, array in ARRAYS.items():
        (folder / name).write_bytes(changed.get(name, idx(array)))
    return folder


def assert_is_arrays(dataset):
    for x, images in (
        (dataset.x_train, "train-images-idx3-ubyte"),
        (dataset.x_test, "t10k-images-idx3-ubyte"),
    ):
        assert x.dtype == np.float32
        np.testing.assert_array_equal(np.round(np.asarray(x) * 255), ARRAYS[images][..., None])
    for y, labels in (
        (dataset.y_train, "train-labels-idx1-ubyte"),
        (dataset.y_test, "t10k-labels-idx1-ubyte"),
    ):
        assert y.dtype == np.int32
        np.testing.assert_array_equal(y, ARRAYS[labels])


def test_plain_files(tmp_path):
    dataset = data.idx_images(write(tmp_path))
    assert_is_arrays(dataset)
    assert float(dataset.x_train.max()) <= 1
    assert_is_arrays(data.idx_images(str(tmp_path)))


def test_gzip_files_and_names_with_a_dot(tmp_path):
    for name, array in ARRAYS.items():
        dotted = name.replace("-idx", ".idx") if "images" in name else name
        (tmp_path / f"{dotted}.gz").write_bytes(gzip.compress(idx(array)))
    assert_is_arrays(data.idx_images(tmp_path))


def test_a_missing_folder_or_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"folder must be an existing folder, got .*nowhere"
    ):
        data.idx_images(tmp_path / "nowhere")
    (write(tmp_path) / LABELS).unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"expected one of t10k-labels-idx1-ubyte, t10k-labels\.idx1-ubyte, "
        r".*\.gz, found none",
    ):
        data.idx_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            IMAGES,
            idx(ARRAYS[IMAGES])[:-1],
            r"expected 120 bytes for shape \(6, 4, 5\), found 119: it is truncated",
        ),
        (
            IMAGES,
            idx(ARRAYS[IMAGES]) + b"!!",
            "expected 120 bytes .* found 122: it has trailing bytes",
        ),
        (
            IMAGES,
            idx(ARRAYS[IMAGES])[:10],
            "expected a header of 16 bytes, found a file of 10: it is truncated",
        ),
        (
            IMAGES,
            idx(ARRAYS["train-labels-idx1-ubyte"]),
            "expected the magic number 0x00000803 .* found 0x00000801",
        ),
        (IMAGES, b"", "expected the magic number 0x00000803 .* found 0x"),
        (IMAGES, gzip.compress(idx(ARRAYS[IMAGES])), "expected the magic number .* found 0x1f8b"),
        (
            IMAGES,
            idx(np.zeros((0, 4, 5), np.uint8)),
            r"expected at least one value, found shape \(0, 4, 5\)",
        ),
        (
            LABELS,
            idx(np.zeros((3, 1, 1), np.uint8)),
            "expected the magic number 0x00000801 .* found 0x00000803",
        ),
        (
            LABELS,
            idx(np.zeros(4, np.uint8)),
            "expected 3 labels, one for each image of t10k-images-idx3-ubyte, found 4",
        ),
    ],
)
def test_malformed_files_are_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        data.idx_images(write(tmp_path, **{name: content}))


GZIPPED = gzip.compress(idx(ARRAYS[IMAGES]))


@pytest.mark.parametrize(
    "content",
    [
        GZIPPED[:-12],
        GZIPPED[:40] + bytes(8) + GZIPPED[48:],
        GZIPPED[:10] + b"\xff" * 20 + GZIPPED[30:],
        b"no gzip at all",
        GZIPPED[:3],
        idx(ARRAYS[IMAGES]),
    ],
    ids=[
        "truncated",
        "other values",
        "no deflate stream",
        "text",
        "cut in the header",
        "not compressed",
    ],
)
def test_a_corrupt_gzip_file_is_named(tmp_path, content):
    (write(tmp_path) / IMAGES).unlink()
    (tmp_path / f"{IMAGES}.gz").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{IMAGES}\.gz: expected a complete gzip file, found a corrupt one"
    ):
        data.idx_images(tmp_path)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 5)])
def test_training_and_test_images_of_different_sizes_are_refused(tmp_path, height, width):
    other = idx(np.zeros((3, height, width), np.uint8))
    message = rf"must have the same size, got \(4, 5\) and \({height}, {width}\)"
    with pytest.raises(ValueError, match=message):
        data.idx_images(write(tmp_path, **{"t10k-images-idx3-ubyte": other}))
