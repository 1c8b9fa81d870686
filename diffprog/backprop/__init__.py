"""Layers with their backward pass written by hand."""

from diffprog.backprop._activations import elu, leaky_relu, maxout, relu, sigmoid, softmax, tanh
from diffprog.backprop._affine import affine
from diffprog.backprop._layer import Layer, differentiable
from diffprog.backprop._spatial import average_pool, convolution, flatten, max_pool

__all__ = [
    "Layer",
    "affine",
    "average_pool",
    "convolution",
    "differentiable",
    "elu",
    "flatten",
    "leaky_relu",
    "max_pool",
    "maxout",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]
