"""Shenzhen: tuberculosis by clinical reading, 662 images, GLoRI on cached features.

    python -m data_prep.build --reader=shenzhen --input=DIR --output=data/shenzhen
    python -m cxr_jax.evaluate --config=configs/eval/protocols/shenzhen.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/shenzhen

Splits are drawn by patient. Result: not yet run on the whole set; 566 of its images stand in
configs/eval/small_glori_cached.py.
"""

from configs.eval import glori_cached


def get_config():
    config = glori_cached.get_config()
    config.data.targets = ("Tuberculosis",)
    config.data.where.source = "shenzhen"
    return config
