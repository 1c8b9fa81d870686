"""Loading residual networks, against unfolded layers and (slow) against transformers."""

import jax
import numpy as np
import pytest
from jax import lax

import diffprog as dp
from diffprog.pretrained import load_resnet
from tests.pretrained import folders

IMAGES = np.random.default_rng(1).uniform(size=(2, 19, 22, 3)).astype(np.float32)
TENSORS = folders.random(folders.resnet_shapes())


def run(program, x):
    return jax.jit(lambda program, x: program(x))(program, x)


def conv(name, x, stride):
    """Apply a convolution, then its batch norm, channels first."""
    kernel = TENSORS[f"{name}.convolution.weight"]
    z = lax.conv(
        np.pad(x, [(0, 0), (0, 0), *[(kernel.shape[2] // 2,) * 2] * 2]),
        kernel,
        (stride, stride),
        "VALID",
    )
    scale, shift, mean, variance = (
        TENSORS[f"{name}.normalization.{each}"][:, None, None]
        for each in ("weight", "bias", "running_mean", "running_var")
    )
    return scale * (z - mean) / np.sqrt(variance + 1e-5) + shift


def test_logits_agree_with_unfolded_batch_norms(tmp_path):
    x = np.moveaxis(folders.normalize(IMAGES), -1, 1).astype(np.float32)
    x = np.maximum(conv("resnet.embedder.embedder", x, 2), 0)
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((-1, -2))
    for name, stride in (("0.layers.0", 1), ("1.layers.0", 2), ("1.layers.1", 1)):
        block = f"resnet.encoder.stages.{name}"
        h = conv(f"{block}.layer.1", np.maximum(conv(f"{block}.layer.0", x, stride), 0), 1)
        x = np.maximum(h + (conv(f"{block}.shortcut", x, stride) if name == "1.layers.0" else x), 0)
    preprocessing = folders.PREPROCESSING | {"size": {"shortest_edge": 32}}
    loaded = load_resnet(folders.write(tmp_path, folders.RESNET, TENSORS, preprocessing))
    logits = folders.dense(TENSORS, "classifier.1", x.mean((2, 3)))
    np.testing.assert_allclose(run(loaded.program, IMAGES), logits, rtol=1e-4, atol=1e-5)
    assert loaded.classes == ("cat", "dog", "newt")
    assert loaded.shape == (32, 32, 3)


def test_nodes_are_named_by_stage_and_block(tmp_path):
    loaded = load_resnet(folders.write(tmp_path, folders.RESNET, TENSORS))
    names = dp.nodes.names(loaded.program, IMAGES)
    blocks = [(s, k) for s, k in ((0, 0), (1, 0), (1, 1))]
    parts = [f"stage{s}.block{k}{part}" for s, k in blocks for part in (".conv0", ".conv1", "")]
    assert list(names) == ["stem", *parts, "pooled", "logits"]
    assert names["stage1.block0.conv0"].shape == (2, 3, 3, 8)
    out, values = dp.nodes.read(loaded.program, ["stage1.block1"])(IMAGES)
    logits = folders.dense(TENSORS, "classifier.1", values["stage1.block1"].mean((1, 2)))
    np.testing.assert_allclose(out, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("early", "sides"), [(True, [3, 3, 3]), (False, [5, 3, 3])])
def test_the_config_states_which_layer_of_a_bottleneck_has_the_stride(tmp_path, early, sides):
    config = folders.RESNET | {"layer_type": "bottleneck", "downsample_in_bottleneck": early}
    loaded = load_resnet(
        folders.write(tmp_path, config, folders.random(folders.resnet_shapes(bottleneck=True)))
    )
    names = dp.nodes.names(loaded.program, IMAGES)
    assert [names[f"stage1.block0.conv{k}"].shape[1] for k in range(3)] == sides


@pytest.mark.slow
def test_channels_can_be_visualized(tmp_path):
    loaded = load_resnet(folders.write(tmp_path, folders.RESNET, TENSORS))
    channel = dp.visualization.channel("stage1.block0.conv0", [0, 5])
    image = dp.visualization.pixels((16, 16, 3))
    result = dp.visualization.visualize(
        loaded.program, channel, image, key=jax.random.key(0), steps=20
    )
    assert result.images.shape == (2, 16, 16, 3)
    assert (result.scores > result.history[0]).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"}, "expected a model_type 'resnet', found 'vit'"),
        (
            {"layer_type": "other"},
            "expected a layer_type 'basic' or 'bottleneck', .* found layer_type 'other'",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'relu', .* hidden_act 'gelu'"),
        ({"depths": [1]}, "as many hidden_sizes as depths"),
        ({"depths": [1, 0]}, "as many hidden_sizes as depths"),
        ({"num_channels": 0}, "expected num_channels to be a positive integer"),
        (
            {"depths": [1, 1]},
            r"10 unexpected: .*stages.1.layers.1.layer.0.convolution.weight \[8, 8, 3, 3\]",
        ),
        (
            {"layer_type": "bottleneck"},
            r"missing: resnet.encoder.stages.0.layers.0.layer.2.convolution.weight \[4, 1, 1, 1\]",
        ),
        ({"id2label": {"0": "a"}}, r"2 of another shape: classifier.1.bias \[3\] instead of \[1\]"),
    ],
)
def test_refuses_an_invalid_config(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        load_resnet(folders.write(tmp_path, folders.RESNET | config, TENSORS))


def test_refuses_images_with_other_channels(tmp_path):
    loaded = load_resnet(folders.write(tmp_path, folders.RESNET, TENSORS))
    with pytest.raises(
        ValueError,
        match=r"images must have shape \(batch, any, any, 3\) .*, got \[2, 19, 22, 1\]",
    ):
        loaded.program(IMAGES[..., :1])


@pytest.mark.parametrize("shape", [(1, 0, 22, 3), (1, 0, 0, 3)])
def test_refuses_images_without_pixels(tmp_path, shape):
    loaded = load_resnet(folders.write(tmp_path, folders.RESNET, TENSORS))
    with pytest.raises(
        ValueError,
        match=r"images must have shape \(batch, any, any, 3\) for this network, got \[1, 0",
    ):
        loaded.program(np.zeros(shape, np.float32))


def test_refuses_negative_variances(tmp_path):
    name = "resnet.embedder.embedder.normalization.running_var"
    with pytest.raises(
        ValueError,
        match=f"{tmp_path}: expected a tensor {name} of variances, at least 0, found -0.5",
    ):
        load_resnet(
            folders.write(tmp_path, folders.RESNET, TENSORS | {name: np.float32([1, -0.5, 1, 1])})
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"layer_type": "basic"},
        {"layer_type": "bottleneck"},
        {
            "layer_type": "bottleneck",
            "downsample_in_bottleneck": True,
            "downsample_in_first_stage": True,
        },
    ],
)
@pytest.mark.parametrize("kind", ["ResNetForImageClassification", "ResNetModel"])
def test_agrees_with_transformers(tmp_path, kind, config):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "num_labels": 5}
    model = getattr(transformers, kind)(transformers.ResNetConfig(**sizes, **config))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.normal_()
                module.running_var.uniform_(0.5, 2)
    model.eval().save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor().save_pretrained(tmp_path)
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-11)):
        with torch.no_grad(), jax.enable_x64(dtype == "float64"):
            loaded = load_resnet(tmp_path, dtype=dtype)
            mean, deviation = (
                np.array(each)
                for each in (
                    transformers.ConvNextImageProcessor().image_mean,
                    transformers.ConvNextImageProcessor().image_std,
                )
            )
            pixels = torch.tensor(((IMAGES - mean) / deviation).astype(dtype)).permute(0, 3, 1, 2)
            expected = model.to(getattr(torch, dtype))(pixels)
            want = (
                expected.logits
                if hasattr(expected, "logits")
                else expected.pooler_output[..., 0, 0]
            ).numpy()
            np.testing.assert_allclose(
                run(loaded.program, IMAGES.astype(dtype)),
                want,
                rtol=tolerance,
                atol=tolerance * np.abs(want).max(),
            )
    assert loaded.shape == (loaded.shape[0], loaded.shape[0], 3)
