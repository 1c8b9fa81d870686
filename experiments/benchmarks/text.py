"""Compare the gradient of the similarity of images and a text under CLIP with torch.

CLIP has its published size; its random weights are made and saved by `transformers` and loaded by
`load_clip`. Measured is one gradient of the summed similarities with respect to the images, as in
every step of `generate`; the embedding of the text is computed once. Target for ViT-B/32:

    1 image and 8 images: at most 1.1 of torch's CPU time, one thread each

Without torch and transformers (the extra "parity"), the image encoder is `models.vit` at that size,
and the baseline is the similarity without its gradient.
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
    packages = ("torch", "transformers", "safetensors", "tokenizers")
    has_torch = all(importlib.util.find_spec(package) for package in packages)
    encoder, direction, network = _load_with_torch(depth) if has_torch else _make_vit(depth)
    return {
        f"similarity gradient, {count} images": _case(encoder, direction, network, count, rounds)
        for count in (1, 8)
    }


def _case(
    encoder: dp.Program, direction: jax.Array, network: Any, count: int, rounds: int
) -> Comparison:
    images = jax.random.uniform(jax.random.key(0), (count, SIDE, SIDE, 3))
    contenders: dict[str, Callable[[], Any]] = {
        "diffprog": lambda: gradient(encoder, direction, images),
        "diffprog, no gradient": lambda: similarity(encoder, direction, images),
    }
    if network is None:
        return compare(contenders, baseline="diffprog, no gradient", rounds=rounds, warmup=2)
    contenders["torch"] = _torch_gradient(network, direction, images)
    return compare(contenders, baseline="torch", rounds=rounds, warmup=2)


@jax.jit
def similarity(encoder: dp.Program, direction: jax.Array, images: jax.Array) -> jax.Array:
    """Return the summed cosine similarities of the image embeddings and a unit direction."""
    features = encoder(images)
    return (features @ direction / jnp.linalg.norm(features, axis=1)).sum()


gradient = jax.jit(jax.grad(similarity, argnums=2))


def _make_vit(depth: int) -> tuple[dp.Program, jax.Array, None]:
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
    encoder = dp.program(model.apply, model.init(jax.random.key(0)))
    return encoder, jnp.full(FEATURES, FEATURES**-0.5), None


def _load_with_torch(depth: int) -> tuple[dp.Program, jax.Array, Any]:
    """Load a torch model by `load_clip`; return image encoder, text direction and the model."""
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
        encoders = dp.contrastive.load_clip(folder)
    features = encoders.text(jnp.asarray(encoders.tokenizer.encode([TEXT])))[0]
    return encoders.image, features / jnp.linalg.norm(features), network.requires_grad_(False)


def _torch_gradient(network: Any, direction: jax.Array, images: jax.Array) -> Callable[[], Any]:
    """Compute the same gradient with transformers."""
    import numpy as np
    import torch
    import transformers

    processor = transformers.CLIPImageProcessor()
    mean, deviation = (
        torch.tensor(each)[:, None, None] for each in (processor.image_mean, processor.image_std)
    )
    text = torch.tensor(np.asarray(direction))
    start = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).contiguous()

    def compute() -> Any:
        x = start.clone().requires_grad_()
        features = network.get_image_features(pixel_values=(x - mean) / deviation)
        features = getattr(features, "pooler_output", features)  # of newer versions
        return torch.autograd.grad((features @ text / features.norm(dim=1)).sum(), x)[0].numpy()

    return compute
