"""Lung masks by a small UPerNet on four blocks of a frozen backbone: two learning rates at once.

    python -m cxr_jax.train --config=configs/finetune/lung_masks_upernet.py --workdir=runs/lungs_upernet \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small

Result: not yet run.
"""

from ml_collections import ConfigDict

from configs.finetune import lung_masks


def get_config():
    config = lung_masks.get_config()
    config.batch_size, config.total_steps = 16, 200
    config.head = ConfigDict({"name": "upernet", "blocks": 4, "channels": 16})
    config.optim.learning_rates = (1e-3, 3e-3)
    return config
