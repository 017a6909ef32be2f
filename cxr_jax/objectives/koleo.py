"""KoLeo: CLS tokens of different images keep their distance.

In: CLS tokens `[groups, images, d]` of one crop index, before the projection head, in the reduce dtype.
Out: a scalar and the distances `[groups, images]`. With one group, neighbours are sought in the global batch.

    L = -mean log(|x_i - x_nn(i) + eps| + eps),   x L2-normalised, nn(i) the nearest other image of the group

(Kozachenko & Leonenko 1987; Sablayrolles et al. 2019.) The reference's group is one GPU's batch; here it is a named
number of images, so that the loss does not change with the number of devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-8
KOLEO_SCOPES = ("group", "global")


def koleo_loss(cls: Float[Array, "groups images d"]) -> tuple[Float[Array, ""], Float[Array, "groups images"]]:
    """KoLeo within groups; a group needs at least two images."""
    x = cls * jax.lax.rsqrt(jnp.maximum(jnp.square(cls).sum(-1, keepdims=True), EPSILON**2))
    similarity = jnp.einsum("gid,gjd->gij", x, x, precision="highest")
    itself = jnp.eye(x.shape[1], dtype=bool)
    nearest = jnp.argmax(jnp.where(itself, -jnp.inf, similarity), axis=-1)
    neighbour = jnp.take_along_axis(x, nearest[:, :, None], axis=1)
    distance = jnp.sqrt(jnp.square(x - neighbour + EPSILON).sum(-1))
    return -jnp.log(distance + EPSILON).mean(), distance


def koleo_of_crops(cls: Float[Array, "b 2 d"], num_groups: int) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Sum of KoLeo over the two global crops of each image, and quantiles of its distances."""
    grouped = cls.reshape(num_groups, -1, 2, cls.shape[-1])
    losses, distances = zip(*(koleo_loss(grouped[:, :, c]) for c in range(2)), strict=True)
    low, median = jnp.quantile(jnp.stack(distances), jnp.asarray([0.05, 0.5], cls.dtype))
    return sum(losses), {"koleo_distance_p5": low, "koleo_distance_median": median}
