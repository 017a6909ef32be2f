"""Supervised heads on a frozen backbone: one head per learning rate of a grid, all on one backbone pass.

In: a batch `{"image", "size", "labels" [b,c] of 1, 0, -1 (unknown)}`. Out: the summed loss of all heads.

    L = sum over heads, images and *known* labels of BCE(logit, label)

Heads share no parameter, so summing their losses trains each as if it were alone. Unknown labels contribute nothing to
any head. The backbone is a target: it has no gradient and never changes.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from cxr_jax.data.augment import CropRecipe, random_crops
from cxr_jax.data.geometry import denormalise
from cxr_jax.heads.glori import GLoRI
from cxr_jax.heads.linear import LinearHead
from cxr_jax.models.layers import IN_PLACE, Layout
from cxr_jax.models.vit import Features, ViT
from cxr_jax.objectives.base import Aux, Batch, Params

HEADS = {"glori": GLoRI, "linear": LinearHead}


@dataclass(frozen=True)
class Supervised:
    """A grid of heads on a frozen backbone.

    `model` and `head` are the keyword arguments of `ViT` and of the head named `head_name`; `learning_rates` only
    counts the grid here (the optimiser multiplies by it along the heads' leading axis). `seed` draws the backbone until
    a checkpoint replaces it: that random network is the baseline that pretraining has to beat.
    """

    model: dict
    head_name: str
    head: dict
    learning_rates: tuple[float, ...]
    crop: CropRecipe
    seed: int = 0

    def __post_init__(self):
        if self.head_name not in HEADS:
            raise ValueError(f"head.name={self.head_name!r}: legal are {', '.join(HEADS)}")
        if not self.learning_rates:
            raise ValueError("learning_rates is empty; name at least one")

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

    def init(self, key: Array) -> Params:
        """The same fresh head for every learning rate, stacked on a leading axis."""
        head = nnx.to_pure_dict(nnx.state(self._make_head(nnx.Rngs(params=key))))
        grid = len(self.learning_rates)
        return {"head": jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (grid, *leaf.shape)), head)}

    def init_targets(self, params: Params) -> Params:
        """A random backbone, which a checkpoint replaces."""
        del params
        return {"backbone": nnx.to_pure_dict(nnx.state(self._make_backbone(nnx.Rngs(params=self.seed))))}

    def update_targets(self, targets: Params, params: Params, carry: Params, step: Array) -> Params:
        """The backbone is frozen."""
        del params, carry, step
        return targets

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
        """Features of the frozen backbone; there is only one network."""
        del params, network
        return self._backbone(targets["backbone"]).features(images, blocks=blocks, layout=layout)

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
        key_crops, _ = jax.random.split(key)
        return [list(denormalise(self._crops(batch, key_crops))[:images])]

    def loss(
        self, params: Params, targets: Params, batch: Batch, key: Array, step: Array, layout: Layout = IN_PLACE
    ) -> tuple[Float[Array, ""], Aux]:
        """Masked binary cross-entropy of every head, summed; metrics are per known label."""
        key_crops, key_dropout = jax.random.split(key)
        crops = self._crops(batch, key_crops, layout)
        blocks = self.head.get("blocks", 4)
        features = jax.lax.stop_gradient(self.features(params, targets, crops, blocks=blocks, layout=layout))
        loss, metrics = self.head_loss(params, features, batch["labels"], key_dropout, layout, step=step)
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
        `key` draws dropout, None leaves it out; `step` is for losses that change during training.
        """
        del step
        per_head = masked_bce(self.logits(params, features, key, layout), labels)
        known = jnp.maximum((labels >= 0).sum(), 1)
        means = {f"bce_lr_{rate:g}": per_head[i] / known for i, rate in enumerate(self.learning_rates)}
        return per_head.sum(), {"bce_best": (per_head / known).min(), **means}


def masked_bce(logits: Float[Array, "grid b c"], labels: Int[Array, "b c"]) -> Float[Array, "grid"]:
    """Binary cross-entropy summed over the known labels, for each head."""
    positive = (labels == 1).astype(logits.dtype)
    entropy = optax.sigmoid_binary_cross_entropy(logits, jnp.broadcast_to(positive, logits.shape))
    return jnp.where(labels >= 0, entropy, 0).sum((1, 2))
