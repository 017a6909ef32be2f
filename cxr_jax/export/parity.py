"""How far written weights are from our model: the same input through both, in float32.

In: networks of ours, and the folder that was written from them (or the file that they were read from). Out: the
largest and the mean absolute difference of CLS, register and patch tokens after the final norm, and of a fine-tuned
head's logits. Hugging Face's layout goes through transformers, the others through the file `cxr_torch` that is shipped
with them. torch and transformers are imported here and in `tensors` (for a .pth), and nowhere else; `unavailable` says
why they cannot be.

The two sides run one after the other, so that the arrays of ours can be dropped between them.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from cxr_jax.export.contents import Contents, Geometry
from cxr_jax.export.heads import member
from cxr_jax.export.layouts import Target
from cxr_jax.export.mapping import Lazy, to_array
from cxr_jax.export.ours import features, logits

TOLERANCE = 1e-4
TOKENS = ("cls", "registers", "patches")
Outputs = dict[str, np.ndarray]


def unavailable(format: str = "hf") -> str | None:
    """None when what the check needs is installed, else the sentence for the report."""
    for name in ("torch", "transformers") if format == "hf" else ("torch",):
        if find_spec(name) is None:
            return f"not checked ({name} is not installed; pip install -r requirements-test.txt)"
    return None


def random_images(image_size: int, count: int = 2) -> np.ndarray:
    """Fixed normalised noise `[count, S, S]` in the range of real inputs, -2..2."""
    return np.random.default_rng(0).uniform(-2, 2, (count, image_size, image_size)).astype(np.float32)


def pixels_for(images: np.ndarray, geometry: Geometry, target: Target) -> np.ndarray:
    """Our normalised grey `[b, S, S]` in the channels and the normalisation of a layout: `[b, C, S, S]`."""
    ours = np.asarray(images, np.float32)
    if set(target.mean) == {geometry.mean} and set(target.std) == {geometry.std}:
        return np.repeat(ours[:, None], target.num_channels, axis=1)
    grey = ours.astype(np.float64) * geometry.std + geometry.mean
    each = [(grey - m) / s for m, s in zip(target.mean, target.std, strict=True)]
    return np.stack(each, axis=1).astype(np.float32)


def our_outputs(contents: Contents, images: np.ndarray) -> Outputs:
    """Tokens (and logits) of the one network in `contents`, for normalised grey images `[b, S, S]`."""
    ((_, network),) = contents.networks.items()
    options = contents.options.get("head") if "head" in network else None
    blocks = options["blocks"] if options else 1
    found = features(contents.model, network["backbone"], jnp.asarray(images), blocks)
    out = {name: np.asarray(getattr(found, name)) for name in TOKENS}
    if options:
        out["logits"] = np.asarray(logits(options, member(network["head"], 0), found))
    return out


def transformers_model(folder: Path) -> Any:
    """transformers' own model of a folder. Raises ValueError when it finds a tensor missing, unknown or misshapen."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"output_loading_info": True, "local_files_only": True, "dtype": "float32"}
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    # AutoModel would open a folder of ViTMAEForPreTraining without its decoder.
    kind = getattr(transformers, config.architectures[0]) if config.architectures else transformers.AutoModel
    model, info = kind.from_pretrained(folder, **options)
    wrong = {key: sorted(map(str, names)) for key, names in info.items() if names and key != "error_msgs"}
    if wrong or info.get("error_msgs"):
        raise ValueError(f"transformers did not take every tensor: {wrong or info['error_msgs']}")
    return model.eval()


def their_outputs(
    source: Path,
    target: Target,
    noted: dict[str, Any],
    tensors: dict[str, Lazy] | None,
    pixels: np.ndarray,
    blocks: int = 1,
    network: str | None = None,
) -> Outputs:
    """Tokens (and logits, where a head was written) of PyTorch for pixels `[b, C, S, S]`.

    `tensors` are those of a file that was read, and `noted` says what it is; without them `source` is a folder of
    ours or of transformers. `network` is `teacher` or `student` where there are both.
    """
    import torch

    from cxr_jax.export import cxr_torch

    inputs = torch.from_numpy(np.ascontiguousarray(pixels))
    with torch.no_grad():
        if target.format == "hf":
            model = transformers_model(source)
            tokens = cxr_torch.tokens_of(getattr(model, "vit", model), inputs, blocks)
        else:
            if tensors is None:
                backbone = cxr_torch.load_backbone(source, network)
            else:
                arrays = {name: torch.from_numpy(np.array(to_array(t))) for name, t in tensors.items()}
                backbone = cxr_torch.build_backbone(arrays, noted, network)
            tokens = backbone(inputs, blocks)
        out = {name: part.numpy() for name, part in zip(TOKENS, tokens, strict=True)}
        if tensors is None and "head" in noted.get("options", {}):
            rate = (noted.get("learning_rates") or [None])[0]
            out["logits"] = cxr_torch.load_head(source, rate)(tokens[0], tokens[2]).numpy()
    return out


def differences(ours: Outputs, theirs: Outputs) -> dict[str, dict[str, float]]:
    """`{"cls": {"max", "mean"}, "registers": ..., "patches": ..., "logits": ...}` of |ours - theirs|."""
    report = {}
    for name in theirs:
        difference = np.abs(ours[name] - theirs[name])
        if difference.size:
            report[name] = {"max": float(difference.max()), "mean": float(difference.mean())}
    return report


def transformers_pixels(folder: Path, picture: UInt8[np.ndarray, "H W"]) -> np.ndarray:
    """What transformers' own preprocessor makes of a grey picture: `[1, C, S, S]`."""
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return np.asarray(processor(Image.fromarray(picture), return_tensors="np")["pixel_values"], np.float32)


def largest(report: dict) -> float:
    """The largest difference in a report of `differences`; NaN counts as infinite."""
    worst = float(np.max([tokens["max"] for tokens in report.values()]))
    return worst if np.isfinite(worst) else float("inf")
