"""Train, visualize, attack and check differentiable programs in JAX.

Modules:

    program          turns any callable into a program, whose arrays are pytree leaves
    nodes            read, replace and perturb intermediate values by name; `tap` names them
    gradients        gradients with respect to parameters, input or nodes; per example; Hessians
    fast_gradients   fast CPU gradients of convolutions and max-pooling
    descent          gradient descent on any variable, as in training, visualization and attacks
    norms, losses    norms of perturbations and loss functions, per example
    distributed      meshes of devices and the sharding of arrays
    training         training loops, metrics, checkpoints
    visualization    unit visualization, deep dream, attribution
    adversarial      adversarial attacks and robustness evaluation
    contrastive      dual encoders of texts and images; images from text
    backprop         hand-written layers with their backward passes
    checks           gradient checks
    graph            computation graphs with values, adjoints and local derivatives
    models, data     pure-function models and datasets
    pretrained       models with published weights
    plotting         figures from results (needs matplotlib)
"""

import importlib
from typing import TYPE_CHECKING, Any

from diffprog import nodes
from diffprog.nodes import tap
from diffprog.program import Program, program

if TYPE_CHECKING:
    from diffprog import (
        adversarial,
        backprop,
        checks,
        contrastive,
        data,
        descent,
        distributed,
        fast_gradients,
        gradients,
        graph,
        losses,
        models,
        norms,
        plotting,
        pretrained,
        training,
        visualization,
    )

__all__ = [
    "Program",
    "adversarial",
    "backprop",
    "checks",
    "contrastive",
    "data",
    "descent",
    "distributed",
    "fast_gradients",
    "gradients",
    "graph",
    "losses",
    "models",
    "nodes",
    "norms",
    "plotting",
    "pretrained",
    "program",
    "tap",
    "training",
    "visualization",
]


def __getattr__(name: str) -> Any:
    """Import and return the submodule `name` on first use, so that `import diffprog` is fast."""
    if name in __all__:
        return importlib.import_module(f"diffprog.{name}")
    raise AttributeError(f"module 'diffprog' has no attribute {name!r}")
