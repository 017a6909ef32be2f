"""JSRT: lung nodule or none, 247 images, GLoRI on cached features.

    python -m data_prep.build --reader=jsrt --input=DIR --output=data/jsrt
    python -m cxr_jax.evaluate --config=configs/eval/protocols/jsrt.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/jsrt

Splits are drawn by patient; with so few images the intervals are wide. Result: not yet run.
"""

from configs.eval import glori_cached


def get_config():
    config = glori_cached.get_config()
    config.data.targets = ("Nodule",)
    config.data.where.source = "jsrt"
    return config
