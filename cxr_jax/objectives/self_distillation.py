"""Self-distillation as in DINOv2: DINO on CLS, iBOT on hidden patches, KoLeo on CLS spread, an EMA teacher.

In: a batch `{"image" [b,H,W] uint8, "size" [b,2]}` of unlabelled radiographs. Out: one loss and its terms.

    L = w_dino * DINO + w_ibot * iBOT + w_koleo * (KoLeo(crop 1) + KoLeo(crop 2))

The student sees masked global crops and local crops, the teacher unmasked global crops. Rows are image-major (global
row 2i + c, local row l*i + c), and everything that varies per sample is made static within groups of `group_size`
images (masks, dropped rows, KoLeo neighbours), so no step ever moves activations between devices.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.data.augment import CropRecipe, random_crops
from cxr_jax.data.geometry import denormalise
from cxr_jax.data.masking import block_masks
from cxr_jax.models.layers import IN_PLACE, Layout
from cxr_jax.models.projection_head import ProjectionHead
from cxr_jax.models.vit import Features, ViT
from cxr_jax.objectives.base import Aux, Batch, Params
from cxr_jax.objectives.dino import dino_loss
from cxr_jax.objectives.ibot import ibot_loss
from cxr_jax.objectives.koleo import koleo_loss
from cxr_jax.objectives.sinkhorn import sinkhorn, softmax_centre

Schedule = Callable[[Array], Array]


@dataclass(frozen=True)
class SelfDistillation:
    """DINO + iBOT + KoLeo. Sizes and weights as named; schedules map the step to a value.

    `model` and `heads` are the keyword arguments of `ViT` and, per head name, of `ProjectionHead`. `crops` are the two
    global recipes followed by the local ones. `centring` is `sinkhorn` or `softmax` (momentum `centre_momentum`).
    """

    model: dict
    heads: dict[str, dict]
    crops: tuple[CropRecipe, ...]
    group_size: int
    mask_ratio: tuple[float, float]
    dino_weight: float
    ibot_weight: float
    koleo_weight: float
    student_temperature: float
    teacher_temperature: Schedule
    ema: Schedule
    centring: str = "sinkhorn"
    centre_momentum: float = 0.9

    def __post_init__(self):
        if self.centring not in ("sinkhorn", "softmax"):
            raise ValueError(f"objective.centring={self.centring!r}: legal are sinkhorn, softmax")
        if self.koleo_weight and self.group_size < 2:
            raise ValueError(f"objective.group_size={self.group_size}: KoLeo needs at least 2 images in a group")
        patch = self.model["patch_size"]
        for recipe in self.crops:
            if recipe.size % patch:
                raise ValueError(f"crop size {recipe.size} px must be a multiple of model.patch_size={patch}")

    def _make(self, name: str, rngs: nnx.Rngs) -> nnx.Module:
        if name == "backbone":
            return ViT(**self.model, rngs=rngs)
        return ProjectionHead(**self.heads[name], rngs=rngs)

    def _apply(self, name: str, params: Params) -> nnx.Module:
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: self._make(name, nnx.Rngs(0))))
        return nnx.merge(graphdef, params[name])

    def init(self, key: Array) -> Params:
        """Backbone and both heads, each from its own key."""
        return {
            name: nnx.to_pure_dict(nnx.state(self._make(name, nnx.Rngs(params=jax.random.fold_in(key, i)))))
            for i, name in enumerate(("backbone", *self.heads))
        }

    def init_targets(self, params: Params) -> Params:
        """The teacher starts as a copy of the student; with softmax centring, centres start at 0."""
        targets = jax.tree.map(jnp.copy, params)
        if self.centring == "softmax":
            centres = {name: jnp.zeros_like(params[name]["prototypes"]["g"]) for name in self.heads}
            targets["centres"] = centres
        return targets

    def update_targets(self, targets: Params, params: Params, carry: Params, step: Array) -> Params:
        """`teacher <- m teacher + (1 - m) student`; centres follow this batch's mean logits for the next step."""
        momentum = self.ema(step)
        teacher = {name: targets[name] for name in params}
        updated = jax.tree.map(lambda t, s: (momentum * t + (1 - momentum) * s).astype(t.dtype), teacher, params)
        if self.centring == "softmax":
            m = self.centre_momentum
            updated["centres"] = jax.tree.map(lambda c, b: m * c + (1 - m) * b, targets["centres"], carry)
        return updated

    def features(
        self,
        params: Params,
        targets: Params,
        images: Float[Array, "b S S"],
        *,
        network: str = "teacher",
        blocks: int = 1,
    ) -> Features:
        """Features of `teacher` (the one to use) or `student`."""
        if network not in ("teacher", "student"):
            raise ValueError(f"network={network!r}: legal are teacher, student")
        return self._apply("backbone", targets if network == "teacher" else params).features(images, blocks=blocks)

    def views(self, batch: Batch, key: Array, layout: Layout = IN_PLACE):
        """Global crops `[2b, S, S]`, local crops `[l*b, s, s]`, and the masks of the global ones.

        Returns `(global, local, mask [2b, n], positions [groups, m], weights [groups, m])`, see `block_masks`.
        """
        key_crops, key_masks = jax.random.split(key)
        images, reduce = batch["image"].shape[0], self.model.get("reduce_dtype", "float32")
        crops = random_crops(key_crops, batch["image"], batch["size"], self.crops, reduce)

        def image_major(crops):
            stacked = jnp.stack(crops, axis=1)
            return layout.rows(stacked.reshape(-1, *stacked.shape[2:]))

        mask, positions, weights = block_masks(
            key_masks,
            num_groups=images // self.group_size,
            num_crops=2 * self.group_size,
            grid=self.crops[0].size // self.model["patch_size"],
            mask_ratio=self.mask_ratio,
            dtype=reduce,
        )
        mask = layout.rows(mask.reshape(2 * images, -1))
        return image_major(crops[:2]), image_major(crops[2:]), mask, layout.rows(positions), layout.rows(weights)

    def pictures(self, params: Params, targets: Params, batch: Batch, key: Array, images: int = 4) -> list[list[Array]]:
        """For the first images: global crops, the same with hidden patches blacked out, local crops; each in 0..1.

        `key` is that of the step, so these are the crops and masks that the step trains on.
        """
        del params, targets
        key_views, _ = jax.random.split(key)
        global_crops, local_crops, mask, _, _ = self.views(batch, key_views)
        side = self.model["patch_size"]
        grid = global_crops.shape[1] // side
        hidden = mask.reshape(-1, grid, grid).repeat(side, 1).repeat(side, 2)
        shown = denormalise(global_crops)
        masked = jnp.where(hidden, 0, shown)
        local = denormalise(local_crops).reshape(batch["image"].shape[0], -1, *local_crops.shape[1:])
        return [
            [*shown[2 * i : 2 * i + 2], *masked[2 * i : 2 * i + 2], *local[i]] for i in range(min(images, len(local)))
        ]

    def _assign(self, name: str, logits: Array, targets: Params, step: Array) -> Array:
        temperature = self.teacher_temperature(step).astype(logits.dtype)
        if self.centring == "sinkhorn":
            return sinkhorn(logits, temperature)
        return softmax_centre(logits, targets["centres"][name].astype(logits.dtype), temperature)

    def loss(
        self, params: Params, targets: Params, batch: Batch, key: Array, step: Array, layout: Layout = IN_PLACE
    ) -> tuple[Float[Array, ""], Aux]:
        """One step's loss over the global batch; see the module docstring."""
        key_views, key_drop = jax.random.split(key)
        global_crops, local_crops, mask, positions, weights = self.views(batch, key_views, layout)
        images = batch["image"].shape[0]
        groups = images // self.group_size

        def hidden(patches):
            """The hidden patches of `[2b, n, d]` as rows `[groups * m, d]`, gathered within groups."""
            grouped = patches.reshape(groups, -1, patches.shape[-1])
            rows = jnp.take_along_axis(grouped, positions[:, :, None], axis=1)
            return layout.rows(rows.reshape(-1, patches.shape[-1]))

        (teacher,) = self._apply("backbone", targets)((global_crops,), layout=layout)
        teacher_logits = {
            "dino_head": self._apply("dino_head", targets)(teacher.cls[0], layout),
            "ibot_head": self._apply("ibot_head", targets)(hidden(teacher.patches[0]), layout),
        }
        teacher_logits = jax.lax.stop_gradient(teacher_logits)
        assigned = {name: self._assign(name, logits, targets, step) for name, logits in teacher_logits.items()}

        student, local = self._apply("backbone", params)(
            (global_crops, local_crops), (mask, None), key=key_drop, num_groups=groups, layout=layout
        )
        dino_head, ibot_head = self._apply("dino_head", params), self._apply("ibot_head", params)
        dino_local, dino_global = dino_loss(
            dino_head(student.cls[0], layout).reshape(images, 2, -1),
            dino_head(local.cls[0], layout).reshape(images, len(self.crops) - 2, -1),
            assigned["dino_head"].reshape(images, 2, -1),
            self.student_temperature,
        )
        ibot = ibot_loss(
            ibot_head(hidden(student.patches[0]), layout),
            assigned["ibot_head"],
            weights.reshape(-1).astype(dino_local.dtype),
            2 * images,
            self.student_temperature,
        )
        cls = student.cls[0].astype(dino_local.dtype).reshape(groups, self.group_size, 2, -1)
        pairs = [koleo_loss(cls[:, :, c]) for c in range(2)]
        koleo = sum(loss for loss, _ in pairs)
        loss = self.dino_weight * (dino_local + dino_global) + self.ibot_weight * ibot + self.koleo_weight * koleo
        metrics = {
            "dino_local_loss": dino_local,
            "dino_global_loss": dino_global,
            "ibot_loss": ibot,
            "koleo_loss": koleo,
            "koleo_distance": jnp.mean(jnp.stack([distance for _, distance in pairs])),
            **collapse_metrics(teacher.cls[0], assigned["dino_head"]),
            "ibot_prototype_use": prototype_use(assigned["ibot_head"]),
            "teacher_temperature": self.teacher_temperature(step),
            "ema": self.ema(step),
        }
        carry = {}
        if self.centring == "softmax":
            carry = {name: logits.mean(0) for name, logits in teacher_logits.items()}
        return loss, Aux(metrics, carry)


