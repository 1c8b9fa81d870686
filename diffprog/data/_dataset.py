"""`Dataset`, images and labels split into training and test examples."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Dataset(NamedTuple):
    """Images and labels, split into training and test examples.

    Attributes:
        x_train: training images, float32 in [0, 1], (train, height, width, channels), or
            (train, features) if flattened.
        y_train: training labels, int32, (train,).
        x_test: test images, as `x_train`.
        y_test: test labels, int32, (test,).
    """

    x_train: Float[Array, "train ..."]
    y_train: Int[Array, "train"]
    x_test: Float[Array, "test ..."]
    y_test: Int[Array, "test"]
