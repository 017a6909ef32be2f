"""Self-distillation as in DINOv2: DINO on CLS, iBOT on hidden patches, KoLeo on CLS spread, an EMA teacher.

In: a batch `{"image" [b,H,W] uint8, "size" [b,2]}` of unlabelled radiographs. Out: one loss and its terms.

    L = w_dino * DINO + w_ibot * iBOT + w_koleo * (KoLeo(crop 1) + KoLeo(crop 2))
        [+ w_gram * Gram] [+ w_variance * variance + w_covariance * covariance]

The student sees masked global crops and local crops, the teacher unmasked global crops. Rows are image-major (global
row 2i + c, local row l*i + c), and everything that varies per sample is made static within groups of `group_size`
images (masks, dropped rows, KoLeo neighbours), so no step ever moves activations between devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cxr_jax.data.augment import CropRecipe
from cxr_jax.models.layers import IN_PLACE, WHOLE, Layout, Part
from cxr_jax.models.projection_head import ProjectionHead
from cxr_jax.models.vit import Features, ViT
from cxr_jax.objectives.base import Aux, Batch, Params
from cxr_jax.objectives.dino import dino_loss, dino_mass, dino_products
from cxr_jax.objectives.ema import TEACHERS, follow, start_teacher
from cxr_jax.objectives.gram import NEGATIVES, gram_loss
from cxr_jax.objectives.ibot import ibot_loss, ibot_products
from cxr_jax.objectives.koleo import KOLEO_SCOPES, koleo_of_crops
from cxr_jax.objectives.monitors import second_moment, spread
from cxr_jax.objectives.parts import Rows, put_together, take
from cxr_jax.objectives.prototypes import Assignment, LogitChunks, cross_entropy, from_chunks, to_chunks
from cxr_jax.objectives.sinkhorn import sinkhorn, softmax_centre
from cxr_jax.objectives.variance_covariance import variance_covariance_loss
from cxr_jax.objectives.views import ViewRecipe, Views, hidden_patches

Schedule = Callable[[Array], Array]
CENTRINGS = ("sinkhorn", "softmax", "none")
WEIGHTS = ("dino_weight", "ibot_weight", "koleo_weight", "gram_weight", "variance_weight", "covariance_weight")


class Lesson(NamedTuple):
    """What a step knows before the student looks: the views, the teacher's embeddings and assignments by head.

    Rows are those of the whole batch. `aux` holds what is logged of the teacher, and mean logits for the centres.
    """

    views: Views
    embeddings: dict[str, Array]
    assignments: dict[str, Assignment]
    aux: Aux


@dataclass(frozen=True)
class SelfDistillation:
    """DINO + iBOT + KoLeo. Sizes and weights as named; schedules map the step to a value.

    `model` and `heads` are the arguments of `ViT` and of the `ProjectionHead`s `dino_head` and `ibot_head`; with
    `shared_heads` iBOT uses DINO's. `crops` are the two global recipes followed by the local ones. `centring` is
    `sinkhorn`, `softmax` (momentum `centre_momentum`) or `none`, which collapses and is there to show it.
    `prototype_chunks` cuts the losses' arrays of all rows times all prototypes: 1 computes them whole, 8 an eighth at a
    time and twice. KoLeo looks for neighbours in the `group` or in the `global` batch, and is left out while the spread
    of the student's CLS tokens is below `koleo_start_spread`, where its gradient is noise.

    Two optional terms. With `gram_weight`, patches keep the similarities that they have in the Gram teacher: a copy of
    the teacher as this run started, taken anew every `gram_refresh_every_steps` steps (0: never). The mean patches of
    the student's global crops after `regularised_blocks` are held apart by `variance_weight`, `covariance_weight`.
    `teacher_dtype` is `param`, or `bfloat16` for a teacher (and Gram teacher) of half the memory: see `ema`.
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
    gram_weight: float = 0.0
    gram_refresh_every_steps: int = 0
    gram_negatives: str = "keep"
    regularised_blocks: tuple[int, ...] = ()
    variance_weight: float = 0.0
    covariance_weight: float = 0.0
    teacher_dtype: str = "param"

    def __post_init__(self):
        for name, value, legal in (
            ("centring", self.centring, CENTRINGS),
            ("koleo_scope", self.koleo_scope, KOLEO_SCOPES),
            ("gram_negatives", self.gram_negatives, NEGATIVES),
            ("teacher_dtype", self.teacher_dtype, TEACHERS),
        ):
            if value not in legal:
                raise ValueError(f"objective.{name}={value!r}: legal are {', '.join(legal)}")
        for name in WEIGHTS:
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name}={getattr(self, name)} must be at least 0; 0 leaves the term out")
        if self.koleo_start_spread < 0 or self.gram_refresh_every_steps < 0:
            raise ValueError(
                f"objective.koleo_start_spread={self.koleo_start_spread} and gram_refresh_every_steps="
                f"{self.gram_refresh_every_steps} must be at least 0"
            )
        if self.gram_refresh_every_steps and not self.gram_weight:
            raise ValueError(
                f"objective.gram_refresh_every_steps={self.gram_refresh_every_steps} without a Gram teacher; "
                "set gram_weight, or 0 here"
            )
        if self.student_temperature <= 0:
            raise ValueError(f"objective.student_temperature={self.student_temperature} must be above 0")
        blocks, depth = tuple(self.regularised_blocks), self.model["depth"]
        if len(set(blocks)) < len(blocks) or not all(0 <= block < depth for block in blocks):
            raise ValueError(
                f"objective.regularised_blocks={blocks}: legal are different numbers from 0 to {depth - 1}"
            )
        if bool(blocks) != bool(self.variance_weight or self.covariance_weight):
            raise ValueError(
                f"objective.regularised_blocks={blocks} with variance_weight={self.variance_weight} and "
                f"covariance_weight={self.covariance_weight}: name blocks and at least one weight, or neither"
            )
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
        """The teacher starts as a copy of `params`, and so does the Gram teacher; centres of both losses start at 0."""
        targets = start_teacher(params, self.teacher_dtype)
        if self.gram_weight:
            targets["gram"] = start_teacher(params["backbone"], self.teacher_dtype)
        if self.centring == "softmax":
            sizes = {name: self.heads[self._head_of(name)]["num_prototypes"] for name in ("dino_head", "ibot_head")}
            dtype = params["dino_head"]["prototypes"]["g"].dtype
            targets["centres"] = {name: jnp.zeros((size,), dtype) for name, size in sizes.items()}
        return targets

    def _head_of(self, name: str) -> str:
        return "dino_head" if self.shared_heads else name

    def update_targets(self, targets: Params, params: Params, carry: Params, step: Array) -> Params:
        """`teacher <- m teacher + (1 - m) student`; centres follow this batch's mean logits for the next step."""
        updated = follow({name: targets[name] for name in params}, params, self.ema(step), step)
        if self.centring == "softmax":
            m = self.centre_momentum
            updated["centres"] = jax.tree.map(lambda c, b: m * c + (1 - m) * b, targets["centres"], carry)
        if self.gram_weight:
            every = self.gram_refresh_every_steps
            due = (step + 1) % every == 0 if every else False
            updated["gram"] = jax.lax.cond(due, lambda: updated["backbone"], lambda: targets["gram"])
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
        return self._chunks(name, params, self._apply(self._head_of(name), params)(tokens, layout), layout)

    def _chunks(self, name: str, params: Params, embeddings: Array, layout: Layout) -> LogitChunks:
        """Logits of `[..., e]` embeddings of that head."""
        head = self._head_of(name)
        chunks = {p: to_chunks(value, self.prototype_chunks) for p, value in params[head]["prototypes"].items()}
        return LogitChunks(embeddings, chunks, self.heads[head].get("reduce_dtype", "float32"), layout)

    def _assign(self, name: str, teacher: LogitChunks, targets: Params, step: Array):
        """The teacher's assignment of all rows; with softmax centring also their mean logits, for the next centre."""
        temperature = self.teacher_temperature(step).astype(teacher.reduce_dtype)
        if self.centring == "sinkhorn":
            return sinkhorn(teacher, temperature), {}
        centre = targets["centres"][name] if self.centring == "softmax" else jnp.zeros(teacher.num_prototypes)
        assignment, means = softmax_centre(teacher, to_chunks(centre, self.prototype_chunks), temperature)
        return assignment, {name: from_chunks(means)} if self.centring == "softmax" else {}

    def _optional_terms(self, targets, views, patches, pooled, layout) -> dict[str, tuple[float, Array]]:
        """Weight and value of the terms that are switched on, by name."""
        terms = {}
        if self.gram_weight:
            (anchor,) = self._apply("backbone", {"backbone": targets["gram"]})((views.global_crops,), layout=layout)
            anchor = anchor.patches[0].astype(patches.dtype)
            terms["gram_loss"] = self.gram_weight, gram_loss(patches, anchor, negatives=self.gram_negatives)
        if self.regularised_blocks:
            variance, covariance = variance_covariance_loss(pooled)
            terms["variance_loss"] = self.variance_weight, variance
            terms["covariance_loss"] = self.covariance_weight, covariance
        return terms

    @property
    def whole_batch_terms(self) -> tuple[str, ...]:
        """What is switched on here and has to see the student's whole batch at once, so that it cannot be cut."""
        switched = {
            "koleo_scope='global'": self.koleo_weight and self.koleo_scope == "global",
            "koleo_start_spread": self.koleo_start_spread,
            "regularised_blocks": self.regularised_blocks,
        }
        return tuple(name for name, on in switched.items() if on)

    def teach(
        self, targets: Params, batch: Batch, key: Array, step: Array, *, parts: int = 1, layout: Layout = IN_PLACE
    ) -> Lesson:
        """The teacher's share of a step: it sees the batch in `parts`, and assigns all of its rows at once."""
        key_views, _ = jax.random.split(key)
        views = self.views(batch, key_views, layout)
        targets = jax.lax.stop_gradient(targets)
        rows = Rows(views.positions.shape[0], layout)

        def look(part):
            seen = views.of_part(part, rows)
            (teacher,) = self._apply("backbone", targets)((seen.global_crops,), layout=layout)
            hidden = hidden_patches(teacher.patches[0], seen.positions, layout)
            tokens = {"dino_head": teacher.cls[0], "ibot_head": hidden}
            embeddings = {name: self._logits(name, targets, x, layout).embeddings for name, x in tokens.items()}
            cls = teacher.cls[0].astype(seen.weights.dtype)
            metrics = {"feature_spread": spread(cls), "patch_spread": spread(teacher.patches[0].astype(cls.dtype))}
            moments = {"teacher_cls": second_moment(cls), "teacher_patch": second_moment(hidden.astype(cls.dtype))}
            return embeddings, Aux(metrics, {}, moments)

        if parts == 1:
            embeddings, aux = look(WHOLE)
        else:
            stacked, aux = jax.lax.map(lambda i: look(Part(i, parts)), jnp.arange(parts))
            embeddings, aux = put_together(stacked, rows), jax.tree.map(lambda x: x.mean(0), aux)
        assignments, means = {}, {}
        for name, rows_of_head in embeddings.items():
            teacher = self._chunks(name, targets, rows_of_head, layout)
            assignments[name], mean = self._assign(name, teacher, targets, step)
            means |= mean
        return Lesson(views, embeddings, assignments, Aux(aux.metrics, means, aux.moments))

    def learn(
        self,
        params: Params,
        targets: Params,
        lesson: Lesson,
        key: Array,
        step: Array,
        *,
        part: Part = WHOLE,
        layout: Layout = IN_PLACE,
    ) -> tuple[Float[Array, ""], Aux]:
        """The student's share of a step, on a part of the batch; the loss of the batch is the mean over its parts."""
        _, key_drop = jax.random.split(key)
        targets = jax.lax.stop_gradient(targets)
        rows = Rows(lesson.views.positions.shape[0], layout)
        views, num_local = lesson.views.of_part(part, rows), len(self.crops) - 2
        images, groups, reduce = views.global_crops.shape[0] // 2, views.positions.shape[0], views.weights.dtype
        encoded = self._apply("backbone", params)(
            (views.global_crops, views.local_crops),
            (views.mask, None),
            pooled_blocks=tuple(self.regularised_blocks),
            key=key_drop,
            num_groups=groups,
            part=part,
            layout=layout,
        )
        (student, local), (pooled, _) = encoded if self.regularised_blocks else (encoded, (None, None))
        temperatures = {
            "student_temperature": self.student_temperature,
            "teacher_temperature": self.teacher_temperature(step).astype(reduce),
        }

        def distil(name, tokens, **pairing):
            teacher = self._chunks(name, targets, take(lesson.embeddings[name], part, rows), layout)
            columns, *of_rows = lesson.assignments[name]
            assignment = Assignment(columns, *take(of_rows, part, rows))
            student = self._logits(name, params, tokens, layout)
            return cross_entropy(student, teacher, assignment, **pairing, **temperatures)

        cls = student.cls[0].reshape(images, 2, -1)
        all_cls = jnp.concatenate([cls, local.cls[0].reshape(images, num_local, -1)], axis=1)
        dino = distil("dino_head", all_cls, products=dino_products, mass=jnp.asarray(dino_mass(num_local), reduce))
        dino_local, dino_global = dino_loss(dino.entropies)
        hidden = hidden_patches(student.patches[0], views.positions, layout)
        ibot = distil("ibot_head", hidden, products=ibot_products, mass=jnp.ones((), reduce))
        ibot_term = ibot_loss(ibot.entropies, views.weights.reshape(-1), 2 * images)

        cls = cls.astype(reduce)
        koleo, koleo_metrics = koleo_of_crops(cls, groups if self.koleo_scope == "group" else 1)
        if self.koleo_start_spread:
            koleo = jnp.where(spread(cls) >= self.koleo_start_spread, koleo, 0)

        optional = self._optional_terms(targets, views, student.patches[0].astype(reduce), pooled, layout)
        loss = self.dino_weight * (dino_local + dino_global) + self.ibot_weight * ibot_term + self.koleo_weight * koleo
        loss += sum(weight * value for weight, value in optional.values())
        metrics = {
            "dino_local_loss": dino_local,
            "dino_global_loss": dino_global,
            "ibot_loss": ibot_term,
            "koleo_loss": koleo,
            **koleo_metrics,
            **{name: value for name, (_, value) in optional.items()},
            "teacher_entropy": dino.teacher_entropy,
            "ibot_teacher_entropy": ibot.teacher_entropy,
            "prototype_use": dino.prototype_use,
            "ibot_prototype_use": ibot.prototype_use,
            **lesson.aux.metrics,
            "teacher_temperature": self.teacher_temperature(step),
            "ema": self.ema(step),
        }
        return loss, Aux(metrics, lesson.aux.carry, lesson.aux.moments)

    def loss(
        self, params: Params, targets: Params, batch: Batch, key: Array, step: Array, layout: Layout = IN_PLACE
    ) -> tuple[Float[Array, ""], Aux]:
        """One step's loss over the global batch; see the module docstring."""
        lesson = self.teach(targets, batch, key, step, layout=layout)
        return self.learn(params, targets, lesson, key, step, layout=layout)
