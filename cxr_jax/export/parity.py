"""How far a written Hugging Face folder is from our model: the same input through both, in float32.

In: the folder, our backbone and the arguments of its ViT, normalised grey images. Out: the largest and the mean
absolute difference of CLS, register and patch tokens after the final norm. torch and transformers are imported here
and nowhere else; `unavailable` says why they cannot be.
"""

from importlib.util import find_spec
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from cxr_jax.export.ours import features

TOLERANCE = 1e-4


def unavailable() -> str | None:
    """None when torch and transformers are installed, else the sentence for the report."""
    for name in ("torch", "transformers"):
        if find_spec(name) is None:
            return f"not checked ({name} is not installed; pip install -r requirements-test.txt)"
    return None


def random_images(model: dict, image_size: int, count: int = 2) -> np.ndarray:
    """Fixed normalised noise `[count, S, S]` in the range of real inputs, -2..2."""
    return np.random.default_rng(0).uniform(-2, 2, (count, image_size, image_size)).astype(np.float32)


def transformers_features(folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Tokens of transformers' own model for `[b, H, W]` (grey, repeated per channel) or `[b, C, H, W]`.

    Raises ValueError when transformers finds a tensor missing, unexpected or of another shape.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True, local_files_only=True, dtype="float32")
    wrong = {key: sorted(map(str, names)) for key, names in info.items() if names and key != "error_msgs"}
    if wrong or info.get("error_msgs"):
        raise ValueError(f"transformers did not take every tensor: {wrong or info['error_msgs']}")
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    if pixels.ndim == 3:
        pixels = pixels[:, None].expand(-1, model.config.num_channels, -1, -1)
    with torch.no_grad():
        tokens = model.eval()(pixels).last_hidden_state.numpy()
    first = 1 + getattr(model.config, "num_register_tokens", 0)
    return {"cls": tokens[:, 0], "registers": tokens[:, 1:first], "patches": tokens[:, first:]}


def transformers_pixels(folder: Path, picture: UInt8[np.ndarray, "H W"]) -> np.ndarray:
    """What transformers' own preprocessor makes of a grey picture: `[1, C, S, S]`."""
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return np.asarray(processor(Image.fromarray(picture), return_tensors="np")["pixel_values"], np.float32)


def compare(folder: Path, model: dict, backbone: dict, images: np.ndarray, theirs_in=None) -> dict:
    """`{"cls": {"max", "mean"}, "registers": ..., "patches": ...}` of |ours - transformers'| on one input.

    `theirs_in`: transformers' own pixels `[b, C, H, W]`, when they are not to be a copy of ours.
    """
    ours = features(model, backbone, jnp.asarray(images))
    theirs = transformers_features(folder, images if theirs_in is None else theirs_in)
    report = {}
    for name, other in theirs.items():
        difference = np.abs(np.asarray(getattr(ours, name)[-1]) - other)
        if difference.size:
            report[name] = {"max": float(difference.max()), "mean": float(difference.mean())}
    return report


def largest(report: dict) -> float:
    """The largest difference in a `compare` report; NaN counts as infinite."""
    worst = float(np.max([tokens["max"] for tokens in report.values()]))
    return worst if np.isfinite(worst) else float("inf")
