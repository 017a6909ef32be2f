"""An ordinal head for a rising scale: one score, one threshold a step, the cumulative-link likelihood.

    python -m cxr_jax.train --config=configs/finetune/severity.py --workdir=runs/age \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14

The scale here is age in years, which public data has: the targets `age>=N` in rising order. A severity score stands
as such columns of a label table, `Score>=1`, `Score>=2`. Result: not yet run.
"""

from ml_collections import ConfigDict

from configs.finetune import small_glori


def get_config():
    config = small_glori.get_config()
    config.data.targets = ("age>=30", "age>=45", "age>=60")
    config.head = ConfigDict({"name": "ordinal", "blocks": 4, "mean_patch": True})
    config.label_loss.terms = ("cumulative_link",)
    return config
