"""The whole self-distillation step against PyTorch: losses and gradients of every parameter, then optimiser and EMA.

Crops and masks are given to both sides (tests/data hold their references), the rows that drop path keeps are derived
from the key. Everything after them is compared in float64 at 1e-8, and in float32 at 1e-4.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.augment import multi_crop_recipes
from cxr_jax.experiments.self_distillation import dino_optimiser
from cxr_jax.export.mapping import flatten
from cxr_jax.models.layers import kept_rows
from cxr_jax.objectives.self_distillation import SelfDistillation
from cxr_jax.objectives.views import Views
from cxr_jax.schedules import Timeline, cosine_schedule, linear_schedule
from cxr_jax.sharding import make_layout, make_mesh, path_name
from cxr_jax.state import create_state, make_step

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")

from torch_self_distillation import loss_terms, sinkhorn, to_torch  # noqa: E402

IMAGES, GROUP, LOCAL, DROP_PATH = 4, 2, 3, 0.3
GRID = 4
TERMS = ("loss", "dino_local_loss", "dino_global_loss", "ibot_loss", "koleo_loss")


class GivenViews(SelfDistillation):
    """The objective on crops and masks that the batch brings, so that no augmentation has to be compiled."""

    def views(self, batch, key, layout=None):
        return Views(*(batch[name] for name in ("global", "local", "mask", "positions", "weights")))


def make_objective(dtype="float64", **changes):
    dtypes = {"param_dtype": dtype, "compute_dtype": dtype, "reduce_dtype": dtype}
    model = {
        "image_size": 32,
        "patch_size": 8,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "ffn": changes.pop("ffn", "swiglu"),
        "num_registers": 2,
        "layer_scale": changes.pop("layer_scale", 1.0),
        "drop_path": DROP_PATH,
        **dtypes,
    }
    head = {"width": 16, "hidden": 24, "bottleneck": 12, **dtypes}
    crops = multi_crop_recipes(
        global_size=32,
        local_size=16,
        num_local=LOCAL,
        global_scale=(0.32, 1.0),
        local_scale=(0.05, 0.32),
        blur_probs="as_documented",
    )
    options = {
        "model": model,
        "heads": {"dino_head": {**head, "num_prototypes": 10}, "ibot_head": {**head, "num_prototypes": 14}},
        "crops": crops,
        "group_size": GROUP,
        "mask_ratio": (0.1, 0.5),
        "dino_weight": 1.0,
        "ibot_weight": 3.0,
        "koleo_weight": 0.1,
        "student_temperature": 0.1,
        "teacher_temperature": linear_schedule(0.04, 0.07, 4),
        "ema": cosine_schedule(0.9, 1.0, 20),
    }
    return GivenViews(**options | changes)


def make_batch(dtype, seed=0):
    """Random crops, and masks with 3 and 6 hidden patches in two of the four global crops of each group."""
    rng = np.random.default_rng(seed)
    groups = IMAGES // GROUP
    mask = np.zeros((groups, 2 * GROUP, GRID**2), bool)
    for group in mask:
        for crop, hidden in zip(rng.permutation(2 * GROUP), (3, 6, 0, 0), strict=True):
            group[crop, rng.permutation(GRID**2)[:hidden]] = True
    positions = np.stack([np.flatnonzero(group) for group in mask])
    per_crop = np.take_along_axis(mask.sum(2), positions // GRID**2, 1)
    return {
        "image": np.zeros((IMAGES, 1, 1), np.uint8),
        "global": rng.standard_normal((2 * IMAGES, 32, 32)).astype(dtype),
        "local": rng.standard_normal((LOCAL * IMAGES, 16, 16)).astype(dtype),
        "mask": mask.reshape(2 * IMAGES, -1),
        "positions": positions.astype(np.int32),
        "weights": (1 / per_crop).astype(dtype),
    }


def random_params(objective, seed, spread=0.1):
    """Parameters with the recipe's scale of kernels, LayerScale and ones, all moved at random by `spread`."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, noise = path_name(path), rng.standard_normal(leaf.shape)
        start = 1.0 if name.endswith(("scale", "/g")) else 0.0
        if "layer_scale" in name:
            start = objective.model["layer_scale"]
        elif name.endswith(("kernel", "/v", "pos_embed")):
            start = 0.2 * rng.standard_normal(leaf.shape)
        return jnp.asarray(start + spread * noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(objective.init, jax.random.key(0)))


def rows_kept(key, depth, rows_per_group):
    """Rows that drop path keeps, per stream, layer and residual: keys are split by layer, stream, branch."""
    _, key_drop = jax.random.split(key)
    groups, streams = IMAGES // GROUP, []
    for stream, rows in enumerate(rows_per_group):
        layers = []
        for layer_key in jax.random.split(key_drop, depth):
            branches = []
            for branch_key in jax.random.split(jax.random.fold_in(layer_key, stream)):
                order = np.argsort(np.asarray(jax.random.uniform(branch_key, (groups, rows), jnp.float32)), axis=1)
                kept = order[:, : kept_rows(rows, DROP_PATH)] + rows * np.arange(groups)[:, None]
                branches.append(torch.tensor(kept.reshape(-1)))
            layers.append(branches)
        streams.append(layers)
    return streams


