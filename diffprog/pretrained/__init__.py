"""Load pretrained vision transformers and ResNets as programs of images in 0 .. 1."""

from diffprog.pretrained._preprocessing import Pretrained
from diffprog.pretrained._resnet import load_resnet
from diffprog.pretrained._vit import load_vit

__all__ = [
    "Pretrained",
    "load_resnet",
    "load_vit",
]
