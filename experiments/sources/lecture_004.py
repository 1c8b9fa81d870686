"""The examples of lecture 004: vector and multiplicative activations, subgradients, divergences."""

import numpy as np

from diffprog import backprop as bp
from experiments.sources.differentiators import (
    Route,
    by_autodiff,
    by_differences,
    by_hand,
    compiled,
)
from experiments.sources.helpers import (
    IDENTITY,
    SQUARES,
    SURPRISE,
    Given,
    Quantities,
    in_line,
    jacobian,
    pulled,
    slopes,
)


def gd_convergence_rule(given: Given, route: Route) -> Quantities:
    """do theta = theta - eta dL/dtheta while |L_k - L_{k-1}| > eps, on L = theta^2 / 2."""
    run, zero, theta = (
        compiled(route, IDENTITY, SQUARES),
        np.zeros((1, 1)),
        given["theta0"][None, None],
    )
    losses, found = [np.inf], run(((),), theta, zero)
    while len(losses) == 1 or abs(float(found.value) - losses[-1]) > given["eps"]:
        losses.append(float(found.value))
        theta = theta - given["eta"] * np.asarray(found.dx)
        found = run(((),), theta, zero)
    return {"iterations": len(losses) - 1, "final_theta": theta, "final_loss": found.value}


def softmax_jacobian(given: Given, route: Route) -> Quantities:
    """A vector activation has a full Jacobian, y_i (d_ij - y_j); under cross-entropy it leaves y - d."""
    z, d = given["z"], given["onehot"][None]
    whole = jacobian(bp.softmax(), z, 3, route).dx
    fused = compiled(route, IDENTITY, bp.sum_over_examples(bp.softmax_kl()))(((),), z[None], d)
    apart = compiled(route, in_line("z", y=bp.softmax()), SURPRISE)({"y": ()}, z[None], d)
    return {
        "y": apart.values["y"],
        "J": whole,
        "rowsum": whole.sum(1),
        "dCE_dz": fused.dx,
        "dCE_dy": apart.adjoints["y"],
        "dCE_via_J": apart.dx,
    }


def two_or_not_two(given: Given, route: Route) -> Quantities:
    """One sigmoid and the KL divergence: dKL/dz = Y - d."""
    z, run = given["z"][None], compiled(route, IDENTITY, bp.sum_over_examples(bp.sigmoid_kl()))
    found, other = run(((),), z, np.ones(1)), run(((),), z, np.zeros(1))
    apart = compiled(route, in_line("z", y=bp.sigmoid()), SURPRISE)({"y": ()}, z, given["d"][None])
    quantities = {
        "Y": apart.values["y"],
        "KL": found.value,
        "dKL_dY": apart.adjoints["y"],
        "dKL_dz": found.dx,
    }
    return quantities | {"KL_d0": other.value, "dKL_dz_d0": other.dx}


def digit_softmax_kl(given: Given, route: Route) -> Quantities:
    """Ten or eleven softmax outputs and the KL divergence: dKL/dz = Y - d, and at chance the loss is log K."""
    run, d = compiled(route, IDENTITY, bp.sum_over_examples(bp.softmax_kl())), given["d"][None]
    found, chance = run(((),), given["z"][None], d), run(((),), np.zeros_like(d), d)
    return {
        "Y": bp.softmax().forward((), given["z"])[0],
        "KL": found.value,
        "dKL_dz": found.dx,
        "chance_loss": chance.value,
    }


def multiplicative_prod_pow(given: Given, route: Route) -> Quantities:
    """y_i = prod_l z_l^alpha_li by z and by alpha; the printed form of the derivative is y_i alpha_ji / z_j where z is not 0."""
    alpha, z = given["alpha"], given["z"]
    found = jacobian(bp.power_product(3, 2), z, 2, route, {"alpha": alpha})
    y = found.values["power_product1"][0]
    divided = y[:, None] * alpha.T / z
    return {
        "y": y,
        "dy_dz": found.dx,
        "dy_dz_alt": divided,
        "dy_dalpha": found.dparams[0]["alpha"].T,
    }


def multiplicative_pairs(given: Given, route: Route) -> Quantities:
    """y_i = z_{2i-1} z_{2i}."""
    found = pulled(bp.pairwise_product(), given["y_prev"][None], given["upstream"][None], route)
    return {"y": found.values["pairwise_product1"], "d_prev": found.dx}


def relu_at_0(given: Given, route: Route) -> Quantities:
    """At the kink every slope between the left and the right one is a subgradient; each library chooses."""
    z, little = given["z"][None], 1e-3
    left, right = slopes(bp.relu(), z - little, route), slopes(bp.relu(), z + little, route)
    return {
        **{"left": left, "right": right, "subgradient_lo": left, "subgradient_hi": right},
        "seed_choice": slopes(bp.relu(at_zero=1), z, by_hand),
        "jax_nn_relu": slopes(bp.relu(), z, by_hand),
        "jnp_maximum_x_0": slopes(bp.relu(), z, by_autodiff),
        "central_difference": slopes(bp.relu(), z, by_differences),
    }


def max_subset(given: Given, route: Route) -> Quantities:
    """y_j = max over S_j. Ties are shared; the lecture's argmax, the first of the largest, is found with the others a little lower."""
    layer, z = (
        bp.max_over([[int(i) for i in subset] for subset in given["subsets"].values()]),
        given["z"],
    )
    return {
        "y": layer.forward((), z[None])[0],
        "J_jnp_max": jacobian(layer, z, 2, route).dx,
        "J_argmax": jacobian(layer, z - 1e-3 * np.arange(len(z)), 2, route).dx,
    }
