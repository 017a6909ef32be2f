"""Montgomery County: tuberculosis, 138 images, GLoRI on cached features.

    python -m data_prep.build --reader=montgomery --input=DIR --output=data/montgomery
    python -m cxr_jax.evaluate --config=configs/eval/protocols/montgomery.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/montgomery

Splits are drawn by patient; with so few images the intervals are wide. To train on Shenzhen and test on all of it, see
cross_site.py. Result: not yet run.
"""

from configs.eval import glori_cached


def get_config():
    config = glori_cached.get_config()
    config.data.targets = ("Tuberculosis",)
    config.data.where.source = "montgomery"
    return config
