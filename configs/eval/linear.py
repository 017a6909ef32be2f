"""Linear probe on frozen features of a pretraining run: logistic regression, its strength chosen on `val`.

    python -m cxr_jax.evaluate --config=configs/eval/linear.py --workdir=runs/eval --config.init_from=runs/small_dino \\
        --config.data.path=data/cxr_small --config.data.where.source=nih-chestxray14 --config.data.targets="('sex:F',)"

Beside it stand the same probe on a random network and hand-made features. Seconds to minutes on a CPU.
"""

from configs.eval import head


def get_config():
    config = head.get_config()
    config.protocol = "linear_probe"
    config.probe.tokens = "cls_and_mean_patch"
    config.baselines.random = True
    config.attention_images = 0  # its examples are images alone: no head looks anywhere
    return config
