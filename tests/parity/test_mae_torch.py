"""Masked autoencoding against transformers' ViTMAEForPreTraining, random weights, the same masks. No network is used.

Features, loss, pixels: float32, 1e-5. Loss and the gradient of every parameter: float64, 1e-8.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.augment import CropRecipe
from cxr_jax.export.mapping import flatten
from cxr_jax.objectives.mae import MaskedAutoencoder
from tests.models.test_positions import published_sincos

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")
transformers = pytest.importorskip("transformers", reason="the reference; requirements-test.txt installs it")

ROWS, SIZE, PATCH, WIDTH, HEADS, DEPTH = 3, 32, 8, 24, 2, 2
DECODER = {"width": 16, "depth": 2, "num_heads": 4}
GRID, RATIO = SIZE // PATCH, 0.75
VISIBLE = GRID**2 // 4


class GivenMasks(MaskedAutoencoder):
    """The objective on crops and masks that the batch brings."""

    def views(self, batch, key, layout=None):
        return batch["crops"], batch["visible"], batch["place"]


def make_objective(dtype, normalise_targets):
    dtypes = {"param_dtype": dtype, "compute_dtype": dtype, "reduce_dtype": dtype}
    model = {
        "image_size": SIZE,
        "patch_size": PATCH,
        "width": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "ffn": "mlp",
        "num_registers": 0,
        "layer_scale": None,
        "positions": "sincos",
        **dtypes,
    }
    decoder = DECODER | dtypes | {"encoder_width": WIDTH, "patch_size": PATCH}
    return GivenMasks(model, decoder, CropRecipe(SIZE, (0.2, 1.0)), RATIO, normalise_targets)


def make_theirs(normalise_targets, dtype):
    """transformers' model with random weights of a size that matters, and the published positions."""
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            layer_norm_eps=1e-6,
            image_size=SIZE,
            patch_size=PATCH,
            num_channels=1,
            decoder_hidden_size=DECODER["width"],
            decoder_num_hidden_layers=DECODER["depth"],
            decoder_num_attention_heads=DECODER["num_heads"],
            decoder_intermediate_size=4 * DECODER["width"],
            mask_ratio=RATIO,
            norm_pix_loss=normalise_targets,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_embeddings" not in name and "pos_embed" not in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape) + ("norm" in name and name.endswith("weight")))
        model = model.to(getattr(torch, dtype))
        # Their tables are parameters, left at 0 by some versions of transformers.
        for tables, width in (
            (model.vit.embeddings.position_embeddings, WIDTH),
            (model.decoder.decoder_pos_embed, DECODER["width"]),
        ):
            tables.copy_(torch.from_numpy(published_sincos(GRID, width))[None])
    return model


def linear(weight, bias):
    """torch's `[out, in]` weight and bias as ours."""
    return {"kernel": weight.T, "bias": bias}


def block_arrays(layer, heads):
    """One of their layers as arrays of ours, without the layer axis."""
    at = layer.attention
    width = at.q_proj.weight.shape[1]
    qkv = [p.weight.T.reshape(width, heads, -1) for p in (at.q_proj, at.k_proj, at.v_proj)]
    biases = [p.bias.reshape(heads, -1) for p in (at.q_proj, at.k_proj, at.v_proj)]
    return {
        "norm1": {"scale": layer.layernorm_before.weight, "bias": layer.layernorm_before.bias},
        "attn": {
            "qkv": {"kernel": torch.stack(qkv, 1), "bias": torch.stack(biases)},
            "proj": {"kernel": at.o_proj.weight.T.reshape(heads, -1, width), "bias": at.o_proj.bias},
        },
        "norm2": {"scale": layer.layernorm_after.weight, "bias": layer.layernorm_after.bias},
        "mlp": {
            "w_in": linear(layer.mlp.fc1.weight, layer.mlp.fc1.bias),
            "w_out": linear(layer.mlp.fc2.weight, layer.mlp.fc2.bias),
        },
    }


def stack(layers, heads):
    return jax.tree.map(lambda *leaves: torch.stack(leaves), *(block_arrays(layer, heads) for layer in layers))


