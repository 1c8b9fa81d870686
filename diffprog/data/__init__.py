"""Real images as arrays: floats in [0, 1], batch first, NHWC; labels integer.

`digits` is there without a download; `idx_images` reads a local folder in MNIST's format, `image_folder` a local folder of pictures.
"""

from diffprog.data._dataset import Dataset
from diffprog.data._digits import digits
from diffprog.data._folder import Images, image_folder
from diffprog.data._idx import idx_images

__all__ = ["Dataset", "Images", "digits", "idx_images", "image_folder"]
