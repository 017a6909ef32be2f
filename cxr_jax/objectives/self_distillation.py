"""Self-distillation as in DINOv2: DINO on CLS, iBOT on hidden patches, KoLeo on CLS spread, an EMA teacher.

In: a batch `{"image" [b,H,W] uint8, "size" [b,2]}` of unlabelled radiographs. Out: one loss and its terms.

    L = w_dino * DINO + w_ibot * iBOT + w_koleo * (KoLeo(crop 1) + KoLeo(crop 2))

The student sees masked global crops and local crops, the teacher unmasked global crops. Rows are image-major (global
row 2i + c, local row l*i + c), and everything that varies per sample is made static within groups of `group_size`
images (masks, dropped rows, KoLeo neighbours), so no step ever moves activations between devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.data.augment import CropRecipe
from cxr_jax.models.layers import IN_PLACE, Layout
from cxr_jax.models.projection_head import ProjectionHead
from cxr_jax.models.vit import Features, ViT
from cxr_jax.objectives.base import Aux, Batch, Params
from cxr_jax.objectives.dino import dino_loss, dino_mass, dino_products
from cxr_jax.objectives.ibot import ibot_loss, ibot_products
from cxr_jax.objectives.koleo import KOLEO_SCOPES, koleo_of_crops
from cxr_jax.objectives.monitors import second_moment, spread
from cxr_jax.objectives.prototypes import LogitChunks, cross_entropy, from_chunks, to_chunks
from cxr_jax.objectives.sinkhorn import sinkhorn, softmax_centre
from cxr_jax.objectives.views import ViewRecipe, Views

Schedule = Callable[[Array], Array]
CENTRINGS = ("sinkhorn", "softmax", "none")


@dataclass(frozen=True)
class SelfDistillation:
    """DINO + iBOT + KoLeo. Sizes and weights as named; schedules map the step to a value.

    `model` and `heads` are the arguments of `ViT` and of the `ProjectionHead`s `dino_head` and `ibot_head`; with
    `shared_heads` iBOT uses DINO's. `crops` are the two global recipes followed by the local ones. `centring` is
    `sinkhorn`, `softmax` (momentum `centre_momentum`) or `none`, which collapses and is there to show it.
    `prototype_chunks` cuts the losses' arrays of all rows times all prototypes: 1 computes them whole, 8 an eighth at a
    time and twice. KoLeo looks for neighbours in the `group` or in the `global` batch, and is left out while the spread
    of the student's CLS tokens is below `koleo_start_spread`, where its gradient is noise.
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
    shared_heads: bool = False
    prototype_chunks: int = 1
    koleo_scope: str = "group"
    koleo_start_spread: float = 0.0

    def __post_init__(self):
        for name, value, legal in (
            ("centring", self.centring, CENTRINGS),
            ("koleo_scope", self.koleo_scope, KOLEO_SCOPES),
        ):
            if value not in legal:
                raise ValueError(f"objective.{name}={value!r}: legal are {', '.join(legal)}")
        if self.koleo_weight and self.group_size < 2:
            raise ValueError(f"objective.group_size={self.group_size}: KoLeo needs at least 2 images in a group")
        for name in self.head_names:
            prototypes = self.heads[name]["num_prototypes"]
            if self.prototype_chunks < 1 or prototypes % self.prototype_chunks:
                raise ValueError(
                    f"objective.prototype_chunks={self.prototype_chunks} must divide "
                    f"heads.{name}.num_prototypes={prototypes}"
                )
        _ = self.view_recipe

    @property
    def head_names(self) -> tuple[str, ...]:
        """The heads that exist."""
        return ("dino_head",) if self.shared_heads else ("dino_head", "ibot_head")

    @property
    def num_prototypes(self) -> dict[str, int]:
        """Prototypes of each loss that counts."""
        weights = {"dino": self.dino_weight, "ibot": self.ibot_weight}
        return {
            loss: self.heads[self._head_of(f"{loss}_head")]["num_prototypes"]
            for loss, weight in weights.items()
            if weight
        }

    @cached_property
    def view_recipe(self) -> ViewRecipe:
        reduce = self.model.get("reduce_dtype", "float32")
        return ViewRecipe(self.crops, self.group_size, self.mask_ratio, self.model["patch_size"], reduce)

    def _make(self, name: str, rngs: nnx.Rngs) -> nnx.Module:
        if name == "backbone":
            return ViT(**self.model, rngs=rngs)
        return ProjectionHead(**self.heads[name], rngs=rngs)

    def _apply(self, name: str, params: Params) -> nnx.Module:
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: self._make(name, nnx.Rngs(0))))
        return nnx.merge(graphdef, params[name])

    def init(self, key: Array) -> Params:
        """Backbone and heads, each from its own key."""
        return {
            name: nnx.to_pure_dict(nnx.state(self._make(name, nnx.Rngs(params=jax.random.fold_in(key, i)))))
            for i, name in enumerate(("backbone", *self.head_names))
        }

    def init_targets(self, params: Params) -> Params:
        """The teacher starts as a copy of the student; with softmax centring, centres of both losses start at 0."""
        targets = jax.tree.map(jnp.copy, params)
        if self.centring == "softmax":
            sizes = {name: self.heads[self._head_of(name)]["num_prototypes"] for name in ("dino_head", "ibot_head")}
            dtype = params["dino_head"]["prototypes"]["g"].dtype
            targets["centres"] = {name: jnp.zeros((size,), dtype) for name, size in sizes.items()}
        return targets

    def _head_of(self, name: str) -> str:
        return "dino_head" if self.shared_heads else name

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
        layout: Layout = IN_PLACE,
    ) -> Features:
        """Features of `teacher` (the one to use) or `student`."""
        if network not in ("teacher", "student"):
            raise ValueError(f"network={network!r}: legal are teacher, student")
        backbone = self._apply("backbone", targets if network == "teacher" else params)
        return backbone.features(images, blocks=blocks, layout=layout)

    def views(self, batch: Batch, key: Array, layout: Layout = IN_PLACE) -> Views:
        """Crops and masks of this batch."""
        return self.view_recipe.draw(batch, key, layout)

    def pictures(self, params: Params, targets: Params, batch: Batch, key: Array, images: int = 4) -> list[list[Array]]:
        """The first images' crops and masks, those that the step with this `key` trains on."""
        del params, targets
        key_views, _ = jax.random.split(key)
        return self.view_recipe.pictures(self.views(batch, key_views), images)

    def _logits(self, name: str, params: Params, tokens: Array, layout: Layout) -> LogitChunks:
        """Logits of `[..., d]` tokens over the prototypes of the head that serves `name`, in chunks."""
        head = self._head_of(name)
        embeddings = self._apply(head, params)(tokens, layout)
        chunks = {p: to_chunks(value, self.prototype_chunks) for p, value in params[head]["prototypes"].items()}
        return LogitChunks(embeddings, chunks, self.heads[head].get("reduce_dtype", "float32"), layout)

    def _distil(self, name: str, student: LogitChunks, teacher: LogitChunks, targets: Params, step: Array, **pairing):
        """Cross-entropies of one loss, and with softmax centring this batch's mean logits."""
        temperature = self.teacher_temperature(step).astype(teacher.reduce_dtype)
        means = None
        if self.centring == "sinkhorn":
            assignment = sinkhorn(teacher, temperature)
        else:
            centre = jnp.zeros(teacher.num_prototypes) if self.centring == "none" else targets["centres"][name]
            assignment, means = softmax_centre(teacher, to_chunks(centre, self.prototype_chunks), temperature)
        result = cross_entropy(
            student,
            teacher,
            assignment,
            student_temperature=self.student_temperature,
            teacher_temperature=temperature,
            **pairing,
        )
        return result, {} if means is None else {name: from_chunks(means)}

    def loss(
        self, params: Params, targets: Params, batch: Batch, key: Array, step: Array, layout: Layout = IN_PLACE
    ) -> tuple[Float[Array, ""], Aux]:
        """One step's loss over the global batch; see the module docstring."""
        key_views, key_drop = jax.random.split(key)
        views = self.views(batch, key_views, layout)
        targets = jax.lax.stop_gradient(targets)
        images, num_local = batch["image"].shape[0], len(self.crops) - 2
        groups = images // self.group_size

        def hidden(patches):
            """The hidden patches of `[2b, n, d]` as rows `[groups * m, d]`, gathered within groups."""
            grouped = patches.reshape(groups, -1, patches.shape[-1])
            rows = jnp.take_along_axis(grouped, views.positions[:, :, None], axis=1)
            return layout.rows(rows.reshape(-1, patches.shape[-1]))

        def by_image(cls, crops):
            return cls.reshape(images, crops, -1)

        (teacher,) = self._apply("backbone", targets)((views.global_crops,), layout=layout)
        student, local = self._apply("backbone", params)(
            (views.global_crops, views.local_crops), (views.mask, None), key=key_drop, num_groups=groups, layout=layout
        )
        teacher_patches = hidden(teacher.patches[0])
        student_cls = jnp.concatenate([by_image(student.cls[0], 2), by_image(local.cls[0], num_local)], axis=1)
        reduce = views.weights.dtype
        dino, dino_means = self._distil(
            "dino_head",
            self._logits("dino_head", params, student_cls, layout),
            self._logits("dino_head", targets, teacher.cls[0], layout),
            targets,
            step,
            products=dino_products,
            mass=jnp.asarray(dino_mass(num_local), reduce),
        )
        ibot, ibot_means = self._distil(
            "ibot_head",
            self._logits("ibot_head", params, hidden(student.patches[0]), layout),
            self._logits("ibot_head", targets, teacher_patches, layout),
            targets,
            step,
            products=ibot_products,
            mass=jnp.ones((), reduce),
        )
        dino_local, dino_global = dino_loss(dino.entropies)
        ibot_term = ibot_loss(ibot.entropies, views.weights.reshape(-1), 2 * images)
        cls = by_image(student.cls[0], 2).astype(reduce)
        koleo, koleo_metrics = koleo_of_crops(cls, groups if self.koleo_scope == "group" else 1)
        if self.koleo_start_spread:
            koleo = jnp.where(spread(cls) >= self.koleo_start_spread, koleo, 0)
        loss = self.dino_weight * (dino_local + dino_global) + self.ibot_weight * ibot_term + self.koleo_weight * koleo
        metrics = {
            "dino_local_loss": dino_local,
            "dino_global_loss": dino_global,
            "ibot_loss": ibot_term,
            "koleo_loss": koleo,
            **koleo_metrics,
            "teacher_entropy": dino.teacher_entropy,
            "ibot_teacher_entropy": ibot.teacher_entropy,
            "prototype_use": dino.prototype_use,
            "ibot_prototype_use": ibot.prototype_use,
            "feature_spread": spread(teacher.cls[0].astype(reduce)),
            "patch_spread": spread(teacher.patches[0].astype(reduce)),
            "teacher_temperature": self.teacher_temperature(step),
            "ema": self.ema(step),
        }
        moments = {
            "teacher_cls": second_moment(teacher.cls[0].astype(reduce)),
            "teacher_patch": second_moment(teacher_patches.astype(reduce)),
        }
        return loss, Aux(metrics, dino_means | ibot_means if self.centring == "softmax" else {}, moments)
