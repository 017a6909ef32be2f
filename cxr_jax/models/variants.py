"""Sizes of Vision Transformers by name: one table, no classes.

In: a name such as `vit_l16`. Out: the keyword arguments of `ViT` that the name stands for.
"""

_SIZES = {
    "ti": {"width": 192, "depth": 12, "num_heads": 3},
    "s": {"width": 384, "depth": 12, "num_heads": 6},
    "b": {"width": 768, "depth": 12, "num_heads": 12},
    "l": {"width": 1024, "depth": 24, "num_heads": 16},
    "h": {"width": 1280, "depth": 32, "num_heads": 16},
    # DINOv2's giant (1.1 billion parameters with SwiGLU) and DINOv3's largest.
    "g": {"width": 1536, "depth": 40, "num_heads": 24},
    "7b": {"width": 4096, "depth": 40, "num_heads": 32, "ffn_ratio": 3.0},
}
_PATCHES = (4, 8, 14, 16)
VARIANTS = {
    f"vit_{size}{patch}": {**kwargs, "patch_size": patch} for size, kwargs in _SIZES.items() for patch in _PATCHES
}


def variant(name: str) -> dict:
    """Width, depth, heads, patch size and, where it is not 4, `ffn_ratio`. Raises ValueError with the legal names."""
    if name not in VARIANTS:
        raise ValueError(f"model.variant={name!r}: legal are {', '.join(VARIANTS)}")
    return dict(VARIANTS[name])
