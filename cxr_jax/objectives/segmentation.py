"""Segmentation heads on a frozen backbone: one head per learning rate of a grid, all on one backbone pass.

In: a batch `{"image", "size", "mask" [b,H,W] of 0 and 255, "has_mask" [b]}`. Out: the summed loss of all heads.

    L = sum over heads of the mean over images *with a mask* of  w_bce BCE + w_dice (1 - softDice)

    BCE      = mean over pixels of the cross-entropy of sigmoid(z) and the mask t
    softDice = (2 sum(p t) + 1) / (sum(p) + sum(t) + 1),     p = sigmoid(z)

Soft Dice as in V-Net (Milletari et al. 2016, arXiv 1606.04797) without its squares; the 1 px makes it defined for an
empty mask, to which it is 1 when nothing is predicted. An image without a mask contributes nothing to any head: it is
never taken for one on which there is nothing. Image and mask are cropped, mirrored and turned together.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from cxr_jax.data.augment import CropRecipe, random_mask_crops
from cxr_jax.data.geometry import denormalise
from cxr_jax.heads.segmentation import LinearSegmenter, UPerNet
from cxr_jax.models.layers import IN_PLACE, Layout
from cxr_jax.models.vit import Features
from cxr_jax.objectives.base import Aux, Batch, Params
from cxr_jax.objectives.supervised import Supervised

SEGMENTERS = {"linear": LinearSegmenter, "upernet": UPerNet}
SMOOTHING_PX = 1.0


@dataclass(frozen=True)
class Segmentation(Supervised):
    """A grid of segmentation heads on a frozen backbone; see `Supervised` for what they share.

    `head_name` is one of `SEGMENTERS`; `bce_weight` and `dice_weight` are w above. One mask is learnt, so the heads
    have one class.
    """

    bce_weight: float = 1.0
    dice_weight: float = 1.0
    needs_masks = True  # of its batches

    def __post_init__(self):
        if self.head_name not in SEGMENTERS:
            raise ValueError(f"head.name={self.head_name!r}: legal are {', '.join(SEGMENTERS)}")
        if not self.learning_rates:
            raise ValueError("learning_rates is empty; name at least one")
        if min(self.bce_weight, self.dice_weight) < 0 or not self.bce_weight + self.dice_weight:
            raise ValueError(
                f"objective.bce_weight={self.bce_weight}, dice_weight={self.dice_weight}: legal are numbers of at "
                "least 0, one of them above"
            )

    @classmethod
    def trained(cls, meta: dict[str, Any]) -> "Segmentation":
        """The objective of a fine-tuned run, from what its checkpoint says: for features and logits, not to train."""
        head = dict(meta["head"])
        name, crop = head.pop("name"), CropRecipe(size=meta["geometry"]["image_size"], scale=(1.0, 1.0))
        return cls(meta["model"], name, head, tuple(meta["learning_rates"]), crop)

    def _make_head(self, rngs: nnx.Rngs) -> nnx.Module:
        return SEGMENTERS[self.head_name](**self.head, rngs=rngs)

    def pixel_logits(self, params: Params, features: Features, layout: Layout = IN_PLACE) -> Float[Array, "grid b S S"]:
        """Logits at every pixel of the model input, of every head of the grid."""

        def one(head):
            return self.head_module(head)(features, layout=layout)[:, 0]

        return jax.vmap(one)(params["head"])

    def _masks(self, batch: Batch, key: Array, layout: Layout = IN_PLACE) -> Bool[Array, "b S S"]:
        """The masks of `_crops` with the same key."""
        (masks,) = random_mask_crops(key, batch["mask"], batch["size"], (self.crop,), self._reduce_dtype())
        return layout.rows(masks)

    def _reduce_dtype(self) -> str:
        return self.model.get("reduce_dtype", "float32")

    def pictures(self, params: Params, targets: Params, batch: Batch, key: Array, images: int = 8) -> list[list[Array]]:
        """The first training crops, and below each its mask, grey where the image has none."""
        del params, targets
        crops, masks = denormalise(self._crops(batch, key)), self._masks(batch, key)
        shown = jnp.where(batch["has_mask"][:, None, None], masks.astype(crops.dtype), 0.5)
        return [list(crops[:images]), list(shown[:images])]

    def loss(
        self, params: Params, targets: Params, batch: Batch, key: Array, step: Array, layout: Layout = IN_PLACE
    ) -> tuple[Float[Array, ""], Aux]:
        """The loss above; metrics of every head are its loss and the mean Dice of its crops, cut at probability 1/2."""
        del step
        crops, masks = self._crops(batch, key, layout), self._masks(batch, key, layout)
        features = self.features(params, targets, crops, blocks=self.head["blocks"], layout=layout)
        logits = self.pixel_logits(params, jax.lax.stop_gradient(features), layout)
        has_mask = batch["has_mask"]
        per_head = self.bce_weight * mean_over(has_mask, cross_entropy(logits, masks))
        per_head += self.dice_weight * (1 - mean_over(has_mask, dice(jax.nn.sigmoid(logits), masks)))
        cut = mean_over(has_mask, dice((logits > 0).astype(logits.dtype), masks))
        metrics = {"segmentation_loss_best": per_head.min(), "dice_best": cut.max()}
        for i, rate in enumerate(self.learning_rates):
            metrics |= {f"segmentation_loss_lr_{rate:g}": per_head[i], f"dice_lr_{rate:g}": cut[i]}
        return per_head.sum(), Aux(metrics, {}, {})


def cross_entropy(logits: Float[Array, "grid b S S"], masks: Bool[Array, "b S S"]) -> Float[Array, "grid b"]:
    """Mean binary cross-entropy of every image, for each head."""
    truth = jnp.broadcast_to(masks.astype(logits.dtype), logits.shape)
    return optax.sigmoid_binary_cross_entropy(logits, truth).mean((2, 3))


def dice(predicted: Float[Array, "grid b S S"], masks: Bool[Array, "b S S"]) -> Float[Array, "grid b"]:
    """Soft Dice of every image, for each head; of 0 and 1 it is the hard one but for `SMOOTHING_PX`."""
    truth = masks.astype(predicted.dtype)
    shared = (predicted * truth).sum((2, 3))
    both = predicted.sum((2, 3)) + truth.sum((1, 2))
    return (2 * shared + SMOOTHING_PX) / (both + SMOOTHING_PX)


def mean_over(rows: Bool[Array, " b"], values: Float[Array, "grid b"]) -> Float[Array, " grid"]:
    """The mean over some rows, 0 where there are none; the others have no gradient."""
    return jnp.where(rows, values, 0).sum(1) / jnp.maximum(rows.sum(), 1)