def as_ours(model):
    """All of their parameters under our paths and in our shapes, as torch tensors that keep the graph."""
    embeddings, projection = model.vit.embeddings, model.vit.embeddings.patch_embeddings.projection
    decoder = model.decoder
    return {
        "backbone": {
            "cls_token": embeddings.cls_token[0, 0],
            "mask_token": torch.zeros(WIDTH, dtype=model.dtype),
            "patch_embed": linear(projection.weight.reshape(WIDTH, -1), projection.bias),
            "blocks": stack(model.vit.layers, HEADS),
            "norm": {"scale": model.vit.layernorm.weight, "bias": model.vit.layernorm.bias},
        },
        "decoder": {
            "embed": linear(decoder.decoder_embed.weight, decoder.decoder_embed.bias),
            "mask_token": decoder.mask_token[0, 0],
            "blocks": stack(decoder.decoder_layers, DECODER["num_heads"]),
            "norm": {"scale": decoder.decoder_norm.weight, "bias": decoder.decoder_norm.bias},
            "pred": linear(decoder.decoder_pred.weight, decoder.decoder_pred.bias),
        },
    }


def to_jax(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.detach().numpy()), tree)


def make_inputs(dtype):
    """Crops, noise, and what of it the batch gives to our side: the order of the noise."""
    rng = np.random.default_rng(0)
    crops, noise = rng.standard_normal((ROWS, SIZE, SIZE)).astype(dtype), rng.random((ROWS, GRID**2))
    crops[0, :PATCH, :PATCH] = 0.5  # a flat patch: its variance is 0
    order = noise.argsort(1)
    batch = {"crops": crops, "visible": order[:, :VISIBLE], "place": order.argsort(1)}
    return torch.from_numpy(crops)[:, None], torch.from_numpy(noise), {k: jnp.asarray(v) for k, v in batch.items()}


@pytest.mark.parametrize("normalise_targets", [True, False])
def test_features_pixels_and_loss_are_theirs(normalise_targets):
    objective, theirs = make_objective("float32", normalise_targets), make_theirs(normalise_targets, "float32").eval()
    params = to_jax(as_ours(theirs))
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    pixels, noise, batch = make_inputs("float32")
    with torch.no_grad():
        tokens = theirs.vit(pixels, noise=noise).last_hidden_state.numpy()
        reference = theirs(pixels, noise=noise)

    @jax.jit
    def run(params):
        painted, seen = objective.predict(params, batch["crops"], batch["visible"], batch["place"])
        return seen, painted, objective.loss(params, {}, batch, jax.random.key(0), jnp.asarray(0))

    seen, painted, (loss, aux) = run(params)
    assert seen.patches.shape == (1, ROWS, VISIBLE, WIDTH) and tokens.shape == (ROWS, 1 + VISIBLE, WIDTH)
    np.testing.assert_allclose(seen.cls[0], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(seen.patches[0], tokens[:, 1:], atol=1e-5)
    np.testing.assert_allclose(painted, reference.logits, atol=1e-5)
    assert float(loss) == pytest.approx(reference.loss.item(), rel=1e-5)
    assert float(aux.metrics["reconstruction_loss"]) == float(loss)


def test_float64_loss_and_gradients_are_theirs():
    with jax.enable_x64(True):
        objective, theirs = make_objective("float64", True), make_theirs(True, "float64")
        params = to_jax(as_ours(theirs))
        pixels, noise, batch = make_inputs("float64")
        reference = theirs(pixels, noise=noise).loss
        reference.backward()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        expected = flatten(to_jax(as_ours(theirs)))

        @jax.jit
        def run(params):
            step = (batch, jax.random.key(0), jnp.asarray(0))
            return jax.value_and_grad(lambda p: objective.loss(p, {}, *step), has_aux=True)(params)

        (loss, _), grads = run(params)
        assert float(loss) == pytest.approx(reference.item(), rel=1e-8)
        for name, grad in flatten(grads).items():
            assert grad.dtype == jnp.float64
            # The encoder has no use for its own mask token, which iBOT needs.
            assert np.asarray(grad).any() != (name == "backbone/mask_token"), name
            np.testing.assert_allclose(grad, expected[name], atol=1e-8 * np.abs(expected[name]).max(), err_msg=name)
