"""Masked autoencoding (MAE, He et al., arXiv 2111.06377): hide most patches, paint them from the rest.

In: a batch `{"image" [b,H,W] uint8, "size" [b,2]}` of unlabelled radiographs. Out: one loss.

    L = mean over images, their hidden patches i, and pixels of (decode(encode(visible))_i - t_i)^2
    t_i = (x_i - mean x_i) / sqrt(var x_i + 1e-6)      with `normalise_targets`, else x_i

The variance is the unbiased one, over the pixels of one patch. The encoder sees the visible patches only; hidden ones
are never computed there. Every image hides the same number of patches, drawn by the key of the step and the row.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from cxr_jax.data.augment import CropRecipe, random_crops
from cxr_jax.data.geometry import denormalise
from cxr_jax.data.masking import num_visible, random_masks
from cxr_jax.models.layers import IN_PLACE, WHOLE, Layout, Part
from cxr_jax.models.mae_decoder import MAEDecoder
from cxr_jax.models.patches import patchify, unpatchify
from cxr_jax.models.vit import Features, ViT
from cxr_jax.objectives.base import Aux, Batch, Params
from cxr_jax.objectives.monitors import second_moment, spread
from cxr_jax.objectives.parts import Rows, take

EPSILON = 1e-6
NETWORKS = ("teacher", "student")


@dataclass(frozen=True)
class MaskedAutoencoder:
    """MAE. `model` and `decoder` are the keyword arguments of `ViT` and `MAEDecoder`, `crop` makes the one view.

    `mask_ratio` is the share of patches that are hidden. `normalise_targets` predicts patches of mean 0 and variance 1
    instead of pixels: better features, but a prediction is a picture only with the true mean and variance put back.
    """

    model: dict
    decoder: dict
    crop: CropRecipe
    mask_ratio: float
    normalise_targets: bool

    def __post_init__(self):
        patch = self.model["patch_size"]
        if self.crop.size % patch:
            raise ValueError(f"crop size {self.crop.size} px must be a multiple of model.patch_size={patch}")
        num_visible(self.num_patches, self.mask_ratio)
        if self.model.get("drop_path", 0.0):
            raise ValueError(f"model.drop_path={self.model['drop_path']}: masked autoencoding has none; set it to 0")

    @property
    def num_patches(self) -> int:
        """Patches of a crop, visible and hidden."""
        return (self.crop.size // self.model["patch_size"]) ** 2

    @property
    def dtype(self) -> str:
        """The dtype of crops, targets and loss."""
        return self.model.get("reduce_dtype", "float32")

    def _make(self, name: str, rngs: nnx.Rngs) -> nnx.Module:
        if name == "backbone":
            return ViT(**self.model, rngs=rngs)
        return MAEDecoder(**self.decoder, rngs=rngs)

    def _apply(self, name: str, params: Params) -> nnx.Module:
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: self._make(name, nnx.Rngs(0))))
        return nnx.merge(graphdef, params[name])

    def init(self, key: Array) -> Params:
        """Backbone and decoder, each from its own key."""
        return {
            name: nnx.to_pure_dict(nnx.state(self._make(name, nnx.Rngs(params=jax.random.fold_in(key, i)))))
            for i, name in enumerate(("backbone", "decoder"))
        }

    def init_targets(self, params: Params) -> Params:
        """None: there is no teacher."""
        del params
        return {}

    def update_targets(self, targets: Params, params: Params, carry: Params, step: Array) -> Params:
        """Nothing to update."""
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
        """Features of all patches by the one network there is; `teacher` and `student` both name it."""
        del targets
        if network not in NETWORKS:
            raise ValueError(f"network={network!r}: legal are {', '.join(NETWORKS)}, which are the same network here")
        return self._apply("backbone", params).features(images, blocks=blocks, layout=layout)

    def views(self, batch: Batch, key: Array, layout: Layout = IN_PLACE):
        """Crops `[b, S, S]`, `visible [b, v]` and `place [b, n]` of their patches, see `random_masks`."""
        key_crops, key_masks = jax.random.split(key)
        (crops,) = random_crops(key_crops, batch["image"], batch["size"], (self.crop,), self.dtype)
        visible, place = random_masks(
            key_masks, rows=batch["image"].shape[0], num_patches=self.num_patches, mask_ratio=self.mask_ratio
        )
        return layout.rows(crops), layout.rows(visible), layout.rows(place)

    def predict(
        self,
        params: Params,
        crops: Float[Array, "b S S"],
        visible: Int[Array, "b v"],
        place: Int[Array, "b n"],
        layout: Layout = IN_PLACE,
    ) -> tuple[Float[Array, "b n pixels"], Features]:
        """What the decoder paints for every patch, in the space of `targets_of`, and the encoder's visible tokens."""
        (seen,) = self._apply("backbone", params)((crops,), visible=(visible,), layout=layout)
        return self._apply("decoder", params)(seen.cls[0], seen.patches[0], place, layout), seen

    def targets_of(self, patches: Float[Array, "b n pixels"]) -> Float[Array, "b n pixels"]:
        """What the decoder has to paint: the patches, each normalised by its own pixels if the switch is on."""
        if not self.normalise_targets:
            return patches
        mean, std = patch_statistics(patches)
        return (patches - mean) / std

    @property
    def whole_batch_terms(self) -> tuple[str, ...]:
        """None: every image has its own loss."""
        return ()

    def teach(
        self, targets: Params, batch: Batch, key: Array, step: Array, *, parts: int = 1, layout: Layout = IN_PLACE
    ) -> tuple[Array, Array, Array]:
        """The views of the whole batch; nobody teaches."""
        del targets, step, parts
        return self.views(batch, key, layout)

    def loss(
        self, params: Params, targets: Params, batch: Batch, key: Array, step: Array, layout: Layout = IN_PLACE
    ) -> tuple[Float[Array, ""], Aux]:
        """Squared error on the hidden patches of the global batch, see `learn`."""
        return self.learn(
            params, targets, self.teach(targets, batch, key, step, layout=layout), key, step, layout=layout
        )

    def learn(
        self,
        params: Params,
        targets: Params,
        lesson: tuple[Array, Array, Array],
        key: Array,
        step: Array,
        *,
        part: Part = WHOLE,
        layout: Layout = IN_PLACE,
    ) -> tuple[Float[Array, ""], Aux]:
        """Squared error on the hidden patches of a part of the batch.

        Metrics: the same error on visible patches (not trained); the variance of the hidden targets, which is the loss
        of painting their mean; the share of it that is explained (0 = learned nothing, 1 = perfect); and how far apart
        the encoder's tokens of visible patches lie, of all (`patch_spread`) and in the mean of an image
        (`mean_patch_spread`).
        """
        del targets, key, step
        crops, visible, place = take(lesson, part, Rows(lesson[0].shape[0], layout))
        predicted, seen = self.predict(params, crops, visible, place, layout)
        wanted = self.targets_of(patchify(crops, self.model["patch_size"]))
        hidden = (place >= visible.shape[1]).astype(wanted.dtype)

        def mean_over(which, values):
            return (values * which).sum() / which.sum()

        error = jnp.square(predicted - wanted).mean(-1)
        loss = mean_over(hidden, error)
        mean = mean_over(hidden, wanted.mean(-1))
        variance = mean_over(hidden, jnp.square(wanted - mean).mean(-1))
        patches = jax.lax.stop_gradient(seen.patches[0]).astype(wanted.dtype)
        means = patches.mean(1)
        metrics = {
            "reconstruction_loss": loss,
            "visible_error": mean_over(1 - hidden, error),
            "target_variance": variance,
            "explained_variance": 1 - loss / jnp.maximum(variance, EPSILON),
            "mean_patch_spread": spread(means),
            "patch_spread": spread(patches),
        }
        moments = {"mean_patch": second_moment(means), "patch": second_moment(patches.reshape(-1, patches.shape[-1]))}
        return loss, Aux(metrics, {}, moments)

    def pictures(self, params: Params, targets: Params, batch: Batch, key: Array, images: int = 8) -> list[list[Array]]:
        """For the first images: the crop, what the encoder sees of it, and its hidden patches painted; each in 0..1.

        Painted patches get the true mean and standard deviation of their pixels back where targets are normalised, so
        the third picture is for viewing: the network does not know these two numbers.
        """
        del targets
        side = self.model["patch_size"]
        crops, visible, place = (x[:images] for x in self.views(batch, key))
        patches = patchify(crops, side)
        painted, _ = self.predict(params, crops, visible, place)
        if self.normalise_targets:
            mean, std = patch_statistics(patches)
            painted = painted * std + mean
        hidden = (place >= visible.shape[1])[:, :, None]
        shown = [denormalise(unpatchify(x, side)) for x in (patches, jnp.where(hidden, painted, patches))]
        masked = unpatchify(jnp.where(hidden, 0, denormalise(patches)), side)
        return [[shown[0][i], masked[i], jnp.clip(shown[1][i], 0, 1)] for i in range(crops.shape[0])]


def patch_statistics(patches: Float[Array, "b n pixels"]) -> tuple[Float[Array, "b n 1"], Float[Array, "b n 1"]]:
    """Mean and standard deviation `sqrt(unbiased variance + 1e-6)` of every patch."""
    variance = patches.var(-1, keepdims=True, ddof=1)
    return patches.mean(-1, keepdims=True), jnp.sqrt(variance + EPSILON)
