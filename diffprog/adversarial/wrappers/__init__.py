"""Attacks and programs built from others: random or quantized programs, universal perturbations, transfer."""

from diffprog.adversarial.wrappers._expectation import (
    Universal,
    bpda,
    expectation,
    transfer,
    universal,
)

__all__ = [
    "Universal",
    "bpda",
    "expectation",
    "transfer",
    "universal",
]
