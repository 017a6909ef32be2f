"""Ways to run one ViT that must not change its numbers: scan or not, any remat, one stream or two, 1 or n blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax.models.layers import IN_PLACE
from cxr_jax.models.variants import variant
from cxr_jax.models.vit import ViT
from cxr_jax.sharding import path_name

MODEL = {
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "depth": 3,
    "num_heads": 2,
    "num_registers": 2,
    "layer_scale": 0.5,
    "drop_path": 0.25,
}
GROUPS = 2


def shapes(**changes):
    return nnx.eval_shape(lambda: ViT(**MODEL | changes, rngs=nnx.Rngs(0)))


def module(params, **changes):
    return nnx.merge(nnx.split(shapes(**changes))[0], params)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)
    return jax.tree.map(draw, nnx.to_pure_dict(nnx.state(shapes())))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    images = tuple(jnp.asarray(rng.standard_normal((rows, s, s)), jnp.float32) for rows, s in ((8, 32), (8, 16)))
    return images, (jnp.asarray(rng.random((8, 16)) < 0.4), None)


def loss_and_gradient(params, inputs, **changes):
    @jax.jit
    def run(params):
        def loss(params):
            streams = module(params, **changes)(*inputs, key=jax.random.key(2), num_groups=GROUPS)
            return sum(jnp.sin(x).sum() for x in jax.tree.leaves(streams))

        return jax.value_and_grad(loss)(params)

    return run(params)


@pytest.fixture(scope="module")
def scanned(params, inputs):
    return loss_and_gradient(params, inputs)


@pytest.mark.parametrize("changes", [{"scan": False}, {"remat": "full"}, {"remat": "dots", "scan": False}])
def test_scan_and_remat_change_neither_loss_nor_gradients(params, inputs, scanned, changes):
    """With drop path on, so that every way draws the same rows."""
    loss, grads = loss_and_gradient(params, inputs, **changes)
    assert float(loss) == pytest.approx(float(scanned[0]), rel=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(scanned[1]), strict=True):
        error = np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()
        assert error < 1e-4, path_name(path)


def test_every_parameter_has_a_gradient(scanned):
    for path, leaf in jax.tree_util.tree_leaves_with_path(scanned[1]):
        assert np.abs(np.asarray(leaf)).max() > 0, path_name(path)


@pytest.fixture(scope="module")
def features(params, inputs):
    run = jax.jit(lambda p, x, blocks: module(p).features(x, blocks=blocks), static_argnames="blocks")
    return lambda index, blocks=1: run(params, inputs[0][index], blocks=blocks)


def test_two_streams_are_two_runs(params, inputs, features):
    together = jax.jit(lambda p: module(p)(inputs[0]))(params)
    for i, stream in enumerate(together):
        for a, b in zip(stream, features(i), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sincos", "rope"])
def test_only_visible_patches_are_encoded_each_at_its_own_place(params, inputs, positions):
    """All patches in a random order of each row are the ordinary encoding in that order; a part is another picture."""
    images, rng = inputs[0][0], np.random.default_rng(3)
    order = jnp.asarray(rng.permuted(np.tile(np.arange(16), (8, 1)), axis=1))
    weights = params if positions == "learned" else {k: v for k, v in params.items() if k != "pos_embed"}

    @jax.jit
    def run(p):
        vit = module(p, positions=positions)
        (whole,), (shuffled,) = vit((images,)), vit((images,), visible=(order,))
        (part,) = vit((images,), visible=(order[:, :4],))
        return whole, shuffled, part

    whole, shuffled, part = run(weights)
    np.testing.assert_allclose(shuffled.cls, whole.cls, atol=1e-5)
    np.testing.assert_allclose(shuffled.registers, whole.registers, atol=1e-5)
    expected = np.take_along_axis(np.asarray(whole.patches[0]), np.asarray(order)[:, :, None], axis=1)
    np.testing.assert_allclose(shuffled.patches[0], expected, atol=1e-5)
    assert part.patches.shape == (1, 8, 4, 16) and not np.allclose(part.cls, whole.cls, atol=1e-3)


def test_every_kind_of_positions_places_patches_differently(params, inputs):
    """Swapping two patches of the picture is seen by CLS with positions of any kind."""
    images = inputs[0][0]
    swapped = images.at[:, :8, :8].set(images[:, 16:24, 8:16]).at[:, 16:24, 8:16].set(images[:, :8, :8])
    for positions in ("sincos", "rope"):
        weights = {k: v for k, v in params.items() if k != "pos_embed"}
        run = jax.jit(lambda p, x, kind=positions: module(p, positions=kind).features(x).cls)
        assert np.abs(np.asarray(run(weights, images) - run(weights, swapped))).max() > 1e-3, positions


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_pooled_blocks_are_the_mean_patches_after_each_block(params, inputs, blocks):
    """Against blocks run one by one, for two streams; the features stay what they are."""
    images, wanted = inputs[0], (0, 2)

    @jax.jit
    def run(p):
        vit = module(p)
        return vit(images, blocks=blocks, pooled_blocks=wanted), vit(images, blocks=blocks)

    @jax.jit
    def one_by_one(p):
        vit, means = module(p), []
        graphdef, state = nnx.split(vit.blocks)
        streams = tuple(vit._embed(x, None, None) for x in images)
        for i in range(3):
            block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], nnx.to_pure_dict(state)))
            streams = block(streams, (None, None), None, 1, IN_PLACE)
            means.append([x[:, 3:].mean(1) for x in streams])
        return means

    (features, pooled), plain = run(params)
    expected = one_by_one(params)
    for i in range(2):
        assert pooled[i].shape == (2, 8, 16)
        np.testing.assert_allclose(pooled[i], np.stack([expected[block][i] for block in wanted]), atol=1e-5)
        np.testing.assert_allclose(features[i].patches, plain[i].patches, atol=1e-5)


def test_pooled_blocks_must_exist(params, inputs):
    with pytest.raises(ValueError, match=r"pooled_blocks=\(3,\): legal are 0 .. 2"):
        module(params)(inputs[0], pooled_blocks=(3,))


def test_the_last_of_n_blocks_is_the_output_and_shapes_are_the_contracts(features):
    one, three = features(0), features(0, 3)
    assert three.cls.shape == (3, 8, 16) and three.registers.shape == (3, 8, 2, 16)
    assert three.patches.shape == (3, 8, 16, 16)
    for a, b in zip(one, three, strict=True):
        np.testing.assert_allclose(a[0], b[-1], atol=1e-5)
    np.testing.assert_allclose(features(0, 2).cls, three.cls[1:], atol=1e-5)
    assert not np.allclose(three.cls[0], three.cls[1], atol=1e-3)


def test_a_hidden_patch_is_not_seen(params, inputs):
    """Other pixels under the mask change nothing; without the mask they do."""
    images, mask = inputs[0][0], np.zeros((8, 16), bool)
    mask[:, 5] = True  # row 1, column 1 of the 4 x 4 grid
    changed = images.at[:, 8:16, 8:16].set(3.0)
    run = jax.jit(lambda p, x, m: module(p)((x,), (m,))[0].cls)
    np.testing.assert_array_equal(run(params, images, jnp.asarray(mask)), run(params, changed, jnp.asarray(mask)))
    assert not np.allclose(run(params, images, jnp.asarray(~mask)), run(params, changed, jnp.asarray(~mask)))


def test_init_is_the_published_one():
    vit = ViT(**MODEL | {"width": 64, "depth": 2, "layer_scale": 1e-5}, rngs=nnx.Rngs(0))
    found = {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(vit)))
    }
    for name, value in found.items():
        if (name.startswith("blocks/") and name.endswith("kernel")) or name == "pos_embed":
            assert value.std() == pytest.approx(0.02, rel=0.1), name
        elif (name.endswith("bias") and "patch_embed" not in name) or name == "mask_token":
            assert not value.any(), name
        elif name.endswith("scale"):
            assert (value == 1).all(), name
        elif "layer_scale" in name:
            np.testing.assert_allclose(value, 1e-5, err_msg=name)
    assert np.abs(found["patch_embed/kernel"]).max() <= 1 / 8
    assert found["patch_embed/kernel"].std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)
    assert 1e-7 < found["cls_token"].std() < 1e-5
    assert not np.allclose(found["blocks/attn/qkv/kernel"][0], found["blocks/attn/qkv/kernel"][1])


def test_vit_large_has_the_size_of_the_paper():
    """304 M parameters with SwiGLU 2,736 and four registers at 224 px."""
    model = variant("vit_l16") | {"image_size": 224}
    shapes = nnx.state(nnx.eval_shape(lambda: ViT(**model, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(304e6, rel=0.005)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffn": "glu"}, "swiglu, mlp"),
        ({"remat": "some"}, "none, full, dots"),
        ({"image_size": 30}, "multiple"),
        ({"drop_path": 1.0}, "0 up to but not 1"),
        ({"positions": "rotary"}, "learned, sincos, rope"),
        ({"init": "kaiming"}, "trunc_normal, xavier"),
        ({"positions": "sincos", "width": 18}, "multiples of 4"),
        ({"positions": "rope", "width": 20}, "multiples of 4"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ViT(**MODEL | changes, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="vit_l16"):
        variant("vit_xxl14")
