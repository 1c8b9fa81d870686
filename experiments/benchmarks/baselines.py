"""Other toolkits on the same work, where they are installed; they are no dependencies of this one.

lucent is measured in two ways: as documented, a sum of one channel objective for each image of a batch, and with an objective of the whole
batch written by hand, which spares it the passes that are all zeros but for one image. Both have its hidden enlargement to 224 pixels off.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def torch_training(
    params: Any, x: jax.Array, y: jax.Array, batch: int, steps: int
) -> dict[str, Callable[[], Any]]:
    """Its eager training of the same network, an MLP or a CNN of `dp.models`, with Adam; none where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    torch.set_num_threads(1)
    images, labels = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y), dtype=torch.long)
    if images.ndim == 4:
        images = images.permute(0, 3, 1, 2).contiguous()
    activation = torch.nn.ReLU if images.ndim == 4 else torch.nn.Tanh
    sizes = {name: np.shape(layer["weight"]) for name, layer in params.items()}

    def trained() -> jax.Array:
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
        order = torch.cat(
            [torch.randperm(len(images)) for _ in range(-(-steps * batch // len(images)))]
        )[: steps * batch].reshape(-1, batch)
        for some in order:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[some]), labels[some]).backward()
            optimizer.step()
        return jax.numpy.asarray(next(network.parameters()).detach().numpy())

    return {"torch, eager": trained}


def lucent(
    channels: tuple[int, ...], side: int, units: int, steps: int
) -> dict[str, Callable[[], Any]]:
    """Its images of as many units of the last convolution, by name of the way; none where it is not installed."""
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

    def whole(read: Callable[[str], Any]) -> Any:
        means = read(node).mean((2, 3))
        return -means[torch.arange(units), torch.arange(units)].sum()

    def images_of(objective: Any) -> Callable[[], Any]:
        def made() -> jax.Array:
            options = {
                "thresholds": (steps,),
                "preprocess": False,
                "progress": False,
                "show_image": False,
                "fixed_image_size": side,
            }
            return jax.numpy.asarray(
                render.render_vis(
                    network.eval(), objective, lambda: param.image(side, batch=units), **options
                )[0]
            )

        return made

    documented = objectives.Objective.sum(
        [objectives.channel(node, unit, batch=unit) for unit in range(units)]
    )
    return {
        "lucent, as documented": images_of(documented),
        "lucent, one objective by hand": images_of(whole),
    }
