"""What a data set is here: four arrays, split once into what is learned from and what is held out."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Dataset(NamedTuple):
    """Images and labels in two parts that share no example.

    Attributes:
        x_train: images to learn from, float32 in [0, 1], (train, height, width, channels), or (train, features) if flattened.
        y_train: their labels, int32, (train,).
        x_test: images held out, as `x_train`.
        y_test: their labels, int32, (test,).
    """

    x_train: Float[Array, "train ..."]
    y_train: Int[Array, "train"]
    x_test: Float[Array, "test ..."]
    y_test: Int[Array, "test"]
