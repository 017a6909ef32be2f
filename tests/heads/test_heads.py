"""All heads over one feature interface: shapes, paths, init, determinism, dropout, frozen queries, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax.heads.attentive import AttentiveProbe
from cxr_jax.heads.glori import GLoRI, merging
from cxr_jax.heads.kinds import HEADS
from cxr_jax.heads.linear import LinearHead
from cxr_jax.heads.ml_decoder import MLDecoder
from cxr_jax.heads.pooled import PooledHead
from cxr_jax.heads.query_decoder import dropout
from cxr_jax.heads.severity import OrdinalHead
from cxr_jax.models.layers import Layout
from cxr_jax.models.vit import Features, ViT

WIDTH, BLOCKS, CLASSES, PATCHES = 16, 4, 5, 9
TINY = {"width": WIDTH, "num_classes": CLASSES, "blocks": BLOCKS}
TINY_GLORI = {**TINY, "decoder_width": 24, "num_heads": 4, "ffn_width": 40}
TINY_ATTENTIVE = {**TINY, "decoder_width": 24, "num_heads": 4}
KINDS = {
    "linear": (LinearHead, TINY),
    "linear_mean_patch": (LinearHead, {**TINY, "mean_patch": True}),
    "glori": (GLoRI, TINY_GLORI),
    "glori_no_cls": (GLoRI, {**TINY_GLORI, "concat_cls": False}),
    "glori_journal": (GLoRI, {**TINY_GLORI, "adaptive_temperature": True, "pyramid": (3, 2)}),
    "ml_decoder": (MLDecoder, {**TINY_GLORI, "num_groups": 2}),
    "ml_decoder_learned": (MLDecoder, {**TINY_GLORI, "learn_queries": True}),
    "attentive": (AttentiveProbe, TINY_ATTENTIVE),
    "pooled": (PooledHead, TINY),
    "ordinal": (OrdinalHead, {**TINY, "mean_patch": True}),
}


@functools.cache
def make(name: str, **changes):
    """A head with random weights from numpy: compiling its own init would take longer than most tests."""
    kind, options = KINDS[name]
    return filled(lambda: kind(**{**options, **changes}, rngs=nnx.Rngs(0)))


def filled(construct):
    graphdef, state = nnx.split(nnx.eval_shape(construct))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype)
    return nnx.merge(graphdef, jax.tree.map(draw, nnx.to_pure_dict(state)))


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef, params, x, key):
    return nnx.merge(graphdef, params)(x, key=key)


def run(head, x, key=None):
    """The head as everything else calls it: merged from a plain dict inside jit."""
    graphdef, state = nnx.split(head)
    return np.asarray(_run(graphdef, nnx.to_pure_dict(state), x, key))


def features(seed=0, blocks=BLOCKS, rows=3, width=WIDTH, dtype="float32") -> Features:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(blocks, rows, *shape, width)), dtype)
    return Features(draw(), draw(2), draw(PATCHES))


def shapes(head) -> dict[str, tuple]:
    flat = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(head)))[0]
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_deterministic_without_a_key(name):
    head = make(name)
    first, second = run(head, features()), run(head, features())
    assert first.shape == (3, CLASSES)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", KINDS)
def test_rows_do_not_see_each_other_and_registers_are_not_read(name):
    head = make(name)
    both = features()
    alone = jax.tree.map(lambda x: x[:, 1:2], both)
    np.testing.assert_allclose(run(head, alone)[0], run(head, both)[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run(head, both._replace(registers=both.registers * 7)), run(head, both))


@pytest.mark.parametrize("name", KINDS)
def test_only_the_last_blocks_are_read(name):
    head = make(name)
    longer = features(blocks=BLOCKS + 2)
    last = jax.tree.map(lambda x: x[2:], longer)
    np.testing.assert_array_equal(run(head, longer), run(head, last))


@pytest.mark.parametrize("name", KINDS)
def test_merged_in_jit_and_mapped_over_a_grid(name):
    graphdef, state = nnx.split(make(name))
    params = [nnx.to_pure_dict(state), jax.tree.map(lambda leaf: 2 * leaf, nnx.to_pure_dict(state))]
    grid = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    key = jax.random.key(1)
    mapped = jax.vmap(lambda params: _run(graphdef, params, features(), key))(grid)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], _run(graphdef, params[i], features(), key), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_dtypes_are_as_named(name):
    head = make(name, param_dtype="float32", compute_dtype="bfloat16", reduce_dtype="float32")
    x = features(dtype="bfloat16")
    logits = run(head, x)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(head)))} == {jnp.dtype("float32")}
    precise = run(make(name), jax.tree.map(lambda leaf: leaf.astype("float32"), x))
    np.testing.assert_allclose(logits, precise, atol=0.1)


@pytest.mark.parametrize("name", KINDS)
def test_layout_sees_weights_and_rows(name):
    seen = []
    spy = Layout(rows=lambda x: seen.append("rows") or x, weights=lambda tree: seen.append("weights") or tree)
    head = make(name)
    np.testing.assert_array_equal(head(features(), layout=spy), head(features()))
    assert {"rows", "weights"} <= set(seen)


@pytest.mark.parametrize("name", KINDS)
def test_missing_blocks_and_other_width_are_named(name):
    head = make(name)
    with pytest.raises(ValueError, match=r"needs the last 4 blocks, the features hold 2.*blocks=4"):
        head(features(blocks=2))
    with pytest.raises(ValueError, match=r"width 16, the backbone gives 8"):
        head(features(width=8))


def test_reads_a_real_backbone():
    vit = filled(lambda: ViT(image_size=32, patch_size=8, width=WIDTH, depth=5, num_heads=2, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(vit)
    forward = jax.jit(lambda params: nnx.merge(graphdef, params).features(jnp.zeros((2, 32, 32)), blocks=BLOCKS))
    x = forward(nnx.to_pure_dict(state))
    for name in KINDS:
        assert run(make(name), x).shape == (2, CLASSES)


def test_linear_is_the_affine_map_of_cls_and_the_last_mean_patch():
    x, head = features(), make("linear_mean_patch")
    rows = np.concatenate([*np.asarray(x.cls), np.asarray(x.patches[-1]).mean(axis=1)], axis=1)
    expected = rows @ np.asarray(head.classifier.kernel[...]) + np.asarray(head.classifier.bias[...])
    np.testing.assert_allclose(run(head, x), expected, rtol=1e-5, atol=1e-6)
    assert shapes(head) == {"classifier/kernel": ((BLOCKS + 1) * WIDTH, CLASSES), "classifier/bias": (CLASSES,)}


def test_linear_init():
    head = LinearHead(width=256, num_classes=100, rngs=nnx.Rngs(0))
    assert np.std(head.classifier.kernel[...]) == pytest.approx(0.01, rel=0.02)
    assert not head.classifier.bias[...].any()


def test_every_head_is_among_the_kinds():
    assert {kind for kind, _ in KINDS.values()} == set(HEADS.values())


def test_glori_parameter_paths_and_shapes():
    w, split = 24, (4, 6)
    expected = {
        "embed/kernel": (BLOCKS * WIDTH, w),
        "embed/bias": (w,),
        "queries": (CLASSES, w),
        **{f"attn/{x}/kernel": (w, *split) for x in "qkv"},
        **{f"attn/{x}/bias": split for x in "qkv"},
        "attn/proj/kernel": (*split, w),
        "attn/proj/bias": (w,),
        "mlp/w_in/kernel": (w, 40),
        "mlp/w_in/bias": (40,),
        "mlp/w_out/kernel": (40, w),
        "mlp/w_out/bias": (w,),
        **{f"norm{i}/{x}": (w,) for i in (1, 2, 3) for x in ("scale", "bias")},
        "classifier/kernel": (CLASSES, BLOCKS * WIDTH + w),
        "classifier/bias": (CLASSES,),
    }
    assert shapes(make("glori")) == expected
    assert shapes(make("glori_no_cls")) == {**expected, "classifier/kernel": (CLASSES, w)}


def test_glori_published_size():
    """8.86 M trainable parameters for 40 classes with CLS concatenation, 8.69 M without, and 30,720 frozen ones."""
    for concat_cls, millions in ((True, 8.86), (False, 8.69)):
        head = nnx.eval_shape(lambda c=concat_cls: GLoRI(width=1024, num_classes=40, concat_cls=c, rngs=nnx.Rngs(0)))
        sizes = {path: int(np.prod(shape)) for path, shape in shapes(head).items()}
        assert sizes["queries"] == 30_720
        assert (sum(sizes.values()) - sizes["queries"]) / 1e6 == pytest.approx(millions, abs=0.006)


def test_glori_init():
    head = GLoRI(width=64, num_classes=300, decoder_width=256, rngs=nnx.Rngs(0))
    assert np.std(head.queries[...]) == pytest.approx(1.0, rel=0.02)
    assert np.std(head.classifier.kernel[...]) == pytest.approx((2 / (4 * 64 + 256 + 300)) ** 0.5, rel=0.02)
    assert np.abs(head.embed.kernel[...]).max() == pytest.approx(256**-0.5, rel=0.01)
    assert np.abs(head.attn.q.kernel[...]).max() == pytest.approx((6 / 1024) ** 0.5, rel=0.01)


def test_glori_queries_are_frozen():
    graphdef, state = nnx.split(make("glori"))
    params = nnx.to_pure_dict(state)
    loss = lambda params: jnp.square(nnx.merge(graphdef, params)(features(), key=jax.random.key(0))).sum()
    gradient = jax.jit(jax.grad(loss))(params)
    assert not np.asarray(gradient.pop("queries")).any()
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        # A shift of all scores by the key bias cancels in the softmax; every other parameter must learn.
        if jax.tree_util.keystr(path) != "['attn']['k']['bias']":
            assert np.abs(leaf).max() > 0, path


def test_glori_dropout_comes_from_the_key_alone():
    head = make("glori")
    keys = [jax.random.key(seed) for seed in range(2)]
    dropped = [run(head, features(), key) for key in keys]
    np.testing.assert_array_equal(dropped[0], run(head, features(), keys[0]))
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3
    assert np.abs(dropped[0] - run(head, features())).max() > 1e-3
    rows = run(head, jax.tree.map(lambda x: x[:, [0, 0, 0]], features()), keys[0])
    assert np.abs(rows[0] - rows[1]).max() > 1e-3  # drawn per image
    without = make("glori", dropout_rate=0.0)
    np.testing.assert_allclose(run(without, features(), keys[0]), run(head, features()), rtol=1e-4, atol=1e-5)


def test_dropout_keeps_the_mean():
    dropped = dropout(jnp.ones((200, 500)), 0.1, jax.random.key(0))
    assert float((dropped == 0).mean()) == pytest.approx(0.1, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.005)
    assert float(dropped.max()) == pytest.approx(1 / 0.9)


@pytest.mark.parametrize("name", [name for name, (kind, _) in KINDS.items() if hasattr(kind, "attention")])
def test_attention_is_a_distribution_over_patches_for_every_class(name):
    maps = make(name).attention(features())
    assert maps.shape == (3, 4, CLASSES, PATCHES)
    assert np.asarray(maps).min() >= 0
    np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=1e-5)


def test_glori_reads_patches_in_any_order():
    head, x = make("glori"), features()
    # Patches are keys and values without positions: reordering them reorders the maps and leaves the logits.
    order = np.random.default_rng(0).permutation(PATCHES)
    shuffled = x._replace(patches=x.patches[:, :, order])
    np.testing.assert_allclose(head.attention(shuffled), head.attention(x)[..., order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(head, shuffled), run(head, x), rtol=1e-4, atol=1e-5)


def test_merged_cells_cover_the_grid_as_adaptive_pooling_does():
    """Of 5 x 5 patches into 2 x 2 cells: rows 0..2 and 2..4, the middle one in both, as torch's adaptive pooling."""
    cells = merging(5, (2, 5)).reshape(-1, 5, 5)
    np.testing.assert_allclose(cells[0], np.pad(np.full((3, 3), 1 / 9), (0, 2)))
    np.testing.assert_allclose(cells[3], np.pad(np.full((3, 3), 1 / 9), (2, 0)))
    np.testing.assert_array_equal(cells[4:].reshape(25, 25), np.eye(25))


