"""Image data sets as arrays: floats in [0, 1], batch first, NHWC; integer labels.

`digits` comes with scikit-learn; `idx_images` reads a local folder in MNIST's format, and
`image_folder` a local folder of PNG and JPEG files.
"""

from diffprog.data._dataset import Dataset
from diffprog.data._digits import digits
from diffprog.data._folder import Images, image_folder
from diffprog.data._idx import idx_images

__all__ = ["Dataset", "Images", "digits", "idx_images", "image_folder"]
