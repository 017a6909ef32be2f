"""Protocols whose rows are scored one by one, image by image: name of `config.protocol` -> what makes its `Page`.

Each is given (source, rows) and by name the other `runs`, whether a `floor` is wanted, and how many `pictures`.
"""

from collections.abc import Callable

from cxr_jax.evals import box_protocol, mask_protocol
from cxr_jax.evals.per_image_report import Page

PER_IMAGE: dict[str, Callable[..., Page]] = {
    "segmentation": mask_protocol.score,
    "localisation": box_protocol.score,
}
# The objective of the runs that each looks at.
TRAINED_FOR = {"segmentation": "segmentation", "localisation": "supervised"}
