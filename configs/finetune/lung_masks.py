"""Lung masks by a linear head on the patch tokens of a frozen backbone: four learning rates at once.

    python -m cxr_jax.train --config=configs/finetune/lung_masks.py --workdir=runs/lungs \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small

Result: not yet run.
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
            "crop": {
                "scale": (0.5, 1.0),
                "flip_prob": 0.5,
                "aspect": (3 / 4, 4 / 3),
                "jitter_prob": 0.5,
                "brightness": 0.4,
                "contrast": 0.4,
                "blur_prob": 0.0,
                "blur_sigma": (0.1, 2.0),
                "solarise_prob": 0.0,
                "extra": {"gamma": 0.0, "rotate_deg": 10.0},
            },
            "optim": {"learning_rates": (1e-3, 3e-3, 1e-2, 3e-2), "warmup_frac": 0.05, "weight_decay": 1e-4},
        }
    )
    return config
