"""The linear head of DINOv2 and CheXFound on cached features: CLS of the last four blocks and the last mean patch.

    python -m cxr_jax.evaluate --config=configs/eval/linear_cached.py --workdir=runs/eval \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14 --config.data.targets="('sex:F',)"

13 learning rates and 2 weight decays are trained at once; the selection split chooses. Images are read once a backbone,
in the evaluation geometry, without augmentation. `--config.features.cache=DIR` keeps the features for the next head.
"""

from configs.eval import head


def get_config():
    config = head.get_config()
    config.protocol = "cached_head"
    config.baselines.random = True
    config.update(
        {
            "head": {"name": "linear", "blocks": 4, "mean_patch": True},
            "features": {"tokens": ("mean_patch",), "cache": "", "max_gb": 4.0},
            "training": {
                "learning_rates": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
                "weight_decays": (1e-4, 1.0),
                "steps": 400,
                "batch_size": 32,
                "warmup_frac": 0.0,
                "seeds": (0, 1, 2),
            },
        }
    )
    return config
