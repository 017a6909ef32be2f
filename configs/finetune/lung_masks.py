"""Lung masks by a linear head on the patch tokens of a frozen backbone: four learning rates at once.

    python -m cxr_jax.train --config=configs/finetune/lung_masks.py --workdir=runs/lungs \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small

    python -m cxr_jax.train --config=configs/finetune/lung_masks.py --workdir=runs/lungs_random \\
        --config.init_network=random --config.init_from=runs/small_mae --config.data.path=data/cxr_small
    python -m cxr_jax.evaluate --config=configs/eval/segmentation.py --workdir=runs/lungs_eval \\
        --config.init_from=runs/lungs --config.baselines.runs="('runs/lungs_random',)"

On 677 masks of Shenzhen and a COVID-19 collection (422 train, 78 val, 177 test images of 163 patients). The backbone is
that of configs/pretrain/small_mae.py (ViT-Ti/16 at 112 px, so a grid of 7 x 7). 152 s of CPU time for 300 steps, 49 s
for the evaluation. Dice at the stored size of up to 512 px, 95 % patient bootstrap:

    pretrained                        0.816 [0.798, 0.832]     IoU 0.698 [0.676, 0.719]
    random network                    0.764 [0.738, 0.788]     difference 0.052 [0.041, 0.063]
    mean training mask and darkness   0.803 [0.784, 0.821]     difference 0.013 [0.003, 0.022]

By source 0.839 (Shenzhen, 148 images) and 0.698 (COVID-19, 29). Their masks mean different things: those of the
COVID-19 collection include the heart's shadow, those of Shenzhen do not, so no head can please both.
"""

from configs import base


def get_config():
    config = base.training()
    config.total_steps = 300
    config.checkpoint.keep = 2
    config.update(
        {
            "objective": {"name": "segmentation", "bce_weight": 1.0, "dice_weight": 1.0},
            "head": {"name": "linear", "blocks": 4},
            "crop": base.crop((0.5, 1.0), jitter_prob=0.5, rotate_deg=10.0),
            "optim": {"learning_rates": (1e-3, 3e-3, 1e-2, 3e-2), "warmup_frac": 0.05, "weight_decay": 1e-4},
        }
    )
    return config
