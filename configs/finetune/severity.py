"""An ordinal head for a rising scale: one score, one threshold a step, the cumulative-link likelihood.

    python -m cxr_jax.train --config=configs/finetune/severity.py --workdir=runs/age \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14

The scale here is age in years, which public data has: the targets `age>=N` in rising order. A severity score stands
as such columns of a label table, `Score>=1`, `Score>=2`. On configs/pretrain/small_mae.py after 500 steps, two shared
CPU cores, configs/eval/head.py on 198 test images, mean AUROC of the three ages: 0.59 [0.50, 0.68], the same on the
random network 0.51 [0.43, 0.60], hand-made features 0.69 [0.62, 0.75].
"""

from ml_collections import ConfigDict

from configs.finetune import small_glori


def get_config():
    config = small_glori.get_config()
    config.data.targets = ("age>=30", "age>=45", "age>=60")
    config.head = ConfigDict({"name": "ordinal", "blocks": 4, "mean_patch": True})
    config.label_loss.terms = ("cumulative_link",)
    return config