def reference_inputs(objective, batch, key):
    """Views and kept rows of this step as torch tensors."""
    views = tuple(torch.tensor(batch[name]) for name in ("global", "local", "mask"))
    return views, rows_kept(key, objective.model["depth"], (2 * GROUP, LOCAL * GROUP))


def assert_close_leaves(ours, theirs, tolerance):
    """Largest difference of each leaf relative to its largest entry."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        a, b = np.asarray(ours[name]), theirs[name].detach().numpy()
        assert a.dtype == b.dtype, name
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)
        assert error < tolerance, f"{name}: {error:.2g} relative"


@cache
def compiled_gradient(dtype, ffn, **changes):
    """One program for all initial LayerScales, which only the parameters know."""
    return jax.jit(jax.value_and_grad(make_objective(dtype, ffn=ffn, **changes).loss, has_aux=True))


# float32 is compared with LayerScale 1 and KoLeo far from its singularity, as DESIGN section 5 explains.
@pytest.mark.parametrize(
    ("dtype", "ffn", "layer_scale", "spread", "tolerance", "changes"),
    [
        ("float64", "swiglu", 1.0, 0.1, 1e-8, {}),
        ("float64", "swiglu", 1e-5, 0.0, 1e-8, {}),
        ("float64", "mlp", 1.0, 0.1, 1e-8, {"shared_heads": True, "prototype_chunks": 5}),
        ("float32", "mlp", 1.0, 0.1, 1e-4, {}),
    ],
)
def test_loss_and_gradients_equal_pytorch(dtype, ffn, layer_scale, spread, tolerance, changes):
    with jax.enable_x64(dtype == "float64"):
        objective = make_objective(dtype, ffn=ffn, layer_scale=layer_scale, **changes)
        gradient = compiled_gradient(dtype, ffn, **changes)
        params, targets = (random_params(objective, seed, spread) for seed in (1, 2))
        batch = make_batch(dtype)
        key, step = jax.random.key(7), jnp.asarray(1)
        (loss, aux), grads = gradient(params, targets, batch, key, step)
        views, kept = reference_inputs(objective, batch, key)
        temperature = float(objective.teacher_temperature(step))
        student, teacher = to_torch(flatten(params), grad=True), to_torch(flatten(targets))

        def networks(flat):
            """iBOT's head is DINO's where heads are shared."""
            shared = {
                "ibot_head" + name.removeprefix("dino_head"): p for name, p in flat.items() if "dino_head" in name
            }
            return flat | (shared if objective.shared_heads else {})

        terms = loss_terms(
            networks(student),
            networks(teacher),
            views,
            kept,
            objective,
            lambda _, logits: sinkhorn(logits, temperature),
        )
        terms["loss"].backward()
        ours = {"loss": loss, **{name: aux.metrics[name] for name in TERMS[1:]}}
        for name in TERMS:
            assert ours[name].dtype == dtype
            assert float(ours[name]) == pytest.approx(terms[name].item(), rel=tolerance), name
        zero = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in student.items()}
        assert_close_leaves(flatten(grads), zero, tolerance)
        assert all(np.abs(np.asarray(g)).max() > 0 for name, g in flatten(grads).items() if "pos_embed" in name)


def module_of(name):
    return name.split("/")[0]


def decays(name):
    last = name.split("/")[-1]
    return not (last in ("bias", "scale") or last.startswith("layer_scale"))


class TorchTrainer:
    """AdamW per parameter and layer, clipped per module, as the recipe's table says it."""

    def __init__(self, flat, depth, layer_decay, patch_mult):
        self.params, self.depth = to_torch(flat, grad=True), depth
        # One torch parameter per block, so that layer-wise rates are plain numbers here.
        self.split = {}
        for name, value in self.params.items():
            parts = list(value.detach()) if "/blocks/" in name else [value.detach()]
            self.split[name] = [torch.nn.Parameter(part.clone()) for part in parts]
        groups = []
        for name, parts in self.split.items():
            for i, part in enumerate(parts):
                mult = 1.0
                if "/blocks/" in name:
                    mult = layer_decay ** (depth - i)
                elif module_of(name) == "backbone" and "/norm/" not in name:
                    mult = layer_decay ** (depth + 1) * (patch_mult if "patch_embed" in name else 1.0)
                groups.append({"params": [part], "mult": mult, "name": name})
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def stacked(self):
        return {
            name: torch.stack(list(parts)) if "/blocks/" in name else parts[0] for name, parts in self.split.items()
        }

    def step(self, lr, wd, clip, prototypes_frozen):
        for module in {module_of(name) for name in self.split}:
            torch.nn.utils.clip_grad_norm_(
                [p for name, parts in self.split.items() if module_of(name) == module for p in parts], clip
            )
        for group in self.optimiser.param_groups:
            frozen = prototypes_frozen and "/prototypes/" in group["name"]
            group["lr"] = 0.0 if frozen else lr * group["mult"]
            group["weight_decay"] = wd if decays(group["name"]) else 0.0
        self.optimiser.step()
        self.optimiser.zero_grad()


