"""Settings of the later stages, judged before anything is computed.

In: the sections of an evaluation's config. Out: nothing, or a ConfigError that names the key. Subgroups, audits and
example images come after the scores; a wrong setting of theirs has to be told before an hour of features is spent.
"""

from collections.abc import Mapping
from typing import Any

from cxr_jax.config import call, require
from cxr_jax.evals.audits import check_audits
from cxr_jax.evals.feature_cache import check_folder
from cxr_jax.evals.subgroups import check_subgroups


def check_later_stages(settings: Mapping[str, Any]) -> None:
    """Every section that there is. A cache folder is made and written to, as the features will be."""
    if "subgroups" in settings:
        call(check_subgroups, "subgroups", dict(settings["subgroups"]))
    if "audits" in settings:
        call(check_audits, "audits", {"settings": settings["audits"]})
    if "features" in settings:
        call(check_folder, "features", {"folder": settings["features"]["cache"]})
    count = settings["attention_images"]
    require(count >= 0, f"config.attention_images={count} must be at least 0; 0 shows none")
