"""Rotary positions against transformers' DINOv3ViT: the table, and every token of a model. No network is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax.models.rope import make_rotation
from cxr_jax.models.vit import ViT

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")
transformers = pytest.importorskip("transformers", reason="the reference; requirements-test.txt installs it")

WIDTH, HEADS, DEPTH, PATCH, REGISTERS = 24, 2, 2, 4, 3
MODEL = {
    "image_size": 20,
    "patch_size": PATCH,
    "width": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "ffn": "mlp",
    "num_registers": REGISTERS,
    "layer_scale": 1.0,
    "positions": "rope",
}


@pytest.fixture(scope="module")
def theirs():
    """Random weights of a size that matters; the key bias, which ours has and DINOv3's default has not, is on."""
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        patch_size=PATCH,
        image_size=20,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_channels=1,
        num_register_tokens=REGISTERS,
        key_bias=True,
        layer_norm_eps=1e-6,
    )
    model = transformers.DINOv3ViTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape) + ("norm" in name and name.endswith("weight")))
    return model


def params_of(model):
    """Their weights under our paths, by name."""
    state = {name: jnp.asarray(value.detach().numpy()) for name, value in model.state_dict().items()}
    (prefix,) = {name.split("0.norm1")[0] for name in state if name.endswith("0.norm1.weight")}

    def dense(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def block(i):
        at = f"{prefix}{i}"
        q, k, v = (dense(f"{at}.attention.{part}_proj") for part in "qkv")
        proj = dense(f"{at}.attention.o_proj")
        return {
            "norm1": norm(f"{at}.norm1"),
            "attn": {
                "qkv": {
                    "kernel": jnp.stack([p["kernel"].reshape(WIDTH, HEADS, -1) for p in (q, k, v)], axis=1),
                    "bias": jnp.stack([p["bias"].reshape(HEADS, -1) for p in (q, k, v)]),
                },
                "proj": {"kernel": proj["kernel"].reshape(HEADS, -1, WIDTH), "bias": proj["bias"]},
            },
            "norm2": norm(f"{at}.norm2"),
            "mlp": {"w_in": dense(f"{at}.mlp.up_proj"), "w_out": dense(f"{at}.mlp.down_proj")},
            "layer_scale1": state[f"{at}.layer_scale1.lambda1"],
            "layer_scale2": state[f"{at}.layer_scale2.lambda1"],
        }

    kernel = state["embeddings.patch_embeddings.weight"].reshape(WIDTH, -1).T
    return {
        "patch_embed": {"kernel": kernel, "bias": state["embeddings.patch_embeddings.bias"]},
        "cls_token": state["embeddings.cls_token"].reshape(-1),
        "register_tokens": state["embeddings.register_tokens"].reshape(REGISTERS, -1),
        "mask_token": state["embeddings.mask_token"].reshape(-1),
        "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(block(i) for i in range(DEPTH))),
        "norm": norm("norm"),
    }


@pytest.mark.parametrize("grid", [1, 5, 8])
def test_the_table_is_theirs_and_prefix_tokens_do_not_turn(theirs, grid):
    side = grid * PATCH
    with torch.no_grad():
        cos, sin = theirs.rope_embeddings(torch.zeros(1, 1, side, side))
    ours = make_rotation(grid, WIDTH // HEADS, prefix=1 + REGISTERS, dtype="float32")
    for table, reference, at_zero in zip(ours, (cos, sin), (1.0, 0.0), strict=True):
        np.testing.assert_allclose(table[0, 1 + REGISTERS :], reference, atol=1e-6)
        np.testing.assert_array_equal(table[0, : 1 + REGISTERS], at_zero)


def test_every_token_of_every_stream_is_theirs(theirs):
    """Two streams of different grids in one scan, neither of them that of `image_size`."""
    params = params_of(theirs)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: ViT(**MODEL, rngs=nnx.Rngs(0))))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(state))
    rng = np.random.default_rng(0)
    images = tuple(rng.standard_normal((2, s, s)).astype(np.float32) for s in (16, 28))
    ours = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x))(params, tuple(map(jnp.asarray, images)))
    for stream, pixels in zip(ours, images, strict=True):
        with torch.no_grad():
            tokens = theirs(torch.from_numpy(pixels)[:, None]).last_hidden_state.numpy()
        found = np.concatenate([stream.cls[0][:, None], stream.registers[0], stream.patches[0]], axis=1)
        np.testing.assert_allclose(found, tokens, atol=1e-5)
