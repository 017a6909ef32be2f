"""The patch embedding, and a decoder's pixels, for another number of channels and another normalisation.

In and out: a patch kernel and its bias. Ours is one grey channel, `[p*p, d]`, on inputs (x - mean) / std;
theirs is `[C, p*p, d]` on inputs (x_c - mean_c) / std_c, where all x_c are the same grey value x in 0..1.

The patch embedding is linear, so both give the same features on a grey image whenever, with sums over channels
and over the pixels of the patch,
    sum_c W_c / std_c = W / std    and    b' - sum_c W_c mean_c / std_c = b - sum W mean / std.
From C channels to one is exact and many to one. From one to three there is a choice; the shares (1/2, 1/4, 1/4)
are powers of two, so with an unchanged normalisation the split and its inverse lose no bit. Sums run in float64.
"""

from collections.abc import Sequence

import numpy as np

SHARES = {1: (1.0,), 3: (0.5, 0.25, 0.25)}
GREY_MEAN, GREY_STD = 0.5, 0.25
# What public weights were trained with, unless their own files say otherwise.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def split_channels(
    kernel: np.ndarray,
    bias: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    our_mean: float = GREY_MEAN,
    our_std: float = GREY_STD,
) -> tuple[np.ndarray, np.ndarray]:
    """Ours `[p*p, d]` -> theirs `[C, p*p, d]`, C = len(mean), and the bias that goes with `mean` and `std`.

    Raises ValueError when C is neither 1 nor 3.
    """
    if len(mean) not in SHARES or len(std) != len(mean):
        raise ValueError(f"num_channels={len(mean)}: legal are {', '.join(map(str, SHARES))}")
    wide = kernel.astype(np.float64)
    parts = [share * wide * (s / our_std) for share, s in zip(SHARES[len(mean)], std, strict=True)]
    shift = sum(share * m for share, m in zip(SHARES[len(mean)], mean, strict=True)) - our_mean
    folded = bias.astype(np.float64) + wide.sum(0) * (shift / our_std)
    return np.stack(parts).astype(kernel.dtype), folded.astype(bias.dtype)


def fold_channels(
    kernel: np.ndarray,
    bias: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    our_mean: float = GREY_MEAN,
    our_std: float = GREY_STD,
) -> tuple[np.ndarray, np.ndarray]:
    """Theirs `[C, p*p, d]` with their normalisation -> ours `[p*p, d]` on (x - our_mean) / our_std.

    Raises ValueError when `mean` or `std` do not have C numbers.
    """
    if not len(mean) == len(std) == kernel.shape[0]:
        raise ValueError(f"image_mean has {len(mean)} and image_std {len(std)} numbers for {kernel.shape[0]} channels")
    wide = kernel.astype(np.float64)
    grey = sum(w * (our_std / s) for w, s in zip(wide, std, strict=True))
    shift = sum(w.sum(0) * ((our_mean - m) / s) for w, m, s in zip(wide, mean, std, strict=True))
    return grey.astype(kernel.dtype), (bias.astype(np.float64) + shift).astype(bias.dtype)


def split_pixels(weights: np.ndarray, num_channels: int) -> np.ndarray:
    """The pixels that a decoder paints, `[..., p*p]` -> `[..., C, p*p]`: every channel is the grey picture."""
    return np.repeat(weights[..., None, :], num_channels, axis=-2)


def fold_pixels(weights: np.ndarray) -> np.ndarray:
    """`[..., C, p*p]` -> `[..., p*p]`: the grey picture is the mean of the channels, summed in float64."""
    return weights.astype(np.float64).mean(axis=-2).astype(weights.dtype)
