"""The linear head of DINOv2 and CheXFound on a frozen backbone: CLS of the last four blocks, 13 learning rates at once.

    python -m cxr_jax.train --config=configs/finetune/linear.py --workdir=runs/linear_tb \\
        --config.init_from=runs/small_dino --config.data.path=data/cxr_small \\
        --config.data.where.source=shenzhen --config.data.targets="('Tuberculosis',)"

Result: not yet run.
"""

from ml_collections import ConfigDict

from configs.finetune import glori


def get_config():
    config = glori.get_config()
    config.head = ConfigDict({"name": "linear", "blocks": 4, "mean_patch": False})
    return config
