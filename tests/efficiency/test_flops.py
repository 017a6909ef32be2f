"""What a step computes, read from its program: dropped rows, hidden patches, one scan, one resize.

Figures are printed (`pytest -s tests/efficiency`). Shapes are traced, never allocated, so ViT-L/16 is counted at its
full size. cxr_jax/planning/flops.py does the counting and is itself tested first.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from cxr_jax.data.augment import multi_crop_recipes
from cxr_jax.models.variants import variant
from cxr_jax.models.vit import ViT
from cxr_jax.objectives.self_distillation import SelfDistillation
from cxr_jax.planning.flops import dots, flops, scans, trace

# --- the counter itself ----------------------------------------------------------------------------------------------


def shape(*dims, dtype="float32"):
    return jax.ShapeDtypeStruct(dims, dtype)


def test_a_known_product_is_counted():
    assert flops(trace(jnp.matmul, shape(3, 5), shape(5, 7))) == 2 * 3 * 5 * 7
    assert flops(trace(partial(jnp.einsum, "bqhe,bthe->bhqt"), shape(2, 3, 4, 5), shape(2, 6, 4, 5))) == (
        2 * (2 * 4) * 3 * 6 * 5
    )


@pytest.mark.parametrize("remat", [False, True])
def test_loops_gradients_and_recomputation_are_counted(remat):
    """Five layers `sin(W sin(W x))`: two forward products and four backward, and two again if recomputed."""

    def layer(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w), None

    def loss(x, w):
        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, w)[0].sum()

    once, x, w = 2 * 3 * 4 * 4, shape(3, 4), shape(5, 4, 4)
    assert flops(trace(loss, x, w)) == 5 * 2 * once
    assert flops(trace(jax.grad(loss, argnums=(0, 1)), x, w)) == 5 * (2 + 4 + 2 * remat) * once
    assert len(scans(trace(loss, x, w), length=5)) == 1


def test_the_compilers_count_agrees_where_there_is_no_loop():
    program = jax.jit(jnp.matmul).lower(shape(64, 32), shape(32, 16)).compile()
    assert program.cost_analysis()["flops"] == flops(trace(jnp.matmul, shape(64, 32), shape(32, 16)))


def test_what_cannot_be_counted_is_an_error():
    loop = lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)
    with pytest.raises(ValueError, match="while loop"):
        flops(trace(loop, shape(3, 3)))
    convolve = lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME")
    with pytest.raises(ValueError, match="convolution"):
        flops(trace(convolve, shape(1, 1, 8, 8), shape(1, 1, 3, 3)))


# --- drop path -------------------------------------------------------------------------------------------------------


def backbone_step(model, group, groups, local_size, num_local):
    """The student's forward and backward pass over both kinds of crops, and the shapes that it takes."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: ViT(**model, rngs=nnx.Rngs(0))))

    def loss(params, global_crops, local_crops, key):
        streams = nnx.merge(graphdef, params)((global_crops, local_crops), key=key, num_groups=groups)
        return sum(leaf.sum() for leaf in jax.tree.leaves(streams))

    sides = ((2, model["image_size"]), (num_local, local_size))
    crops = [shape(n * group * groups, side, side) for n, side in sides]
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.value_and_grad(loss), (nnx.to_pure_dict(state), *crops, key)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_dropped_rows_save_a_third_of_the_backbones_flops_at_full_size(remat):
    """ViT-L/16 at 224 and 96 px, 2 + 8 crops, groups of 38 images, rate 0.4: forward and backward."""
    counted = {}
    for rate in (0.0, 0.4):
        model = variant("vit_l16") | {"image_size": 224, "drop_path": rate, "remat": remat}
        step, shapes = backbone_step(model, group=38, groups=2, local_size=96, num_local=8)
        counted[rate] = flops(trace(step, *shapes))
    saved = 1 - counted[0.4] / counted[0.0]
    dense, dropped = (count / 76 / 1e9 for count in counted.values())
    print(f"\nViT-L/16 student, remat {remat}: {dense:.1f} -> {dropped:.1f} GFLOP per image, {saved:.1%} saved")
    assert 0.35 <= saved <= 0.4


def test_the_compiled_program_saves_as_much():
    """The compiler's own count of an unrolled small model, elementwise work, norms and gathers included."""
    counted = {}
    for rate in (0.0, 0.4):
        model = {"image_size": 32, "patch_size": 8, "width": 128, "depth": 1, "num_heads": 2, "scan": False}
        step, shapes = backbone_step(model | {"drop_path": rate}, group=5, groups=2, local_size=16, num_local=4)
        counted[rate] = jax.jit(step).lower(*shapes).compile().cost_analysis()["flops"]
    saved = 1 - counted[0.4] / counted[0.0]
    print(f"\ncompiled, width 128: {counted[0.0] / 1e6:.0f} -> {counted[0.4] / 1e6:.0f} MFLOP, {saved:.1%} saved")
    assert saved >= 0.35


# --- the whole loss --------------------------------------------------------------------------------------------------

