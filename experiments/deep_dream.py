"""Run DeepDream on two photographs, with a network trained on patches of them.

    python -m experiments.deep_dream [--fast]

A small network learns which of scikit-learn's two photographs a patch comes from, and by how many
quarter turns it was rotated; this needs no labels and no download. Gradient ascent then raises the
mean squared activation of a layer over the whole photograph, from a small size to the full one.
Writes results/deep_dream/: the result for each layer, numbers.json and index.html.

For your own network, change `MODEL` and `NODES`; for your own photographs, `load_photographs`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_sample_image

import diffprog as dp
from diffprog.plotting import Section

vis = dp.visualization

TILE, BATCH_SIZE, ROTATIONS = 48, 64, 4
MODEL = dp.models.cnn((TILE, TILE, 3), channels=(16, 32, 64), hidden=(64,), classes=2 * ROTATIONS)
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
NODES = ("conv2", "conv3")
TRAINING_STEPS, OCTAVES, STEPS, RATE = 500, 4, 16, 0.006


def load_photographs() -> list[jax.Array]:
    """Load both photographs, (height, width, 3), in [0, 1]."""
    return [jnp.asarray(load_sample_image(name) / 255, jnp.float32) for name in PHOTOGRAPHS]


def sample_patches(photos: list[jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sample patches of random position, size and rotation, and the class of each."""
    photo_key, rotation_key, zoom_key, position_key = jax.random.split(key, 4)
    photo = jax.random.randint(photo_key, (BATCH_SIZE,), 0, len(photos))
    rotation = jax.random.randint(rotation_key, (BATCH_SIZE,), 0, ROTATIONS)
    log_zoom = jax.random.uniform(zoom_key, (BATCH_SIZE,), minval=jnp.log(0.4), maxval=0.0)
    position = jax.random.uniform(position_key, (BATCH_SIZE, 2))
    stacked = jnp.stack(photos)

    def cut(
        photo: jax.Array, rotation: jax.Array, zoom: jax.Array, position: jax.Array
    ) -> jax.Array:
        shift = -position * (zoom * jnp.asarray(stacked.shape[1:3]) - TILE)
        shape, scale = (TILE, TILE, 3), jnp.full(2, zoom)
        patch = jax.image.scale_and_translate(
            stacked[photo], shape, (0, 1), scale, shift, "linear", antialias=False
        )
        rotations = [lambda p, k=k: jnp.rot90(p, k) for k in range(ROTATIONS)]
        return jax.lax.switch(rotation, rotations, patch)

    patches = jax.vmap(cut)(photo, rotation, jnp.exp(log_zoom), position)
    return patches, ROTATIONS * photo + rotation


def train(photos: list[jax.Array], steps: int, key: jax.Array) -> tuple[dp.Program, float]:
    """Train the network, and return it with its accuracy on new patches."""
    init_key, patch_key, test_key = jax.random.split(key, 3)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        x, y = sample_patches(photos, key)
        return dp.losses.softmax_cross_entropy(MODEL.apply(params, x), y).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    descent = dp.descent.descent(loss, optimizer)
    keys = jax.random.split(patch_key, steps)
    result = dp.descent.run(descent, MODEL.init(init_key), keys)
    network = dp.program(MODEL.apply, result.variable)
    x, y = sample_patches(photos, test_key)
    return network, float((network(x).argmax(-1) == y).mean())


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, run DeepDream, write the results to `folder`, and return the numbers."""
    training_steps, octaves, steps = (5, 2, 1) if fast else (TRAINING_STEPS, OCTAVES, STEPS)
    train_key, dream_key = jax.random.split(jax.random.key(seed))
    photos = load_photographs()
    network, accuracy = train(photos, training_steps, train_key)
    dreams = {
        (name, node): vis.dream(
            network,
            vis.deep_dream(node),
            photo,
            key=dream_key,
            tile=(TILE, TILE),
            octaves=octaves,
            steps=steps,
            rate=RATE,
        )
        for name, photo in zip(PHOTOGRAPHS, photos, strict=True)
        for node in NODES
    }
    numbers = {
        "accuracy on patches": accuracy,
        "mean square at the first and last step of the last octave": {
            f"{name}, {node}": [float(dream.history[-1, 0]), float(dream.history[-1, -1])]
            for (name, node), dream in dreams.items()
        },
    }
    write(folder, numbers, photos, dreams)
    return numbers


def write(
    folder: Path,
    numbers: dict[str, Any],
    photos: list[jax.Array],
    dreams: dict[tuple[str, str], vis.Dream],
) -> None:
    """Write the figures, the numbers and the page, and print the accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    sections = []
    for name, photo in zip(PHOTOGRAPHS, photos, strict=True):
        images = np.stack([photo, *(dreams[name, node].image for node in NODES)])
        titles = ["photograph", *(f"DeepDream, {node}" for node in NODES)]
        figure = dp.plotting.draw_images(images, titles, columns=3)
        figure.savefig(folder / f"{Path(name).stem}.png", dpi=200)
        text = "The photograph, and the result of raising the mean squared activation of a layer."
        sections.append(Section(name, text, figure))
    page = dp.plotting.write_page(
        folder / "index.html",
        "DeepDream",
        sections,
        summary="Gradient ascent on a layer of a network, starting from a photograph.",
    )
    print(f"accuracy on new patches: {numbers['accuracy on patches']:.0%}")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/deep_dream"))
    main(**vars(parser.parse_args()))
