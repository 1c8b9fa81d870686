"""The same work in other toolkits, measured where they are installed (no dependencies).

lucent is measured in two ways: as documented, with a sum of channel objectives, one for each image;
and with a hand-written objective of the whole batch, which avoids backward passes that are zero
except for one image. In both its hidden enlargement to 224 pixels is off.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def torch_training(
    params: Any, x: jax.Array, y: jax.Array, batch: int, steps: int
) -> dict[str, Callable[[], Any]]:
    """Return the eager training of an MLP or a CNN of `dp.models` in torch; {} without torch."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    torch.set_num_threads(1)
    images, labels = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y), dtype=torch.long)
    if images.ndim == 4:
        images = images.permute(0, 3, 1, 2).contiguous()
    activation = torch.nn.ReLU if images.ndim == 4 else torch.nn.Tanh
    sizes = {name: np.shape(layer["weight"]) for name, layer in params.items()}

    def train() -> jax.Array:
        torch.manual_seed(0)
        layers: list[Any] = []
        for name, size in sizes.items():
            if name.startswith("conv"):
                layers += [
                    torch.nn.Conv2d(size[2], size[3], size[0], padding=size[0] // 2),
                    activation(),
                    torch.nn.MaxPool2d(2),
                ]
            else:
                layers += [torch.nn.Flatten(), torch.nn.Linear(size[1], size[0]), activation()]
        network = torch.nn.Sequential(*layers[:-1])
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        epochs = -(-steps * batch // len(images))
        order = torch.cat([torch.randperm(len(images)) for _ in range(epochs)])
        for rows in order[: steps * batch].reshape(-1, batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
        return jax.numpy.asarray(next(network.parameters()).detach().numpy())

    return {"torch, eager": train}


def lucent(
    channels: tuple[int, ...], side: int, units: int, steps: int
) -> dict[str, Callable[[], Any]]:
    """Return lucent's visualization of units of the last convolution; {} without lucent."""
    if importlib.util.find_spec("lucent") is None:
        return {}
    import torch
    from lucent.optvis import objectives, param, render

    torch.manual_seed(0)
    layers: list[tuple[str, Any]] = []
    for number, (inputs, outputs) in enumerate(zip((3, *channels), channels, strict=False), 1):
        layers += [
            (f"conv{number}", torch.nn.Conv2d(inputs, outputs, 3, padding=1)),
            (f"relu{number}", torch.nn.ReLU()),
        ]
    network = torch.nn.Sequential()
    for name, layer in layers:
        network.add_module(name, layer)
    for weight in network.parameters():
        weight.requires_grad_(False)
    node = f"conv{len(channels)}"

    def batch_objective(read: Callable[[str], Any]) -> Any:
        means = read(node).mean((2, 3))
        return -means[torch.arange(units), torch.arange(units)].sum()

    def render_images(objective: Any) -> jax.Array:
        images = render.render_vis(
            network.eval(),
            objective,
            lambda: param.image(side, batch=units),
            thresholds=(steps,),
            preprocess=False,
            progress=False,
            show_image=False,
            fixed_image_size=side,
        )
        return jax.numpy.asarray(images[0])

    documented = objectives.Objective.sum(
        [objectives.channel(node, unit, batch=unit) for unit in range(units)]
    )
    return {
        "lucent, as documented": lambda: render_images(documented),
        "lucent, batch objective": lambda: render_images(batch_objective),
    }
