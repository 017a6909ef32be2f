"""The optimiser chain fed with equal gradients: clipping, AdamW with all multipliers, EMA, in float32 at 1e-6.

Gradients are random numbers, the same for both sides, so what is compared is the chain alone. The reference is
`torch.optim.AdamW` with one group per parameter and block, and schedules and multipliers written out here from the
recipe. tests/parity/test_objective_torch.py compares the same chain behind real gradients in float64.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.augment import multi_crop_recipes
from cxr_jax.experiments.self_distillation import dino_optimiser
from cxr_jax.export.mapping import flatten, unflatten
from cxr_jax.objectives.self_distillation import SelfDistillation
from cxr_jax.schedules import Timeline, cosine_schedule

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")

DEPTH, STEPS, TOTAL, BATCH = 2, 6, 20, 256
BASE, FINAL, WARMUP, CLIP = 4e-3, 1e-6, 4, 3.0
LAYER_DECAY, PATCH_RATE, FROZEN = 0.9, 0.2, 2
WEIGHT_DECAY, EMA = (0.04, 0.2), (0.9, 1.0)
# Gradient norms by module: far above the limit; above it by step; the last is clipped in some steps and not in others.
SCALES = {"backbone": (40.0,) * STEPS, "dino_head": (4.0,) * STEPS, "ibot_head": (5.0, 2.0, 9.0, 1.0, 3.5, 0.1)}


# --- the code under test ---------------------------------------------------------------------------------------------


def make_objective():
    model = {"image_size": 16, "patch_size": 8, "width": 8, "depth": DEPTH, "num_heads": 2, "num_registers": 2}
    head = {"width": 8, "hidden": 6, "bottleneck": 4, "num_prototypes": 10}
    crops = {"global_size": 16, "local_size": 8, "num_local": 2, "blur_probs": "as_documented"}
    return SelfDistillation(
        model=model,
        heads={"dino_head": head, "ibot_head": head},
        crops=multi_crop_recipes(**crops, global_scale=(0.32, 1.0), local_scale=(0.05, 0.32)),
        group_size=2,
        mask_ratio=(0.3, 0.5),
        dino_weight=1.0,
        ibot_weight=3.0,
        koleo_weight=0.1,
        student_temperature=0.1,
        teacher_temperature=lambda step: jnp.asarray(0.05),
        ema=cosine_schedule(*EMA, TOTAL),
    )


def make_chain():
    tx, _ = dino_optimiser(
        timeline=Timeline.fresh(TOTAL),
        batch_size=BATCH,
        depth=DEPTH,
        base_learning_rate=BASE,
        final_learning_rate=FINAL,
        schedule="cosine",
        warmup_frac=WARMUP / TOTAL,
        cooldown_frac=0.0,
        weight_decay=WEIGHT_DECAY,
        patch_embed_lr_mult=PATCH_RATE,
        layer_decay=LAYER_DECAY,
        frozen_prototypes_frac=FROZEN / TOTAL,
        frozen_backbone_frac=0.0,
        clip_norm=CLIP,
        betas=(0.9, 0.999),
        first_moment_dtype="param",
    )
    return tx


# --- the recipe, written out -----------------------------------------------------------------------------------------


def cosine(start, end, t, steps):
    return end + (start - end) * (1 + math.cos(math.pi * t / steps)) / 2


def learning_rate(t):
    peak = BASE * math.sqrt(BATCH / 1024)
    return peak * t / (WARMUP - 1) if t < WARMUP else cosine(peak, FINAL, t - WARMUP, TOTAL - WARMUP)


EMBEDDINGS = ("cls_token", "register_tokens", "mask_token", "pos_embed")


def rate_of(name, block, t):
    """Multiplier of the rate: layers 0 (embeddings), 1 .. depth (blocks), depth + 1 (norm); heads have 1."""
    parts = name.split("/")
    if parts[1] == "prototypes":
        return 0.0 if t < FROZEN else 1.0
    if parts[:2] == ["backbone", "blocks"]:
        return LAYER_DECAY ** (DEPTH + 1 - (block + 1))
    if parts[:2] == ["backbone", "patch_embed"]:
        return PATCH_RATE * LAYER_DECAY ** (DEPTH + 1)
    return LAYER_DECAY ** (DEPTH + 1) if parts[1] in EMBEDDINGS else 1.0


def decay_of(name):
    """None on biases, norms and LayerScale; kernels, tokens, positions, v and g decay."""
    return 0.0 if name.split("/")[-1] in ("bias", "scale", "layer_scale1", "layer_scale2") else 1.0


class TorchChain:
    """One torch parameter per array, or per block of a stacked one."""

    def __init__(self, start):
        self.parts = {
            name: [torch.nn.Parameter(torch.tensor(part)) for part in (value if "/blocks/" in name else [value])]
            for name, value in start.items()
        }
        groups = [
            {"params": [part], "name": name, "block": i}
            for name, parts in self.parts.items()
            for i, part in enumerate(parts)
        ]
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)

    def values(self):
        return {
            name: np.stack([part.detach().numpy() for part in parts])
            if "/blocks/" in name
            else parts[0].detach().numpy()
            for name, parts in self.parts.items()
        }

    def step(self, gradients, t):
        """One update; returns the gradient norm of each module before clipping."""
        norms = {}
        for module in SCALES:
            names = [name for name in self.parts if name.startswith(f"{module}/")]
            for name in names:
                for i, part in enumerate(self.parts[name]):
                    part.grad = torch.tensor(gradients[name][i] if "/blocks/" in name else gradients[name])
            norms[module] = torch.nn.utils.clip_grad_norm_([p for name in names for p in self.parts[name]], CLIP).item()
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(t) * rate_of(group["name"], group["block"], t)
            group["weight_decay"] = cosine(*WEIGHT_DECAY, t, TOTAL) * decay_of(group["name"])
        self.adamw.step()
        return norms


def random_like(shapes, rng, ones=()):
    """Random arrays around 0, or around 1 where the name ends as in `ones`."""
    return {
        name: (0.3 * rng.standard_normal(leaf.shape) + name.endswith(ones)).astype(np.float32)
        for name, leaf in shapes.items()
    }


@pytest.fixture(scope="module")
def trained():
    """Parameters and EMA of both sides after `STEPS` updates, the start, and the norms that clipping saw."""
    objective, tx = make_objective(), make_chain()
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(objective.init, jax.random.key(0)))
    start, teacher = (random_like(shapes, rng, ones=("scale", "/g")) for _ in range(2))

    @jax.jit
    def update(params, targets, state, gradients, step):
        updates, state = tx.update(gradients, state, params, step=step)
        params = jax.tree.map(jnp.add, params, updates)
        return params, objective.update_targets(targets, params, {}, step), state

    ours, targets = (jax.tree.map(jnp.asarray, unflatten(x)) for x in (start, teacher))
    state, reference, norms = tx.init(ours), TorchChain(start), []
    for t in range(STEPS):
        gradients = random_like(shapes, rng)
        for module, scales in SCALES.items():
            names = [name for name in gradients if name.startswith(f"{module}/")]
            norm = math.sqrt(sum(float(np.square(gradients[name]).sum()) for name in names))
            gradients |= {name: gradients[name] * np.float32(scales[t] / norm) for name in names}
        ours, targets, state = update(ours, targets, state, unflatten(gradients), jnp.asarray(t))
        norms.append(reference.step(gradients, t))
        momentum = cosine(*EMA, t, TOTAL)
        teacher = {name: momentum * teacher[name] + (1 - momentum) * p for name, p in reference.values().items()}
    return start, (flatten(ours), reference.values()), (flatten(targets), teacher), norms


@pytest.mark.parametrize("which", ["parameters", "teacher"])
def test_six_updates_are_pytorchs(trained, which):
    start, parameters, teacher, _ = trained
    ours, theirs = parameters if which == "parameters" else teacher
    assert ours.keys() == theirs.keys() == start.keys()
    for name, value in theirs.items():
        error = np.abs(np.asarray(ours[name]) - value).max() / np.abs(value).max()
        assert error < 1e-6, f"{name}: {error:.2g}"
        moved = np.abs(theirs[name] - start[name]).max() / np.abs(start[name]).max()
        assert moved > 1e-4, f"{name} has hardly moved: the comparison above says nothing"


def test_clipping_was_active_in_each_module_and_not_always(trained):
    norms = trained[-1]
    clipped = {module: [norm[module] > CLIP for norm in norms] for module in SCALES}
    assert all(clipped["backbone"]) and all(clipped["dino_head"])
    assert clipped["ibot_head"] == [True, False, True, False, True, False]
