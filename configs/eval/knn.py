"""Nearest neighbours on frozen features of a pretraining run: 20 neighbours by cosine, nothing is fitted.

    python -m cxr_jax.evaluate --config=configs/eval/knn.py --workdir=runs/eval --config.init_from=runs/small_dino \\
        --config.data.path=data/cxr_small --config.data.where.source=nih-chestxray14 --config.data.targets="('sex:F',)"
"""

from configs.eval import linear


def get_config():
    config = linear.get_config()
    config.protocol = "knn"
    config.probe.tokens = "cls"
    return config
