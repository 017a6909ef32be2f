"""Images to rows of patches and back.

In: one-channel images `[rows, H, W]`, H = W. Out: `[rows, n, p*p]`, patches and the pixels in each row-major.
"""

from jaxtyping import Array, Float


def patchify(images: Float[Array, "rows H W"], side: int) -> Float[Array, "rows n pixels"]:
    """Cut square images into patches of `side` px, which must divide them."""
    rows, grid = images.shape[0], images.shape[1] // side
    patches = images.reshape(rows, grid, side, grid, side).transpose(0, 1, 3, 2, 4)
    return patches.reshape(rows, grid * grid, side * side)


def unpatchify(patches: Float[Array, "rows n pixels"], side: int) -> Float[Array, "rows H W"]:
    """The inverse of `patchify`."""
    rows, grid = patches.shape[0], round(patches.shape[1] ** 0.5)
    images = patches.reshape(rows, grid, grid, side, side).transpose(0, 1, 3, 2, 4)
    return images.reshape(rows, grid * side, grid * side)
