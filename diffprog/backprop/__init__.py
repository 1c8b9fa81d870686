"""Layers, losses and networks with hand-written backward passes.

To add a layer, write a function that returns a `Layer`, export it here, and add a row to `LAYERS`
in tests/backprop/test_layers.py.
"""

from diffprog.backprop._activations import (
    elu,
    leaky_relu,
    log_softmax,
    log_softmax_jacobian,
    maxout,
    relu,
    sigmoid,
    softmax,
    softmax_jacobian,
    tanh,
)
from diffprog.backprop._affine import affine, extended_affine
from diffprog.backprop._attention import attention, embedding, residual
from diffprog.backprop._convolution import average_pool, convolution, flatten, max_pool
from diffprog.backprop._gates import add, copy, max_over, multiply, pairwise_product, power_product
from diffprog.backprop._layer import Layer, Part, differentiable
from diffprog.backprop._lecture_notation import deltas, numerator_layout, overdots
from diffprog.backprop._losses import (
    half_squared_error,
    mean_over_examples,
    sigmoid_kl,
    softmax_cross_entropy,
    softmax_kl,
    sum_over_examples,
)
from diffprog.backprop._network import chain, dag
from diffprog.backprop._normalization import batch_norm, dropout, layer_norm
from diffprog.backprop._value_and_grads import Gradients, value_and_grads

__all__ = [
    "Gradients",
    "Layer",
    "Part",
    "add",
    "affine",
    "attention",
    "average_pool",
    "batch_norm",
    "chain",
    "convolution",
    "copy",
    "dag",
    "deltas",
    "differentiable",
    "dropout",
    "elu",
    "embedding",
    "extended_affine",
    "flatten",
    "half_squared_error",
    "layer_norm",
    "leaky_relu",
    "log_softmax",
    "log_softmax_jacobian",
    "max_over",
    "max_pool",
    "maxout",
    "mean_over_examples",
    "multiply",
    "numerator_layout",
    "overdots",
    "pairwise_product",
    "power_product",
    "relu",
    "residual",
    "sigmoid",
    "sigmoid_kl",
    "softmax",
    "softmax_cross_entropy",
    "softmax_jacobian",
    "softmax_kl",
    "sum_over_examples",
    "tanh",
    "value_and_grads",
]
