"""Load pretrained vision transformers and ResNets as functions of images with values in 0 .. 1."""

from diffprog.pretrained._preprocessing import Pretrained
from diffprog.pretrained._resnet import load_resnet
from diffprog.pretrained._vit import load_vit

__all__ = [
    "Pretrained",
    "load_resnet",
    "load_vit",
]
