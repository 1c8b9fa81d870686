"""Deep dream: a photograph, and more of what a network sees in it.

    python -m experiments.deep_dream [--fast]

has a small network learn, from scikit-learn's two photographs, which of them a patch comes from and how it was turned (nothing needs to be
labelled or downloaded); then ascends what its layers see, on the whole photograph, from a small size to the full one. Writes
results/deep_dream/: the dreams of each layer, numbers.json and index.html.
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

TILE, BATCH, TURNS = 48, 64, 4
MODEL = dp.models.cnn((TILE, TILE, 3), channels=(16, 32, 64), hidden=(64,), classes=2 * TURNS)
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
NODES = ("conv2", "conv3")
TRAINING_STEPS, OCTAVES, STEPS, RATE = 500, 4, 16, 0.006


def photographs() -> list[jax.Array]:
    """Both photographs, (height, width, 3), in [0, 1]."""
    return [jnp.asarray(load_sample_image(name) / 255, jnp.float32) for name in PHOTOGRAPHS]


def patches(photos: list[jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A batch of patches at random places, sizes and turns, and the class of each: photograph and quarter turns."""
    photo_key, turn_key, size_key, place_key = jax.random.split(key, 4)
    photo, turn = (
        jax.random.randint(photo_key, (BATCH,), 0, len(photos)),
        jax.random.randint(turn_key, (BATCH,), 0, TURNS),
    )
    zoom = jnp.exp(jax.random.uniform(size_key, (BATCH,), minval=jnp.log(0.4), maxval=0.0))
    places = jax.random.uniform(place_key, (BATCH, 2))
    both = jnp.stack([photos[0], photos[1]])

    def patch(photo: jax.Array, turn: jax.Array, zoom: jax.Array, place: jax.Array) -> jax.Array:
        room = zoom * jnp.asarray(both.shape[1:3]) - TILE
        shape = (TILE, TILE, 3)
        cut = jax.image.scale_and_translate(
            both[photo], shape, (0, 1), jnp.full(2, zoom), -place * room, "linear", antialias=False
        )
        return jax.lax.switch(turn, [lambda p, k=k: jnp.rot90(p, k) for k in range(TURNS)], cut)

    return jax.vmap(patch)(photo, turn, zoom, places), TURNS * photo + turn


def train(photos: list[jax.Array], steps: int, key: jax.Array) -> tuple[dp.Program, float]:
    """The trained network and its accuracy on new patches."""
    init_key, patch_key, test_key = jax.random.split(key, 3)

    def cost(params: Any, key: jax.Array) -> jax.Array:
        x, y = patches(photos, key)
        return dp.losses.softmax_cross_entropy(MODEL.apply(params, x), y).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    result = dp.descent.run(
        dp.descent.descent(cost, optimizer),
        MODEL.init(init_key),
        jax.random.split(patch_key, steps),
    )
    network = dp.program(MODEL.apply, result.variable)
    x, y = patches(photos, test_key)
    return network, float((network(x).argmax(-1) == y).mean())


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, dream, and write it all to `folder`; returns the numbers."""
    train_key, dream_key = jax.random.split(jax.random.key(seed))
    training, octaves, steps = (5, 2, 1) if fast else (TRAINING_STEPS, OCTAVES, STEPS)
    photos = photographs()
    network, accuracy = train(photos, training, train_key)
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
    rises = {
        f"{name}, {node}": [float(dream.history[-1, 0]), float(dream.history[-1, -1])]
        for (name, node), dream in dreams.items()
    }
    numbers = {
        "accuracy on patches": accuracy,
        "mean square at the first and last step of the last octave": rises,
    }
    write(folder, numbers, photos, dreams)
    return numbers


def write(
    folder: Path,
    numbers: dict[str, Any],
    photos: list[jax.Array],
    dreams: dict[tuple[str, str], vis.Dream],
) -> None:
    """Each photograph beside its dreams, as one figure; the numbers; the page."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for name, photo in zip(PHOTOGRAPHS, photos, strict=True):
        shown = np.stack([photo, *(dreams[name, node].image for node in NODES)])
        figure = dp.plotting.draw_images(
            shown, ["the photograph", *(f"more of {node}" for node in NODES)], columns=3
        )
        figure.savefig(folder / f"{Path(name).stem}.png", dpi=200)
        sections.append(
            Section(
                name,
                "The photograph, and what ascent of the mean square of a layer makes of it.",
                figure,
            )
        )
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    page = dp.plotting.write_page(
        folder / "index.html", "Deep dream", sections, summary="A photograph is the free variable."
    )
    print(f"patches recognised: {numbers['accuracy on patches']:.0%}")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/deep_dream"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