IMAGES, GROUP, LOCAL, DEPTH, WIDTH = 8, 4, 4, 5, 16
PATCH, GLOBAL_GRID, LOCAL_GRID, REGISTERS = 8, 6, 3, 2
# Sizes of the iBOT head are of no other axis, so that its products are known by their shapes.
IBOT = {"hidden": 53, "bottleneck": 47, "num_prototypes": 59}


def make_objective(mask_ratio=(0.1, 0.5)):
    crops = multi_crop_recipes(
        global_size=PATCH * GLOBAL_GRID,
        local_size=PATCH * LOCAL_GRID,
        num_local=LOCAL,
        global_scale=(0.32, 1.0),
        local_scale=(0.05, 0.32),
        blur_probs="as_documented",
    )
    model = {"image_size": PATCH * GLOBAL_GRID, "patch_size": PATCH, "width": WIDTH, "depth": DEPTH, "num_heads": 2}
    return SelfDistillation(
        model=model | {"num_registers": REGISTERS, "drop_path": 0.25},
        heads={
            "dino_head": {"width": WIDTH, "hidden": 24, "bottleneck": 12, "num_prototypes": 40},
            "ibot_head": {"width": WIDTH, **IBOT},
        },
        crops=crops,
        group_size=GROUP,
        mask_ratio=mask_ratio,
        dino_weight=1.0,
        ibot_weight=3.0,
        koleo_weight=0.1,
        student_temperature=0.1,
        teacher_temperature=lambda step: jnp.asarray(0.05),
        ema=lambda step: jnp.asarray(0.99),
    )


@cache
def traced(mask_ratio=(0.1, 0.5), gradient=True):
    """The jaxpr of one step's loss, from canvases to scalars, with the student's gradients."""
    objective = make_objective(mask_ratio)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    batch = {"image": shape(IMAGES, 64, 64, dtype="uint8"), "size": shape(IMAGES, 2, dtype="int32")}
    key, step = jax.eval_shape(lambda: (jax.random.key(0), jnp.asarray(0)))
    loss = jax.value_and_grad(objective.loss, has_aux=True) if gradient else objective.loss
    return trace(loss, params, params, batch, key, step)


def test_the_ibot_head_works_on_hidden_patches_alone():
    """36 patches, 4 of a group's 8 crops masked: ratios 0.15 ... 0.45 hide 5 + 9 + 13 + 16, and 0.5 hides 4 x 18."""
    hidden = {(0.1, 0.5): 2 * (5 + 9 + 13 + 16), (0.5, 0.5): 2 * (4 * 18)}
    sizes = set(IBOT.values())
    head = {ratio: flops(traced(ratio), touching=sizes) for ratio in hidden}
    rest = {ratio: flops(traced(ratio)) - head[ratio] for ratio in hidden}
    per_patch = {ratio: head[ratio] / hidden[ratio] for ratio in hidden}
    print(f"\niBOT head: {head} FLOP for {hidden} hidden patches, {per_patch} each; the rest {rest}")
    assert len(set(per_patch.values())) == 1, "FLOPs of the head are not proportional to the hidden patches"
    # Nothing else depends on them but the second moment of the teacher's hidden patches, whose rank is logged.
    more = (rest[(0.5, 0.5)] - rest[(0.1, 0.5)]) / (hidden[(0.5, 0.5)] - hidden[(0.1, 0.5)])
    assert 0 <= more <= 2 * WIDTH**2, "something besides the head depends on the number of hidden patches"
    h, e, k = IBOT.values()
    forward = 2 * (WIDTH * h + h * h + h * e + e * k)
    assert per_patch[(0.5, 0.5)] >= 4 * forward  # the teacher's forward pass, the student's, and its backward pass


def test_all_crops_of_a_network_go_through_one_scan():
    """Forward: one scan over blocks for the teacher, one for the student; its gradient adds one, not two."""
    forward, both = (scans(traced(gradient=gradient), length=DEPTH) for gradient in (False, True))
    assert (len(forward), len(both)) == (2, 3)
    extra = 1 + REGISTERS
    streams = {
        (2 * IMAGES, extra + GLOBAL_GRID**2, WIDTH),
        (LOCAL * IMAGES, extra + LOCAL_GRID**2, WIDTH),
    }
    carried = [{var.aval.shape for var in eqn.invars} & streams for eqn in both]
    assert sorted(map(len, carried)) == [1, 2, 2], "the student's scans carry both streams, the teacher's one"
    print(f"\nscans over blocks in one step: {len(both)} (teacher forward, student forward, student backward)")


def test_positions_are_resized_once_for_the_local_crops():
    """One product per axis of the grid, outside of every loop; the gradient has two more."""
    resizing = [
        [dot for dot in dots(traced(gradient=gradient)) if (LOCAL_GRID, GLOBAL_GRID) in (dot.left, dot.right)]
        for gradient in (False, True)
    ]
    assert [len(found) for found in resizing] == [2, 4]
    assert all(dot.times == 1 for found in resizing for dot in found)
