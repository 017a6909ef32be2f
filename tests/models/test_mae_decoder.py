"""MAE's decoder beside its parity test: published initialisation, and what it refuses."""

import numpy as np
import pytest
from flax import nnx
from jax.tree_util import tree_leaves_with_path

from cxr_jax.models.mae_decoder import MAEDecoder
from cxr_jax.models.vit import ViT
from cxr_jax.sharding import path_name

DECODER = {"encoder_width": 48, "patch_size": 8, "width": 32, "depth": 2, "num_heads": 4}
ENCODER = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "num_heads": 4, "ffn": "mlp", "init": "xavier"}


def by_path(module):
    return {path_name(at): np.asarray(leaf) for at, leaf in tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module)))}


@pytest.mark.parametrize(
    "make", [lambda: ViT(**ENCODER, rngs=nnx.Rngs(0)), lambda: MAEDecoder(**DECODER, rngs=nnx.Rngs(0))]
)
def test_init_is_the_published_one(make):
    """Xavier-uniform linear maps, queries, keys and values as one matrix; tokens N(0, 0.02); zero biases."""
    module = make()
    found, fans = by_path(module), {"embed": (48, 32), "pred": (32, 64), "patch_embed": (64, 32)}
    fans |= {"blocks/attn/qkv": (32, 96), "blocks/attn/proj": (32, 32)}
    fans |= {"blocks/mlp/w_in": (32, 128), "blocks/mlp/w_out": (128, 32)}
    kernels = [name for name in found if name.endswith("kernel")]
    assert len(kernels) in (5, 6)
    for name in kernels:
        bound = np.sqrt(6 / sum(fans[name.removesuffix("/kernel")]))
        assert 0.97 * bound < np.abs(found[name]).max() <= bound, name
        assert found[name].std() == pytest.approx(bound / np.sqrt(3), rel=0.05), name
    tokens = [name for name in found if name.endswith("_token")]
    for name in tokens:
        unused = isinstance(module, ViT) and name == "mask_token"
        assert found[name].std() == pytest.approx(0.0 if unused else 0.02, rel=0.5), name
    for name, value in found.items():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not value.any(), name
    qkv = found["blocks/attn/qkv/kernel"]
    assert not np.allclose(qkv[0], qkv[1])


@pytest.mark.parametrize("changes", [{"num_heads": 5}, {"width": 30, "num_heads": 3}, {"depth": 0}])
def test_impossible_sizes_are_refused_by_name(changes):
    with pytest.raises(ValueError, match=r"decoder\.width=.* decoder\.num_heads=.* decoder\.depth="):
        MAEDecoder(**DECODER | changes, rngs=nnx.Rngs(0))
