"""Clipping, path tables and AdamW against NumPy and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxr_jax import optim
from cxr_jax.models.vit import ViT
from cxr_jax.sharding import path_name

MODEL = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 3, "num_heads": 2, "num_registers": 2}


@pytest.fixture(scope="module")
def params():
    """Shapes of a real model, filled with random numbers."""
    rng = np.random.default_rng(0)
    backbone = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: ViT(**MODEL, rngs=nnx.Rngs(0)))))
    head = {
        name: {
            "hidden1": {"kernel": np.zeros((8, 4)), "bias": np.zeros(4)},
            "prototypes": {"v": np.zeros((4, 6)), "g": np.zeros(6)},
        }
        for name in ("dino_head", "ibot_head")
    }
    return jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), {"backbone": backbone, **head}
    )


def by_path(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


DECAYED = {
    "backbone/patch_embed/kernel",
    "backbone/cls_token",
    "backbone/register_tokens",
    "backbone/mask_token",
    "backbone/pos_embed",
    "backbone/blocks/attn/qkv/kernel",
    "backbone/blocks/attn/proj/kernel",
    "backbone/blocks/mlp/w_in/kernel",
    "backbone/blocks/mlp/w_out/kernel",
    *(f"{head}/hidden1/kernel" for head in ("dino_head", "ibot_head")),
    *(f"{head}/prototypes/{leaf}" for head in ("dino_head", "ibot_head") for leaf in ("v", "g")),
}
NOT_DECAYED = {
    "backbone/patch_embed/bias",
    "backbone/blocks/attn/qkv/bias",
    "backbone/blocks/attn/proj/bias",
    "backbone/blocks/mlp/w_in/bias",
    "backbone/blocks/mlp/w_out/bias",
    *(f"backbone/blocks/{norm}/{leaf}" for norm in ("norm1", "norm2") for leaf in ("scale", "bias")),
    "backbone/blocks/layer_scale1",
    "backbone/blocks/layer_scale2",
    "backbone/norm/scale",
    "backbone/norm/bias",
    *(f"{head}/hidden1/bias" for head in ("dino_head", "ibot_head")),
}


def test_which_parameters_decay(params):
    found = by_path(optim.multipliers(params, optim.NO_DECAY_ON_VECTORS))
    assert {name for name, value in found.items() if value == 1.0} == DECAYED
    assert {name for name, value in found.items() if value == 0.0} == NOT_DECAYED


def test_a_parameter_that_no_pattern_covers_is_an_error(params):
    with pytest.raises(ValueError, match="backbone/gate"):
        optim.multipliers({"backbone": {"gate": jnp.zeros(3)}}, optim.NO_DECAY_ON_VECTORS)
    tx = make(wd_table=((r"/bias$", 0.0),))
    with pytest.raises(ValueError, match="no pattern covers the parameters backbone/blocks/attn/proj/kernel"):
        tx.update(params, tx.init(params), params, step=jnp.asarray(0))


def make(**changes):
    constant = {"learning_rate": lambda step: jnp.asarray(0.1), "weight_decay": lambda step: jnp.asarray(0.0)}
    return optim.adamw(**constant | {"clip_norm": None} | changes)


def test_each_module_is_clipped_on_its_own_as_torch_does(params):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")
    # One module far above the limit, one at about it, one far below.
    scale = {"backbone": 5.0, "dino_head": 0.3, "ibot_head": 1e-3}
    grads = {name: jax.tree.map(lambda x, name=name: scale[name] * x, tree) for name, tree in params.items()}
    clipped, _ = optim.clip_per_module(3.0).update(grads, None)
    for name, module in grads.items():
        tensors = [torch.tensor(np.asarray(leaf), requires_grad=True) for leaf in jax.tree.leaves(module)]
        for tensor in tensors:
            tensor.grad = tensor.detach().clone()
        norm = torch.nn.utils.clip_grad_norm_(tensors, 3.0)
        assert float(optim.global_norm(module)) == pytest.approx(norm.item(), rel=1e-5)
        for ours, tensor in zip(jax.tree.leaves(clipped[name]), tensors, strict=True):
            np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-5)


def test_adamw_with_tables_is_torchs_with_one_group_per_parameter():
    torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")
    rng = np.random.default_rng(1)
    shapes = {"kernel": (3, 4), "bias": (4,), "patch_embed/kernel": (2, 4)}
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    rates, decays = np.array([0.01, 0.02, 0.03, 0.01]), np.array([0.1, 0.2, 0.3, 0.4])
    mults, decayed = {"patch_embed/kernel": 0.2}, {"bias": 0.0}
    tx = optim.adamw(
        learning_rate=lambda step: jnp.asarray(rates, jnp.float32)[step],
        weight_decay=lambda step: jnp.asarray(decays, jnp.float32)[step],
        clip_norm=None,
        lr_tables=(((r"/patch_embed/", 0.2), (r".", 1.0)),),
    )
    ours = jax.tree.map(jnp.asarray, {"m": start})
    state = tx.init(ours)
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    reference = torch.optim.AdamW([{"params": [p], "name": name} for name, p in theirs.items()], eps=1e-8)
    for step in range(4):
        grads = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        updates, state = tx.update({"m": grads}, state, ours, step=jnp.asarray(step))
        ours = jax.tree.map(jnp.add, ours, updates)
        for group in reference.param_groups:
            name = group["name"]
            group["lr"] = rates[step] * mults.get(name, 1.0)
            group["weight_decay"] = decays[step] * decayed.get(name, 1.0)
            theirs[name].grad = torch.tensor(grads[name])
        reference.step()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours["m"][name], value.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_frozen_prototypes_stay_to_the_bit_while_their_moments_move(params):
    weight_decay = lambda step: jnp.asarray(0.5)
    tx = make(weight_decay=weight_decay, frozen_steps=((r"/prototypes/", 2),))
    state = tx.init(params)
    moved = []
    for step in range(3):
        updates, state = tx.update(params, state, params, step=jnp.asarray(step))
        found = by_path(updates)
        moved.append({name: bool(np.asarray(value).any()) for name, value in found.items()})
    frozen = {name for name, value in moved[0].items() if not value}
    assert frozen == {f"{head}/prototypes/{leaf}" for head in ("dino_head", "ibot_head") for leaf in ("v", "g")}
    assert not moved[1]["dino_head/prototypes/v"] and moved[2]["dino_head/prototypes/v"]
    (adam,) = [part for part in state if hasattr(part, "mu")]
    # Three steps of a constant gradient: mu = (1 - 0.9^3) g, as if never frozen.
    expected = (1 - 0.9**3) * np.asarray(params["dino_head"]["prototypes"]["v"])
    np.testing.assert_allclose(adam.mu["dino_head"]["prototypes"]["v"], expected, rtol=1e-5)


def test_layer_decay_is_a_vector_over_the_stacked_axis(params):
    found = by_path(optim.multipliers(params, optim.layer_decay_table(0.5, 3)))
    for name in ("patch_embed/kernel", "cls_token", "register_tokens", "mask_token", "pos_embed"):
        assert found[f"backbone/{name}"] == 0.5**4
    # blocks 1, 2, 3 of depth 3: decay^(depth + 1 - layer)
    expected = np.array([0.5**3, 0.5**2, 0.5])
    for name, leaf in by_path(params).items():
        if name.startswith("backbone/blocks/"):
            assert found[name].shape == (3,) + (1,) * (leaf.ndim - 1)
            np.testing.assert_allclose(found[name].ravel(), expected)
    assert found["backbone/norm/scale"] == 1.0 and found["dino_head/prototypes/v"] == 1.0


def test_layer_decay_and_patch_rate_multiply(params):
    patch = ((r"/patch_embed/", 0.2), (r".", 1.0))
    tx = make(lr_tables=(patch, optim.layer_decay_table(0.5, 3)))
    updates, _ = tx.update(params, tx.init(params), params, step=jnp.asarray(0))
    found = by_path(updates)
    # Adam's first update is the sign of the gradient.
    np.testing.assert_allclose(np.abs(found["backbone/patch_embed/bias"]), 0.1 * 0.2 * 0.5**4, rtol=1e-4)
    rates = np.abs(found["backbone/blocks/layer_scale1"])
    np.testing.assert_allclose(rates, 0.1 * np.array([[0.125], [0.25], [0.5]]) * np.ones((3, 8)), rtol=1e-4)


def test_a_grid_of_rates_is_a_vector_over_the_leading_axis():
    params = {"head": {"kernel": jnp.ones((3, 4, 2)), "bias": jnp.ones((3, 2)), "queries": jnp.ones((3, 2, 4))}}
    rates = np.array([1e-3, 1e-2, 1e-1])
    tx = make(
        learning_rate=lambda step: jnp.asarray(0.5),
        weight_decay=lambda step: jnp.asarray(1e-2),
        lr_tables=(((r"/queries$", 0.0), (r".", rates)),),
        wd_table=((r".", 1.0),),
    )
    updates, _ = tx.update(params, tx.init(params), params, step=jnp.asarray(0))
    # -lr * (sign(g) + wd * p) with g = p = 1
    for name in ("kernel", "bias"):
        steps = np.asarray(updates["head"][name]).reshape(3, -1)
        np.testing.assert_allclose(steps, -0.5 * rates[:, None] * 1.01 * np.ones_like(steps), rtol=1e-4)
    assert not np.asarray(updates["head"]["queries"]).any()


def test_a_first_moment_in_bfloat16_costs_its_rounding_and_no_more():
    """Ten steps of the same gradients: each rounds by 2^-9, and with a decay of 0.9 ten such errors stay."""
    params = {"head": {"kernel": jnp.linspace(0.1, 1.0, 64)}}
    updates = {}
    for dtype in ("param", "bfloat16"):
        tx = optim.adamw(
            learning_rate=lambda step: 1.0, weight_decay=lambda step: 0.0, clip_norm=None, first_moment_dtype=dtype
        )
        state = tx.init(params)
        for i in range(10):
            grads = jax.tree.map(lambda p, i=i: 1 + jnp.sin(p + i), params)
            updates[dtype], state = tx.update(grads, state, params, step=jnp.asarray(i))
        moments = next(part for part in state if hasattr(part, "mu"))
        assert moments.mu["head"]["kernel"].dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
        assert moments.nu["head"]["kernel"].dtype == "float32"
    exact, rounded = (updates[dtype]["head"]["kernel"] for dtype in ("param", "bfloat16"))
    difference = np.abs(rounded / exact - 1).max()
    assert 0 < difference < 10 * 2**-9


def test_other_first_moments_are_refused():
    with pytest.raises(ValueError, match="legal are param, bfloat16"):
        optim.adamw(learning_rate=lambda s: 1.0, weight_decay=lambda s: 0.0, first_moment_dtype="int8")
