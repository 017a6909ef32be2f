"""The views that self-distillation trains on: augmented crops and block masks of one batch.

In: a batch of canvases and a key. Out: `Views`, rows image-major (global row 2i + c, local row l*i + c).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cxr_jax.data.augment import CropRecipe, random_crops
from cxr_jax.data.geometry import denormalise
from cxr_jax.data.masking import block_masks, mask_counts
from cxr_jax.models.layers import Layout, Part
from cxr_jax.objectives.base import Batch
from cxr_jax.objectives.parts import Rows, take


class Views(NamedTuple):
    """Crops of `b` images, and the masks of the global ones (True = hidden) as `block_masks` gives them."""

    global_crops: Float[Array, "two_b S S"]
    local_crops: Float[Array, "l_b s s"]
    mask: Bool[Array, "two_b n"]
    positions: Int[Array, "groups m"]
    weights: Float[Array, "groups m"]

    def of_part(self, part: Part, rows: Rows) -> "Views":
        """The views of a part of the batch."""
        return take(self, part, rows)


def hidden_patches(
    patches: Float[Array, "two_b n d"], positions: Int[Array, "groups m"], layout: Layout
) -> Float[Array, "groups_m d"]:
    """The hidden patches as rows, gathered within groups."""
    grouped = patches.reshape(positions.shape[0], -1, patches.shape[-1])
    rows = jnp.take_along_axis(grouped, positions[:, :, None], axis=1)
    return layout.rows(rows.reshape(-1, patches.shape[-1]))


@dataclass(frozen=True)
class ViewRecipe:
    """What is cut and hidden: two global crop recipes followed by the local ones, masks in groups of `group_size`."""

    crops: tuple[CropRecipe, ...]
    group_size: int
    mask_ratio: tuple[float, float]
    patch_size: int
    dtype: str

    def __post_init__(self):
        for recipe in self.crops:
            if recipe.size % self.patch_size:
                raise ValueError(f"crop size {recipe.size} px must be a multiple of model.patch_size={self.patch_size}")
        low, high = self.mask_ratio
        hidden = mask_counts(2 * self.group_size, self.grid**2, self.mask_ratio)[: self.group_size]
        if not 0 <= low <= high <= 1 or hidden.min() < 1:
            raise ValueError(
                f"objective.mask_ratio={tuple(self.mask_ratio)}: expected 0 <= low <= high <= 1 with at least one of a "
                f"global crop's {self.grid**2} patches hidden; the smallest share here is {hidden.min()} patches"
            )

    @property
    def grid(self) -> int:
        """Patches per side of a global crop."""
        return self.crops[0].size // self.patch_size

    def draw(self, batch: Batch, key: Array, layout: Layout) -> Views:
        """Crops and masks of a global batch; the draws of row r depend on the key and r alone."""
        key_crops, key_masks = jax.random.split(key)
        images = batch["image"].shape[0]
        crops = random_crops(key_crops, batch["image"], batch["size"], self.crops, self.dtype)

        def image_major(crops):
            stacked = jnp.stack(crops, axis=1)
            return layout.rows(stacked.reshape(-1, *stacked.shape[2:]))

        mask, positions, weights = block_masks(
            key_masks,
            num_groups=images // self.group_size,
            num_crops=2 * self.group_size,
            grid=self.grid,
            mask_ratio=self.mask_ratio,
            dtype=self.dtype,
        )
        mask = layout.rows(mask.reshape(2 * images, -1))
        return Views(image_major(crops[:2]), image_major(crops[2:]), mask, layout.rows(positions), layout.rows(weights))

    def pictures(self, views: Views, images: int) -> list[list[Array]]:
        """For the first images: global crops, the same with hidden patches blacked out, local crops; each in 0..1."""
        hidden = views.mask.reshape(-1, self.grid, self.grid).repeat(self.patch_size, 1).repeat(self.patch_size, 2)
        shown = denormalise(views.global_crops)
        masked = jnp.where(hidden, 0, shown)
        local = denormalise(views.local_crops)
        local = local.reshape(len(shown) // 2, -1, *local.shape[1:])
        return [
            [*shown[2 * i : 2 * i + 2], *masked[2 * i : 2 * i + 2], *local[i]] for i in range(min(images, len(local)))
        ]
