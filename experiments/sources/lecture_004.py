"""Examples of lecture 004: vector and multiplicative activations, subgradients, divergences."""

import numpy as np

from diffprog import backprop as bp
from experiments.sources.differentiators import (
    Differentiator,
    autodiff,
    compile_gradients,
    finite_differences,
    hand_written,
)
from experiments.sources.helpers import (
    CROSS_ENTROPY,
    IDENTITY,
    SIGMOID_KL,
    SOFTMAX_KL,
    SQUARED_ERROR,
    Inputs,
    Quantities,
    derivative_of,
    jacobian,
    named_chain,
    vjp,
)


def gd_convergence_rule(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Descend on L = θ² / 2 while |L_k - L_{k-1}| > ε."""
    run = compile_gradients(differentiate, IDENTITY, SQUARED_ERROR)
    zero, theta = np.zeros((1, 1)), inputs["theta0"][None, None]
    losses, grads = [np.inf], run(((),), theta, zero)
    while len(losses) == 1 or abs(float(grads.value) - losses[-1]) > inputs["eps"]:
        losses.append(float(grads.value))
        theta = theta - inputs["eta"] * np.asarray(grads.dx)
        grads = run(((),), theta, zero)
    return {"iterations": len(losses) - 1, "final_theta": theta, "final_loss": grads.value}


def softmax_jacobian(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Compute the Jacobian of softmax, y_i (δ_ij - y_j); under cross-entropy dz is y - d."""
    z, d = inputs["z"], inputs["onehot"][None]
    J = jacobian(bp.softmax(), z, 3, differentiate).dx
    fused = compile_gradients(differentiate, IDENTITY, SOFTMAX_KL)(((),), z[None], d)
    softmax = named_chain("z", y=bp.softmax())
    separate = compile_gradients(differentiate, softmax, CROSS_ENTROPY)({"y": ()}, z[None], d)
    return {
        "y": separate.values["y"],
        "J": J,
        "rowsum": J.sum(1),
        "dCE_dz": fused.dx,
        "dCE_dy": separate.adjoints["y"],
        "dCE_via_J": separate.dx,
    }


def two_or_not_two(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate the KL divergence of one sigmoid: dKL/dz = Y - d."""
    z, d = inputs["z"][None], inputs["d"]
    run = compile_gradients(differentiate, IDENTITY, SIGMOID_KL)
    grads, other = run(((),), z, np.ones(1)), run(((),), z, np.zeros(1))
    sigmoid = named_chain("z", y=bp.sigmoid())
    separate = compile_gradients(differentiate, sigmoid, CROSS_ENTROPY)({"y": ()}, z, d[None])
    return {
        "Y": separate.values["y"],
        "KL": grads.value,
        "dKL_dY": separate.adjoints["y"],
        "dKL_dz": grads.dx,
        "KL_d0": other.value,
        "dKL_dz_d0": other.dx,
    }


def digit_softmax_kl(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate the KL divergence of K softmax outputs: dKL/dz = Y - d; KL = log K at z = 0."""
    run, d = compile_gradients(differentiate, IDENTITY, SOFTMAX_KL), inputs["d"][None]
    grads, chance = run(((),), inputs["z"][None], d), run(((),), np.zeros_like(d), d)
    return {
        "Y": bp.softmax().forward((), inputs["z"])[0],
        "KL": grads.value,
        "dKL_dz": grads.dx,
        "chance_loss": chance.value,
    }


def multiplicative_prod_pow(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate y_i = Π_l z_l^α_li by z and by α.

    The lecture's form of the derivative, y_i α_ji / z_j, needs z_j ≠ 0.
    """
    alpha, z = inputs["alpha"], inputs["z"]
    grads = jacobian(bp.power_product(3, 2), z, 2, differentiate, {"alpha": alpha})
    y = grads.values["power_product1"][0]
    return {
        "y": y,
        "dy_dz": grads.dx,
        "dy_dz_alt": y[:, None] * alpha.T / z,
        "dy_dalpha": grads.dparams[0]["alpha"].T,
    }


def multiplicative_pairs(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate y_i = z_{2i-1} z_{2i}."""
    grads = vjp(
        bp.pairwise_product(), inputs["y_prev"][None], inputs["upstream"][None], differentiate
    )
    return {"y": grads.values["pairwise_product1"], "d_prev": grads.dx}


def relu_at_0(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Compute the one-sided derivatives of relu at 0 and the subgradients of several libraries."""
    z, step = inputs["z"][None], 1e-3
    left = derivative_of(bp.relu(), z - step, differentiate)
    right = derivative_of(bp.relu(), z + step, differentiate)
    return {
        "left": left,
        "right": right,
        "subgradient_lo": left,
        "subgradient_hi": right,
        "seed_choice": derivative_of(bp.relu(at_zero=1), z, hand_written),
        "jax_nn_relu": derivative_of(bp.relu(), z, hand_written),
        "jnp_maximum_x_0": derivative_of(bp.relu(), z, autodiff),
        "central_difference": derivative_of(bp.relu(), z, finite_differences),
    }


def max_subset(inputs: Inputs, differentiate: Differentiator) -> Quantities:
    """Differentiate y_j = max over S_j; ties share the gradient.

    The lecture's argmax takes the first of the largest: here the others are made slightly lower.
    """
    subsets = [[int(i) for i in subset] for subset in inputs["subsets"].values()]
    layer, z = bp.max_over(subsets), inputs["z"]
    return {
        "y": layer.forward((), z[None])[0],
        "J_jnp_max": jacobian(layer, z, 2, differentiate).dx,
        "J_argmax": jacobian(layer, z - 1e-3 * np.arange(len(z)), 2, differentiate).dx,
    }