def test_a_pyramid_finer_than_the_patches_is_refused():
    with pytest.raises(ValueError, match=r"head\.pyramid=\(8, 4\): the backbone gives 3 x 3 patches"):
        make("glori_journal", pyramid=(8, 4))(features())
    with pytest.raises(ValueError, match="no square grid"):
        make("glori_journal")(features()._replace(patches=features().patches[:, :, :8]))


def test_a_temperature_sharpens_the_attention_of_its_class_and_head_alone():
    head, x = make("glori_journal", pyramid=()), features()
    graphdef, state = nnx.split(head)
    params = nnx.to_pure_dict(state)
    before = head.attention(x)
    params["attn"]["log_temperature"] = params["attn"]["log_temperature"].at[1, 2].add(-3.0)
    after = nnx.merge(graphdef, params).attention(x)
    changed = np.abs(np.asarray(after - before)).max((0, 3)) > 1e-6
    assert changed[2, 1] and changed.sum() == 1
    assert (after[:, 2, 1].max(-1) > before[:, 2, 1].max(-1)).all()


def test_without_its_options_training_starts_as_plain_glori():
    """Temperatures are 1 at the start."""
    graphdef, state = nnx.split(make("glori_journal", pyramid=()))
    params = nnx.to_pure_dict(state)
    params["attn"]["log_temperature"] = jnp.zeros_like(params["attn"]["log_temperature"])
    plain = jax.tree.map(lambda x: x, params)
    del plain["attn"]["log_temperature"]
    plain_def, _ = nnx.split(make("glori"))
    key = jax.random.key(0)
    ours, theirs = _run(graphdef, params, features(), key), _run(plain_def, plain, features(), key)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_ml_decoder_groups_share_a_query_and_learned_ones_learn():
    assert shapes(make("ml_decoder"))["classifier/kernel"] == (2, 24, 3)
    assert shapes(make("ml_decoder"))["queries"] == (2, 24)
    graphdef, state = nnx.split(make("ml_decoder_learned"))
    params = nnx.to_pure_dict(state)
    gradient = jax.grad(lambda params: _run(graphdef, params, features(), None).sum())(params)
    assert np.abs(gradient["learned_queries"]).max() > 0
    with pytest.raises(ValueError, match=r"head\.num_groups=6: legal are 1 to 5"):
        make("ml_decoder", num_groups=6)


def test_ordinal_logits_fall_along_the_scale_by_the_same_steps_for_every_image():
    logits = run(make("ordinal"), features())
    steps = np.diff(logits, axis=1)
    assert (steps < 0).all()
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), rtol=1e-4, atol=1e-6)


def test_glori_rejects_impossible_sizes():
    with pytest.raises(ValueError, match=r"decoder_width=24 must be a multiple of head\.num_heads=5"):
        make("glori", num_heads=5)
    with pytest.raises(ValueError, match=r"dropout_rate=1\.0"):
        make("glori", dropout_rate=1.0)