def test_four_training_steps_equal_pytorch():
    """The jitted step of the loop: gradient, clipping, AdamW with its tables, EMA."""
    clip, layer_decay, patch_mult, steps = 0.3, 0.8, 0.2, 4
    with jax.enable_x64(True):
        objective = make_objective()
        tx, schedules = dino_optimiser(
            timeline=Timeline.fresh(20),
            batch_size=IMAGES,
            depth=2,
            base_learning_rate=0.05,
            final_learning_rate=1e-6,
            schedule="cosine",
            warmup_frac=0.15,
            cooldown_frac=0.0,
            weight_decay=(0.04, 0.2),
            patch_embed_lr_mult=patch_mult,
            layer_decay=layer_decay,
            frozen_prototypes_frac=0.1,
            frozen_backbone_frac=0.0,
            clip_norm=clip,
            betas=(0.9, 0.999),
            first_moment_dtype="param",
        )
        mesh = make_mesh(devices=jax.devices()[:1])
        key = jax.random.key(3)
        shapes = jax.eval_shape(partial(create_state, objective, tx), key)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        state = zeros.replace(params=random_params(objective, 5), targets=random_params(objective, 6))
        batch = make_batch("float64")
        train_step = make_step(objective, tx, mesh, make_layout(mesh, "float64"), schedules)
        trainer = TorchTrainer(flatten(state.params), 2, layer_decay, patch_mult)
        teacher = to_torch(flatten(state.targets))
        for t in range(steps):
            step_key = jax.random.fold_in(key, t)
            views, kept = reference_inputs(objective, batch, step_key)
            # Schedules are float32 numbers whatever the parameters are; tests/test_optim.py checks their values.
            at = jnp.asarray(t, jnp.int32)
            lr, wd, ema, temperature = (
                float(schedule(at)) for schedule in (*schedules.values(), objective.ema, objective.teacher_temperature)
            )

            terms = loss_terms(
                trainer.stacked(), teacher, views, kept, objective, lambda _, x, at=temperature: sinkhorn(x, at)
            )
            terms["loss"].backward()
            trainer.step(lr, wd, clip, prototypes_frozen=t < 2)
            with torch.no_grad():
                teacher = {n: ema * teacher[n] + (1 - ema) * p for n, p in trainer.stacked().items()}

            state, metrics, _ = train_step(state, batch, key)
            assert float(metrics["loss"]) == pytest.approx(terms["loss"].item(), rel=1e-8), f"step {t}"
            assert float(metrics["learning_rate"]) == lr and int(state.step) == t + 1
        assert lr > 0 and int(state.health["skipped_updates"]) == 0
        assert_close_leaves(flatten(state.params), trainer.stacked(), 1e-8)
        assert_close_leaves(flatten(state.targets), teacher, 1e-8)


def test_softmax_centring_uses_the_centres_of_the_steps_before():
    """Loss from the old centres, then `0.9 centre + 0.1 mean logits` for the next step."""
    with jax.enable_x64(True):
        objective = make_objective(centring="softmax")
        params, targets, batch = random_params(objective, 1), random_params(objective, 2), make_batch("float64")
        rng = np.random.default_rng(0)
        centres = {"dino_head": 0.1 * rng.standard_normal(10), "ibot_head": 0.1 * rng.standard_normal(14)}
        key, step = jax.random.key(7), jnp.asarray(1)
        loss, aux = jax.jit(objective.loss)(params, targets | {"centres": centres}, batch, key, step)
        updated = objective.update_targets(targets | {"centres": centres}, params, aux.carry, step)["centres"]

        seen, temperature = {}, float(objective.teacher_temperature(step))

        def assign(name, logits):
            seen[name] = logits.mean(0).numpy()
            return torch.softmax((logits - torch.tensor(centres[name])) / temperature, -1)

        views, kept = reference_inputs(objective, batch, key)
        with torch.no_grad():
            terms = loss_terms(to_torch(flatten(params)), to_torch(flatten(targets)), views, kept, objective, assign)
        assert float(loss) == pytest.approx(terms["loss"].item(), rel=1e-8)
        for name, centre in centres.items():
            np.testing.assert_allclose(updated[name], 0.9 * centre + 0.1 * seen[name], rtol=1e-8)
        assert not objective.init_targets(params)["centres"]["dino_head"].any()