def prototype_use(assigned: Float[Array, "rows k"]) -> Float[Array, ""]:
    """Share of prototypes that some row likes best, of those that could be (k or the number of rows, if fewer)."""
    rows, k = assigned.shape
    # By comparison: scattering the rows' argmax would gather all rows on every device.
    best = (assigned == assigned.max(-1, keepdims=True)).any(0)
    return best.sum() / min(rows, k)


def collapse_metrics(cls: Float[Array, "rows d"], assigned: Float[Array, "rows k"]) -> dict[str, Array]:
    """Signs of collapse: entropy of the teacher's rows (nats; ln k = uniform), prototype use, feature rank.

    `feature_rank` is the participation ratio (tr C)^2 / tr C^2 of the teacher's centred, L2-normalised CLS tokens: the
    number of directions they really use, 1 when all lie on a line. `feature_spread` is their root mean square distance
    from their mean: 0 when all images look alike, near 1 when they fill the sphere.
    """
    entropy = -jnp.sum(assigned * jnp.log(jnp.maximum(assigned, jnp.finfo(assigned.dtype).tiny)), axis=-1).mean()
    unit = cls.astype(assigned.dtype)
    unit = unit / jnp.linalg.norm(unit, axis=-1, keepdims=True)
    centred = unit - unit.mean(0)
    covariance = jnp.matmul(centred.T, centred, precision="highest") / len(unit)
    variance = jnp.trace(covariance)
    rank = jnp.square(variance) / jnp.maximum(jnp.square(covariance).sum(), jnp.finfo(covariance.dtype).tiny)
    return {
        "teacher_entropy": entropy,
        "prototype_use": prototype_use(assigned),
        "feature_rank": rank,
        "feature_spread": jnp.sqrt(variance),
    }
