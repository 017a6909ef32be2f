"""Supervised heads on a pretrained backbone: one head per learning rate of a grid, all on one backbone pass.

In: a batch `{"image", "size", "labels" [b,c] of 1, 0, -1 (unknown)}`. Out: the summed loss of all heads.

    L = sum over heads, images and *known* labels of l(logit, label)            l: `label_losses`

Heads share no parameter, so summing their losses trains each as if it were alone. Unknown labels contribute nothing to
any head. What becomes of the backbone is `backbone`:

    frozen   a target: no gradient, never changes; the only choice for more than one head
    lora     a target, and low-rank factors of its attention kernels are trained (`models.lora`)
    full     trained with the head, there are no targets
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from cxr_jax.data.augment import CropRecipe, random_crops
from cxr_jax.data.geometry import denormalise
from cxr_jax.heads.kinds import HEADS
from cxr_jax.models.layers import IN_PLACE, Layout, kept_rows
from cxr_jax.models.lora import check_lora, init_factors, merge_lora
from cxr_jax.models.vit import Features, ViT
from cxr_jax.objectives.base import Aux, Batch, Params
from cxr_jax.objectives.label_losses import ORDINAL, Counts, LabelLoss, label_loss, masked_bce
from cxr_jax.objectives.mixup import mixup

BACKBONES = ("frozen", "lora", "full")
# Numbers of streams of randomness. `split(key)` and a module's own draws take the small ones.
MIXUP, DROP_PATH, FACTORS = 2, 3, 1 << 20


@dataclass(frozen=True)
class Supervised:
    """A grid of heads on a backbone.

    `model` and `head` are the keyword arguments of `ViT` and of the head named `head_name`; `learning_rates` only
    counts the grid here (the optimiser multiplies by it along the heads' leading axis). `seed` draws the backbone until
    a checkpoint replaces it: that random network is the baseline that pretraining has to beat. `lora` holds `rank`,
    `alpha` and `kernels`. `group_size` is of drop path alone, see `models.layers.residual`. `label_counts` are the
    known positives and negatives of every class in training, for losses that go by them.
    """

    model: dict
    head_name: str
    head: dict
    learning_rates: tuple[float, ...]
    crop: CropRecipe
    seed: int = 0
    backbone: str = "frozen"
    lora: dict[str, Any] = field(default_factory=dict)
    group_size: int = 1
    mixup_alpha: float = 0.0
    label_loss: LabelLoss = field(default_factory=LabelLoss)
    label_counts: Counts = ()

    def __post_init__(self):
        if self.head_name not in HEADS:
            raise ValueError(f"head.name={self.head_name!r}: legal are {', '.join(HEADS)}")
        if not self.learning_rates:
            raise ValueError("learning_rates is empty; name at least one")
        if self.backbone not in BACKBONES:
            raise ValueError(f"objective.backbone={self.backbone!r}: legal are {', '.join(BACKBONES)}")
        if self.backbone != "frozen" and len(self.learning_rates) > 1:
            raise ValueError(
                f"optim.learning_rates has {len(self.learning_rates)} rates: with objective.backbone={self.backbone!r} "
                "the backbone learns with the head, and there is one of either; name one rate"
            )
        if self.backbone == "lora":
            check_lora(self.lora["rank"], self.lora["kernels"], self.model["width"])
        if self.mixup_alpha < 0:
            raise ValueError(f"objective.mixup_alpha={self.mixup_alpha}: must be at least 0; 0 switches it off")
        if ORDINAL in self.label_loss.terms and (self.head_name != "ordinal" or self.mixup_alpha):
            raise ValueError(
                f"label_loss.terms={self.label_loss.terms}: {ORDINAL} needs head.name='ordinal' and "
                "objective.mixup_alpha=0; a mixture has no level"
            )
        self._check_drop_path()

    def _check_drop_path(self) -> None:
        rate = self.model.get("drop_path", 0.0)
        if not 0 <= rate < 1:
            raise ValueError(f"objective.drop_path={rate}: legal are shares of the rows, 0 up to but not 1")
        if rate and self.backbone == "frozen":
            raise ValueError(f"objective.drop_path={rate}: a frozen backbone drops nothing; legal is 0")
        if rate and kept_rows(self.group_size, rate) == self.group_size:
            raise ValueError(
                f"objective.drop_path={rate} drops no row of a group of {self.group_size}; take a larger "
                "objective.group_size"
            )

    @classmethod
    def trained(cls, meta: dict[str, Any]) -> "Supervised":
        """The objective of a fine-tuned run, from what its checkpoint says: for features and logits, not to train."""
        head, mode = dict(meta["head"]), meta.get("backbone", {"mode": "frozen"})
        name, crop = head.pop("name"), CropRecipe(size=meta["geometry"]["image_size"], scale=(1.0, 1.0))
        return cls(
            model=meta["model"] | {"drop_path": 0.0},
            head_name=name,
            head=head,
            learning_rates=tuple(meta["learning_rates"]),
            crop=crop,
            backbone=mode["mode"],
            lora={key: value for key, value in mode.items() if key != "mode"},
        )

    def _make_backbone(self, rngs: nnx.Rngs) -> ViT:
        return ViT(**self.model, rngs=rngs)

    def _make_head(self, rngs: nnx.Rngs) -> nnx.Module:
        return HEADS[self.head_name](**self.head, rngs=rngs)

    def _backbone(self, params: Params) -> ViT:
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: self._make_backbone(nnx.Rngs(0))))
        return nnx.merge(graphdef, params)

    def head_module(self, params: Params) -> nnx.Module:
        """The head with one grid member's parameters."""
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: self._make_head(nnx.Rngs(0))))
        return nnx.merge(graphdef, params)

    def _init_backbone(self) -> Params:
        return nnx.to_pure_dict(nnx.state(self._make_backbone(nnx.Rngs(params=self.seed))))

    def init(self, key: Array) -> Params:
        """The same fresh head for every learning rate, stacked on a leading axis; and what else is trained."""
        head = nnx.to_pure_dict(nnx.state(self._make_head(nnx.Rngs(params=key))))
        grid = len(self.learning_rates)
        params = {"head": jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (grid, *leaf.shape)), head)}
        if self.backbone == "full":
            params["backbone"] = self._init_backbone()
        if self.backbone == "lora":
            shapes = jax.eval_shape(self._init_backbone)
            options = {name: self.lora[name] for name in ("rank", "kernels")}
            params["lora"] = init_factors(jax.random.fold_in(key, FACTORS), shapes, **options)
        return params

    def init_targets(self, params: Params) -> Params:
        """A random backbone, which a checkpoint replaces; nothing where the backbone is trained."""
        del params
        return {} if self.backbone == "full" else {"backbone": self._init_backbone()}

    def update_targets(self, targets: Params, params: Params, carry: Params, step: Array) -> Params:
        """What is no parameter is frozen."""
        del params, carry, step
        return targets

    def backbone_params(self, params: Params, targets: Params) -> Params:
        """The parameters of the backbone that computes: of `targets`, with the factors merged in, or of `params`."""
        if self.backbone == "full":
            return params["backbone"]
        frozen = jax.lax.stop_gradient(targets["backbone"])
        if self.backbone == "frozen":
            return frozen
        return merge_lora(frozen, params["lora"], rank=self.lora["rank"], alpha=self.lora["alpha"])

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
        """Deterministic features of the one backbone that there is, as it is now."""
        del network
        return self._backbone(self.backbone_params(params, targets)).features(images, blocks=blocks, layout=layout)

    def logits(
        self, params: Params, features: Features, key: Array | None = None, layout: Layout = IN_PLACE
    ) -> Float[Array, "grid b c"]:
        """Logits of every head of the grid; a key switches their dropout on."""

        def one(head):
            return self.head_module(head)(features, key=key, layout=layout)

        return jax.vmap(one)(params["head"])

    def _crops(self, batch: Batch, key: Array, layout: Layout = IN_PLACE) -> Float[Array, "b S S"]:
        dtype = self.model.get("reduce_dtype", "float32")
        (crops,) = random_crops(key, batch["image"], batch["size"], (self.crop,), dtype)
        return layout.rows(crops)

    def pictures(self, params: Params, targets: Params, batch: Batch, key: Array, images: int = 8) -> list[list[Array]]:
        """The first training crops."""
        del params, targets
        return [list(denormalise(self._mixed(batch, key)[0])[:images])]

    def _mixed(self, batch: Batch, key: Array, layout: Layout = IN_PLACE) -> tuple[Array, Array]:
        """Crops and labels, mixed if the config says so."""
        key_crops, _ = jax.random.split(key)
        crops, labels = self._crops(batch, key_crops, layout), batch["labels"]
        if not self.mixup_alpha:
            return crops, labels
        crops, labels = mixup(jax.random.fold_in(key, MIXUP), crops, labels, self.mixup_alpha)
        return layout.rows(crops), labels

    def _training_features(self, params, targets, crops, key: Array, layout: Layout) -> Features:
        blocks = self.head.get("blocks", 4)
        if self.backbone == "frozen":
            return jax.lax.stop_gradient(self.features(params, targets, crops, blocks=blocks, layout=layout))
        vit = self._backbone(self.backbone_params(params, targets))
        groups = crops.shape[0] // self.group_size
        drop_key = key if self.model.get("drop_path", 0.0) else None
        return vit((crops,), blocks=blocks, key=drop_key, num_groups=groups, layout=layout)[0]

    def loss(
        self, params: Params, targets: Params, batch: Batch, key: Array, step: Array, layout: Layout = IN_PLACE
    ) -> tuple[Float[Array, ""], Aux]:
        """The loss of every head on one pass of the backbone, summed; see `head_loss`."""
        _, key_dropout = jax.random.split(key)
        crops, labels = self._mixed(batch, key, layout)
        features = self._training_features(params, targets, crops, jax.random.fold_in(key, DROP_PATH), layout)
        loss, metrics = self.head_loss(params, features, labels, key_dropout, layout, step=step)
        return loss, Aux(metrics, {}, {})

    def head_loss(
        self,
        params: Params,
        features: Features,
        labels: Shaped[Array, "b c"],
        key: Array | None,
        layout: Layout = IN_PLACE,
        *,
        step: Array | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The summed loss of the whole grid on given features of at least `head["blocks"]` blocks, and its metrics.

        `loss` is this behind crops and backbone, so heads that train on kept features do the same mathematics.
        `key` draws dropout, None leaves it out; `step` is for losses that change during training. Metrics are binary
        cross-entropies per known label, whatever the loss is.
        """
        logits = self.logits(params, features, key, layout)
        per_head = label_loss(logits, labels, self.label_loss, self.label_counts, step)
        known = jnp.maximum((labels >= 0).sum(), 1)
        entropy = masked_bce(logits, labels) / known
        means = {f"bce_lr_{rate:g}": entropy[i] for i, rate in enumerate(self.learning_rates)}
        return per_head.sum(), {"bce_best": entropy.min(), **means}
