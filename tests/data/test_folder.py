"""Image folders: reading, resizing, and errors that name the file."""

import numpy as np
import pytest
from PIL import Image

from diffprog import data

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (4, 5, 3), np.uint8)
GREY = RNG.integers(0, 256, (4, 5), np.uint8)


def save(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def test_images_classes_and_labels(tmp_path):
    save(tmp_path / "dog" / "b.png", COLOUR)
    save(tmp_path / "dog" / "a.PNG", COLOUR[::-1])
    save(tmp_path / "cat" / "z.png", COLOUR[:, ::-1])
    (tmp_path / "dog" / "notes.txt").write_text("ignored")
    (tmp_path / "dog" / "._a.png").write_text("ignored")
    (tmp_path / ".hidden").mkdir()
    images = data.image_folder(tmp_path)
    assert images.names == ("cat", "dog")
    assert images.x.dtype == np.float32
    assert images.y.dtype == np.int32
    np.testing.assert_array_equal(images.y, [0, 1, 1])
    np.testing.assert_allclose(
        images.x * 255, np.stack([COLOUR[:, ::-1], COLOUR[::-1], COLOUR]), atol=1e-4
    )
    np.testing.assert_array_equal(data.image_folder(str(tmp_path)).x, images.x)


def test_grey_images_have_one_channel_and_transparency_is_dropped(tmp_path):
    grey, colour = tmp_path / "grey", tmp_path / "colour"
    save(grey / "class" / "a.png", GREY)
    save(colour / "class" / "a.png", np.dstack([COLOUR, GREY]))
    np.testing.assert_allclose(data.image_folder(grey).x[0] * 255, GREY[..., None], atol=1e-4)
    np.testing.assert_allclose(data.image_folder(colour).x[0] * 255, COLOUR, atol=1e-4)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
def test_jpeg_and_png_have_the_same_range(tmp_path, suffix):
    save(tmp_path / "plain" / f"a.{suffix}", np.full((8, 8, 3), 51, np.uint8))
    save(tmp_path / "plain" / "b.png", np.full((8, 8, 3), 51, np.uint8))
    np.testing.assert_allclose(data.image_folder(tmp_path).x, 0.2, atol=0.01)


def test_only_images_of_another_size_are_resized(tmp_path):
    flat = np.full((8, 12, 3), 102, np.uint8)
    save(tmp_path / "class" / "a.png", COLOUR)
    save(tmp_path / "class" / "b.png", flat)
    x = data.image_folder(tmp_path, size=(4, 5)).x
    assert x.shape == (2, 4, 5, 3)
    np.testing.assert_allclose(x[0] * 255, COLOUR, atol=1e-4)
    np.testing.assert_allclose(x[1], 0.4, atol=1e-6)


def test_downsizing_averages_pixels(tmp_path):
    # One bright column in four: every fourth value alone would be 0 everywhere.
    stripes = np.tile(np.array([[0, 0, 0, 255]], np.uint8), (16, 4))
    save(tmp_path / "class" / "a.png", stripes)
    np.testing.assert_allclose(
        data.image_folder(tmp_path, size=(4, 4)).x[0, :, 1:-1], 0.25, atol=1e-5
    )


def test_mixed_sizes_and_channels_are_named(tmp_path):
    save(tmp_path / "class" / "a.png", COLOUR)
    save(tmp_path / "class" / "b.png", COLOUR[:3])
    with pytest.raises(
        ValueError,
        match=r"b\.png: expected the size \(4, 5\) of .*a\.png, found \(3, 5\); "
        r"size=\(height, width\) resizes",
    ):
        data.image_folder(tmp_path)
    save(tmp_path / "class" / "b.png", GREY)
    for size in (None, (4, 5)):
        with pytest.raises(
            ValueError, match=r"b\.png: expected 3 channels as in .*a\.png, found 1"
        ):
            data.image_folder(tmp_path, size)


@pytest.mark.parametrize("name", ["b.png", "b.jpg"])
def test_corrupt_files_are_named(tmp_path, name):
    large = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    save(tmp_path / "class" / "a.png", large)
    save(tmp_path / "class" / name, large)
    whole = (tmp_path / "class" / name).read_bytes()
    for content in (b"", b"not an image", whole[:20], whole[: len(whole) // 2]):
        (tmp_path / "class" / name).write_bytes(content)
        with pytest.raises(
            ValueError, match=f"{name}: expected an image, found a file that cannot be read"
        ):
            data.image_folder(tmp_path)


def test_missing_folders_classes_and_images_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"folder must be an existing folder, got .*nowhere"
    ):
        data.image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected one folder for each class, found none"):
        data.image_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError,
        match=r"empty: expected at least one file \*\.png, \*\.jpg, \*\.jpeg, found none",
    ):
        data.image_folder(tmp_path)


@pytest.mark.parametrize(
    ("size", "error"),
    [
        (8, TypeError),
        ((8,), TypeError),
        ((8.0, 8), TypeError),
        ((0, 8), ValueError),
        ((8, -1), ValueError),
    ],
)
def test_bad_sizes_are_refused(tmp_path, size, error):
    with pytest.raises(error, match=r"size.* must be"):
        data.image_folder(tmp_path, size)
