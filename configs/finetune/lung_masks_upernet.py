"""Lung masks by a small UPerNet on four blocks of a frozen backbone: two learning rates at once.

    python -m cxr_jax.train --config=configs/finetune/lung_masks_upernet.py --workdir=runs/lungs_upernet \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small

    python -m cxr_jax.evaluate --config=configs/eval/segmentation.py --workdir=runs/lungs_upernet_eval \\
        --config.init_from=runs/lungs_upernet --config.baselines.runs="('runs/lungs',)"

On the data of configs/finetune/lung_masks.py, whose head is the second row: 188 s of CPU time for 200 steps of 16
images. Dice at the stored size, 95 % patient bootstrap, 177 images:

    UPerNet on the pretrained backbone    0.871 [0.856, 0.885]     IoU 0.779 [0.757, 0.798]
    linear head on the same               0.816 [0.798, 0.832]     difference 0.056 [0.050, 0.062]

By source 0.891 (Shenzhen) and 0.771 (COVID-19). On a random backbone: not yet run.
"""

from ml_collections import ConfigDict

from configs.finetune import lung_masks


def get_config():
    config = lung_masks.get_config()
    config.batch_size, config.total_steps = 16, 200
    config.head = ConfigDict({"name": "upernet", "blocks": 4, "channels": 16})
    config.optim.learning_rates = (1e-3, 3e-3)
    return config
