"""The gradient of images' similarity to a text, with CLIP at its published size, against torch on the same checkpoint.

Weights are random, drawn and saved by `transformers` and read by `load_clip`. The direction of the text is computed once; measured is one
gradient of the summed similarities with respect to the images, which is what every step of `generate` takes.

    ViT-B/32, 1 image and 8 images: at most 1.1 of torch's CPU time, one thread each

Where torch and transformers are not installed (the extra "parity"), the tower is `models.vit` at that size, and the baseline is the
similarity without its gradient.
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import diffprog as dp
from experiments.benchmarks.harness import Comparison, compare

SIDE, PATCH, WIDTH, DEPTH, HEADS, FEATURES = 224, 32, 768, 12, 12, 512
TEXT, VOCABULARY = "a", {"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}


def main(fast: bool) -> dict[str, Comparison]:
    """Compare gradients of one image and of eight."""
    depth, rounds = (1, 1) if fast else (DEPTH, 15)
    tower, direction, network = _with_torch(depth) if _torch_is_there() else _alone(depth)
    return {
        f"similarity gradient, {count} images": _compared(tower, direction, network, count, rounds)
        for count in (1, 8)
    }


def _compared(
    tower: dp.Program, direction: jax.Array, network: Any, count: int, rounds: int
) -> Comparison:
    images = jax.random.uniform(jax.random.key(0), (count, SIDE, SIDE, 3))
    contenders: dict[str, Callable[[], Any]] = {
        "diffprog": lambda: gradient(tower, direction, images),
        "diffprog, no gradient": lambda: similarity(tower, direction, images),
    }
    if network is None:
        return compare(contenders, baseline="diffprog, no gradient", rounds=rounds, warmup=2)
    return compare(
        contenders | {"torch": _of_torch(network, direction, images)},
        baseline="torch",
        rounds=rounds,
        warmup=2,
    )


@jax.jit
def similarity(tower: dp.Program, direction: jax.Array, images: jax.Array) -> jax.Array:
    """The sum over the images of the cosine of their features and a unit direction."""
    features = tower(images)
    return (features @ direction / jnp.linalg.norm(features, axis=1)).sum()


gradient = jax.jit(jax.grad(similarity, argnums=2))


def _alone(depth: int) -> tuple[dp.Program, jax.Array, None]:
    model = dp.models.vit(
        (SIDE, SIDE, 3),
        patch=PATCH,
        width=WIDTH,
        depth=depth,
        heads=HEADS,
        outputs=FEATURES,
        activation="quick_gelu",
        norm_first=True,
    )
    return (
        dp.program(model.apply, model.init(jax.random.key(0))),
        jnp.full(FEATURES, FEATURES**-0.5),
        None,
    )


def _torch_is_there() -> bool:
    return all(
        importlib.util.find_spec(package)
        for package in ("torch", "transformers", "safetensors", "tokenizers")
    )


def _with_torch(depth: int) -> tuple[dp.Program, jax.Array, Any]:
    """The image tower and the direction of a text that `load_clip` makes of a checkpoint, and the model that saved it."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    vision = {
        "hidden_size": WIDTH,
        "num_hidden_layers": depth,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    text = {
        "num_hidden_layers": depth,
        "vocab_size": len(VOCABULARY),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    network = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=FEATURES)
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        transformers.CLIPImageProcessor().save_pretrained(folder)
        (Path(folder) / "vocab.json").write_text(json.dumps(VOCABULARY))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        towers = dp.contrastive.load_clip(folder)
    features = towers.text(jnp.asarray(towers.tokenizer.encode([TEXT])))[0]
    return towers.image, features / jnp.linalg.norm(features), network.requires_grad_(False)


def _of_torch(network: Any, direction: jax.Array, images: jax.Array) -> Callable[[], Any]:
    """The same gradient as users of transformers take it."""
    import numpy as np
    import torch
    import transformers

    processor = transformers.CLIPImageProcessor()
    mean, deviation = (
        torch.tensor(each)[:, None, None] for each in (processor.image_mean, processor.image_std)
    )
    toward, start = (
        torch.tensor(np.asarray(direction)),
        torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).contiguous(),
    )

    def made() -> Any:
        x = start.clone().requires_grad_()
        features = network.get_image_features(pixel_values=(x - mean) / deviation)
        features = getattr(features, "pooler_output", features)  # of newer versions
        return torch.autograd.grad((features @ toward / features.norm(dim=1)).sum(), x)[0].numpy()

    return made
